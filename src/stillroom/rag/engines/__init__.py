"""Arrays that are searched: postings of words, and vectors; no documents, no ledger."""
