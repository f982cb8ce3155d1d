"""Entity extractors: methods that find entities and relations in passages, one per file."""

SEAM = "extraction of entities and relations, with the position of every mention"
