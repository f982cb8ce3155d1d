"""Feature losses: hidden states, attention and relations of both models, one per file."""

SEAM = "losses on hidden states and attention"
