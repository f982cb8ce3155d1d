"""How entities and relations are found in passages."""

SEAM = "finds what passages speak of, with the place of every mention"
