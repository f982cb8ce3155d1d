"""Query transforms: methods that rewrite a query before retrieval, one to a file."""

SEAM = "query rewriting before retrieval"
