"""Ways to grade whether a passage holds what a question asks for, one to a file."""

SEAM = "how passages are graded against a question"
