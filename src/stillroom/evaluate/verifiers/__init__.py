"""Ways to check an answer by rule: one method a file."""

SEAM = "how an answer is checked"
