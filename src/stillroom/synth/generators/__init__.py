"""Ways to write records: one method a file."""

SEAM = "how the teacher is asked for records"
