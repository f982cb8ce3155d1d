"""Losses beside the logits: on hidden states, attention and relations, one a file."""

SEAM = "what else of the teacher a student learns, inside both"
