"""Query transforms: methods that rewrite a query before retrieval, one to a file."""

SEAM = "how a query is rewritten before it is searched"
