"""Tokenization: chat templates, token counts and the exact bytes of tokens."""
