"""Query transforms: methods that rewrite a query before retrieval, one to a file."""

REGISTRY = "query rewriting before retrieval"
