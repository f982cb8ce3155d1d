"""C2PA content credentials: signing, validation, trust lists.

Of pictures, recordings and documents the c2pa library checks COSE_Sign1, certificates and the hard
binding (``c2pa.hash.data``; ``credentials`` reads, ``signer`` signs). Those in text are our own:
``cose``, ``jumbf`` and ``reader`` of ``records.text_credentials`` read and verify them,
``provenance.text_marks`` writes them, and ``signature`` checks their trust.
"""
