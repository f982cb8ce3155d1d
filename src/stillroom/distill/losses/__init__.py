"""Divergences of next-token distributions, forms of teacher targets, and the chunked LM head."""
