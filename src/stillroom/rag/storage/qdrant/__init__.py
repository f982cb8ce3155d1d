"""The Qdrant store: vectors in a collection; catalog and postings in the folder.

Qdrant stores points: a vector and a payload. It has no transactions over several points, so
documents, snapshots and postings are in the folder. A point is one passage of one content, with the
passage's key in the catalog as its id, and never changes; the catalog decides which contents a
snapshot has and who may see them. Points are written before the commit that makes them visible, and
removed after the last snapshot that needs them.
"""
