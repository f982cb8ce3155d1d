"""Trained support checker: whether a passage supports a claim, learned from planted edits."""
