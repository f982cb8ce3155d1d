"""Teacher requests: prompts, generation coroutines, question templates and record content."""
