"""Document discovery: the files of a folder with digests and metadata, and the limit of failures.

What is left out is counted and named; ``check_failures`` applies ``max_failed``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Container, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stillroom.errors import DataError, Problem, count_noun
from stillroom.objects import resolve_local
from stillroom.provenance import digest_bytes, digest_file, find_output
from stillroom.rag.ingestion.preparation import DocumentFile, FailedDocument
from stillroom.rag.storage.filters import read_metadata
from stillroom.text.documents.entities import ENTITY_SUFFIXES
from stillroom.text.parsers.docbook import Docbook
from stillroom.text.parsers.image import Image
from stillroom.text.parsers.md import Md
from stillroom.text.reader import EMPTY_FILE, FolderScan, scan_folder

if TYPE_CHECKING:
    from stillroom.jobs import Job
    from stillroom.rag.index_settings import IndexSettings
    from stillroom.rag.types import DocumentMetadata

__all__ = [
    "MOST_READ_IN_VAIN",
    "check_failures",
    "digest_files",
    "discover_documents",
    "find_entity_lists",
    "has_nothing_to_read",
    "may_use_entities",
    "read_document_metadata",
]

_EMPTY = digest_bytes(b"")
_SHOWN_FAILURES = 20
_START_OVER = (
    "start over without them: stillroom rag index FOLDER --out INDEX --overwrite "
    "max_failed={share} (of make: steps.index.max_failed={share})"
)
MOST_READ_IN_VAIN = 100
"""Documents that are read, to name all failures and their share, though too many failed before."""


def discover_documents(reference: str) -> tuple[Path, FolderScan]:
    """Return the folder that paths are relative to, and the scan of its files.

    Raises:
        DataError: If there is no file to read.
    """
    path = find_output(resolve_local(reference))
    scan = scan_folder(path)
    if not scan.files:
        raise DataError(
            "the folder has no documents",
            code="rag.no-documents",
            where=str(path),
            expected="files of a known format: text, Markdown, HTML, PDF, office files",
            next="stillroom list methods text.parsers",
        )
    return (path if path.is_dir() else path.parent), scan


def digest_files(
    root: Path, scan: FolderScan, job: Job
) -> tuple[list[DocumentFile], list[FailedDocument]]:
    """Return the files with their digests in order of path, and the unreadable ones."""
    files: dict[str, DocumentFile] = {}
    failures = [
        FailedDocument(refusal.path, refusal.code, refusal.reason) for refusal in scan.refused
    ]
    if scan.links:
        job.warn(
            f"{count_noun(scan.links, 'link')} to files of the folder left out: each file is read "
            "once, under its own name"
        )
    with job.phase("digest", len(scan.files), "documents") as progress:
        for file in progress.over(scan.files):
            name = file.relative_to(root).as_posix()
            path = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            try:
                if path in files:
                    raise OSError("another file has the same name once it is written as UTF-8")
                files[path] = DocumentFile(file, path, digest_file(file), file.stat().st_size)
            except OSError as error:
                failures.append(
                    FailedDocument(path, "rag.unreadable", error.strerror or str(error))
                )
    for failure in failures[:_SHOWN_FAILURES]:
        job.warn(f"left out: {failure.path}: {failure.reason}  [{failure.code}]")
    if len(failures) > _SHOWN_FAILURES:
        job.warn(
            f"left out besides: {len(failures) - _SHOWN_FAILURES} of {len(failures)} paths; the "
            "index lists each under 'failed'"
        )
    digests = [file.digest for file in files.values() if file.digest != _EMPTY]
    if copies := len(digests) - len(set(digests)):
        job.warn(
            f"documents that are copies of others: {copies} of {len(files)}; all are indexed, each "
            "under its own path"
        )
    return sorted(files.values(), key=lambda item: item.path), failures


def find_entity_lists(files: Iterable[DocumentFile]) -> dict[str, str]:
    """Return the digests by path of files that declare entities for documents beside them."""
    return {file.path: file.digest for file in files if file.path.lower().endswith(ENTITY_SUFFIXES)}


def may_use_entities(file: DocumentFile) -> bool:
    """Return whether the text of a document may depend on lists of entities."""
    if not file.path.lower().endswith((*Docbook.suffixes, ".xml")):
        return False
    try:
        return Docbook.has_entities(file.file.read_bytes())
    except OSError:  # its failure is told when it is read
        return True


def read_document_metadata(
    recipe: IndexSettings, paths: Collection[str], job: Job
) -> dict[str, DocumentMetadata]:
    """Return the metadata of documents from the recipe's metadata file, by path.

    Raises:
        DataError: If the file cannot be used.
    """
    if recipe.metadata is None:
        return {}
    facts = read_metadata(Path(recipe.metadata))
    job.event("metadata", documents=len(facts))  # see JournalReplayer.later_roles
    unknown = len(facts.keys() - set(paths))
    if unknown:
        job.warn(f"{unknown} of {len(facts)} paths in {recipe.metadata} match no document")
    return facts


def has_nothing_to_read(failed: FailedDocument, indexed: Container[str] = ()) -> bool:
    """Return whether a document has nothing to read, as many in any wiki: it is then no failure.

    Such are empty files, notes of front matter alone and pictures without text; but not one whose
    text is ``indexed``: a file that has become empty may have been damaged.
    """
    return (
        failed.code == "document.no-text"
        and failed.path not in indexed
        and (
            failed.reason.startswith(EMPTY_FILE)
            or failed.path.lower().endswith((*Image.suffixes, *Md.suffixes))
        )
    )


def check_failures(
    failures: Sequence[FailedDocument],
    total: int,
    max_failed: float,
    root: str,
    *,
    indexed: Container[str] = (),
    remaining: int = 0,
    repeat: str = _START_OVER,
) -> None:
    """Raise an error if none or too few of the documents could be ingested.

    What has nothing to read counts neither as documents nor as failures, unless there is nothing
    else. ``remaining`` documents were not read yet: the error says so. ``repeat`` is the advice to
    go on without them, with a place for the ``share`` that failed.

    Raises:
        DataError: If so; lists the first failures with their reasons.
    """
    blank = sum(has_nothing_to_read(failed, indexed) for failed in failures)
    lost = (len(failures) - blank) / max(1, total - blank)
    if len(failures) < total and lost <= max_failed:
        return
    counts = Counter(failed.code for failed in failures)
    share = 1 if remaining else math.ceil(100 * lost) / 100
    expected, repair = (
        ("one at least that can be read and holds text", "repair them, or add documents with text")
        if len(failures) == total
        else (
            f"at most {max_failed:.0%} of them"
            + ", files with nothing to read aside" * bool(blank),
            f"repair or remove them, or {repeat.format(share=share)}",
        )
    )
    shown = failures[:_SHOWN_FAILURES]
    more = len(failures) - len(shown)
    raise DataError(
        [
            Problem(
                f"{len(failures)} of {total} documents cannot be used "
                f"({', '.join(f'{code} {count}' for code, count in sorted(counts.items()))})"
                + f"; stopped before the remaining {remaining} were read"
                * bool(remaining),
                "rag.documents-failed",
                root,
                expected,
                repair,
            ),
            *(Problem(failed.reason, failed.code, failed.path) for failed in shown),
            *([Problem(f"and {more} more", "rag.documents-failed", root)] if more else []),
        ]
    )
