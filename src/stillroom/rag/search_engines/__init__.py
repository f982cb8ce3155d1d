"""Search engines over arrays: postings, dense and token vectors.

They know neither documents nor the catalog.
"""
