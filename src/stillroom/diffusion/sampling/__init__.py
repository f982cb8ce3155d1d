"""Sampling by iterative unmasking: settings, sequence state, KV caches and the sampler.

``sampler`` is the loop over steps and blocks (semi-autoregressive where ``settings`` has a
``block_length``); in each step ``unmask_orders`` ranks the masked positions (``confidence`` is
LLaDA's low-confidence remasking; setting ``order``), ``unmask_rules`` decides how many are unmasked
(LLaDA's ``steps`` and ``get_num_transfer_tokens`` are ``quota``; setting ``commit``), and
``remaskings`` may mask tokens again. ``length_policies`` sets the number of mask tokens.
``kv_caches`` holds the caches, built on ``kv_cache`` (base classes) and ``refreshed_kv_cache``
(stale keys and values).
"""
