"""Benchmark manifests, splits, audits, metrics, evaluation, and robustness."""
