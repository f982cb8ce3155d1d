"""Job that builds a knowledge graph by ``rag.extractors``, ``entities`` and ``communities``.

Only texts that the previous graph at the same path does not have are extracted; everything else is
computed from the extractions of the passages that exist now. A deleted passage therefore leaves no
trace, and an updated graph has the same bytes as one built from scratch. Model completions are
journaled call by call, so that an interrupted run can be resumed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from stillroom.errors import DataError, count_noun
from stillroom.jobs import Estimate, Job
from stillroom.provenance import (
    Artifact,
    Parent,
    digest_json,
    make_parent,
    read_artifact,
)
from stillroom.rag.graph.communities import find_communities, write_reports
from stillroom.rag.graph.entities import (
    ResolvedEntities,
    describe_entities,
    drop_isolated_nodes,
    relate_entities,
    resolve_entities,
)
from stillroom.rag.graph.reuse import (
    CachedTextGenerator,
    IncrementalEmbedder,
    PreviousGraph,
    open_generator,
    open_previous_graph,
)
from stillroom.rag.graph.types import (
    COMMUNITIES,
    EDGES,
    ENTITIES,
    ENTITY_VECTORS,
    EXTRACTIONS,
    GENERATED_TEXTS,
    REPORT_VECTORS,
    SOURCES,
    Community,
    Entity,
    GraphEdge,
    SourcePassage,
    write_graph_description,
    write_rows,
    write_vectors,
)
from stillroom.rag.interfaces import PassageExtraction

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from stillroom.models import TextModel
    from stillroom.rag.index.searcher import Index
    from stillroom.rag.jobs.graph import GraphRecipe

__all__ = [
    "build_graph",
    "estimate_build",
]


_BATCH = 16
_BYTES_PER_PASSAGE = 20_000
_SECONDS_PER_CALL = 2.0


def estimate_build(recipe: GraphRecipe, *, calls_per_passage: float) -> Estimate:
    """Estimate the cost of a graph from the size of the index."""
    passages = int(read_artifact(Path(recipe.index)).details.get("passages", 0))
    calls = passages * calls_per_passage
    return Estimate(
        memory_bytes=600_000_000 + passages * _BYTES_PER_PASSAGE,
        disk_bytes=passages * _BYTES_PER_PASSAGE,
        seconds=passages / 100 + calls * _SECONDS_PER_CALL,
        basis=f"{count_noun(passages, 'passage')}, about {calls:.0f} calls of a model",
    )


def build_graph(recipe: GraphRecipe, job: Job, *, model: TextModel | None = None) -> Artifact:
    """Build the graph of an index, or update the one that the job replaces.

    Unchanged parts of ``job.previous`` are reused. ``model`` replaces that of the recipe; the
    caller closes it.

    Raises:
        DataError: If no entity is found.
        Cancelled: If the user stopped it; resuming continues.
    """
    previous = open_previous_graph(job)
    reference = recipe.writer.model if recipe.writer is not None else None
    with (
        recipe.open_index() as index,
        open_generator(reference, job, previous, model) as generator,
    ):
        return _GraphBuild(recipe, job, index, generator, previous).run()


def _list_ordered_rows(index: Index) -> list[int]:
    """Return the rows of an index sorted by path and position, whatever their order there."""
    passages = ((row, index.passage_at(row)) for row in range(len(index)))
    keyed = [
        ((passage.location.path, passage.start, passage.end, passage.id), row)
        for row, passage in passages
    ]
    return [row for _, row in sorted(keyed)]


class _GraphBuild:
    """One build: the passages of the index in order, and counts of what was dropped."""

    def __init__(
        self,
        recipe: GraphRecipe,
        job: Job,
        index: Index,
        generator: CachedTextGenerator | None,
        previous: PreviousGraph,
    ) -> None:
        self.recipe, self.job, self.index, self.previous = recipe, job, index, previous
        self.generator = generator
        self.model = generator.model if generator is not None else None
        self.counts: Counter[str] = Counter()
        self.rows = _list_ordered_rows(index)
        mark = recipe.extractor.fingerprint(self.model)
        self.sources = []
        for row in self.rows:
            passage = index.passage_at(row)
            key = digest_json([mark, passage.text, passage.language])[:32]
            self.sources.append(SourcePassage(passage.id, passage.document_id, key))

    def run(self) -> Artifact:
        folder = self.job.output
        embed = IncrementalEmbedder(self.index.embedder, self.previous, self.job)
        by_key, extracted = self._extract()
        for extraction in by_key.values():
            self.counts.update({f"dropped_{why}": n for why, n in extraction.dropped.items()})
        extractions = [by_key[source.key] for source in self.sources]
        resolved, edges = self._assemble(extractions)
        entities = self._describe(resolved)
        communities = self._report(entities, edges)
        vectors = self._embed(entities, communities, embed)
        written = self.generator.used if self.generator is not None else {}
        write_rows(folder / SOURCES, self.sources)
        write_rows(folder / EXTRACTIONS, sorted(by_key.items()))
        write_rows(folder / ENTITIES, entities)
        write_rows(folder / EDGES, edges)
        write_rows(folder / COMMUNITIES, communities)
        write_rows(folder / GENERATED_TEXTS, ([key, written[key]] for key in sorted(written)))
        for name, matrix in vectors.items():
            write_vectors(folder / name, matrix)
        sizes = {
            "passages": len(self.sources),
            "entities": len(entities),
            "edges": len(edges),
            "communities": len(communities),
            "levels": len({item.level for item in communities}),
        }
        return self._finish(sizes, extracted=extracted, embedded=embed.embedded)

    def _extract(self) -> tuple[dict[str, PassageExtraction], int]:
        """Return the extraction of every text by key, and how many were not available before."""
        first_rows: dict[str, int] = {}
        for row, source in zip(self.rows, self.sources, strict=True):
            first_rows.setdefault(source.key, row)
        journal = self.job.journal("extractions")
        adapter = TypeAdapter(PassageExtraction)
        extracted = {}
        for key in first_rows:
            if key in self.previous.extractions:
                extracted[key] = self.previous.extractions[key]
            elif journaled := journal.get(key):
                extracted[key] = adapter.validate_python(journaled)
        missing = [key for key in first_rows if key not in extracted]
        extract, is_cancelled = self.recipe.extractor.extract, self.job.is_cancelled
        with self.job.phase("extract", len(missing), "passages") as progress:
            for start in range(0, len(missing), _BATCH):
                batch = missing[start : start + _BATCH]
                passages = [self.index.passage_at(first_rows[key]) for key in batch]
                results = extract(passages, self.model, is_cancelled=is_cancelled)
                for key, extraction in zip(batch, results, strict=False):
                    extracted[key] = extraction
                    journal.put(key, asdict(extraction))
                    progress.advance()
                self.job.check_cancelled()
        return {key: extracted[key] for key in first_rows}, len(missing)

    def _assemble(
        self, extractions: Sequence[PassageExtraction]
    ) -> tuple[ResolvedEntities, list[GraphEdge]]:
        extractor = self.recipe.extractor
        resolved = resolve_entities(self.sources, extractions, min_count=extractor.min_count)
        edges = relate_entities(extractions, resolved, extractor)
        if extractor.reach:
            resolved, edges = drop_isolated_nodes(resolved, edges)
        if not resolved.entities:
            mentions = sum(len(extraction.mentions) for extraction in extractions)
            dropped = ", ".join(
                f"{name.removeprefix('dropped_')} {n}" for name, n in sorted(self.counts.items())
            )
            raise DataError(
                f"no entity was found in {len(self.sources)} passages "
                f"({mentions} mentions; {dropped or 'nothing dropped'})",
                code="rag.no-entities",
                where=self.recipe.index,
                expected="at least one entity that enough passages mention and relate",
                next="lower extractor.min_count (--extractor noun_phrases:min_count=1), or use a "
                "larger model",
            )
        return resolved, edges

    def _describe(self, resolved: ResolvedEntities) -> list[Entity]:
        with self.job.phase("describe", len(resolved.entities), "entities") as progress:
            texts = describe_entities(resolved, self.generator, self.job.is_cancelled)
            self.job.check_cancelled()
            progress.advance(len(texts))
        return [
            replace(entity, description=text)
            for entity, text in zip(resolved.entities, texts, strict=True)
        ]

    def _report(self, entities: Sequence[Entity], edges: Sequence[GraphEdge]) -> list[Community]:
        recipe = self.recipe
        groups = find_communities(
            entities,
            edges,
            max_size=recipe.max_cluster_size,
            resolution=recipe.resolution,
            seed=recipe.seed,
        )
        writes_reports = recipe.writer is None or recipe.writer.reports
        writer = self.generator if writes_reports else None
        with self.job.phase("report", len(groups), "communities") as progress:
            communities, unread = write_reports(
                groups,
                entities,
                edges,
                lambda source: self.index.passage_at(self.rows[source]).text,
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
        communities: Sequence[Community],
        embed: IncrementalEmbedder,
    ) -> dict[str, NDArray[np.float32]]:
        """Return the vectors of entities and reports, by file."""
        texts = {
            ENTITY_VECTORS: [item.text for item in entities],
            REPORT_VECTORS: [item.report.text or item.id for item in communities],
        }
        with self.job.phase("embed", sum(map(len, texts.values())), "texts") as progress:
            return {name: embed(batch, progress.advance) for name, batch in texts.items()}

    def _finish(self, sizes: Mapping[str, int], *, extracted: int, embedded: int) -> Artifact:
        """Write the description of the graph, whose other files are complete; finish the job."""
        recipe, index, generator = self.recipe, self.index, self.generator
        fingerprint = self.model.fingerprint if self.model is not None else ""
        description = write_graph_description(
            self.job.output,
            index=index.digest,
            settings={**recipe.describe(), "model": fingerprint},
            embedder=index.embedder.fingerprint,
            counts={**sizes, **dict(sorted(self.counts.items()))},
        )
        parents = [make_parent("index", Path(recipe.index), self.job.out)]
        if generator is not None:
            parents.append(Parent("model", generator.reference, fingerprint, "checkpoint"))
        return self.job.finish(
            "index",
            parents=parents,
            origin={"kind": "synthetic"} if generator is not None else {},
            details={
                "made": "graph",
                **description.counts,
                "extracted": extracted,
                "asked": generator.asked if generator is not None else 0,
                "embedded": embedded,
                "index": description.index,
                "graph": description.digest,
            },
        )
