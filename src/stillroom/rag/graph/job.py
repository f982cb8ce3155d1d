"""Job that builds a knowledge graph, and its cost estimate.

Only texts that the previous graph at the same path does not have are extracted; everything else is
computed from the extractions of the passages that exist now. A deleted passage therefore leaves no
trace, and an updated graph has the same bytes as one built from scratch. Model completions are
journaled call by call, so that an interrupted run can be resumed.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from stillroom.errors import DataError
from stillroom.jobs import Job, Reporter
from stillroom.provenance import ARTIFACT_FILE, Artifact, Parent, digest_json, make_parent
from stillroom.rag.graph.communities import find_communities, write_reports
from stillroom.rag.graph.entities import (
    ResolvedEntities,
    describe_entities,
    drop_isolated_nodes,
    relate_entities,
    resolve_entities,
)
from stillroom.rag.graph.knowledge_graph import KnowledgeGraph
from stillroom.rag.graph.reuse import (
    CachedTextGenerator,
    IncrementalEmbedder,
    PreviousGraph,
    open_previous_graph,
)
from stillroom.rag.graph.types import (
    COMMUNITIES,
    EDGE_VECTORS,
    EDGES,
    ENTITIES,
    ENTITY_VECTORS,
    EXTRACTIONS,
    GENERATED_TEXTS,
    REPORT_VECTORS,
    SOURCES,
    Community,
    Entity,
    GraphDescription,
    GraphEdge,
    SourcePassage,
    read_rows,
    write_graph_description,
    write_rows,
    write_vectors,
)
from stillroom.rag.index.searcher import Index
from stillroom.rag.index.view import AccessContext
from stillroom.rag.interfaces import EntityExtractor, PassageExtraction
from stillroom.rag.model_calls import CallCounter

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from stillroom.models import TextModel
    from stillroom.records import Completion, Passage, Prompt, Sampling

__all__ = [
    "GraphCost",
    "GraphPlan",
    "build_graph",
    "describe_access",
    "estimate_graph",
    "format_plan",
    "open_plan_model",
]


_BATCH = 16


@dataclass(frozen=True, slots=True)
class GraphPlan:
    """Inputs and settings of a graph; ``model`` is a model reference, empty for none.

    ``reports``: the model also writes the community reports. ``same_name``: minimum cosine at which
    two names are merged, 0 for never. ``community_size`` and ``resolution`` are Leiden's.
    ``access``: the reader of an index with tenants; only passages visible to that reader enter the
    graph.
    """

    index: Path
    extractor: EntityExtractor
    model: str = ""
    reports: bool = True
    same_name: float = 0.0
    community_size: int = 10
    resolution: float = 1.0
    seed: int = 0
    access: AccessContext | None = None

    def settings(self) -> dict[str, Any]:
        """Return the settings that determine the graph, apart from the index and the model."""
        return {
            "extractor": self.extractor.model_dump(mode="json"),
            "reports": self.reports,
            "same_name": self.same_name,
            "community_size": self.community_size,
            "resolution": self.resolution,
            "seed": self.seed,
            **describe_access(self.access),
        }

    def to_text(self) -> str:
        """Return the text of the job's recipe.yaml: a note, since no recipe runs this job."""
        return format_plan("rag graph", self.index, self.settings(), self.model)


def format_plan(command: str, index: Path, settings: Mapping[str, Any], model: str) -> str:
    """Return the text of recipe.yaml for a job that only a command runs."""
    rows = {"index": str(index), **settings, **({"model": model} if model else {})}
    lines = [f"# stillroom {command}", *(f"{name}: {json.dumps(rows[name])}" for name in rows)]
    return "\n".join(lines) + "\n"


def build_graph(
    plan: GraphPlan,
    out: Path,
    *,
    model: TextModel | None = None,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> tuple[Artifact, GraphDescription]:
    """Build the graph of an index, or update the one at ``out``.

    Args:
        plan: Inputs and settings.
        out: The folder of the graph.
        model: Used instead of the model that the plan names; the caller closes it.
        resume: Resume an interrupted run.
        overwrite: Replace the graph at ``out``; unchanged parts are reused.
        reporter: Displays progress; default none.

    Raises:
        DataError: If no entity is found, or the extractor needs a model and has none.
        Cancelled: If the user stopped it; ``resume`` continues.
    """
    job = Job.start(
        out, plan.to_text(), seed=plan.seed, resume=resume, overwrite=overwrite, reporter=reporter
    )
    try:
        with (
            job.interruptible(),
            Index.open(plan.index, access=plan.access) as index,
            open_plan_model(plan.model, model) as text_model,
        ):
            return _GraphBuilder(plan, job, index, text_model).run()
    finally:
        job.close()


class _GraphBuilder:
    """The build of one graph, step by step."""

    def __init__(self, plan: GraphPlan, job: Job, index: Index, model: TextModel | None) -> None:
        self.plan, self.job, self.index, self.model = plan, job, index, model
        self.previous: PreviousGraph = open_previous_graph(job)
        self.writer: CachedTextGenerator | None = None
        self.counts: Counter[str] = Counter()
        self.vectors = IncrementalEmbedder(index.embedder, self.previous, job)
        self.rows: list[int] = []
        """The index row of each source."""
        self.fresh = 0

    def run(self) -> tuple[Artifact, GraphDescription]:
        if self.model is not None:
            path = self.job.scratch / "completions.sqlite"
            self.writer = CachedTextGenerator(self.model, path, self.previous.written)
        try:
            return self._run()
        finally:
            if self.writer is not None:
                self.writer.close()

    def _run(self) -> tuple[Artifact, GraphDescription]:
        sources = self._list_sources()
        extractions_by_key = self._extract(sources)
        extractions = [extractions_by_key[source.key] for source in sources]
        for extraction in extractions_by_key.values():
            self.counts.update(
                {f"dropped_{why}": count for why, count in extraction.dropped.items()}
            )
        resolved, edges = self._assemble(sources, extractions)
        entities = self._describe(resolved)
        communities = self._report(entities, edges)
        vectors = self._embed(entities, edges, communities)
        description = self._write(
            sources, extractions_by_key, entities, edges, communities, vectors
        )
        return self._finish(description), description

    def _list_sources(self) -> list[SourcePassage]:
        """Return the passages sorted by path and position, whatever their order in the index."""
        mark = self.plan.extractor.fingerprint(self.model)
        ordered = []
        for row in range(len(self.index)):
            passage = self.index.passage_at(row)
            key = digest_json([mark, passage.text, passage.language])[:32]
            sort_key = (passage.location.path, passage.start, passage.end, passage.id)
            ordered.append((sort_key, row, SourcePassage(passage.id, passage.document_id, key)))
        ordered.sort(key=lambda item: item[0])
        self.rows = [row for _, row, _ in ordered]
        return [source for _, _, source in ordered]

    def _passage(self, source: int) -> Passage:
        return self.index.passage_at(self.rows[source])

    def _extract(self, sources: Sequence[SourcePassage]) -> dict[str, PassageExtraction]:
        """Return the extraction of every text by key, reusing those available."""
        rows_by_key: dict[str, int] = {}
        for row, source in enumerate(sources):
            rows_by_key.setdefault(source.key, row)
        journal = self.job.journal("extractions")
        extracted = {
            key: extraction
            for key in rows_by_key
            if (extraction := self.previous.extractions.get(key))
        }
        for key in rows_by_key:
            if key not in extracted and key in journal:
                extracted[key] = journal[key]
        missing = [key for key in rows_by_key if key not in extracted]
        self.fresh = len(missing)
        model = self.writer.model if self.writer is not None else self.model
        with self.job.phase("extract", len(missing), "passages") as progress:
            for start in range(0, len(missing), _BATCH):
                batch = missing[start : start + _BATCH]
                extractions = self.plan.extractor.extract(
                    [self._passage(rows_by_key[key]) for key in batch],
                    model,
                    is_cancelled=self.job.is_cancelled,
                )
                for key, extraction in zip(batch, extractions, strict=False):
                    extracted[key] = extraction.to_json()
                    journal.put(key, extracted[key])
                    progress.advance()
                self.job.check_cancelled()
        return {key: PassageExtraction.from_json(extracted[key]) for key in rows_by_key}

    def _assemble(
        self, sources: Sequence[SourcePassage], extractions: Sequence[PassageExtraction]
    ) -> tuple[ResolvedEntities, list[GraphEdge]]:
        plan = self.plan
        resolved = resolve_entities(
            sources,
            extractions,
            min_count=plan.extractor.min_count,
            embed=self.vectors if plan.same_name > 0 else None,
            similarity=plan.same_name,
        )
        edges = relate_entities(extractions, resolved, plan.extractor)
        if plan.extractor.reach:
            resolved, edges = drop_isolated_nodes(resolved, edges)
        if not resolved.entities:
            mentions = sum(len(extraction.mentions) for extraction in extractions)
            raise DataError(
                f"no entity was found in {len(sources)} passages "
                f"({mentions} mentions; {_report(self.counts) or 'nothing dropped'})",
                code="rag.no-entities",
                where=str(plan.index),
                expected="at least one entity that enough passages mention and relate",
                next="lower the extractor's min_count (--extractor noun_phrases:min_count=1), or "
                "use a larger --model",
            )
        return resolved, edges

    def _describe(self, resolved: ResolvedEntities) -> list[Entity]:
        with self.job.phase("describe", len(resolved.entities), "entities") as progress:
            texts = describe_entities(resolved, self.writer, self.job.is_cancelled)
            self.job.check_cancelled()
            progress.advance(len(texts))
        return [
            replace(entity, description=text)
            for entity, text in zip(resolved.entities, texts, strict=True)
        ]

    def _report(self, entities: Sequence[Entity], edges: Sequence[GraphEdge]) -> list[Community]:
        groups = find_communities(
            entities,
            edges,
            max_size=self.plan.community_size,
            resolution=self.plan.resolution,
            seed=self.plan.seed,
        )
        writer = self.writer if self.plan.reports else None
        with self.job.phase("report", len(groups), "communities") as progress:
            communities, unread = write_reports(
                groups,
                entities,
                edges,
                lambda source: self._passage(source).text,
                writer,
                is_cancelled=self.job.is_cancelled,
            )
            self.job.check_cancelled()
            progress.advance(len(groups))
        if writer is not None:
            self.counts["reports_unread"] = unread
        return communities

    def _embed(
        self,
        entities: Sequence[Entity],
        edges: Sequence[GraphEdge],
        communities: Sequence[Community],
    ) -> list[NDArray[np.float32]]:
        """Return the vectors of entities, edges (empty if none has a description) and reports."""
        described = [item for item in edges if item.description or item.keywords]
        texts = [
            [item.text for item in entities],
            [_format_edge(item, entities) for item in edges] if described else [],
            [item.report.text or item.id for item in communities],
        ]
        with self.job.phase("embed", sum(map(len, texts)), "texts") as progress:
            return [self.vectors(batch, progress.advance) for batch in texts]

    def _write(
        self,
        sources: Sequence[SourcePassage],
        extractions: Mapping[str, PassageExtraction],
        entities: Sequence[Entity],
        edges: Sequence[GraphEdge],
        communities: Sequence[Community],
        vectors: Sequence[NDArray[np.float32]],
    ) -> GraphDescription:
        folder = self.job.output
        written = self.writer.used if self.writer is not None else {}
        write_rows(folder / SOURCES, (item.to_json() for item in sources))
        write_rows(
            folder / EXTRACTIONS, ([key, extractions[key].to_json()] for key in sorted(extractions))
        )
        write_rows(folder / ENTITIES, (item.to_json() for item in entities))
        write_rows(folder / EDGES, (item.to_json() for item in edges))
        write_rows(folder / COMMUNITIES, (item.to_json() for item in communities))
        write_rows(folder / GENERATED_TEXTS, ([key, written[key]] for key in sorted(written)))
        names = (ENTITY_VECTORS, EDGE_VECTORS, REPORT_VECTORS)
        for name, matrix in zip(names, vectors, strict=True):
            write_vectors(folder / name, matrix)
        return write_graph_description(
            folder,
            "graph",
            index=self.index.digest,
            settings={
                **self.plan.settings(),
                "model": self.model.fingerprint if self.model is not None else "",
            },
            embedder=self.index.embedder.fingerprint,
            counts={
                "passages": len(sources),
                "entities": len(entities),
                "edges": len(edges),
                "communities": len(communities),
                "levels": len({item.level for item in communities}),
                **dict(sorted(self.counts.items())),
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
                "made": "graph",
                **description.counts,
                "extracted": self.fresh,
                "asked": self.writer.asked if self.writer is not None else 0,
                "embedded": self.vectors.embedded,
                "index": description.index,
                "graph": description.digest,
            },
        )


def _format_edge(edge: GraphEdge, entities: Sequence[Entity]) -> str:
    names = f"{entities[edge.source].name}, {entities[edge.target].name}"
    return "\n".join(part for part in (", ".join(edge.keywords), names, edge.description) if part)


def _report(counts: Mapping[str, int]) -> str:
    return ", ".join(
        f"{name.removeprefix('dropped_')} {count}" for name, count in sorted(counts.items())
    )


def describe_access(access: AccessContext | None) -> dict[str, Any]:
    """Return the reader of an index as settings; empty for an index without tenants."""
    if access is None:
        return {}
    return {"tenant": access.tenant, "principals": sorted(access.principals)}


@contextmanager
def open_plan_model(name: str, model: TextModel | None) -> Iterator[TextModel | None]:
    """Yield the given model, or open the named one and close it afterwards."""
    if model is not None or not name:
        yield model
        return
    from stillroom.models import open_text_model

    opened = open_text_model(name)
    try:
        yield opened
    finally:
        opened.close()


_SAMPLE = 3


@dataclass(frozen=True, slots=True)
class GraphCost:
    """Estimated cost of extraction. ``passages`` are those that no graph at the path has yet.

    Tokens are those of prompts and completions; ``seconds`` is extrapolated from the sample.
    Reports and summaries are not included: one call per community, and one per entity that many
    passages describe, a number known only after extraction.
    """

    passages: int
    known: int
    calls: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    sampled: int

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        return asdict(self)

    def __str__(self) -> str:
        """Return the estimate as one or two lines of text."""
        first = f"{self.passages} passages to extract, {self.known} already extracted"
        if not self.calls:
            return f"{first}; no model calls; about {self.seconds:.0f} s"
        return (
            f"{first}\n{self.calls} model calls to extract entities, about "
            f"{self.prompt_tokens} prompt and {self.completion_tokens} completion tokens, about "
            f"{self.seconds:.0f} s (extrapolated from {self.sampled} passages); "
            "reports and summaries not included, one call each"
        )


def estimate_graph(plan: GraphPlan, out: Path, *, model: TextModel | None = None) -> GraphCost:
    """Estimate the cost of bringing the graph at ``out`` up to date.

    A few evenly spaced passages are extracted to measure time and tokens; the results are
    discarded.

    Raises:
        DataError: If the extractor needs a model and has none.
    """
    with (
        Index.open(plan.index, access=plan.access) as index,
        open_plan_model(plan.model, model) as text_model,
    ):
        known = _list_known_passages(out)
        mark = plan.extractor.fingerprint(text_model)
        rows: dict[str, int] = {}
        for row in range(len(index)):
            passage = index.passage_at(row)
            rows.setdefault(digest_json([mark, passage.text, passage.language])[:32], row)
        missing = [row for key, row in rows.items() if key not in known]
        step = max(len(missing) // _SAMPLE, 1)
        sample = [index.passage_at(row) for row in missing[::step][:_SAMPLE]]
        meter = _TokenCounter(text_model) if text_model is not None else None
        start = time.perf_counter()
        for passage in sample:
            plan.extractor.extract([passage], meter)
        share = len(missing) / max(len(sample), 1)
        return GraphCost(
            len(missing),
            len(rows) - len(missing),
            round((meter.calls if meter else 0) * share),
            round((meter.prompt_tokens if meter else 0) * share),
            round((meter.completion_tokens if meter else 0) * share),
            round((time.perf_counter() - start) * share, 1),
            len(sample),
        )


def _list_known_passages(out: Path) -> set[str]:
    if not (out / ARTIFACT_FILE).is_file():
        return set()
    graph = KnowledgeGraph.open(out)
    return {key for key, _ in read_rows(graph.folder / EXTRACTIONS)}


class _TokenCounter(CallCounter):
    """A call counter that also counts tokens."""

    def __init__(self, model: TextModel) -> None:
        super().__init__(model)
        self.prompt_tokens = self.completion_tokens = 0

    @override
    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | Sequence[Sampling],
        *,
        on_done: Callable[[int, Completion], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> list[Completion]:
        completions = super().generate(
            prompts, sampling, on_done=on_done, is_cancelled=is_cancelled
        )
        self.prompt_tokens += sum(completion.prompt_tokens for completion in completions)
        self.completion_tokens += sum(completion.completion_tokens for completion in completions)
        return completions
