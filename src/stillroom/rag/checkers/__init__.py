"""Ways to check whether passages support a sentence, one to a file."""

SEAM = "how a sentence is checked against passages"
