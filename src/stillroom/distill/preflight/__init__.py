"""Checks before a job starts: data, tokenizers, machine and resources."""
