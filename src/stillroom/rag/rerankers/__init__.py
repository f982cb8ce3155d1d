"""Ways to order found passages anew, one to a file."""

SEAM = "how found passages are ordered anew, query and passage read together"
