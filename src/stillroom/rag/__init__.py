"""Retrieval: an index over documents, and answers whose citations open to the source.

Documents are parsed and cut into passages with byte spans. Passages are found by words (BM25) and
by vectors (an exact scan), and the two lists are fused. A model answers from numbered passages that
are fenced off as data, and each sentence of the answer is checked against the passages; a sentence
without support is marked as unsupported.

Papers: BM25 (Robertson and Zaragoza 2009, doi:10.1561/1500000019), dense retrieval (Karpukhin et
al. 2020, arXiv:2004.04906), reciprocal rank fusion (Cormack et al. 2009,
doi:10.1145/1571941.1572114), RM3 (Abdul-Jaleel et al. 2004), HyDE (Gao et al. 2022,
arXiv:2212.10496), late interaction (Khattab and Zaharia 2020, arXiv:2004.12832), spotlighting of
untrusted text (Hines et al. 2024, arXiv:2403.14720).

Input: a folder of documents. Output: an ``index`` artifact with ``ledger.sqlite`` (the catalog of
documents, snapshot by snapshot), ``segments/`` (postings and vectors) and ``index.json``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stillroom.exports import export_lazily

if TYPE_CHECKING:
    from stillroom.rag.generation.answer import ask, ask_stream
    from stillroom.rag.index.searcher import Index
    from stillroom.rag.interfaces import QUERY_TRANSFORMS, RERANKERS, RETRIEVERS, Query
    from stillroom.rag.jobs.index import IndexRecipe
    from stillroom.rag.retrieval.pipeline import retrieve

__all__ = [
    "QUERY_TRANSFORMS",
    "RERANKERS",
    "RETRIEVERS",
    "Index",
    "IndexRecipe",
    "Query",
    "ask",
    "ask_stream",
    "retrieve",
]

__getattr__ = export_lazily(__name__)
