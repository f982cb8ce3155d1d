"""Teacher logits on disk (offline distillation): capture, storage, verification, import."""
