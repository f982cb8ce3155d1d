"""The Qdrant store: vectors in a collection; catalog and postings in the folder.

Qdrant keeps points: a vector and a payload. It has no transaction over several of them and no place
for documents, snapshots and words, so that these stay where they are. A point is one passage of one
content, named by the passage's key in the ledger, and never changes; which contents a snapshot
sees, and who may see them, is what the ledger says. Points come before the commit that lets them be
seen, and go after the last snapshot that needs them.
"""
