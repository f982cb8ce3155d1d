"""``stillroom rag``: indexing, retrieval, evaluation and maintenance."""

from __future__ import annotations

import click

from stillroom.cli.app import LazyGroup

__all__ = ["rag_group"]


@click.group(
    "rag",
    cls=LazyGroup,
    lazy={
        "ask": (
            "stillroom.cli.rag.query:ask_command",
            "Answer a question from an index, with citations.",
        ),
        "compact": (
            "stillroom.cli.rag.index:compact_command",
            "Merge an index's segments and remove what only older snapshots need.",
        ),
        "delete": (
            "stillroom.cli.rag.index:delete_command",
            "Delete documents from an index, by path, folder/ or pattern.",
        ),
        "eval": (
            "stillroom.cli.rag.evaluation:eval_command",
            "Measure retrieval on judged queries, with intervals and paired differences.",
        ),
        "graph": (
            "stillroom.cli.rag.graph:graph_command",
            "Find what an index speaks of, how it is related, and its communities.",
        ),
        "graph-show": (
            "stillroom.cli.rag.graph:graph_show_command",
            "Show a graph or one of its entities, check it, or export it.",
        ),
        "index": (
            "stillroom.cli.rag.index:index_command",
            "Parse and index a folder of documents.",
        ),
        "log": (
            "stillroom.cli.rag.index:log_command",
            "List the snapshots of an index that can be asked, newest first.",
        ),
        "migrate": (
            "stillroom.cli.rag.migration:migrate_command",
            "Move an index to another store, once it is proved equal.",
        ),
        "rebuild": (
            "stillroom.cli.rag.migration:rebuild_command",
            "Build an index anew beside the one that answers, measure both, and switch.",
        ),
        "score": (
            "stillroom.cli.rag.evaluation:score_command",
            "Score run files as trec_eval does, with intervals, and compare them with the first.",
        ),
        "search": (
            "stillroom.cli.rag.query:search_command",
            "List the passages that a query finds.",
        ),
        "sweep": (
            "stillroom.cli.rag.tuning:sweep_command",
            "Try chunkers, embedders and ways on judged questions, and say which is worth it.",
        ),
        "tree": ("stillroom.cli.rag.graph:tree_command", "Make a tree of summaries over an index."),
        "tune": (
            "stillroom.cli.rag.tuning:tune_command",
            "Choose on judged queries how words and vectors are fused.",
        ),
        "unpack": (
            "stillroom.cli.rag.index:unpack_command",
            "Write each row of a corpus (id, title, text) as a document to be indexed.",
        ),
        "update": (
            "stillroom.cli.rag.index:update_command",
            "Bring an index up to what its folder of documents holds now.",
        ),
        "verify": (
            "stillroom.cli.rag.index:verify_command",
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
def rag_group() -> None:
    """Retrieval's own verbs."""
