"""Near-duplicate removal, benchmark decontamination and leakage detection in record files.

``deduplication`` and ``decontamination`` are jobs over finished files; ``leakage`` matches a text
with benchmark items. While records are generated, the filters ``duplicate`` (MinHash),
``decontaminate`` and ``reworded`` of ``synth.filters`` do the same. The similarity measures are in
``text.dedup``.
"""
