"""The files of an index from its parts, in order, each written whole."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.jobs import atomic_write
from stillroom.provenance import digest_text
from stillroom.rag.analyzer import ANALYZER_VERSION, Analyzer
from stillroom.rag.layout import (
    DOCUMENTS,
    LEXICON,
    PASSAGES,
    VECTORS,
    Description,
    Lines,
    describe_files,
    write_description,
)
from stillroom.rag.lexicon import LexiconRow, build_lexicon
from stillroom.rag.prefixes import keyword_prefixes

if TYPE_CHECKING:
    from stillroom.jobs import Job, Progress
    from stillroom.rag.ingest import Part
    from stillroom.rag.previous import Previous

__all__ = ["write_index"]


def write_index(
    job: Job,
    parts: Sequence[Part],
    *,
    settings: Mapping[str, Any],
    preparation: str,
    embedder: Mapping[str, Any],
    analyzer: Analyzer,
    failures: Sequence[Mapping[str, str]],
    previous: Previous | None,
    progress: Progress,
) -> Description:
    """Write every file of the index into the job's output; return what index.json says.

    Args:
        job: Whose output and scratch folder are used.
        parts: The documents, in order of path; each has at least one passage.
        settings: What of the recipe shapes the index.
        preparation: The digest that says whose passages and vectors may be taken over.
        embedder: Reference, fingerprint and dimensions.
        analyzer: What cuts texts into terms.
        failures: The documents that were left out, with reasons.
        previous: The index before this one, if it can be used.
        progress: Counts documents.
    """
    folder = job.output
    _write_lines(folder, parts, progress)
    _write_vectors(folder / VECTORS, parts, int(embedder["dimensions"]))
    job.check_cancelled()
    entries = [part.entry for part in parts]
    target = folder / LEXICON
    if previous is None or not previous.copy_lexicon(target, entries, analyzer.fingerprint):
        build_lexicon(target, _lexicon_rows(folder / PASSAGES, analyzer, job), job.scratch)
    description = Description(
        preparation=preparation,
        settings=settings,
        embedder=embedder,
        analyzer={
            "version": ANALYZER_VERSION,
            "stemming": analyzer.stemming,
            "fingerprint": analyzer.fingerprint,
        },
        counts={
            "documents": len(entries),
            "passages": sum(entry.passages for entry in entries),
            "truncated": sum(entry.truncated for entry in entries),
            "duplicates": _count_duplicates(folder / PASSAGES),
        },
        documents=tuple(entries),
        failures=tuple(failures),
        files=describe_files(folder),
    )
    write_description(folder, description)
    return description


def _write_lines(folder: Path, parts: Sequence[Part], progress: Progress) -> None:
    with (
        atomic_write(folder / DOCUMENTS, "wb") as documents,
        atomic_write(folder / PASSAGES, "wb") as passages,
    ):
        for part in progress.over(parts):
            documents.write(part.document_line() + b"\n")
            passages.writelines(line + b"\n" for line in part.passage_lines())


def _write_vectors(path: Path, parts: Sequence[Part], dimensions: int) -> None:
    """Write one .npy file piece by piece, so that the whole matrix never lies in memory."""
    rows = sum(part.entry.passages for part in parts)
    dtype = parts[0].vectors().dtype
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": (rows, dimensions),
    }
    with atomic_write(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(np.ascontiguousarray(part.vectors()).tobytes())


def _lexicon_rows(path: Path, analyzer: Analyzer, job: Job) -> Iterator[LexiconRow]:
    lines = Lines(path)
    stop = analyzer.stop_words
    for number, line in enumerate(lines):
        if number % 256 == 0:
            job.check_cancelled()
        passage = json.loads(line)
        tongue = passage["language"]
        names = keyword_prefixes(passage)
        headings = [term for name in names for term in analyzer.index_terms(name, tongue)]
        body = analyzer.index_terms(passage["text"], tongue)
        yield (
            passage["id"],
            headings,
            body,
            sum(term not in stop for term in headings),
            sum(term not in stop for term in body),
        )
    lines.close()


def _count_duplicates(path: Path) -> int:
    """Return how many passages repeat the text of an earlier one, white space aside."""
    lines, seen, count = Lines(path), set(), 0
    for line in lines:
        mark = digest_text(" ".join(json.loads(line)["text"].split()))
        count += mark in seen
        seen.add(mark)
    lines.close()
    return count
