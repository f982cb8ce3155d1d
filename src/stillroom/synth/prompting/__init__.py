"""Requests to the teacher: prompts, generation coroutines, question prefixes and record content."""
