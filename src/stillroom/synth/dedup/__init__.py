"""Near-duplicate removal, benchmark decontamination and leakage detection in record files.

``deduplication_job`` and ``decontamination_job`` run over finished files; ``leakage`` searches a
record for benchmark items. While records are generated, the filters ``duplicate`` (MinHash),
``decontaminate`` and ``reworded`` of ``synth.filters`` do the same. The measures of similarity are
in ``text.dedup``: ``shingles``, and ``decontamination`` for the words of benchmark items.
"""
