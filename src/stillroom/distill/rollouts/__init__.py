"""Where the text comes from that a student learns on, besides the records: one policy a file."""

SEAM = "who writes the text that a student learns on: the student, its teacher, or both"
