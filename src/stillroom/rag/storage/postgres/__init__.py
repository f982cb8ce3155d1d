"""The PostgreSQL store: catalog tables, postings, and vectors with pgvector.

One schema holds one index. Everything that the folder's store keeps in its ledger lies in tables of
the same names; passages' vectors and the postings of their words are tables, too, so that whatever
is searched is searched by one statement that holds who asks. The formulas of BM25 and the exact
scores of vectors are computed here, by the code that computes them for the folder, over what such a
statement gives: equal documents have equal scores to the last digit in both.
"""
