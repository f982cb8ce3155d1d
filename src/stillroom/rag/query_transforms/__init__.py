"""Query transforms (query expansion, rewriting) before retrieval, one to a file."""

REGISTRY = "query rewriting before retrieval"
