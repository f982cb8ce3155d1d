"""Question-answering evaluation: question sets, judged collections, answers and leakage."""
