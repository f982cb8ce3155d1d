"""Benchmark manifests, and import of folders and of DeepfakeBench and FaceForensics++ lists.

Columns are those of the lab's manifests. Paths are relative to the manifest, with forward slashes.
The format is JSON Lines, CSV or Parquet by suffix. An invalid row is an error with its number,
never skipped.

Importers read lists and names only, no media. Paths are kept relative to the data set's own
folder, with forward slashes; absolute paths are cut at that folder.

Source: Yan et al. 2023, "DeepfakeBench", arXiv:2307.01426 (its dataset_json); Roessler et al. 2019,
"FaceForensics++", arXiv:1901.08971 (its splits of pairs and its folders).
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

from stillroom.errors import DataError
from stillroom.forensics.media.audio import AUDIO_SUFFIXES
from stillroom.forensics.media.file_types import list_files, read_folder_label
from stillroom.forensics.media.images import IMAGE_SUFFIXES
from stillroom.forensics.media.video import VIDEO_SUFFIXES
from stillroom.jobs import atomic_write
from stillroom.jobs.job import write_artifact
from stillroom.objects.disk import require_file
from stillroom.provenance import digest_json, trace_sources
from stillroom.provenance.digests import load_json
from stillroom.records.streams import iter_rows

__all__ = [
    "ManifestItem",
    "digest_items",
    "find_manifest",
    "import_deepfakebench",
    "import_faceforensics",
    "import_folder",
    "read_items",
    "write_derived_items",
    "write_items",
]

_ALIASES = {"source_id": "source", "consent_id": "consent", "video": "clip"}
_LABELS = {"0": 0, "1": 1, "real": 0, "fake": 1, "false": 0, "true": 1}


@dataclass(frozen=True, slots=True)
class ManifestItem:
    """One file of a benchmark.

    Attributes:
        id: Unique id in the manifest.
        path: Path relative to the manifest, with forward slashes.
        label: 1 for fake.
        generator: Generator of a fake; for real files empty, or the applied edit.
        source: Recording that its pixels come from, shared by a fake and its real twin.
        identity: Person shown, or the person in the target image.
        others: Further identities, such as the source face of a swap.
        split: ``train``, ``validation``, ``test``, or empty.
        mask: File with the forgery mask; empty if unknown.
        compression: Compression, such as ``jpg-92`` or ``c23``.
        consent: Id of the consent record; empty if no person is shown.
        dataset: Name of the collection.
        clip: Clip of a frame; empty for a single file.
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
        """Identifier of a clip: dataset, generator and clip together, never a folder name alone."""
        return self.dataset, self.generator, self.clip or self.id

    @property
    def people(self) -> tuple[str, ...]:
        """All identities, shown or inserted."""
        return tuple(name for name in (self.identity, *self.others) if name)

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values, without empty columns."""
        row = asdict(self)
        row["others"] = list(self.others)
        return {key: value for key, value in row.items() if value not in ("", [])}


_COLUMNS = tuple(column.name for column in fields(ManifestItem))


def read_items(path: Path) -> list[ManifestItem]:
    """Read a manifest.

    Args:
        path: A ``.jsonl``, ``.csv`` or ``.parquet`` file, or a folder with manifest.jsonl.

    Raises:
        DataError: If the file is missing or empty, a row is invalid, or an id is repeated.
    """
    file = find_manifest(path)
    items = [_read_row(row, file, number) for number, row in enumerate(_read_rows(file), start=1)]
    if not items:
        raise _invalid_manifest(file, "has no rows", "one row per file")
    twice = [name for name, count in Counter(item.id for item in items).items() if count > 1]
    if twice:
        raise _invalid_manifest(file, f"repeats the id {twice[0]!r}", "one id per row")
    return items


def write_items(path: Path, items: Sequence[ManifestItem]) -> None:
    """Write a manifest as ``.jsonl``, ``.csv`` or ``.parquet``, by its suffix.

    Raises:
        DataError: If the suffix is another.
    """
    if path.suffix == ".jsonl":
        with atomic_write(path) as file:
            file.writelines(
                json.dumps(item.to_json(), ensure_ascii=False, sort_keys=True) + "\n"
                for item in items
            )
        return
    rows = [{**asdict(item), "others": _join_names(item.others)} for item in items]
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
    raise _invalid_manifest(path, f"ends in {path.suffix or 'nothing'}", ".jsonl, .csv or .parquet")


def write_derived_items(
    path: Path,
    items: Sequence[ManifestItem],
    method: str,
    sources: Mapping[str, Path],
    *,
    seed: int = 0,
    **settings: Any,
) -> None:
    """Write a manifest, and beside it an artifact.json that names what it was made from.

    Args:
        path: Output file; see ``write_items``.
        items: The rows.
        method: Dotted name of what made them.
        sources: The manifest or lists that they come from, by role.
        seed: The seed of the work.
        settings: The settings of the work.

    Raises:
        DataError: If the suffix is none of a manifest.
    """
    write_items(path, items)
    named = [(role, source, "", "") for role, source in sources.items()]
    parents, origin = trace_sources(method, named, path)
    details = {"items": len(items), **settings}
    write_artifact(path, "dataset", parents=parents, origin=origin, details=details, seed=seed)


def digest_items(items: Iterable[ManifestItem]) -> str:
    """Return the digest of all columns of all rows, ordered by id."""
    return digest_json([item.to_json() for item in sorted(items, key=lambda item: item.id)])


def find_manifest(path: Path) -> Path:
    """Return the manifest file; for a folder or run, its ``manifest.jsonl``."""
    if path.is_dir():
        for candidate in (path / "manifest.jsonl", path / "output" / "manifest.jsonl"):
            if candidate.is_file():
                return candidate
        raise _invalid_manifest(
            path,
            "is a folder without manifest.jsonl",
            "a manifest, one row per file; label 1 fake",
            f"if its folders are named real and fake: stillroom forensics benchmark import "
            f"--folder {path} --out {path / 'manifest.jsonl'}",
        )
    return path


def _read_rows(path: Path) -> Iterable[Mapping[str, Any]]:
    try:
        if path.suffix == ".parquet":
            rows = [row for _, row in iter_rows(require_file(path))]
            for row in rows:
                if isinstance(row, DataError):
                    raise row
            return rows
        text = require_file(path).read_text(encoding="utf-8-sig")
    except (DataError, OSError, UnicodeDecodeError, ValueError) as error:
        raise _invalid_manifest(path, f"cannot be read: {error}", "a manifest") from error
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(text)))
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(dict(load_json(line)))
        except (ValueError, TypeError) as error:
            raise _invalid_manifest(
                path, f"line {number} is not a JSON object", "JSON Lines"
            ) from error
    return rows


def _read_row(row: Mapping[str, Any], path: Path, number: int) -> ManifestItem:
    named = {_ALIASES.get(str(key), str(key)): value for key, value in row.items()}
    missing = [key for key in ("id", "path", "label") if named.get(key) in (None, "")]
    if missing:
        raise _invalid_manifest(
            path, f"row {number} has no {missing[0]}", "id, path and label in every row"
        )
    label = _LABELS.get(str(named["label"]).strip().lower())
    if label is None:
        raise _invalid_manifest(
            path, f"row {number} has the label {named['label']!r}", "0 real, 1 fake"
        )
    path_in_row = PurePosixPath(str(named["path"]).replace("\\", "/"))
    if path_in_row.is_absolute() or ".." in path_in_row.parts:
        raise _invalid_manifest(
            path, f"row {number} has the path {path_in_row}", "a path below the manifest"
        )
    texts = {
        key: "0" if named.get(key) == 0 and named[key] is not False else str(named.get(key) or "")
        for key in _COLUMNS
        if key not in {"path", "label", "others"}
    }
    return ManifestItem(
        **texts,
        path=path_in_row.as_posix(),
        label=label,
        others=_split_names(named.get("others") or ()),
    )


def _join_names(names: Sequence[str]) -> str:
    """Return names as one text: separated by spaces, or as a JSON list where that loses some."""
    text = " ".join(names)
    return text if _split_names(text) == tuple(names) else json.dumps(names, ensure_ascii=False)


def _split_names(value: str | Iterable[object]) -> tuple[str, ...]:
    names = value.split() if isinstance(value, str) else value
    if isinstance(value, str) and value.startswith("["):
        with contextlib.suppress(ValueError):  # a name in brackets
            names = load_json(value)
    return tuple(map(str, names))


def _invalid_manifest(path: Path, problem: str, expected: str, next: str = "") -> DataError:
    return DataError(
        f"the manifest {path.name} {problem}",
        code="forensics.manifest",
        where=str(path),
        expected=expected,
        next=next or "columns: " + ", ".join(_COLUMNS),
    )


def import_folder(folder: Path, root: Path) -> list[ManifestItem]:
    """Read the labels of files from folders named ``real`` and ``fake``, or ``0_real``, ``1_fake``.

    Folders named ``train``, ``val`` (``valid``, ``dev``) or ``test`` give the split, the others a
    fake's generator.

    Args:
        folder: The folder of the set.
        root: The folder of the manifest, to which paths are relative.

    Raises:
        DataError: If there is no file, one has no label, both or two splits, or ``folder`` is not
            in ``root``.
    """
    root, folder = root.resolve(), folder.resolve()
    if not folder.is_relative_to(root):
        raise _invalid_folder(folder, f"lies outside of {root}, the folder of the manifest")
    files = list_files(folder, IMAGE_SUFFIXES | VIDEO_SUFFIXES | AUDIO_SUFFIXES)
    items, unlabeled, unsplit = [], [], []
    for file in files:
        path = file.relative_to(root).as_posix()
        names = file.relative_to(folder).parts[:-1]
        labels = set(filter(None, map(read_folder_label, names)))
        if len(labels) != 1:
            unlabeled.append(path)
            continue
        label = _LABELS[labels.pop()]
        named = [_FOLDER_SPLITS.get(name.lower(), "") for name in names]
        splits = sorted(set(filter(None, named)))
        if len(splits) > 1:
            unsplit.append(path)
        others = [
            name
            for name, split in zip(names, named, strict=True)
            if not split and not read_folder_label(name)
        ]
        generator = "/".join(others) if label else ""
        items.append(ManifestItem(path, path, label, generator, split="".join(splits)))
    if not files:
        raise _invalid_folder(folder, "has no picture, clip or recording")
    for problem, paths in (("no label", unlabeled), ("two splits", unsplit)):
        if paths:
            count = f"{len(paths)} of {len(files)} files"
            raise _invalid_folder(folder, f"has {problem} for {count}, such as {paths[0]}")
    return items


def _invalid_folder(folder: Path, problem: str) -> DataError:
    return DataError(
        f"{folder.name} {problem}",
        code="forensics.manifest",
        where=str(folder),
        expected="a manifest above files that are each below a folder named real or fake (or "
        "0_real or 1_fake), not both",
        next="rename the folders, or write a manifest with the columns " + ", ".join(_COLUMNS),
    )


_FF_METHODS = ("Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures")
_SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
_FOLDER_SPLITS = {
    **_SPLITS,
    **{"valid": "validation", "dev": "validation", "training": "train", "testing": "test"},
}
_PAIR = re.compile(r"(\d{3})_(\d{3})\Z")
_PEOPLE = re.compile(r"(\d{3})(?:_(\d{3}))?\Z|(id\d+)(?:_(id\d+))?_\d{4}\Z|(\d\d)(?:_(\d\d))?__")
"""People in names of clips of FaceForensics++, Celeb-DF and DeepFakeDetection; two of a swap."""
_PRECEDENCE = ("test", "train", "validation")


def import_deepfakebench(
    path: Path, *, compression: str = "", real: Sequence[str] = ()
) -> list[ManifestItem]:
    """Read a DeepfakeBench list: one row per frame.

    A clip is identified by data set, generator and its id, so that clips of different generators
    stay separate although their folders share a name. A frame listed in several splits is one row,
    of the test split if that is one of them, else of training. People are those that a clip's name
    states: no identity where it states none.

    Args:
        path: The JSON file.
        compression: Compression of FaceForensics++ to select, such as ``c23``; empty selects all,
            and the compression becomes part of the clip's name.
        real: Names of real classes; default: those that contain ``real``.

    Raises:
        DataError: If it is not such a list, or has no frame of that compression.
    """
    rows: dict[tuple[str, str], ManifestItem] = {}
    for item in _read_frames(_load(path), path, compression, set(real)):
        known = rows.setdefault((item.id, item.path), item)
        if _PRECEDENCE.index(item.split) < _PRECEDENCE.index(known.split):
            rows[item.id, item.path] = item
    items = list(rows.values())
    if not items:
        raise _invalid_list(
            path, f"has no frame of compression {compression!r}", "another compression"
        )
    return items


def import_faceforensics(
    train: Path | None,
    validation: Path | None,
    test: Path | None,
    *,
    compression: str = "c23",
) -> list[ManifestItem]:
    """Read the pair lists of FaceForensics++: one row per clip, at the data set's own paths.

    The face of ``b`` in the clip of ``a`` is ``a_b``: its identity is ``a``, and ``b`` is in
    others.

    Raises:
        DataError: If a file is not a list of pairs, or a clip is in two splits.
    """
    items: list[ManifestItem] = []
    split_of: dict[str, str] = {}
    for split, path in (("train", train), ("validation", validation), ("test", test)):
        if path is None:
            continue
        rows = _load(path)
        if not isinstance(rows, list) or not all(
            isinstance(row, list) and len(row) == 2 and all(isinstance(name, str) for name in row)
            for row in rows
        ):
            raise _invalid_list(path, "is not a list of pairs", '[["071", "054"], ...]')
        for first, second in rows:
            for name in (first, second):
                if name in split_of:
                    raise _invalid_list(path, f"repeats clip {name}", "each clip in one pair")
                split_of[name] = split
                items.append(_ff_item(name, "", split, compression))
            for method in _FF_METHODS:
                items += [
                    _ff_item(f"{a}_{b}", method, split, compression)
                    for a, b in ((first, second), (second, first))
                ]
    if not items:
        raise DataError(
            "no list of FaceForensics++ was named",
            code="forensics.manifest",
            expected="train.json, val.json or test.json",
            next="pass at least one list",
        )
    return items


def _read_frames(
    data: Mapping[str, Any], path: Path, compression: str, real: set[str]
) -> Iterator[ManifestItem]:
    for dataset, classes in _mapping(data, path).items():
        for name, splits in _mapping(classes, path).items():
            is_real = name in real if real else "real" in name.lower()
            for split, clips in _mapping(splits, path).items():
                if split not in _SPLITS:
                    raise _invalid_list(path, f"has the split {split!r}", "train, val or test")
                for rate, clip, entry in _iterate_clips(_mapping(clips, path), path):
                    if compression and rate and rate != compression:
                        continue
                    for item in _iterate_frames(
                        dataset, name, is_real, _SPLITS[split], rate, clip, entry
                    ):
                        keeps = compression or not rate
                        yield item if keeps else replace(item, clip=f"{rate}/{clip}")


def _iterate_clips(
    clips: Mapping[str, Any], path: Path
) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield compression, clip and its entry; some data sets have one more level."""
    for name, entry in clips.items():
        inside = _mapping(entry, path)
        if "frames" in inside:
            yield "", name, inside
            continue
        for clip, clip_entry in inside.items():
            if "frames" not in _mapping(clip_entry, path):
                raise _invalid_list(path, f"has no frames for {clip!r}", "frames of every clip")
            yield name, clip, clip_entry


def _iterate_frames(
    dataset: str,
    name: str,
    is_real: bool,
    split: str,
    rate: str,
    clip: str,
    entry: Mapping[str, Any],
) -> Iterator[ManifestItem]:
    found = _PEOPLE.match(clip)
    people = [person for person in found.groups() if person] if found else []
    for frame in entry["frames"]:
        frame_path = _relative(str(frame), dataset)
        yield ManifestItem(
            id="/".join(
                part for part in (dataset, name, rate, clip, frame_path.rsplit("/", 1)[-1]) if part
            ),
            path=frame_path,
            label=0 if is_real else 1,
            generator="" if is_real else name,
            source=clip.replace(f"_{people[1]}", "", 1) if people[1:] else clip,
            identity=people[0] if people else "",
            others=() if is_real else tuple(people[1:]),
            split=split,
            compression=rate,
            dataset=dataset,
            clip=clip,
        )


def _relative(path: str, dataset: str) -> str:
    """Return a frame's path below the data's folder, for paths of any system."""
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    named = [index for index, part in enumerate(parts) if part.lower() == dataset.lower()]
    if path.replace("\\", "/").startswith("/") or (parts and parts[0].endswith(":")):
        parts = parts[named[0] :] if named else [part for part in parts if not part.endswith(":")]
    return "/".join(parts)


def _ff_item(name: str, method: str, split: str, compression: str) -> ManifestItem:
    pair = _PAIR.match(name)
    folder = f"manipulated_sequences/{method}" if method else "original_sequences/youtube"
    return ManifestItem(
        id=f"{method or 'youtube'}/{name}",
        path=f"{folder}/{compression}/videos/{name}.mp4",
        label=1 if method else 0,
        generator=method,
        source=pair[1] if pair else name,
        identity=pair[1] if pair else name,
        others=(pair[2],) if pair else (),
        split=split,
        mask=f"{folder}/masks/videos/{name}.mp4" if method else "",
        compression=compression,
        dataset="FaceForensics++",
        clip=name,
    )


def _load(path: Path) -> Any:
    try:
        return load_json(require_file(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _invalid_list(path, f"cannot be read: {error}", "a JSON file") from error


def _mapping(value: Any, path: Path) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _invalid_list(
            path,
            "is not a list of DeepfakeBench",
            "data set, class, split, clip and frames, nested",
        )
    return value


def _invalid_list(path: Path, problem: str, expected: str) -> DataError:
    return DataError(
        f"{path.name} {problem}",
        code="forensics.manifest",
        where=str(path),
        expected=expected,
        next="pass the list as published by its authors",
    )
