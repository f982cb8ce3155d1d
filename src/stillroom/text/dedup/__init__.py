"""Near-duplicate detection, paraphrase detection and benchmark contamination."""
