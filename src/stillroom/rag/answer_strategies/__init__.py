"""Answer strategies: methods that retrieve and read passages for a question, one per file."""

REGISTRY = "answering of a question from an index"
