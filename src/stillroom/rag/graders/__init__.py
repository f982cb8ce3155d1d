"""Relevance graders: methods that score whether a passage answers a question, one per file."""

REGISTRY = "grading of passages by relevance to a question"
