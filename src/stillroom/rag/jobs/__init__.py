"""Job kinds of retrieval, one module each."""
