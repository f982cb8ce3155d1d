"""Teacher logits on disk: capture, storage, verification, import from other tools."""
