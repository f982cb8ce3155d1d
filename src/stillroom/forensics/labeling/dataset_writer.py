"""Dataset writer with a per-item journal, and a final check for unmarked files."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from stillroom.errors import DataError
from stillroom.forensics.labeling.audio import LabeledAudioWriter
from stillroom.forensics.labeling.image import LabeledImageWriter
from stillroom.forensics.labeling.lab import Lab
from stillroom.forensics.labeling.marks import require_marked_set
from stillroom.forensics.media.file_types import FileType, detect_file_type
from stillroom.jobs import Job, atomic_write

__all__ = ["MANIFEST", "ManifestRows", "find_unmarked_files", "write_dataset"]

_ARCHIVES = (b"PK\x03\x04", b"\x1f\x8b", b"7z\xbc\xaf\x27\x1c", b"Rar!", b"BZh", b"\xfd7zXZ\x00")
UNREADABLE_MEDIA_SUFFIXES = frozenset(
    [".jp2", ".psd", ".ico", ".tga", ".pcx", ".dds", ".exr", ".ts", ".mpg", ".mpeg", ".ogv"]
)
"""Suffixes of media that this room does not read, and that a data set may not hold either."""
_UNREADABLE_PICTURES = (
    *("BLP", "CUR", "DCX", "DDS", "FLI", "FTEX", "ICNS", "ICO", "JPEG2000", "PCX"),
    *("PSD", "QOI", "SGI", "SUN", "TGA"),
)
"""Pillow's names of such pictures; not those of its formats that are texts or tables of data."""
_UNREADABLE_SIGNATURES = re.compile(
    rb"v/1\x01[\x02-\x1e]|\x00\x00\x01[\xb3\xba]|(?:\x47[\x00-\x5f].[\x10-\x1f\x30-\x3f].{184}){4}",
    re.S,
)
"""First bytes of OpenEXR, MPEG-1 and MPEG-2 (program and transport stream)."""

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
    """Create all items, write the manifest, and refuse a data set with an unmarked file.

    Args:
        job: The job; items in its journal are not created again.
        lab: Lab whose marks every file must carry.
        make: Takes the finished item numbers, and yields each other number with its rows once its
            files are written.
        count: Number of items.
        unit: Name of the items for progress and log lines.
        rows_before: Number of ledger rows before the job.

    Returns:
        The manifest's rows, by item.

    Raises:
        IntegrityError: If a file lacks a mark.
        Cancelled: If the user stopped it.
    """
    journal = job.journal("items")
    done: dict[int, ManifestRows] = {
        int(key): journal.get(key)
        for key in journal.keys()  # noqa: SIM118  # not a mapping
    }
    with job.phase("forge", count, unit, done=len(done)) as progress:
        for number, rows in make(done):
            journal.put(str(number), rows)
            done[number] = rows
            progress.advance()
            job.check_cancelled()
    all_rows = [row for number in sorted(done) for row in done[number]]
    with atomic_write(job.output / MANIFEST) as file:
        file.writelines(
            json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in all_rows
        )
    require_marked_set(find_unmarked_files(job.output, lab))
    job.say(
        f"{len(all_rows)} {unit}, each with label, watermark, credentials and a ledger row "
        f"({rows_before} rows before, {lab.ledger.verify()} now)"
    )
    return all_rows


def find_unmarked_files(root: Path, lab: Lab) -> dict[str, list[str]]:
    """Return every media file at or below a path that lacks a mark of the lab, with the marks.

    Media is identified by its first bytes, else by its suffix. Media whose type cannot be marked
    counts as unmarked, and so does an archive, whose files are not looked at. Links to folders are
    followed.

    Raises:
        DataError: If the path does not exist, or holds no media.
    """
    media = _list_media(root)
    marker, sounds, unmarked = LabeledImageWriter(lab), LabeledAudioWriter(lab), {}
    rows = {str(row.get("sha256")): row for row in lab.ledger.rows()}
    for media_file, kind in media:
        mime = kind.mime if kind is not None else ""
        if mime in {"image/jpeg", "image/png"}:
            missing = marker.missing_marks(media_file, rows)
        elif mime == "audio/wav":
            missing = sounds.missing_marks(media_file, rows)
        else:
            missing = ["ledger", "watermark", "credentials", "label"]
        if missing:
            name = (
                media_file.name if media_file == root else media_file.relative_to(root).as_posix()
            )
            unmarked[name] = missing
    return unmarked


def _list_media(root: Path) -> list[tuple[Path, FileType | None]]:
    """Return the media at or below a path; None for types that are not read.

    Raises:
        DataError: If there is none.
    """
    if not root.exists():
        raise DataError(
            f"{root} does not exist",
            code="data.missing",
            where=str(root),
            expected="a folder of media, or one file",
            next="check the path",
        )
    files = [root] if root.is_file() else sorted(_walk(root))
    kinds = [(file, detect_file_type(file)) for file in files]
    media = [
        (file, kind)
        for file, kind in kinds
        if (kind is not None and not kind.mime.startswith("font/"))
        or file.suffix.lower() in UNREADABLE_MEDIA_SUFFIXES
        or _is_unreadable_medium(file)
    ]
    if not media:
        raise DataError(
            f"{root} holds no media, so that nothing was checked",
            code="forensics.no-media",
            where=str(root),
            expected="images, videos, recordings or documents that can be marked",
            next="name the folder that holds the files, such as RUN/output",
        )
    return media


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files at any depth of a folder and of those it links to, each folder once."""
    seen: set[str] = set()
    for at, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(at)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (file for name in names if (file := Path(at, name)).is_file())


def _is_unreadable_medium(file: Path) -> bool:
    """Return whether a file's content is an archive, or media that this room does not read."""
    from PIL import Image, UnidentifiedImageError

    with file.open("rb") as opened:
        start = opened.read(1024)
    if start.startswith(_ARCHIVES) or start[257:262] == b"ustar":
        return True
    if _UNREADABLE_SIGNATURES.match(start):
        return True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            Image.open(file, formats=_UNREADABLE_PICTURES).close()
        except UnidentifiedImageError:
            return False
        except Exception:  # noqa: BLE001  # a broken or huge one: its format is known all the same
            return True
    return True
