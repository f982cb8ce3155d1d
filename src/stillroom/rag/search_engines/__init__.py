"""Search engines over arrays: postings, dense, sparse and token vectors.

They know neither documents nor the catalog.
"""
