"""Search engines over arrays: postings, dense, sparse and token vectors.

No documents, no catalog.
"""
