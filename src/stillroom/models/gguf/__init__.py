"""GGUF files: export of checkpoints, tensor layout, vocabulary, and comparison with the source."""
