"""KV caches, one file each."""

SEAM = "what of earlier calls is used again"
