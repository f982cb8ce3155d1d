"""Job that builds or updates a summary tree.

The tree depends only on the passages that exist now, their vectors and the model. Summaries and
vectors of clusters with unchanged members are reused from the previous tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stillroom.errors import DataError
from stillroom.rag.graph.job import finish_graph, list_ordered_rows
from stillroom.rag.graph.reuse import IncrementalEmbedder, open_generator, open_previous_tree
from stillroom.rag.graph.summary_tree import (
    SUMMARY_SAMPLING,
    Summarizer,
    TreeNode,
    build_summary_prompt,
    cluster_vectors,
    parse_summary,
)
from stillroom.rag.graph.types import (
    GENERATED_TEXTS,
    NODE_VECTORS,
    NODES,
    SOURCES,
    SourcePassage,
    Span,
    write_rows,
    write_vectors,
)
from stillroom.records import make_content_id

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.jobs import Job
    from stillroom.models import TextModel
    from stillroom.provenance import Artifact
    from stillroom.rag.graph.reuse import CachedTextGenerator
    from stillroom.rag.jobs.summary_tree import SummaryTreeRecipe

__all__ = ["build_tree"]


@dataclass(frozen=True, slots=True)
class _ClusterItem:
    """A passage or a summary to be clustered."""

    id: str
    text: str
    rows: tuple[int, ...]
    spans: tuple[Span, ...]


def build_tree(recipe: SummaryTreeRecipe, job: Job, *, model: TextModel | None = None) -> Artifact:
    """Build the tree of an index, or update the one that the job replaces.

    Unchanged parts of ``job.previous`` are reused. ``model`` replaces that of the recipe; the
    caller closes it.

    Raises:
        DataError: If the index has fewer than two passages.
        Cancelled: If the user stopped it; resuming continues.
    """
    previous = open_previous_tree(job)
    with (
        recipe.open_index() as index,
        open_generator(recipe.model, job, previous, model) as generator,
    ):
        embed = IncrementalEmbedder(index.embedder, previous, job)
        rows = list_ordered_rows(index)
        if len(rows) < 2:
            raise DataError(
                f"the index has {len(rows)} passages, too few for a tree",
                code="rag.no-entities",
                where=recipe.index,
                expected="two passages or more",
                next="index more documents",
            )
        with job.phase("read", len(rows), "passages") as progress:
            summarizer = Summarizer(
                len(rows), lambda row: index.passage_at(rows[row]).text, index.analyzer
            )
            passages = [index.passage_at(rows[row]) for row in progress.over(range(len(rows)))]
        sources = [SourcePassage(passage.id, passage.document_id, "") for passage in passages]
        items = [
            _ClusterItem(passage.id, passage.text, (row,), tuple(summarizer.sentences(row)))
            for row, passage in enumerate(passages)
        ]
        nodes, vectors = _build_layers(
            recipe, items, index.vectors_of(rows), summarizer, generator, embed, job
        )
        written = generator.used if generator is not None else {}
        write_rows(job.output / SOURCES, (item.to_json() for item in sources))
        write_rows(job.output / NODES, (item.to_json() for item in nodes))
        write_rows(job.output / GENERATED_TEXTS, ([key, written[key]] for key in sorted(written)))
        write_vectors(job.output / NODE_VECTORS, vectors)
        layers = max((item.level for item in nodes), default=0)
        job.say(f"{len(nodes)} summaries on {layers} layers over {len(sources)} passages")
        return finish_graph(
            "tree",
            recipe,
            job,
            index,
            generator,
            counts={
                "passages": len(sources),
                "summaries": len(nodes),
                "synthetic": sum(item.origin == "synthetic" for item in nodes),
                "layers": layers,
            },
            work={},
            embedded=embed.embedded,
        )


def _build_layers(
    recipe: SummaryTreeRecipe,
    items: list[_ClusterItem],
    vectors: NDArray[np.float32],
    summarizer: Summarizer,
    generator: CachedTextGenerator | None,
    embed: IncrementalEmbedder,
    job: Job,
) -> tuple[list[TreeNode], NDArray[np.float32]]:
    """Return the nodes of all layers and their vectors."""
    nodes: list[TreeNode] = []
    blocks = [np.zeros((0, vectors.shape[1]), dtype=np.float32)]
    for level in range(1, recipe.max_layers + 1):
        clusters = cluster_vectors(
            vectors, neighbors=recipe.neighbors, max_size=recipe.max_cluster_size
        )
        if len(items) < 2 or len(clusters) == len(items):
            break
        groups = [[items[i] for i in members] for members in clusters]
        with job.phase(f"layer {level}", len(groups), "clusters") as progress:
            merged = [group for group in groups if len(group) > 1]
            layer = _summarize(level, merged, summarizer, generator, job)
            added = embed([node.text for node in layer])
            progress.advance(len(groups))
        nodes += layer
        blocks.append(added)
        items, vectors = _collect_next_layer(groups, clusters, layer, vectors, added)
    return nodes, np.concatenate(blocks)


def _summarize(
    level: int,
    groups: Sequence[Sequence[_ClusterItem]],
    summarizer: Summarizer,
    generator: CachedTextGenerator | None,
    job: Job,
) -> list[TreeNode]:
    """Return a node for each group of two or more."""
    selections = [summarizer.choose([item.spans for item in group]) for group in groups]
    texts = [summarizer.text(spans) for spans in selections]
    written = [""] * len(groups)
    if generator is not None:
        prompts = [build_summary_prompt([item.text for item in group]) for group in groups]
        answers = generator.ask(prompts, SUMMARY_SAMPLING, is_cancelled=job.is_cancelled)
        job.check_cancelled()
        written = [parse_summary(answer) for answer in answers]
    return [
        TreeNode(
            make_content_id("nod", level, *(item.id for item in group)),
            level,
            generated or text,
            "synthetic" if generated else "source",
            tuple(item.id for item in group),
            tuple(sorted({row for item in group for row in item.rows})),
            tuple(spans),
        )
        for group, spans, text, generated in zip(groups, selections, texts, written, strict=True)
    ]


def _collect_next_layer(
    groups: Sequence[Sequence[_ClusterItem]],
    clusters: Sequence[Sequence[int]],
    layer: Sequence[TreeNode],
    vectors: NDArray[np.float32],
    added: NDArray[np.float32],
) -> tuple[list[_ClusterItem], NDArray[np.float32]]:
    """Return the items of the next layer: the new nodes, and items left unclustered."""
    items: list[_ClusterItem] = []
    rows: list[NDArray[np.float32]] = []
    fresh = iter(zip(layer, added, strict=True))
    for group, members in zip(groups, clusters, strict=True):
        if len(group) == 1:
            items.append(group[0])
            rows.append(vectors[members[0]])
        else:
            node, vector = next(fresh)
            items.append(_ClusterItem(node.id, node.text, node.rows, node.spans))
            rows.append(vector)
    return items, np.stack(rows)
