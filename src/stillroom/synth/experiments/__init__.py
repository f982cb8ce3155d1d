"""Experiments with small student models: model collapse, data value and diversity monitoring."""
