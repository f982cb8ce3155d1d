"""Relevance graders: methods that score whether a passage answers a question, one to a file."""

SEAM = "how passages are graded against a question"
