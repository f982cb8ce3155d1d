"""Entity extractors: methods that find entities and relations in passages, one per file."""

REGISTRY = "extraction of entities and relations, with the position of every mention"
