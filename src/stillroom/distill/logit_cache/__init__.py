"""Teacher top-k logits on disk (offline distillation).

``capture`` fills a ``cache.LogitCache``, whose rows ``storage`` lays out; ``losses.targets``
selects the top k.
"""
