"""The folder store: an SQLite catalog and segments of immutable files.

The catalog, an SQLite file, is the source of truth: ``catalog`` reads it and ``writer`` changes it.
``segments`` are search structures that can be rebuilt from it; ``reader`` leases a snapshot while
it is open. The design is explained in docs/explanation/store.md.
"""
