"""Search engines over arrays: postings, dense, sparse and token vectors; no documents, no catalog."""
