"""KV caches, one file each."""

SEAM = "reuse of keys and values from earlier forward passes"
