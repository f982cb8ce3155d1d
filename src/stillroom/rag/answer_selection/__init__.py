"""Answer sentence selection (extractive QA): an encoder scores each sentence of the passages."""
