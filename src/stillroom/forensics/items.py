"""``Item`` and the manifest: what a benchmark of detectors consists of, one row a file.

The columns are those that the lab writes. Paths are relative to the manifest, with forward
slashes. JSON Lines, CSV or Parquet by the file's ending. A row that cannot be understood is an
error with its number, never left out.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from stillroom.errors import DataError
from stillroom.jobs import atomic_write
from stillroom.provenance import digest_json

__all__ = ["Item", "digest_items", "find_manifest", "read_items", "write_items"]

_COLUMNS = (
    "id",
    "path",
    "label",
    "generator",
    "source",
    "identity",
    "others",
    "split",
    "mask",
    "compression",
    "consent",
    "dataset",
    "clip",
)
_ALIASES = {"source_id": "source", "consent_id": "consent", "video": "clip"}
_LABELS = {"0": 0, "1": 1, "real": 0, "fake": 1, "false": 0, "true": 1}


@dataclass(frozen=True, slots=True)
class Item:
    """One file of a benchmark.

    Attributes:
        id: Unique in the manifest.
        path: Relative to the manifest, with forward slashes.
        label: 1 for fake.
        generator: What made it; of a real one empty, or the edit that it went through.
        source: The recording that its pixels come from: a fake and its real twin share it.
        identity: Who is shown, or whose picture was the target.
        others: Further identities, as the one whose face was put in.
        split: ``train``, ``validation``, ``test``, or empty.
        mask: Where it is forged, a file; empty if not known.
        compression: As ``jpg-92`` or ``c23``.
        consent: Id of the record of consent; empty where no person is shown.
        dataset: Which collection it is of.
        clip: The clip that a frame is of; empty where the file stands alone.
    """

    id: str
    path: str
    label: int
    generator: str = ""
    source: str = ""
    identity: str = ""
    others: tuple[str, ...] = ()
    split: str = ""
    mask: str = ""
    compression: str = ""
    consent: str = ""
    dataset: str = ""
    clip: str = ""

    @property
    def unit(self) -> tuple[str, str, str]:
        """What names a clip: dataset, generator and clip together, never a folder's name alone."""
        return self.dataset, self.generator, self.clip or self.id

    @property
    def people(self) -> tuple[str, ...]:
        """Everyone shown or put in."""
        return tuple(name for name in (self.identity, *self.others) if name)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, columns that are empty left out."""
        row = asdict(self)
        row["others"] = list(self.others)
        return {key: value for key, value in row.items() if value not in ("", [])}


def read_items(path: Path) -> list[Item]:
    """Read a manifest.

    Args:
        path: A ``.jsonl``, ``.csv`` or ``.parquet`` file, or a folder that holds manifest.jsonl.

    Raises:
        DataError: If the file is missing or empty, a row is not understood, or an id comes twice.
    """
    file = find_manifest(path)
    items = [_read_row(row, file, number) for number, row in enumerate(_read_rows(file), start=1)]
    if not items:
        raise _refused(file, "holds no row", "one row a file")
    twice = [name for name, count in Counter(item.id for item in items).items() if count > 1]
    if twice:
        raise _refused(file, f"has the id {twice[0]!r} twice", "one id a row")
    return items


def write_items(path: Path, items: Sequence[Item]) -> None:
    """Write a manifest by its ending: ``.jsonl``, ``.csv`` or ``.parquet``.

    Raises:
        DataError: If the ending is another.
    """
    if path.suffix == ".jsonl":
        with atomic_write(path) as file:
            file.writelines(
                json.dumps(item.to_json(), ensure_ascii=False, sort_keys=True) + "\n"
                for item in items
            )
        return
    rows = [{**asdict(item), "others": " ".join(item.others)} for item in items]
    if path.suffix == ".csv":
        with atomic_write(path) as file:
            writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        return
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as parquet

        with atomic_write(path, "wb") as file:
            parquet.write_table(pa.Table.from_pylist(rows), file)
        return
    raise _refused(path, f"ends in {path.suffix or 'nothing'}", ".jsonl, .csv or .parquet")


def digest_items(items: Iterable[Item]) -> str:
    """Return the digest of what is measured: every column of every row, in order of id."""
    return digest_json([item.to_json() for item in sorted(items, key=lambda item: item.id)])


def find_manifest(path: Path) -> Path:
    """Return the manifest's file, of a folder or run its ``manifest.jsonl``."""
    if path.is_dir():
        for found in (path / "manifest.jsonl", path / "output" / "manifest.jsonl"):
            if found.is_file():
                return found
    return path


def _read_rows(path: Path) -> Iterable[Mapping[str, Any]]:
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as parquet

            rows: list[Mapping[str, Any]] = parquet.read_table(path).to_pylist()
            return rows
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise _refused(path, f"cannot be read: {error}", "a manifest") from error
    if path.suffix == ".csv":
        return list(csv.DictReader(text.splitlines()))
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            rows.append(dict(json.loads(line)))
        except (ValueError, TypeError) as error:
            raise _refused(path, f"line {number} is no JSON object", "JSON Lines") from error
    return rows


def _read_row(row: Mapping[str, Any], path: Path, number: int) -> Item:
    named = {_ALIASES.get(str(key), str(key)): value for key, value in row.items()}
    missing = [key for key in ("id", "path", "label") if named.get(key) in (None, "")]
    if missing:
        raise _refused(path, f"row {number} has no {missing[0]}", "id, path and label in every row")
    label = _LABELS.get(str(named["label"]).strip().lower())
    if label is None:
        raise _refused(path, f"row {number} has the label {named['label']!r}", "0 real, 1 fake")
    place = PurePosixPath(str(named["path"]).replace("\\", "/"))
    if place.is_absolute() or ".." in place.parts:
        raise _refused(path, f"row {number} has the path {place}", "a path below the manifest")
    others = named.get("others") or ()
    texts = {
        key: str(named.get(key) or "") for key in _COLUMNS if key not in {"path", "label", "others"}
    }
    return Item(
        **texts,
        path=place.as_posix(),
        label=label,
        others=tuple(others.split() if isinstance(others, str) else map(str, others)),
    )


def _refused(path: Path, what: str, expected: str) -> DataError:
    return DataError(
        f"the manifest {path.name} {what}",
        code="forensics.manifest",
        where=str(path),
        expected=expected,
        next="columns: " + ", ".join(_COLUMNS),
    )
