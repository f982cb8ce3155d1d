"""Job that builds or updates a summary tree.

The tree depends only on the passages that exist now, their vectors and the model. Summaries and
vectors of clusters with unchanged members are reused from the previous tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.errors import DataError
from stillroom.jobs import Job, Reporter
from stillroom.provenance import Artifact, Parent, make_parent
from stillroom.rag.graph.job import describe_access, format_plan, open_plan_model
from stillroom.rag.graph.reuse import CachedTextGenerator, IncrementalEmbedder, open_previous_tree
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
    GraphDescription,
    SourcePassage,
    Span,
    write_graph_description,
    write_rows,
    write_vectors,
)
from stillroom.rag.index.searcher import Index
from stillroom.rag.index.view import AccessContext
from stillroom.records import make_content_id

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.models import TextModel

__all__ = ["TreePlan", "build_tree"]


@dataclass(frozen=True, slots=True)
class TreePlan:
    """Inputs and settings of a tree; ``model`` writes the summaries, by reference, empty for none.

    ``cluster_size``: maximum number of members of a cluster. ``neighbours``: number of nearest
    neighbors each text is linked to. ``layers``: maximum number of layers. ``access``: the reader
    of an index with tenants.
    """

    index: Path
    model: str = ""
    cluster_size: int = 8
    neighbours: int = 8
    layers: int = 5
    access: AccessContext | None = None

    def settings(self) -> dict[str, Any]:
        """Return the settings that determine the tree, apart from the index and the model."""
        return {
            "cluster_size": self.cluster_size,
            "neighbours": self.neighbours,
            "layers": self.layers,
            **describe_access(self.access),
        }

    def to_text(self) -> str:
        """Return the text of the job's recipe.yaml: a note, since no recipe runs this job."""
        return format_plan("rag tree", self.index, self.settings(), self.model)


def build_tree(
    plan: TreePlan,
    out: Path,
    *,
    model: TextModel | None = None,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> tuple[Artifact, GraphDescription]:
    """Build the tree of an index, or update the one at ``out``.

    Args:
        plan: Inputs and settings.
        out: The folder of the tree.
        model: Used instead of the model that the plan names; the caller closes it.
        resume: Resume an interrupted run.
        overwrite: Replace the tree at ``out``; unchanged parts are reused.
        reporter: Displays progress; default none.

    Raises:
        DataError: If the index has fewer than two passages.
        Cancelled: If the user stopped it; ``resume`` continues.
    """
    job = Job.start(out, plan.to_text(), resume=resume, overwrite=overwrite, reporter=reporter)
    try:
        with (
            job.interruptible(),
            Index.open(plan.index, access=plan.access) as index,
            open_plan_model(plan.model, model) as text_model,
        ):
            return _TreeBuilder(plan, job, index, text_model).run()
    finally:
        job.close()


@dataclass(frozen=True, slots=True)
class _ClusterItem:
    """A passage or a summary to be clustered."""

    id: str
    text: str
    rows: tuple[int, ...]
    spans: tuple[Span, ...]


class _TreeBuilder:
    """The build of one tree, layer by layer."""

    def __init__(self, plan: TreePlan, job: Job, index: Index, model: TextModel | None) -> None:
        self.plan, self.job, self.index, self.model = plan, job, index, model
        previous = open_previous_tree(job)
        self.vectors = IncrementalEmbedder(index.embedder, previous, job)
        self.rows: list[int] = []
        """The index row of each source."""
        self.writer: CachedTextGenerator | None = None
        if model is not None:
            path = job.scratch / "completions.sqlite"
            self.writer = CachedTextGenerator(model, path, previous.written)

    def run(self) -> tuple[Artifact, GraphDescription]:
        try:
            return self._run()
        finally:
            if self.writer is not None:
                self.writer.close()

    def _run(self) -> tuple[Artifact, GraphDescription]:
        self.rows = self._sort_rows()
        rows = range(len(self.rows))
        if len(rows) < 2:
            raise DataError(
                f"the index has {len(rows)} passages, too few for a tree",
                code="rag.no-entities",
                where=str(self.plan.index),
                expected="two passages or more",
                next="index more documents",
            )
        with self.job.phase("read", len(rows), "passages") as progress:
            summarizer = Summarizer(len(rows), self._text_of, self.index.analyzer)
            passages = [self.index.passage_at(self.rows[row]) for row in progress.over(rows)]
        sources = [SourcePassage(passage.id, passage.document_id, "") for passage in passages]
        items = [
            _ClusterItem(passage.id, passage.text, (row,), tuple(summarizer.sentences(row)))
            for row, passage in enumerate(passages)
        ]
        nodes, vectors = self._build_layers(items, self.index.vectors_of(self.rows), summarizer)
        description = self._write(sources, nodes, vectors)
        return self._finish(description), description

    def _sort_rows(self) -> list[int]:
        """Return the index rows sorted by path and position, whatever their order there."""
        passages = ((row, self.index.passage_at(row)) for row in range(len(self.index)))
        keyed = [
            ((passage.location.path, passage.start, passage.end, passage.id), row)
            for row, passage in passages
        ]
        return [row for _, row in sorted(keyed)]

    def _text_of(self, row: int) -> str:
        return self.index.passage_at(self.rows[row]).text

    def _build_layers(
        self, items: list[_ClusterItem], vectors: NDArray[np.float32], summarizer: Summarizer
    ) -> tuple[list[TreeNode], NDArray[np.float32]]:
        """Return the nodes of all layers and their vectors."""
        nodes: list[TreeNode] = []
        blocks = [np.zeros((0, vectors.shape[1]), dtype=np.float32)]
        for level in range(1, self.plan.layers + 1):
            clusters = cluster_vectors(
                vectors, neighbors=self.plan.neighbours, max_size=self.plan.cluster_size
            )
            if len(items) < 2 or len(clusters) == len(items):
                break
            groups = [[items[i] for i in members] for members in clusters]
            with self.job.phase(f"layer {level}", len(groups), "clusters") as progress:
                layer = self._summarize(
                    level, [group for group in groups if len(group) > 1], summarizer
                )
                added = self.vectors([node.text for node in layer])
                progress.advance(len(groups))
            nodes += layer
            blocks.append(added)
            items, vectors = _collect_next_layer(groups, clusters, layer, vectors, added)
        return nodes, np.concatenate(blocks)

    def _summarize(
        self, level: int, groups: Sequence[Sequence[_ClusterItem]], summarizer: Summarizer
    ) -> list[TreeNode]:
        """Return a node for each group of two or more."""
        selections = [summarizer.choose([item.spans for item in group]) for group in groups]
        texts = [summarizer.text(spans) for spans in selections]
        written = [""] * len(groups)
        if self.writer is not None:
            prompts = [build_summary_prompt([item.text for item in group]) for group in groups]
            answers = self.writer.ask(prompts, SUMMARY_SAMPLING, is_cancelled=self.job.is_cancelled)
            self.job.check_cancelled()
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
            for group, spans, text, generated in zip(
                groups, selections, texts, written, strict=True
            )
        ]

    def _write(
        self,
        sources: Sequence[SourcePassage],
        nodes: Sequence[TreeNode],
        vectors: NDArray[np.float32],
    ) -> GraphDescription:
        folder = self.job.output
        written = self.writer.used if self.writer is not None else {}
        write_rows(folder / SOURCES, (item.to_json() for item in sources))
        write_rows(folder / NODES, (item.to_json() for item in nodes))
        write_rows(folder / GENERATED_TEXTS, ([key, written[key]] for key in sorted(written)))
        write_vectors(folder / NODE_VECTORS, vectors)
        mark = self.model.fingerprint if self.model is not None else ""
        return write_graph_description(
            folder,
            "tree",
            index=self.index.digest,
            settings={**self.plan.settings(), "model": mark},
            embedder=self.index.embedder.fingerprint,
            counts={
                "passages": len(sources),
                "summaries": len(nodes),
                "synthetic": sum(item.origin == "synthetic" for item in nodes),
                "layers": max((item.level for item in nodes), default=0),
            },
        )

    def _finish(self, description: GraphDescription) -> Artifact:
        parents = [make_parent("index", self.plan.index, self.job.out)]
        if self.model is not None:
            name = self.plan.model or self.model.name
            parents.append(Parent("model", name, self.model.fingerprint, "checkpoint"))
        return self.job.finish(
            "index",
            parents=parents,
            origin={"kind": "synthetic"} if self.model is not None else {},
            details={
                "made": "tree",
                **description.counts,
                "asked": self.writer.asked if self.writer is not None else 0,
                "embedded": self.vectors.embedded,
                "index": description.index,
                "tree": description.digest,
            },
        )


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
