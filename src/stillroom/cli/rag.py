"""``stillroom rag``: retrieval's own verbs."""

from __future__ import annotations

import click

from stillroom.cli.app import LazyGroup

__all__ = ["command"]


@click.group(
    "rag",
    cls=LazyGroup,
    lazy={
        "ask": ("stillroom.cli.rag_ask", "Answer a question from an index, with citations."),
        "compact": (
            "stillroom.cli.rag_compact",
            "Merge an index's segments and remove what only older snapshots need.",
        ),
        "delete": (
            "stillroom.cli.rag_delete",
            "Delete documents from an index, by path, folder/ or pattern.",
        ),
        "eval": (
            "stillroom.cli.rag_eval",
            "Measure retrieval on judged queries, with intervals and paired differences.",
        ),
        "graph": (
            "stillroom.cli.rag_graph",
            "Find what an index speaks of, how it is related, and its communities.",
        ),
        "graph-show": (
            "stillroom.cli.rag_graph_show",
            "Show a graph or one of its entities, check it, or export it.",
        ),
        "index": ("stillroom.cli.rag_index", "Parse and index a folder of documents."),
        "log": (
            "stillroom.cli.rag_log",
            "List the snapshots of an index that can be asked, newest first.",
        ),
        "migrate": (
            "stillroom.cli.rag_migrate",
            "Move an index to another store, once it is proved equal.",
        ),
        "rebuild": (
            "stillroom.cli.rag_rebuild",
            "Build an index anew beside the one that answers, measure both, and switch.",
        ),
        "score": (
            "stillroom.cli.rag_score",
            "Score run files as trec_eval does, with intervals, and compare them with the first.",
        ),
        "search": ("stillroom.cli.rag_search", "List the passages that a query finds."),
        "sweep": (
            "stillroom.cli.rag_sweep",
            "Try chunkers, embedders and ways on judged questions, and say which is worth it.",
        ),
        "tree": ("stillroom.cli.rag_tree", "Make a tree of summaries over an index."),
        "tune": (
            "stillroom.cli.rag_tune",
            "Choose on judged queries how words and vectors are fused.",
        ),
        "unpack": (
            "stillroom.cli.rag_unpack",
            "Write each row of a corpus (id, title, text) as a document to be indexed.",
        ),
        "update": (
            "stillroom.cli.rag_update",
            "Bring an index up to what its folder of documents holds now.",
        ),
        "verify": (
            "stillroom.cli.rag_verify",
            "Hold an index's segments, counts and texts against its ledger.",
        ),
    },
    epilog="""
\b
Examples:
  stillroom rag index ./documents --out index
  stillroom rag search index "context manager"
""",
)
def command() -> None:
    """Retrieval's own verbs."""
