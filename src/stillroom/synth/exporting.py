"""Export: records as a dataset that others load, with a card and Croissant metadata.

A folder with one file a split (``held_out`` becomes ``test``), ``README.md`` whose front matter the
Hugging Face hub reads, and ``croissant.json`` (MLCommons Croissant 1.0, arXiv:2403.19546). What a
format cannot hold is left out and counted.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from stillroom.errors import DataError
from stillroom.jobs import atomic_write
from stillroom.provenance import digest_file
from stillroom.provenance.sources import list_ancestors, names_path, names_something
from stillroom.records import Record, RecordWriter, read_records
from stillroom.records.origin import warn_of_licenses
from stillroom.synth.croissant import describe
from stillroom.synth.dataset_rows import (
    ExportFormat,
    FileKind,
    columns_of,
    make_row,
    write_parquet,
)
from stillroom.synth.terms import Terms, find_terms

__all__ = ["ExportFormat", "Exported", "export_records"]

_CROISSANT = "croissant.json"
_TEXT_SHAPES = ("alpaca", "text")
_SPLITS = {"held_out": "test", "": "train"}
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_LARGEST = "n>1M"
_SHOWN = 12


@dataclass
class Exported:
    """What was written: rows by split, what was left out and why, and what the card says."""

    rows: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    origins: Counter[str] = field(default_factory=Counter)
    methods: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    licenses: Counter[str] = field(default_factory=Counter)
    teachers: dict[str, Terms] = field(default_factory=dict)

    def note(self, record: Record) -> None:
        """Count where a record comes from."""
        origin = record.origin
        self.origins[origin.kind] += 1
        self.licenses[origin.license] += 1
        for link in origin.chain:
            self.methods[link.method] += 1
            if link.model:
                self.models[link.model] += 1

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "rows": dict(self.rows),
            "left_out": dict(self.left_out),
            "origins": dict(self.origins),
            "licenses": dict(self.licenses),
            "teachers": {name: terms.bound for name, terms in self.teachers.items()},
        }


def export_records(
    paths: Iterable[Path],
    out: Path,
    *,
    format: ExportFormat = "messages",
    kind: FileKind = "jsonl",
    name: str = "",
    with_fields: bool = False,
    overwrite: bool = False,
) -> Exported:
    """Write records as a dataset folder; it appears at once, when all of it is written.

    Args:
        paths: Files or artifacts of records, read one by one.
        out: The folder to make.
        format: Shape of a row. ``preference`` takes a record's last message as chosen and its field
            ``rejected`` as rejected; ``stillroom`` keeps everything.
        kind: Suffix of the files.
        name: The dataset's name; by default the folder's.
        with_fields: Keep fields and the whole origin in every row, not only its kind.
        overwrite: Replace what lies at ``out``.

    Raises:
        DataError: If the folder is there already, a file cannot be read, or no record fits.
    """
    if out.exists() and not overwrite:
        raise DataError(
            f"{out} is there already",
            code="data.exists",
            where=str(out),
            expected="a folder that is not there yet",
            next="give another --out, or --overwrite",
        )
    if out.exists() and not (out / _CROISSANT).is_file() and (out.is_file() or any(out.iterdir())):
        raise DataError(
            f"{out} is no dataset that was exported, and is not replaced",
            code="data.exists",
            where=str(out),
            expected=f"a folder with {_CROISSANT}, or an empty one",
            next="give another --out, or remove it yourself",
        )
    draft = out.with_name(f".{out.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        told = _write(list(paths), draft, name or out.name, format, kind, with_fields=with_fields)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    if overwrite:
        shutil.rmtree(out, ignore_errors=True)
    draft.rename(out)
    return told


def _write(
    paths: list[Path],
    draft: Path,
    title: str,
    format: ExportFormat,
    kind: FileKind,
    *,
    with_fields: bool,
) -> Exported:
    """Write the dataset's files into a folder."""
    told = Exported(teachers=_read_teachers(paths))
    files = _write_rows(paths, draft, format, kind, told, with_fields=with_fields)
    if not told.rows.total():
        reasons = "; ".join(f"{count} {why}" for why, count in told.left_out.most_common(3))
        raise DataError(
            f"no record fits the format {format}" + (f": {reasons}" if reasons else ""),
            code="synth.no-records",
            where=", ".join(map(str, paths)),
            expected="at least one record that the format can hold",
            next="choose another --format, or keep everything with --format stillroom",
        )
    with atomic_write(draft / "README.md") as file:
        file.write(_draw_card(title, format, files, told))
    digests = {split: (path.name, digest_file(path)) for split, path in files.items()}
    columns = [*(columns_of(format) if format in _TEXT_SHAPES else ()), "id"]
    columns += ["origin"] if format != "stillroom" and not with_fields else []
    with atomic_write(draft / _CROISSANT) as file:
        about = describe(title, _license(told), digests, columns, dict(told.origins))
        json.dump(about, file, ensure_ascii=False, indent=1)
    return told


def _write_rows(
    paths: list[Path],
    folder: Path,
    format: ExportFormat,
    kind: FileKind,
    told: Exported,
    *,
    with_fields: bool,
) -> dict[str, Path]:
    """Write one file a split; return them by split, in order of name."""
    sinks: dict[str, _Sink] = {}
    with ExitStack() as closing:
        for record in (record for path in paths for record in read_records(path)):
            said = str(record.fields.get("split", "") or "")
            split = _SPLITS.get(said, said if said.isidentifier() else "train")
            try:
                row = make_row(record, format, kind=kind, with_fields=with_fields)
                line = json.dumps(row, ensure_ascii=False).encode()
            except DataError as error:
                told.left_out[error.problems[0].what] += 1
                continue
            except UnicodeEncodeError:
                told.left_out["half a character, which no file can hold"] += 1
                continue
            if split not in sinks:
                sinks[split] = closing.enter_context(_Sink(folder, split, format, kind))
            sinks[split].write(record, line)
            told.rows[split] += 1
            told.note(record)
    return {split: sinks[split].path for split in sorted(sinks)}


class _Sink:
    """The file of one split: lines first, of which a Parquet file is made in the end."""

    def __init__(self, folder: Path, split: str, format: ExportFormat, kind: FileKind) -> None:
        self.path = folder / f"{split}.{kind}"
        self._lines = folder / f"{split}.jsonl"
        is_record = format == "stillroom" and kind == "parquet"
        self._records = RecordWriter(self.path) if is_record else None
        self._file: IO[bytes] | None = None

    def __enter__(self) -> _Sink:
        if self._records is not None:
            self._records.__enter__()
        else:
            self._file = self._lines.open("wb")
        return self

    def write(self, record: Record, line: bytes) -> None:
        if self._records is not None:
            self._records.write(record)
        elif self._file is not None:
            self._file.write(line + b"\n")

    def __exit__(self, *failed: Any) -> None:
        if self._records is not None:
            self._records.__exit__(*failed)
        elif self._file is not None:
            self._file.close()
            if self.path != self._lines and failed[0] is None:
                write_parquet(self._lines, self.path)
                self._lines.unlink()


def _read_teachers(paths: Iterable[Path]) -> dict[str, Terms]:
    """Return the terms of the teachers that artifacts name, by the last part of a path."""
    found = {}
    for path in paths:
        for _, artifact in list_ancestors(path):
            for parent in artifact.parents:
                if parent.role == "teacher" and names_something(parent):
                    name = Path(parent.path).name if names_path(parent) else parent.path
                    found[name] = find_terms(parent.path)
    return dict(sorted(found.items()))


def _license(told: Exported) -> str:
    """Return the one license that all rows have; ``other`` where they differ or nobody says."""
    known = [license for license in told.licenses if license]
    return known[0] if len(known) == 1 and len(told.licenses) == 1 else "other"


def _draw_card(title: str, format: str, files: Mapping[str, Path], told: Exported) -> str:
    total = told.rows.total()
    size = next((name for most, name in _SIZES if total < most), _LARGEST)
    tags = ["synthetic"] if told.origins["synthetic"] else []
    front = [
        "---",
        f"pretty_name: {json.dumps(title)}",
        f"license: {_license(told).lower()}",
        f"tags: {json.dumps([*tags, 'stillroom'])}",
        f"size_categories: [{json.dumps(size)}]",
        "configs:",
        "- config_name: default",
        "  data_files:",
    ]
    for split, path in files.items():
        front += [f"  - split: {split}", f"    path: {path.name}"]
    lines = [*front, "---", "", f"# {title}", ""]
    rows = ", ".join(f"{count} {split}" for split, count in sorted(told.rows.items()))
    lines += [f"{total} rows ({rows}) in the shape `{format}`.", "", "## Origin", ""]
    shares = sorted(told.origins.items(), key=lambda pair: -pair[1])
    lines += [f"- {kind}: {count} rows ({count / total:.0%})" for kind, count in shares]
    for what, counts in (("Made by", told.methods), ("Models that took part", told.models)):
        if counts:
            lines += ["", f"## {what}", ""]
            lines += [f"- `{name}`: {count} rows" for name, count in counts.most_common(_SHOWN)]
    lines += ["", "## License", ""]
    licenses = sorted(told.licenses.items(), key=lambda pair: -pair[1])
    lines += [f"- {license or 'not said'}: {count} rows" for license, count in licenses]
    lines += [
        f"- {said}"
        for said in warn_of_licenses(
            [(f"{count} rows", license) for license, count in licenses], "rows", "use"
        )
    ]
    lines += _tell_terms(told)
    if told.left_out:
        lines += ["", "## Left out", ""]
        lines += [f"- {count} rows: {why}" for why, count in told.left_out.most_common(_SHOWN)]
    return "\n".join(lines) + "\n"


def _tell_terms(told: Exported) -> list[str]:
    """Return what the teachers' makers ask of models trained on outputs, as far as it is known."""
    if not told.origins["synthetic"]:
        return []
    lines = ["", "## Terms of the teachers", "", "A reminder to read them, not advice.", ""]
    if not told.teachers:
        return [*lines, "- which models these were is not said: read the terms of those above"]
    return lines + [
        f"- `{name}`: {terms.license or 'license not known'}; {terms.bound}: {terms.says}"
        for name, terms in told.teachers.items()
    ]
