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
            "Answer a question with quotes from an index, or text of a model, with citations.",
        ),
        "compact": (
            "stillroom.cli.rag.index:compact_command",
            "Merge an index's segments and remove data of older snapshots.",
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
            "Build a knowledge graph of an index: entities, relations and communities.",
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
            "List the snapshots of an index that can be queried, newest first.",
        ),
        "migrate": (
            "stillroom.cli.rag.migration:migrate_command",
            "Move an index to another store after comparing both.",
        ),
        "rebuild": (
            "stillroom.cli.rag.migration:rebuild_command",
            "Build an index anew beside the active one, measure both, and switch.",
        ),
        "score": (
            "stillroom.cli.rag.evaluation:score_command",
            "Score run files as trec_eval does, with intervals, and compare them with the first.",
        ),
        "search": (
            "stillroom.cli.rag.query:search_command",
            "List the passages that a query finds.",
        ),
        "tree": (
            "stillroom.cli.rag.graph:tree_command",
            "Build a tree of summaries over an index.",
        ),
        "tune": (
            "stillroom.cli.rag.tuning:tune_command",
            "Tune the fusion of keyword and dense scores on judged queries.",
        ),
        "unpack": (
            "stillroom.cli.rag.index:unpack_command",
            "Write each row of a corpus (id, title, text) as a document to be indexed.",
        ),
        "update": (
            "stillroom.cli.rag.index:update_command",
            "Update an index to the current state of its folder of documents.",
        ),
        "verify": (
            "stillroom.cli.rag.index:verify_command",
            "Check an index's segments, counts and texts against its catalog.",
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
    """Retrieval: build, search and evaluate indexes."""
