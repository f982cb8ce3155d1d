"""Ways to rewrite a query before it is searched, one to a file."""

SEAM = "how a query is rewritten before it is searched"
