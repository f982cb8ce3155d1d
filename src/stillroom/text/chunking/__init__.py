"""Parts that all chunkers share; the chunkers themselves are in ``text.chunkers``.

``boundaries`` finds split points, cuts at the chunk size and adds the overlap; ``sections`` follows
headings; ``tokens`` counts tokens and locates them in the text.
"""
