"""Text analysis: terms, spellings, positions, phrase queries and noun phrases."""
