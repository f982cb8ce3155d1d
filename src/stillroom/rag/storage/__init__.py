"""Storage of an index: snapshots, filters, the store protocol, and one folder a backend."""
