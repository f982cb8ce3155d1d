"""LoRA adapters: reading, writing, combination and extraction."""
