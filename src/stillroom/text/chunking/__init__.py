"""Token counts, boundaries and sections that all chunkers share."""
