"""Entity extractors: methods that find entities and relations in passages, one to a file."""

SEAM = "finds what passages speak of, with the place of every mention"
