"""Job that builds a knowledge graph by ``rag.extractors``, ``entities`` and ``communities``.

Only texts that the previous graph at the same path does not have are extracted; everything else is
computed from the extractions of the passages that exist now. A deleted passage therefore leaves no
trace, and an updated graph has the same bytes as one built from scratch. Model completions are
journaled call by call, so that an interrupted run can be resumed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from stillroom.errors import DataError
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
from stillroom.rag.interfaces import EntityExtractor, PassageExtraction

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from stillroom.models import TextModel
    from stillroom.rag.index.searcher import Index
    from stillroom.rag.jobs.graph import GraphRecipe
    from stillroom.records import Passage

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
        basis=f"{passages} passages, about {calls:.0f} calls of a model",
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
    counts: Counter[str] = Counter()
    with (
        recipe.open_index() as index,
        open_generator(reference, job, previous, model) as generator,
    ):
        embed = IncrementalEmbedder(index.embedder, previous, job)
        rows, sources = _list_sources(index, recipe.extractor, generator)

        def passage_of(source: int) -> Passage:
            return index.passage_at(rows[source])

        by_key, extracted = _extract(recipe, job, sources, passage_of, previous, generator)
        for extraction in by_key.values():
            counts.update({f"dropped_{why}": n for why, n in extraction.dropped.items()})
        extractions = [by_key[source.key] for source in sources]
        resolved, edges = _assemble(recipe, sources, extractions, counts)
        entities = _describe(resolved, generator, job)
        communities = _report(recipe, entities, edges, passage_of, generator, job, counts)
        vectors = _embed(entities, communities, embed, job)
        written = generator.used if generator is not None else {}
        _write_tables(job.output, sources, by_key, entities, edges, communities, written)
        for name, matrix in vectors.items():
            write_vectors(job.output / name, matrix)
        return _finish_graph(
            recipe,
            job,
            index,
            generator,
            counts={
                "passages": len(sources),
                "entities": len(entities),
                "edges": len(edges),
                "communities": len(communities),
                "levels": len({item.level for item in communities}),
                **dict(sorted(counts.items())),
            },
            extracted=extracted,
            embedded=embed.embedded,
        )


def _list_ordered_rows(index: Index) -> list[int]:
    """Return the rows of an index sorted by path and position, whatever their order there."""
    passages = ((row, index.passage_at(row)) for row in range(len(index)))
    keyed = [
        ((passage.location.path, passage.start, passage.end, passage.id), row)
        for row, passage in passages
    ]
    return [row for _, row in sorted(keyed)]


def _list_sources(
    index: Index, extractor: EntityExtractor, generator: CachedTextGenerator | None
) -> tuple[list[int], list[SourcePassage]]:
    """Return the ordered rows, and each passage with the key of its extraction."""
    mark = extractor.fingerprint(generator.model if generator is not None else None)
    rows = _list_ordered_rows(index)
    sources = []
    for row in rows:
        passage = index.passage_at(row)
        key = digest_json([mark, passage.text, passage.language])[:32]
        sources.append(SourcePassage(passage.id, passage.document_id, key))
    return rows, sources


def _extract(
    recipe: GraphRecipe,
    job: Job,
    sources: Sequence[SourcePassage],
    passage_of: Callable[[int], Passage],
    previous: PreviousGraph,
    generator: CachedTextGenerator | None,
) -> tuple[dict[str, PassageExtraction], int]:
    """Return the extraction of every text by key, and how many were not available before."""
    first_rows: dict[str, int] = {}
    for row, source in enumerate(sources):
        first_rows.setdefault(source.key, row)
    journal = job.journal("extractions")
    adapter = TypeAdapter(PassageExtraction)
    extracted = {}
    for key in first_rows:
        if key in previous.extractions:
            extracted[key] = previous.extractions[key]
        elif journaled := journal.get(key):
            extracted[key] = adapter.validate_python(journaled)
    missing = [key for key in first_rows if key not in extracted]
    model = generator.model if generator is not None else None
    with job.phase("extract", len(missing), "passages") as progress:
        for start in range(0, len(missing), _BATCH):
            batch = missing[start : start + _BATCH]
            passages = [passage_of(first_rows[key]) for key in batch]
            results = recipe.extractor.extract(passages, model, is_cancelled=job.is_cancelled)
            for key, extraction in zip(batch, results, strict=False):
                extracted[key] = extraction
                journal.put(key, asdict(extraction))
                progress.advance()
            job.check_cancelled()
    return {key: extracted[key] for key in first_rows}, len(missing)


def _assemble(
    recipe: GraphRecipe,
    sources: Sequence[SourcePassage],
    extractions: Sequence[PassageExtraction],
    counts: Mapping[str, int],
) -> tuple[ResolvedEntities, list[GraphEdge]]:
    resolved = resolve_entities(
        sources,
        extractions,
        min_count=recipe.extractor.min_count,
    )
    edges = relate_entities(extractions, resolved, recipe.extractor)
    if recipe.extractor.reach:
        resolved, edges = drop_isolated_nodes(resolved, edges)
    if not resolved.entities:
        mentions = sum(len(extraction.mentions) for extraction in extractions)
        dropped = ", ".join(
            f"{name.removeprefix('dropped_')} {count}" for name, count in sorted(counts.items())
        )
        raise DataError(
            f"no entity was found in {len(sources)} passages "
            f"({mentions} mentions; {dropped or 'nothing dropped'})",
            code="rag.no-entities",
            where=recipe.index,
            expected="at least one entity that enough passages mention and relate",
            next="lower extractor.min_count (--extractor noun_phrases:min_count=1), or use a "
            "larger model",
        )
    return resolved, edges


def _describe(
    resolved: ResolvedEntities, generator: CachedTextGenerator | None, job: Job
) -> list[Entity]:
    with job.phase("describe", len(resolved.entities), "entities") as progress:
        texts = describe_entities(resolved, generator, job.is_cancelled)
        job.check_cancelled()
        progress.advance(len(texts))
    return [
        replace(entity, description=text)
        for entity, text in zip(resolved.entities, texts, strict=True)
    ]


def _report(
    recipe: GraphRecipe,
    entities: Sequence[Entity],
    edges: Sequence[GraphEdge],
    passage_of: Callable[[int], Passage],
    generator: CachedTextGenerator | None,
    job: Job,
    counts: Counter[str],
) -> list[Community]:
    groups = find_communities(
        entities,
        edges,
        max_size=recipe.max_cluster_size,
        resolution=recipe.resolution,
        seed=recipe.seed,
    )
    writes_reports = recipe.writer is None or recipe.writer.reports
    writer = generator if writes_reports else None
    with job.phase("report", len(groups), "communities") as progress:
        communities, unread = write_reports(
            groups,
            entities,
            edges,
            lambda source: passage_of(source).text,
            writer,
            is_cancelled=job.is_cancelled,
        )
        job.check_cancelled()
        progress.advance(len(groups))
    if writer is not None:
        counts["reports_unread"] = unread
    return communities


def _embed(
    entities: Sequence[Entity],
    communities: Sequence[Community],
    embed: IncrementalEmbedder,
    job: Job,
) -> dict[str, NDArray[np.float32]]:
    """Return the vectors of entities and reports, by file."""
    texts = {
        ENTITY_VECTORS: [item.text for item in entities],
        REPORT_VECTORS: [item.report.text or item.id for item in communities],
    }
    with job.phase("embed", sum(map(len, texts.values())), "texts") as progress:
        return {name: embed(batch, progress.advance) for name, batch in texts.items()}


def _write_tables(
    folder: Path,
    sources: Sequence[SourcePassage],
    extractions: Mapping[str, PassageExtraction],
    entities: Sequence[Entity],
    edges: Sequence[GraphEdge],
    communities: Sequence[Community],
    written: Mapping[str, str],
) -> None:
    write_rows(folder / SOURCES, sources)
    write_rows(folder / EXTRACTIONS, sorted(extractions.items()))
    write_rows(folder / ENTITIES, entities)
    write_rows(folder / EDGES, edges)
    write_rows(folder / COMMUNITIES, communities)
    write_rows(folder / GENERATED_TEXTS, ([key, written[key]] for key in sorted(written)))


def _finish_graph(
    recipe: GraphRecipe,
    job: Job,
    index: Index,
    generator: CachedTextGenerator | None,
    *,
    counts: Mapping[str, int],
    extracted: int,
    embedded: int,
) -> Artifact:
    """Write the description of the graph, whose other files are complete; finish the job."""
    model = generator.model if generator is not None else None
    description = write_graph_description(
        job.output,
        index=index.digest,
        settings={**recipe.describe(), "model": model.fingerprint if model is not None else ""},
        embedder=index.embedder.fingerprint,
        counts=counts,
    )
    parents = [make_parent("index", Path(recipe.index), job.out)]
    if generator is not None:
        parents.append(
            Parent("model", generator.reference, generator.model.fingerprint, "checkpoint")
        )
    return job.finish(
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
