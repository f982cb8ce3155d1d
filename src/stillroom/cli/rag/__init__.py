"""``stillroom rag``: indexing, retrieval, evaluation and maintenance."""

from __future__ import annotations

from stillroom.cli.app import command_group

__all__ = ["rag_group"]


@command_group(
    "rag",
    {
        "ask": (
            "rag.query",
            "Answer a question with quotes from an index, or text of a model, with citations.",
        ),
        "compact": ("rag.index", "Merge an index's segments and remove data of older snapshots."),
        "delete": ("rag.index", "Delete documents from an index, by path, folder/ or pattern."),
        "eval": (
            "rag.evaluation",
            "Measure retrieval on judged queries, with intervals and paired differences.",
        ),
        "graph": (
            "rag.graph",
            "Build a knowledge graph of an index: entities, relations and communities.",
        ),
        "graph-show": ("rag.graph", "Show a graph or one of its entities, check it, or export it."),
        "index": ("rag.index", "Parse and index a folder of documents."),
        "log": ("rag.index", "List the snapshots of an index that can be queried, newest first."),
        "migrate": ("rag.index", "Move an index to another store after comparing both."),
        "rebuild": (
            "rag.index",
            "Build an index anew beside the active one, measure both, and switch.",
        ),
        "score": (
            "rag.evaluation",
            "Score run files as trec_eval does, with intervals, and compare them with the first.",
        ),
        "search": ("rag.query", "List the passages that a query finds."),
        "tree": ("rag.graph", "Build a tree of summaries over an index."),
        "tune": (
            "rag.evaluation",
            "Tune the fusion of keyword and dense scores on judged queries.",
        ),
        "unpack": (
            "rag.index",
            "Write each row of a corpus (id, title, text) as a document to be indexed.",
        ),
        "update": ("rag.index", "Update an index to the current state of its folder of documents."),
        "verify": ("rag.index", "Check an index's segments, counts and texts against its catalog."),
    },
    "stillroom rag index ./documents --out index",
    'stillroom rag search index "context manager"',
)
def rag_group() -> None:
    """Retrieval: build, search and evaluate indexes."""
