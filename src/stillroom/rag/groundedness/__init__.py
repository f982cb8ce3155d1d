"""Groundedness (faithfulness) by words: how far a passage supports a sentence, and contradictions.

``score`` computes it; ``claims`` reads names, numbers and negations of one text; ``substitutions``
and ``roles`` compare the words of two. The methods that use them are in ``rag.checkers``.
"""
