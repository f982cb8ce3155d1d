"""Ways from a question to an answer: what is searched, judged and read, and when to stop."""

SEAM = "how a question is answered from an index"
