"""Feature losses: hidden states, attention and relations of both models, one per file."""

REGISTRY = "losses on hidden states and attention"
