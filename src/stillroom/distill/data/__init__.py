"""Training records: tokenization, splits, teacher-generated text, teacher-only context."""
