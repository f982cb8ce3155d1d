"""The folder store: an SQLite catalog and segments of immutable files.

``ledger`` reads and ``writer`` changes the truth, an SQLite file; ``segments`` are what is searched
and can be made again from it; ``opening`` pins a snapshot for a reader. Why it is so is told in
docs/explanation/store.md.
"""
