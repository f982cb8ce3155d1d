"""Dataset export: split files, dataset card, Croissant metadata and terms of the teachers.

The folder has one file per split (``held_out`` becomes ``test``), ``README.md`` with the front
matter that the Hugging Face Hub reads, and ``croissant.json`` (MLCommons Croissant 1.1). Records
that a format cannot represent are left out and counted.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, product
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from stillroom.errors import DataError, count_noun
from stillroom.evaluate.report import open_templates
from stillroom.jobs import atomic_write
from stillroom.jobs.files import draft_folder, refuse_existing
from stillroom.jobs.job import write_artifact
from stillroom.provenance import digest_file, digest_json, find_artifact, trace_sources
from stillroom.provenance.artifact import ARTIFACT_FILE
from stillroom.provenance.evidence import disclose_answer
from stillroom.provenance.sources import has_path, is_path_parent, list_ancestors
from stillroom.provenance.text_marks import TextMarker
from stillroom.records import Origin, Record, RecordWriter, read_records
from stillroom.records.origin import OriginKind, combine_origins, find_license_warnings
from stillroom.synth.output.croissant import CroissantFile, DatasetFacts, make_croissant
from stillroom.synth.output.formats import (
    ExportFormat,
    FileKind,
    get_columns,
    has_text_with_calls,
    list_lost_fields,
    make_row,
    write_parquet,
)
from stillroom.synth.output.model_terms import ModelTerms, find_model_terms

__all__ = [
    "ExportFormat",
    "ExportResult",
    "export_records",
    "name_size",
]

_CROISSANT = "croissant.json"
_TEXT_SHAPES = ("alpaca", "text")
_SPLITS = {"held_out": "test", "": "train"}
_POWERS = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
_SHOWN = 12


@dataclass
class ExportResult:
    """Result of an export: rows by split, what was left out, and the card's data.

    ``left_out`` are records by reason, ``lost_fields`` the numbers of rows that lack a field, and
    ``parted_turns`` the rows of ShareGPT with a turn that is parted into a text and its calls.
    """

    rows: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    lost_fields: Counter[str] = field(default_factory=Counter)
    parted_turns: int = 0
    origins: Counter[OriginKind] = field(default_factory=Counter)
    methods: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    licenses: Counter[str] = field(default_factory=Counter)
    teachers: dict[str, ModelTerms] = field(default_factory=dict)

    def note(self, record: Record) -> None:
        """Count the origin of a record."""
        origin = record.origin
        self.origins[origin.kind] += 1
        self.licenses[origin.license] += 1
        for link in origin.chain:
            self.methods[link.method] += 1
            if link.model:
                self.models[link.model] += 1

    def to_json(self) -> dict[str, Any]:
        """Return the values as plain JSON types."""
        return {
            "rows": dict(self.rows),
            "left_out": dict(self.left_out),
            "lost_fields": dict(self.lost_fields),
            "parted_turns": self.parted_turns,
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
    marker: TextMarker | None = None,
    names: Mapping[str, str] = MappingProxyType({}),
) -> ExportResult:
    """Export records as a dataset folder; it appears at once, when it is complete.

    Args:
        paths: Files or artifacts of records, read one by one.
        out: Output folder.
        format: Format of a row. ``preference`` takes a record's last message as chosen and its
            field ``rejected`` as rejected; ``stillroom`` keeps everything.
        kind: Suffix of the files.
        name: Name of the dataset; by default the folder's.
        with_fields: Include fields and the whole origin in every row, not only its kind.
        overwrite: Replace an existing dataset at ``out``.
        marker: Signs a content credential into the last message of every synthetic record; not for
            ``stillroom``, whose rows tell the origin themselves.
        names: New names of the rows' keys by their old ones, where a file has others than ours.

    Raises:
        DataError: If the folder exists, a file cannot be read, no record fits, or the format
            takes no marks.
    """
    paths = list(paths)
    form = _RowForm(format, kind, with_fields, marker)
    if marker is not None and format == "stillroom":
        raise DataError(
            "rows of the format stillroom take no content credentials",
            code="data.mark",
            where=str(out),
            expected="another format: these rows tell the whole origin, and ids cover their texts",
            next="leave out --mark, or choose another --format",
        )
    refuse_existing(out, _list_replaceable(out), overwrite=overwrite)
    with draft_folder(out) as draft:
        result = _write(paths, draft, name or out.name, form, names)
        parents, traced = trace_sources(
            "synth.export", [("records", path, "", "") for path in paths], out
        )
        known = [Origin(one[0], (), one[1]) for one in product(result.origins, result.licenses)]
        write_artifact(
            draft,
            "dataset",
            name=out.name,
            parents=parents,
            origin=combine_origins(known).then(traced.chain[-1]),
            details={
                "format": format,
                "with_fields": with_fields,
                "renamed": dict(names),
                **result.to_json(),
            },
        )
    return result


def _list_replaceable(out: Path) -> tuple[str, ...]:
    """Return the files of an earlier export, as patterns."""
    if artifact := find_artifact(str(out)):
        names = [entry.path for entry in artifact.files]
        return (*names, ARTIFACT_FILE) if _CROISSANT in names else ()
    is_older = (out / _CROISSANT).is_file()  # of a version that wrote no artifact.json
    return ("README.md", _CROISSANT, "*.jsonl", "*.parquet") if is_older else ()


@dataclass(frozen=True, slots=True)
class _RowForm:
    """How a record becomes a row of a file: the arguments of ``export_records``."""

    format: ExportFormat
    kind: FileKind
    with_fields: bool
    marker: TextMarker | None

    def encode(self, record: Record) -> bytes:
        """Return a record's row as a line of JSON.

        Raises:
            DataError: If the format cannot represent the record.
            UnicodeEncodeError: If it holds an unpaired surrogate.
        """
        shown = record if self.marker is None else _mark_record(record, self.marker)
        row = make_row(shown, self.format, kind=self.kind, with_fields=self.with_fields)
        return json.dumps({**row, "id": record.id}, ensure_ascii=False).encode()


def _write(
    paths: list[Path], draft: Path, title: str, form: _RowForm, names: Mapping[str, str]
) -> ExportResult:
    """Write the dataset's files into a folder."""
    result = ExportResult(teachers=_read_teachers(paths))
    records = chain.from_iterable(read_records(path, names=names) for path in paths)
    files = _write_rows(records, draft, form, result)
    if not result.rows.total():
        reasons = "; ".join(f"{count} {why}" for why, count in result.left_out.most_common(3))
        raise DataError(
            f"no record fits the format {form.format}" + (f": {reasons}" if reasons else ""),
            code="synth.no-records",
            where=", ".join(map(str, paths)),
            expected="at least one record that the format can represent",
            next="choose another --format, or keep everything with --format stillroom",
        )
    with atomic_write(draft / "README.md") as file:
        file.write(_render_card(title, form.format, files, result))
    columns = [*(get_columns(form.format) if form.format in _TEXT_SHAPES else ()), "id"]
    columns += ["origin"] if form.format != "stillroom" and not form.with_fields else []
    described = [
        CroissantFile(split, path.name, digest_file(path), path.stat().st_size, tuple(columns))
        for split, path in files.items()
    ]
    with atomic_write(draft / _CROISSANT) as file:
        metadata = make_croissant(_collect_facts(title, paths, result), described)
        json.dump(metadata, file, ensure_ascii=False, indent=1)
    return result


def _write_rows(
    records: Iterable[Record], folder: Path, form: _RowForm, result: ExportResult
) -> dict[str, Path]:
    """Write one file per split; return them by split, in order of name."""
    sinks: dict[str, _Sink] = {}
    with ExitStack() as closing:
        for record in records:
            split_field = record.fields.get("split")
            name = re.sub(r"\W", "_", "" if split_field is None else str(split_field))
            split = _SPLITS.get(name, f"_{name}" if name[:1].isdigit() else name)
            try:
                line = form.encode(record)
            except DataError as error:
                result.left_out[error.problems[0].what] += 1
                continue
            except UnicodeEncodeError:
                result.left_out["an unpaired surrogate, which cannot be encoded"] += 1
                continue
            if split not in sinks:
                sinks[split] = closing.enter_context(_Sink(folder, split, form))
            sinks[split].write(record, line)
            result.rows[split] += 1
            result.note(record)
            result.parted_turns += form.format == "sharegpt" and has_text_with_calls(record)
            if not form.with_fields:
                result.lost_fields.update(list_lost_fields(record, form.format))
    return {split: sinks[split].path for split in sorted(sinks)}


def _mark_record(record: Record, marker: TextMarker) -> Record:
    """Return a synthetic record with a content credential in its last message."""
    if record.origin.kind != "synthetic" or not record.messages or not record.messages[-1].content:
        return record
    model = next((link.model for link in reversed(record.origin.chain) if link.model), "")
    disclosure = disclose_answer(model, {})
    last = record.messages[-1]
    marked = replace(last, content=marker.mark(last.content, disclosure))
    return replace(record, messages=(*record.messages[:-1], marked))


class _Sink:
    """The file of one split: JSON lines first, from which a Parquet file is made at the end."""

    def __init__(self, folder: Path, split: str, form: _RowForm) -> None:
        self.path = folder / f"{split}.{form.kind}"
        self._lines = folder / f"{split}.jsonl"
        is_record = form.format == "stillroom" and form.kind == "parquet"
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


def _read_teachers(paths: Iterable[Path]) -> dict[str, ModelTerms]:
    """Return the terms of the teachers of artifacts, by the last part of their path."""
    terms_by_name = {}
    for path in paths:
        for _, artifact in list_ancestors(path):
            for parent in artifact.parents:
                if parent.role == "teacher" and has_path(parent):
                    name = Path(parent.path).name if is_path_parent(parent) else parent.path
                    terms_by_name[name] = find_model_terms(parent.path)
    return dict(sorted(terms_by_name.items()))


def _collect_facts(title: str, paths: Iterable[Path], result: ExportResult) -> DatasetFacts:
    """Return what the rows and the artifacts that they come from say of the dataset."""
    sources: dict[tuple[str, str], None] = {}
    created = ""
    for path in paths:
        for at, (folder, artifact) in enumerate(list_ancestors(path)):
            if at == 0:
                created = max(created, artifact.created)
                sources[folder.name, artifact.digest] = None
    total, synthetic = result.rows.total(), result.origins["synthetic"]
    left_out = [
        f"{count_noun(count, 'row')}: {why}" for why, count in result.left_out.most_common(_SHOWN)
    ]
    return DatasetFacts(
        title,
        f"{count_noun(total, 'record')}, {synthetic} of them synthetic (by models or rules).",
        licenses=tuple(sorted(name for name in result.licenses if name)),
        created=created[:10],
        digest=digest_json([title, sorted(sources)]) if sources else "",
        sources=tuple(sources),
        methods=dict(sorted(result.methods.items())),
        models=dict(sorted(result.models.items())),
        rai={
            "dataCollection": ", ".join(
                f"{count} {kind}" for kind, count in sorted(result.origins.items())
            ),
            "dataCollectionMissingData": "; ".join(left_out),
            "machineAnnotationTools": sorted(result.models),
            "dataLimitations": [
                f"{synthetic / total:.0%} of the rows are synthetic: models or rules wrote them."
            ],
        },
    )


def _find_common_license(result: ExportResult) -> str:
    """Return the license of all rows; ``other`` if they differ or have none."""
    known = [license for license in result.licenses if license]
    return known[0] if len(known) == 1 and len(result.licenses) == 1 else "other"


def name_size(rows: int) -> str:
    """Return the category of size that the Hugging Face Hub knows, such as ``1K<n<10K``."""
    power = sum(rows >= 10 ** (3 + at) for at in range(len(_POWERS)))
    if power == len(_POWERS):
        return f"n>{_POWERS[-1]}"
    return f"{_POWERS[power - 1]}<n<{_POWERS[power]}" if power else f"n<{_POWERS[0]}"


def _render_card(title: str, format: str, files: Mapping[str, Path], result: ExportResult) -> str:
    templates = open_templates("stillroom.synth.output", is_html=False)
    templates.filters["json"] = partial(json.dumps, ensure_ascii=False)
    templates.filters["percent"] = "{:.0%}".format
    total = result.rows.total()
    counts = [
        (count_noun(count, "row"), license) for license, count in result.licenses.most_common()
    ]
    return templates.get_template("dataset_card.md").render(
        vars(result),
        title=title,
        format=format,
        files=files,
        total=total,
        rows=", ".join(f"{count} {split}" for split, count in sorted(result.rows.items())),
        license=_find_common_license(result).lower(),
        tags=["synthetic", "stillroom"] if result.origins["synthetic"] else ["stillroom"],
        size=name_size(total),
        warnings=find_license_warnings(counts, "rows", "use"),
        shown=_SHOWN,
    )
