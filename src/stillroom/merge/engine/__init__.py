"""Streaming execution of merge plans in bounded memory."""
