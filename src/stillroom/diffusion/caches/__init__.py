"""Caches: what of earlier calls is used again."""

SEAM = "what of earlier calls is used again"
