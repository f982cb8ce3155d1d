"""Verbatim spans of a text in the documents and training records that a run was made from.

``suffix_index`` keeps the words of many texts with their suffix array, memory-mapped; ``trace``
names the texts of a run, and picks which spans of a text are shown.

Source: Liu et al. 2025, arXiv:2504.07096 (OLMoTrace).
"""

from stillroom.text.verbatim.trace import VerbatimTrace, trace_text

__all__ = ["VerbatimTrace", "trace_text"]
