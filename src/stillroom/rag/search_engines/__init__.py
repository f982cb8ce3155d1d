"""Search engines over arrays: postings (BM25), dense and token vectors.

They know neither documents nor the catalog.
"""
