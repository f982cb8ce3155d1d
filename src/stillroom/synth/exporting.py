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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from stillroom.errors import DataError
from stillroom.jobs import atomic_write
from stillroom.provenance import digest_file
from stillroom.records import Record, read_records, to_row
from stillroom.records.origin import warn_of_licenses
from stillroom.synth.croissant import describe

__all__ = ["ExportFormat", "Exported", "export_records"]

ExportFormat = Literal[
    "messages", "sharegpt", "alpaca", "prompt_completion", "text", "preference", "stillroom"
]
FileKind = Literal["jsonl", "parquet"]

_KEYS: Mapping[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "input", "output"),
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
    "preference": ("prompt", "chosen", "rejected"),
}
_TEXT_COLUMNS = {"alpaca": _KEYS["alpaca"], "text": _KEYS["text"]}
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
    draft = out.with_name(f".{out.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    told = Exported()
    files = _write_rows(list(paths), draft, format, kind, told, with_fields=with_fields)
    if not told.rows.total():
        reasons = "; ".join(f"{count} {why}" for why, count in told.left_out.most_common(3))
        raise DataError(
            f"no record fits the format {format}" + (f": {reasons}" if reasons else ""),
            code="synth.no-records",
            where=", ".join(map(str, paths)),
            expected="at least one record that the format can hold",
            next="choose another --format, or keep everything with --format stillroom",
        )
    title = name or out.name
    with atomic_write(draft / "README.md") as file:
        file.write(_draw_card(title, format, files, told))
    digests = {split: (path.name, digest_file(path)) for split, path in files.items()}
    columns = [*_TEXT_COLUMNS.get(format, ()), "id"]
    columns += ["origin"] if format != "stillroom" and not with_fields else []
    with atomic_write(draft / "croissant.json") as file:
        about = describe(title, _license(told), digests, columns, dict(told.origins))
        json.dump(about, file, ensure_ascii=False, indent=1)
    if overwrite:
        shutil.rmtree(out, ignore_errors=True)
    draft.rename(out)
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
    drafts: dict[str, Any] = {}
    try:
        for record in (record for path in paths for record in read_records(path)):
            try:
                row = _row(record, format, with_fields=with_fields)
            except DataError as error:
                told.left_out[error.problems[0].what] += 1
                continue
            said = str(record.fields.get("split", "") or "")
            split = _SPLITS.get(said, said if said.isidentifier() else "train")
            if split not in drafts:
                drafts[split] = (folder / f"{split}.jsonl").open("w", encoding="utf-8")
            drafts[split].write(json.dumps(row, ensure_ascii=False) + "\n")
            told.rows[split] += 1
            told.note(record)
    finally:
        for file in drafts.values():
            file.close()
    files = {split: folder / f"{split}.jsonl" for split in sorted(drafts)}
    return (
        {split: _to_parquet(path) for split, path in files.items()} if kind == "parquet" else files
    )


def _row(record: Record, format: ExportFormat, *, with_fields: bool) -> dict[str, Any]:
    if format == "stillroom":
        return to_row(record)
    row = _preference(record) if format == "preference" else to_row(record, format)
    if with_fields:
        return {"id": record.id, **row, **dict(record.fields), "origin": record.origin.to_json()}
    kept = {key: row[key] for key in _columns(format)}
    return {**kept, "id": record.id, "origin": record.origin.kind}


def _preference(record: Record) -> dict[str, Any]:
    rejected = record.fields.get("rejected")
    roles = [message.role for message in record.messages]
    if not isinstance(rejected, str) or roles[-1:] != ["assistant"] or len(roles) < 2:
        raise DataError(
            "no pair of a chosen and a rejected answer",
            code="data.format",
            expected="a conversation that ends with an answer, and a field 'rejected'",
            next="choose --format messages",
        )
    turns = [message.to_json() for message in record.messages]
    return {
        "prompt": turns[:-1],
        "chosen": turns[-1:],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def _columns(format: str) -> tuple[str, ...]:
    return _KEYS.get(format, ())


def _to_parquet(path: Path) -> Path:
    """Make a Parquet file of JSON lines, and take those away."""
    from pyarrow import json as arrow_json
    from pyarrow import parquet

    target = path.with_suffix(".parquet")
    parquet.write_table(arrow_json.read_json(path), target, compression="zstd")
    path.unlink()
    return target


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
        f"- {said}" for said in warn_of_licenses([(n, n) for n in told.licenses], "rows", "use")
    ]
    if told.left_out:
        lines += ["", "## Left out", ""]
        lines += [f"- {count} rows: {why}" for why, count in told.left_out.most_common(_SHOWN)]
    return "\n".join(lines) + "\n"
