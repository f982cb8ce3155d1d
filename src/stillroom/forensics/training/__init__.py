"""Detector training, validation, and model cards."""
