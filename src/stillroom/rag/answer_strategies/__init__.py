"""Answer strategies: methods that retrieve, judge and read for a question, one to a file."""

SEAM = "how a question is answered from an index"
