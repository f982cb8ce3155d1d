"""Near-duplicate removal, and benchmark decontamination (leakage, contamination), of record files.

``deduplication_job`` and ``decontamination_job`` run over finished files. ``contamination``
searches a record for benchmark items, by ``word_search`` and by embeddings. While records are
generated, the filters ``duplicate`` (MinHash), ``decontaminate`` and ``reworded`` of
``synth.filters`` do the same. The measures of similarity (n-gram overlap, shingles) are in
``text.dedup``.
"""
