"""Verbatim spans of a text in the documents and training records that a run was made from.

``suffix_index`` keeps the words of many texts with their suffix array, memory-mapped; ``spans``
picks which spans of a text are shown; ``sources`` names the texts of a run; ``trace`` puts the
three together.

Source: Liu et al. 2025, arXiv:2504.07096 (OLMoTrace).
"""

from stillroom.text.verbatim.trace import VerbatimTrace, trace_text

__all__ = ["VerbatimTrace", "trace_text"]
