"""Dataset writer with a per-item journal, and a final check for unmarked files."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from stillroom.errors import DataError
from stillroom.forensics.labeling.lab import Lab
from stillroom.forensics.labeling.marks import require_marked_set
from stillroom.forensics.labeling.writers import UNREADABLE_MEDIA_SUFFIXES, LabeledImageWriter
from stillroom.forensics.media.file_types import FileType as MediaKind
from stillroom.forensics.media.file_types import detect_file_type
from stillroom.jobs import Job, atomic_write

__all__ = [
    "MANIFEST",
    "ManifestRows",
    "find_unmarked_files",
    "write_dataset",
]


MANIFEST = "manifest.jsonl"


ManifestRows = list[dict[str, Any]]


def write_dataset(
    job: Job,
    lab: Lab,
    make: Callable[[Collection[int]], Iterator[tuple[int, ManifestRows]]],
    *,
    count: int,
    unit: str,
    rows_before: int,
) -> ManifestRows:
    """Have every item made, write the manifest, and refuse a set with an unmarked file.

    Args:
        job: What was made before it stopped is not made again.
        lab: Whose marks every file has to have.
        make: Given the numbers that are done, yields those of the others and their rows, each once
            its files are written.
        count: How many items there are.
        unit: What they are, in words.
        rows_before: Of the ledger, before the job.

    Returns:
        The manifest's rows, by item.

    Raises:
        IntegrityError: If a file lacks a mark.
        Cancelled: If the user stopped it.
    """
    journal = job.journal("items")
    done: dict[int, ManifestRows] = {
        int(key): journal.get(key)
        for key in journal.keys()  # noqa: SIM118  # no mapping
    }
    with job.phase("forge", count, unit, done=len(done)) as progress:
        for number, rows in make(done):
            journal.put(str(number), rows)
            done[number] = rows
            progress.advance()
            job.check_cancelled()
    found = [row for number in sorted(done) for row in done[number]]
    with atomic_write(job.output / MANIFEST) as file:
        file.writelines(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in found)
    require_marked_set(find_unmarked_files(job.output, lab))
    job.say(
        f"{len(found)} {unit}, each with label, watermark, credentials and a row in the ledger "
        f"({rows_before} rows before, {lab.ledger.verify()} now)"
    )
    return found


def find_unmarked_files(place: Path, lab: Lab) -> dict[str, list[str]]:
    """Return every media file at or below a place that lacks a mark of the lab, and which.

    A file is a medium by how it begins, whatever it is named, or by its name where that says
    nothing. Media whose type cannot be marked are unmarked, whatever is in them.

    Raises:
        DataError: If the place does not exist, or holds no medium: of nothing, nothing is said.
    """
    from stillroom.forensics.labeling.writers import LabeledAudioWriter

    media = _list_media(place)
    marker, sounds, found = LabeledImageWriter(lab), LabeledAudioWriter(lab), {}
    rows = {str(row.get("sha256")): row for row in lab.ledger.rows()}
    for path, kind in media:
        mime = kind.mime if kind is not None else ""
        if mime in {"image/jpeg", "image/png"}:
            missing = marker.missing_marks(path, rows)
        elif mime == "audio/wav":
            missing = sounds.missing_marks(path, rows)
        else:
            missing = ["ledger", "watermark", "credentials", "label"]
        if missing:
            name = path.name if path == place else path.relative_to(place).as_posix()
            found[name] = missing
    return found


def _list_media(place: Path) -> list[tuple[Path, MediaKind | None]]:
    """Return the media at or below a place; None stands for a kind that is not read at all.

    Raises:
        DataError: If there is none.
    """
    if not place.exists():
        raise DataError(
            f"{place} does not exist",
            code="data.missing",
            where=str(place),
            expected="a folder of media, or one file",
            next="check the path",
        )
    files = [place] if place.is_file() else sorted(place.rglob("*"))
    kinds = [(path, detect_file_type(path)) for path in files if path.is_file()]
    media = [
        (path, kind)
        for path, kind in kinds
        if (kind is not None and not kind.mime.startswith("font/"))
        or path.suffix.lower() in UNREADABLE_MEDIA_SUFFIXES
    ]
    if not media:
        raise DataError(
            f"{place} holds no medium, so that none was looked at",
            code="forensics.no-media",
            where=str(place),
            expected="pictures, films, recordings or documents that can be marked",
            next="name the folder that the files are in, as RUN/output",
        )
    return media
