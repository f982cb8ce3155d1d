"""Job that builds an index: ``rag.ingestion`` parses, chunks and embeds; files are written here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError, StillroomError, count_noun
from stillroom.jobs import Estimate
from stillroom.jobs.replay import ReplayJob
from stillroom.models.hub import LARGE_EMBEDDER, MULTILINGUAL_EMBEDDER
from stillroom.provenance import digest_text, find_output
from stillroom.rag.embedding.passages import estimate_encoders, open_encoders
from stillroom.rag.index.ann_recall import describe_recall, measure_recall_if_due
from stillroom.rag.index.replay import DrawnContent, commit_document
from stillroom.rag.index_settings import AUTO_EMBEDDER
from stillroom.rag.ingestion.contextual_retrieval import estimate_contexts, open_context_writer
from stillroom.rag.ingestion.discovery import (
    MOST_READ_IN_VAIN,
    check_failures,
    digest_files,
    discover_documents,
    find_entity_lists,
    has_nothing_to_read,
    may_use_entities,
    read_document_metadata,
)
from stillroom.rag.ingestion.embedder_choice import choose_embedder, has_large_embedder
from stillroom.rag.ingestion.pipeline import (
    IngestPipeline,
    build_documents_parent,
    build_embedder_parent,
    build_index_config,
    build_metadata_parents,
)
from stillroom.rag.ingestion.preparation import DocumentFile, FailedDocument, fit_chunker
from stillroom.rag.storage.folder.writer import DEFAULT_KEPT_SNAPSHOTS
from stillroom.rag.storage.protocol import IndexStorage, IndexUpdate, ReusableContent
from stillroom.rag.storage.snapshots import (
    IndexConfig,
    Snapshot,
    is_timed_file,
    open_store,
    write_index_file,
)
from stillroom.rag.types import DocumentMetadata, StagedDocument
from stillroom.records import Origin, combine_origins
from stillroom.records.origin import OriginKind
from stillroom.text.parser_process import ParserProcess

if TYPE_CHECKING:
    from stillroom.jobs import Job
    from stillroom.models import Embedder
    from stillroom.provenance import Artifact
    from stillroom.rag.index_settings import IndexSettings

__all__ = ["build_index", "estimate_index"]

_PASSAGES_PER_SECOND = 20
_BYTES_PER_TOKEN = 4.5
_BYTES_PER_PASSAGE = 200 * _BYTES_PER_TOKEN


def build_index(recipe: IndexSettings, job: Job, *, embedder: Embedder | None = None) -> Artifact:
    """Build the index that a recipe describes.

    Documents of the previous index at the same place are reused where neither they nor the
    settings changed, and its vectors where the embedder did not change; the result equals a
    build from scratch. The content of ``job.previous`` is reused; the embedder is by default
    the recipe's.

    Raises:
        DataError: If the folder contains no document, or too many documents fail; all may where
            ``max_failed`` is 1 and no index is replaced, which leaves an empty index.
    """
    root, scan = discover_documents(recipe.documents)
    files, unread = digest_files(root, scan, job)
    metadata = read_document_metadata(recipe, [file.path for file in files], job)
    given = build_metadata_parents(recipe, job.out)  # before the file may change
    if embedder is None:
        from stillroom.models import open_embedder

        recipe = recipe.model_copy(update={"embedder": choose_embedder(recipe, root, files, job)})
        embedder = open_embedder(recipe.embedder)
    recipe = fit_chunker(recipe, embedder, job.say)
    contexts = open_context_writer(recipe, job)
    encoders = open_encoders(recipe.sparse, recipe.late_interaction, embedder)
    description = build_index_config(recipe, embedder, contexts, encoders)
    reusable = _open_previous(job, description)
    with ParserProcess() as worker, contexts or nullcontext():
        ingester = IngestPipeline(recipe, root, embedder, worker, job, reusable, contexts, encoders)
        parts, failures, reused = _ingest(files, unread, ingester, reusable, description, job)
    failures.sort(key=lambda failed: failed.path)
    _check_usable(recipe, len(parts), failures, str(root), reusable, job)
    snapshot, recall = _write(
        recipe,
        job,
        description,
        embedder,
        [(part, metadata.get(part.entry.path, DocumentMetadata())) for part in parts],
        failures,
    )
    details: dict[str, Any] = {
        **snapshot.counts,
        "duplicates": _count_duplicates(parts),
        "parsed": ingester.parsed,
        "embedded": ingester.embedded,
        "reused": reused,
        "hidden": scan.hidden,
        "failed": [failed.to_json() for failed in failures],
        "index": snapshot.digest,
        "snapshot": snapshot.number,
        **({"approximate": recall} if recall else {}),
        **({"synthetic_context": contexts.details} if contexts else {}),
    }
    origin = Origin(_combine_kinds(recipe, parts), (), recipe.origin.license)
    if reusable is not None:
        reusable.close()  # parts taken over from it cannot be read any more
    replaced = _find_replaced_store(job)
    artifact = job.finish(
        "index",
        parents=[
            build_documents_parent(root, files),
            *given,
            build_embedder_parent(recipe.embedder, embedder.fingerprint),
            *(contexts.parents if contexts else []),
            *(encoders.parents if encoders else []),
        ],
        origin=origin.to_json(),
        details=details,
        is_timed=is_timed_file,
    )
    if replaced is not None:
        replaced.discard()
    return artifact


def _combine_kinds(recipe: IndexSettings, parts: Sequence[StagedDocument]) -> OriginKind:
    """Return the weakest origin of the documents, since marks of a file outdo the recipe."""
    if recipe.origin.kind == "synthetic" or not parts:
        return recipe.origin.kind
    rows = (json.loads(part.document_line()) for part in parts)
    return combine_origins(Origin.from_json(row["origin"]) for row in rows).kind


def _check_usable(
    recipe: IndexSettings,
    usable: int,
    failures: Sequence[FailedDocument],
    root: str,
    reusable: ReusableContent | None,
    job: Job,
    remaining: int = 0,
) -> None:
    """Raise an error if too many documents failed; all may only where no index is replaced.

    ``remaining`` of the usable documents were not read yet.
    """
    if not usable and recipe.max_failed == 1 and reusable is None:
        job.warn(
            f"none of {len(failures)} documents can be used: the index is empty and "
            "answers nothing until one with text is added"
        )
        return
    try:
        total = usable + len(failures)
        check_failures(failures, total, recipe.max_failed, root, remaining=remaining)
    except DataError:
        if reusable is not None:
            reusable.close()
        raise


def estimate_index(recipe: IndexSettings) -> Estimate:
    """Return the estimated cost of building the index, from the size of the folder alone.

    Raises:
        DataError: If the folder contains no document.
    """
    _, scan = discover_documents(recipe.documents)
    files = scan.files
    size = sum(file.stat().st_size for file in files)
    largest = max(file.stat().st_size for file in files)
    passages = max(int(size / _BYTES_PER_TOKEN / recipe.chunker.size), len(files))
    texts = size / _BYTES_PER_PASSAGE
    width = 384 * (4 if recipe.vectors == "float32" else 2)
    rate, encoder = _PASSAGES_PER_SECOND, "MiniLM-L6"
    is_auto = recipe.embedder == AUTO_EMBEDDER
    if recipe.embedder == MULTILINGUAL_EMBEDDER:
        rate, encoder = rate // 2, "multilingual-e5-small"
    elif recipe.embedder == LARGE_EMBEDDER or (is_auto and has_large_embedder()):
        rate, encoder, width = rate // 2, "all-mpnet-base-v2 in 8-bit integers", 2 * width
    if is_auto:
        other = _PASSAGES_PER_SECOND // 2
        encoder += f", or multilingual-e5-small at {other} if most are not in English,"
    embedding = Estimate(
        memory_bytes=600_000_000 + 12 * largest + passages * (width + 400),
        disk_bytes=6 * size + passages * 2 * width,
        seconds=max(texts, len(files)) / rate,
        memory_knob="raise chunker.size, or set vectors: float16",
        disk_knob="set vectors: float16",
        basis=f"{count_noun(len(files), 'file')} of {size / 1e6:.1f} MB, about "
        f"{count_noun(passages, 'passage')} at "
        f"{rate} of 200 tokens a second ({encoder} on 2 cores)",
    )
    embedding += estimate_encoders(recipe, passages, size / _BYTES_PER_TOKEN)
    if recipe.context is None:
        return embedding
    tokens = size / _BYTES_PER_TOKEN
    contexts = estimate_contexts(recipe.context, passages, tokens, len(files))
    memory = embedding.memory_bytes + contexts.memory_bytes  # both models are open at once
    return replace(embedding + contexts, memory_bytes=memory)


def _open_previous(job: Job, description: IndexConfig) -> ReusableContent | None:
    """Return the job's previous index, or None if it cannot be used; the reason is logged."""
    if job.previous is None:
        return None
    reusable = None
    try:
        store = open_store(find_output(job.previous, "index"))
        store.read(verify=True).close()
        reusable = store.hold()
        if _describe_vectors(IndexConfig.from_json(reusable.description)) != _describe_vectors(
            description
        ):
            job.say("the previous index is not used: its vectors are of another kind")
            reusable.close()
            return None
        if isinstance(job, ReplayJob):
            return DrawnContent(reusable, job)
    except StillroomError as error:
        if reusable is not None:
            reusable.close()
        job.warn(f"the previous index is not used: {error.problems[0].what}")
        return None
    return reusable


def _find_replaced_store(job: Job) -> IndexStorage | None:
    """Return the store of the index that the new one replaces; its external data are dropped."""
    if job.previous is None or job.previous != job.out:
        return None
    try:
        return open_store(find_output(job.previous, "index"))
    except StillroomError as error:
        job.warn(f"the external data of the previous index stay: {error.problems[0].what}")
        return None


def _describe_vectors(description: IndexConfig) -> tuple[str, str]:
    return str(description.embedder["fingerprint"]), str(description.settings["vectors"])


def _ingest(
    files: Sequence[DocumentFile],
    unread: Sequence[FailedDocument],
    ingester: IngestPipeline,
    reusable: ReusableContent | None,
    description: IndexConfig,
    job: Job,
) -> tuple[list[StagedDocument], list[FailedDocument], int]:
    recipe, total = ingester.recipe, len(files) + len(unread)
    parts: list[StagedDocument] = []
    failures = list(unread)
    lost, reused = sum(not has_nothing_to_read(part) for part in unread), 0
    same = reusable is not None and reusable.description["preparation"] == description.preparation
    has_entities = bool(find_entity_lists(files))  # whose state then no digest of a document tells
    known: dict[str, StagedDocument | FailedDocument] = {}
    for item in files:
        job.check_cancelled()
        part: StagedDocument | FailedDocument | None = None
        if reusable is not None and same and not (has_entities and may_use_entities(item)):
            part = reusable.take(item.path, item.digest)
            reused += part is not None
        part = part or ingester.recall(item.path, item.digest)
        if part is not None:
            known[item.path] = part
    unknown = [item for item in files if item.path not in known]
    ingested = ingester.ingest_all(unknown)
    with ingester.phase(len(files), unknown) as progress:
        for item in files:
            weight = 0 if item.path in known else item.size
            part = known.pop(item.path, None) or next(ingested)
            if isinstance(part, FailedDocument):
                failures.append(part)
                job.warn(f"left out: {part.path}: {part.reason}  [{part.code}]")
                lost += not has_nothing_to_read(part)
                usable, root = total - len(failures), str(ingester.root)
                remaining = usable - len(parts)
                if lost > recipe.max_failed * total and remaining > MOST_READ_IN_VAIN:
                    _check_usable(recipe, usable, failures, root, reusable, job, remaining)
            else:
                parts.append(part)
            commit_document(job, item.path, item.digest, part)
            progress.advance(note=item.path, weight=weight)
    return parts, failures, reused


def _write(
    recipe: IndexSettings,
    job: Job,
    description: IndexConfig,
    embedder: Embedder,
    puts: Sequence[tuple[StagedDocument, DocumentMetadata]],
    failures: Sequence[FailedDocument],
) -> tuple[Snapshot, dict[str, Any] | None]:
    with job.phase("write", len(puts), "documents") as progress:
        writer = recipe.store.create(job.output, description.to_json())
        with writer:
            change = IndexUpdate(
                puts=puts,
                failures=[failed.to_json() for failed in failures],
            )
            snapshot = writer.commit(
                change, reason="built", keep=DEFAULT_KEPT_SNAPSHOTS, check=job.check_cancelled
            )
            recall = measure_recall_if_due(writer, embedder)
        write_index_file(job.output, description, snapshot)
        progress.advance(len(puts))
    if recall is not None:
        job.say(describe_recall(recall))
    return snapshot, recall


def _count_duplicates(parts: Sequence[StagedDocument]) -> int:
    """Return how many passages repeat the text of an earlier one, ignoring white space."""
    digests, count = set(), 0
    for part in parts:
        for line in part.passage_lines():
            digest = digest_text(" ".join(json.loads(line)["text"].split()))
            count += digest in digests
            digests.add(digest)
    return count
