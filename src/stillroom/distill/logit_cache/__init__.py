"""Teacher top-k logits on disk (offline distillation): capture, storage, checks, import."""
