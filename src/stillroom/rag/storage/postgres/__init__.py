"""The PostgreSQL store: catalog tables, postings, and vectors with pgvector.

One schema contains one index. Its tables have the names of the folder store's catalog; vectors and
postings are tables, too, so that each search is one statement with its access condition. BM25 and
exact vector scores are computed here, by the code of the folder store, over the rows of such a
statement: equal documents have bitwise equal scores in both.
"""
