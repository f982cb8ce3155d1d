"""Feature losses: hidden states, attention and relations of both models, one per file."""

SEAM = "what else of the teacher a student learns, inside both"
