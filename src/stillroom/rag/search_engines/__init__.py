"""Search engines over arrays: postings (BM25), dense, sparse and token vectors.

They know neither documents nor the catalog.
"""
