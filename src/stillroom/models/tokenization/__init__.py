"""Tokenization: chat templates, assistant masks, token counts and the exact bytes of tokens."""
