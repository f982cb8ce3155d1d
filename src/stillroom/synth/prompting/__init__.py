"""Teacher requests: prompts, generation coroutines, question prefixes and record content."""
