"""Metrics with confidence intervals: retrieval, answers, diversity, calibration, agreement."""
