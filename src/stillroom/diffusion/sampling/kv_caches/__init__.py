"""KV caches, one file each."""

REGISTRY = "reuse of keys and values from earlier forward passes"
