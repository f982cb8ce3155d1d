"""Ways to judge a record: one method a file."""

SEAM = "which records are kept, and why the others are not"
