"""Build an index: list, parse, cut and embed documents, then write the files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom import __version__
from stillroom.errors import DataError, Problem
from stillroom.jobs import Estimate
from stillroom.provenance import Parent, digest_file, digest_json, find_output
from stillroom.rag.analyzer import Analyzer
from stillroom.rag.contextual import ContextWriter, estimate_contexts, open_context_writer
from stillroom.rag.cutting import fit_chunker
from stillroom.rag.ingest import Failed, Ingester, Part
from stillroom.rag.pooling import check_pooling
from stillroom.rag.previous import Previous, open_previous
from stillroom.rag.sweep_settings import refuse_sweep
from stillroom.rag.writing import write_index
from stillroom.records import Origin
from stillroom.text.reading import Scan, scan_folder
from stillroom.text.worker import Worker

if TYPE_CHECKING:
    from stillroom.jobs import Job
    from stillroom.models import Embedder
    from stillroom.provenance import Artifact
    from stillroom.rag.recipe import RagRecipe

__all__ = ["estimate", "run"]

_PASSAGES_PER_SECOND = 20
_BYTES_PER_TOKEN = 4.5
_BYTES_PER_PASSAGE = 200 * _BYTES_PER_TOKEN
_SHOWN_FAILURES = 20
_PREPARING = {"origin", "limits", "chunker", "with_headings", "pooling", "vectors"}


@dataclass(frozen=True, slots=True)
class _Found:
    """A file of the folder: where it is, its path below the root, its digest."""

    file: Path
    path: str
    digest: str


def run(recipe: RagRecipe, job: Job, *, embedder: Embedder | None = None) -> Artifact:
    """Build the index that a recipe describes.

    Documents of the previous index at the same place are taken over where neither they nor the
    settings changed; the result is byte for byte that of a build from scratch.

    Args:
        recipe: What to build from and how.
        job: The run; its ``previous`` is the index to take over from.
        embedder: What makes the vectors; by default the one that the recipe names.

    Raises:
        DataError: If the folder holds no document, or too many of them fail.
    """
    refuse_sweep(recipe)
    root, scan = _find_documents(recipe)
    if embedder is None:
        from stillroom.models import open_embedder

        embedder = open_embedder(recipe.embedder)
    recipe = fit_chunker(recipe, embedder, job.say)
    check_pooling(recipe, embedder)
    contexts = open_context_writer(recipe, job)
    preparation = _prepare_digest(recipe, embedder, contexts)
    found, unread = _digest_files(root, scan, job)
    previous = open_previous(job, preparation)
    with Worker() as worker, contexts or nullcontext():
        ingester = Ingester(recipe, root, embedder, worker, job, contexts)
        parts, failures, reused = _ingest(found, ingester, previous, job)
    failures = sorted([*unread, *failures], key=lambda failed: failed.path)
    _check_failures(failures, len(parts) + len(failures), recipe, str(root))
    settings = _settings(recipe, contexts)
    analyzer = Analyzer(recipe.keyword.stemming)
    with job.phase("write", len(parts), "documents") as progress:
        description = write_index(
            job,
            parts,
            settings=settings,
            preparation=preparation,
            embedder={
                "reference": recipe.embedder,
                "fingerprint": embedder.fingerprint,
                "dimensions": embedder.dimensions,
            },
            analyzer=analyzer,
            failures=[failed.to_json() for failed in failures],
            previous=previous,
            progress=progress,
        )
    if previous is not None:
        previous.close()
    details: dict[str, Any] = {
        **description.counts,
        "parsed": ingester.parsed,
        "embedded": ingester.embedded,
        "reused": reused,
        "hidden": scan.hidden,
        "failed": [failed.to_json() for failed in failures],
        "index": description.digest,
        **({"synthetic_context": contexts.details} if contexts else {}),
    }
    return job.finish(
        "index",
        parents=[
            Parent("documents", str(root), digest_json([[f.path, f.digest] for f in found])),
            Parent("embedder", recipe.embedder, embedder.fingerprint, "checkpoint"),
            *(contexts.parents if contexts else []),
        ],
        origin=Origin(recipe.origin.kind, (), recipe.origin.license).to_json(),
        details=details,
    )


def estimate(recipe: RagRecipe) -> Estimate:
    """Return what building the index will need, from the size of the folder alone.

    Raises:
        DataError: If the folder holds no document.
    """
    _, scan = _find_documents(recipe)
    files = scan.files
    size = sum(file.stat().st_size for file in files)
    largest = max(file.stat().st_size for file in files)
    passages = max(int(size / _BYTES_PER_TOKEN / recipe.chunker.size), len(files))
    texts = size / _BYTES_PER_PASSAGE * (1 + recipe.chunker.reading_passes)
    width = 384 * (4 if recipe.vectors == "float32" else 2)
    embedding = Estimate(
        memory_bytes=600_000_000 + 12 * largest + passages * (width + 400),
        disk_bytes=6 * size + passages * 2 * width,
        seconds=max(texts, len(files)) / _PASSAGES_PER_SECOND,
        memory_knob="raise chunker.size, or set vectors: float16",
        disk_knob="set vectors: float16",
        basis=f"{len(files)} files of {size / 1e6:.1f} MB, about {passages} passages at "
        f"{_PASSAGES_PER_SECOND} of 200 tokens a second (MiniLM-L6 on 2 cores)",
    )
    if recipe.context is None:
        return embedding
    tokens = size / _BYTES_PER_TOKEN
    return embedding + estimate_contexts(recipe.context, passages, tokens, len(files))


def _find_documents(recipe: RagRecipe) -> tuple[Path, Scan]:
    """Return the folder that paths are relative to, and what it holds.

    Raises:
        DataError: If there is no file to read.
    """
    place = find_output(Path(recipe.documents))
    scan = scan_folder(place)
    if not scan.files:
        raise DataError(
            f"{place} holds no documents",
            code="rag.no-documents",
            where=str(place),
            expected="files of a known format: text, Markdown, HTML, PDF, office files",
            next="stillroom list methods text.parsers",
        )
    return (place if place.is_dir() else place.parent), scan


def _prepare_digest(recipe: RagRecipe, embedder: Embedder, contexts: ContextWriter | None) -> str:
    """Return the digest of all that shapes passages and vectors beside the documents."""
    return digest_json(
        {
            "version": __version__,
            "embedder": embedder.fingerprint,
            "context": contexts.fingerprint if contexts else "",
            **recipe.model_dump(mode="json", include=_PREPARING),
        }
    )


def _settings(recipe: RagRecipe, contexts: ContextWriter | None) -> Mapping[str, Any]:
    settings = recipe.model_dump(mode="json")
    kept = {name: settings[name] for name in sorted({*_PREPARING, "keyword"})}
    return {**kept, "context": contexts.settings if contexts else None}


def _digest_files(root: Path, scan: Scan, job: Job) -> tuple[list[_Found], list[Failed]]:
    """Return the files with their digests in order of path, and those that cannot be read."""
    found: dict[str, _Found] = {}
    failures = [Failed(one.path, one.code, one.reason) for one in scan.refused]
    with job.phase("digest", len(scan.files), "documents") as progress:
        for file in progress.over(scan.files):
            name = file.relative_to(root).as_posix()
            path = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            try:
                if path in found:
                    raise OSError("another file has the same name once it is written as UTF-8")
                found[path] = _Found(file, path, digest_file(file))
            except OSError as error:
                failures.append(Failed(path, "rag.unreadable", error.strerror or str(error)))
    return sorted(found.values(), key=lambda item: item.path), failures


def _ingest(
    found: Sequence[_Found], ingester: Ingester, previous: Previous | None, job: Job
) -> tuple[list[Part], list[Failed], int]:
    parts: list[Part] = []
    failures: list[Failed] = []
    reused = 0
    with job.phase("index", len(found), "documents") as progress:
        for item in found:
            job.check_cancelled()
            part: Part | Failed | None = None
            if previous is not None:
                part = previous.take(item.path, item.digest)
                reused += part is not None
            part = part or ingester.recall(item.path, item.digest)
            part = part or ingester.ingest(item.file, item.path, item.digest)
            if isinstance(part, Failed):
                failures.append(part)
                job.say(f"left out: {part.path}: {part.reason}  [{part.code}]")
            else:
                parts.append(part)
            progress.advance(note=item.path)
    return parts, failures, reused


def _check_failures(failures: Sequence[Failed], total: int, recipe: RagRecipe, root: str) -> None:
    if len(failures) < total and len(failures) <= recipe.max_failed * total:
        return
    counts = Counter(failed.code for failed in failures)
    shown = failures[:_SHOWN_FAILURES]
    rest = len(failures) - len(shown)
    raise DataError(
        [
            Problem(
                f"{len(failures)} of {total} documents cannot be used "
                f"({', '.join(f'{code} {count}' for code, count in sorted(counts.items()))})",
                "rag.documents-failed",
                root,
                f"at most {recipe.max_failed:.0%} of them, and one that can",
                "repair or remove them, or raise max_failed",
            ),
            *(Problem(failed.reason, failed.code, failed.path) for failed in shown),
            *([Problem(f"and {rest} more", "rag.documents-failed", root)] if rest else []),
        ]
    )
