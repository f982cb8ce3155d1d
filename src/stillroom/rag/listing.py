"""What a folder of documents holds now: its files by digest, and what of them failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stillroom import __version__
from stillroom.errors import DataError, Problem
from stillroom.objects import address_of, local
from stillroom.provenance import Parent, digest_file, digest_json, find_output
from stillroom.rag.analyzer import ANALYZER_VERSION, Analyzer
from stillroom.rag.ingest import Failed
from stillroom.rag.store.description import Description
from stillroom.rag.store.fields import read_metadata
from stillroom.rag.store.parts import Facts
from stillroom.text.reading import Scan, scan_folder

if TYPE_CHECKING:
    from stillroom.jobs import Job
    from stillroom.models import Embedder
    from stillroom.rag.contextual import ContextWriter
    from stillroom.rag.encoders import Encoders
    from stillroom.rag.recipe import RagRecipe

__all__ = [
    "Found",
    "check_failures",
    "describe_index",
    "digest_files",
    "documents_parent",
    "embedder_parent",
    "find_documents",
    "read_facts",
]

_SHOWN_FAILURES = 20
_PREPARATION = {"origin", "limits", "chunker", "with_headings", "pooling", "vectors"}


@dataclass(frozen=True, slots=True)
class Found:
    """A file of the folder: where it is, its path below the root, its digest."""

    file: Path
    path: str
    digest: str


def find_documents(reference: str) -> tuple[Path, Scan]:
    """Return the folder that paths are relative to, and what it holds.

    Raises:
        DataError: If there is no file to read.
    """
    place = find_output(local(reference))
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


def digest_files(root: Path, scan: Scan, job: Job) -> tuple[list[Found], list[Failed]]:
    """Return the files with their digests in order of path, and those that cannot be read."""
    found: dict[str, Found] = {}
    failures = [Failed(one.path, one.code, one.reason) for one in scan.refused]
    with job.phase("digest", len(scan.files), "documents") as progress:
        for file in progress.over(scan.files):
            name = file.relative_to(root).as_posix()
            path = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            try:
                if path in found:
                    raise OSError("another file has the same name once it is written as UTF-8")
                found[path] = Found(file, path, digest_file(file))
            except OSError as error:
                failures.append(Failed(path, "rag.unreadable", error.strerror or str(error)))
    return sorted(found.values(), key=lambda item: item.path), failures


def documents_parent(root: Path, found: Sequence[Found]) -> Parent:
    """Return the entry of artifact.json that says which files an index was made from."""
    named = address_of(root) or str(root)
    return Parent("documents", named, digest_json([[one.path, one.digest] for one in found]))


def embedder_parent(reference: str, fingerprint: str) -> Parent:
    """Return the entry of artifact.json that says what made the vectors.

    A method of the house (``static``) is no file beside the index, and is named as a reference.
    """
    is_name = ":" not in reference and not Path(reference).exists()
    return Parent(
        "embedder", f"embedder:{reference}" if is_name else reference, fingerprint, "checkpoint"
    )


def describe_index(
    recipe: RagRecipe,
    embedder: Embedder,
    contexts: ContextWriter | None = None,
    encoders: Encoders | None = None,
) -> Description:
    """Return what shapes the index that a recipe describes, its documents aside."""
    told = recipe.model_dump(mode="json")
    preparation = digest_json(
        {
            "version": __version__,
            "embedder": embedder.fingerprint,
            "context": contexts.fingerprint if contexts else "",
            **(encoders.settings if encoders else {}),
            **{name: told[name] for name in sorted(_PREPARATION)},
        }
    )
    analyzer = Analyzer(recipe.keyword.stemming)
    return Description(
        preparation=preparation,
        settings={
            **{name: told[name] for name in sorted({*_PREPARATION, "access", "dense", "keyword"})},
            "context": contexts.settings if contexts else None,
            **(encoders.settings if encoders else {}),
        },
        embedder={
            "reference": recipe.embedder,
            "fingerprint": embedder.fingerprint,
            "dimensions": embedder.dimensions,
        },
        analyzer={
            "version": ANALYZER_VERSION,
            "stemming": analyzer.stemming,
            "fingerprint": analyzer.fingerprint,
        },
    )


def read_facts(recipe: RagRecipe, paths: Collection[str], job: Job) -> dict[str, Facts]:
    """Return what the recipe's metadata says of documents, by path.

    Raises:
        DataError: If the file cannot be used.
    """
    if recipe.metadata is None:
        return {}
    facts = read_metadata(Path(recipe.metadata))
    unknown = len(facts.keys() - set(paths))
    if unknown:
        job.say(f"{unknown} of {len(facts)} paths in {recipe.metadata} are no document's")
    return facts


def check_failures(failures: Sequence[Failed], total: int, max_failed: float, root: str) -> None:
    """Refuse to go on where none or too few of the documents can be used.

    Raises:
        DataError: If so; the first failures are named with their reasons.
    """
    if len(failures) < total and len(failures) <= max_failed * total:
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
                f"at most {max_failed:.0%} of them, and one that can",
                "repair or remove them, or raise max_failed (of make: steps.index.max_failed)",
            ),
            *(Problem(failed.reason, failed.code, failed.path) for failed in shown),
            *([Problem(f"and {rest} more", "rag.documents-failed", root)] if rest else []),
        ]
    )
