"""Rerankers: methods that reorder retrieved passages, one to a file."""

SEAM = "how found passages are ordered anew, query and passage read together"
