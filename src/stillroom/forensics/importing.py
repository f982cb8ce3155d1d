"""Reading the lists of other benchmarks into a manifest: DeepfakeBench's JSON, FaceForensics++'s.

Only lists are read, no data. Paths keep their place below the data's own folder, with forward
slashes; absolute ones are cut where the data set's folder begins.

Source: Yan et al. 2023, "DeepfakeBench", arXiv:2307.01426 (its dataset_json); Roessler et al. 2019,
"FaceForensics++", arXiv:1901.08971 (its splits of pairs and its folders).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stillroom.errors import DataError
from stillroom.forensics.items import Item

__all__ = ["FF_METHODS", "import_deepfakebench", "import_faceforensics"]

FF_METHODS = ("Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures")
_SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
_PAIR = re.compile(r"(\d{3})_(\d{3})\Z")


def import_deepfakebench(
    path: Path, *, compression: str = "", real: Sequence[str] = ()
) -> list[Item]:
    """Read one of DeepfakeBench's lists: a row a frame.

    A clip is named by data set, generator and its own id, so that clips of different generators
    stay apart although their folders have one name.

    Args:
        path: The JSON file.
        compression: Of FaceForensics++, which compression to take, as ``c23``; empty takes all.
        real: Names of classes that are real; by default those whose name says ``real``.

    Raises:
        DataError: If it is no such list, or none of it is of that compression.
    """
    items = list(_read_frames(_load(path), path, compression, set(real)))
    if not items:
        raise _refused(path, f"has no frame of compression {compression!r}", "another compression")
    return items


def import_faceforensics(
    train: Path | None,
    validation: Path | None,
    test: Path | None,
    *,
    compression: str = "c23",
    methods: Sequence[str] = FF_METHODS,
) -> list[Item]:
    """Read FaceForensics++'s lists of pairs: a row a clip, at the data set's own paths.

    The face of ``b`` in the clip of ``a`` is ``a_b``: its identity is ``a``, ``b`` is another's.

    Args:
        train: Its train.json; None leaves the split out.
        validation: Its val.json.
        test: Its test.json.
        compression: ``raw``, ``c23`` or ``c40``.
        methods: Which manipulations.

    Raises:
        DataError: If a file is no list of pairs, or a clip is in two splits.
    """
    items: list[Item] = []
    seen: dict[str, str] = {}
    for split, path in (("train", train), ("validation", validation), ("test", test)):
        if path is None:
            continue
        for first, second in _read_pairs(path):
            for name in (first, second):
                if name in seen:
                    raise _refused(path, f"has clip {name} twice", "each clip in one pair")
                seen[name] = split
                items.append(_ff_item(name, "", split, compression))
            for method in methods:
                items += [
                    _ff_item(f"{a}_{b}", method, split, compression)
                    for a, b in ((first, second), (second, first))
                ]
    if not items:
        raise DataError(
            "no list of FaceForensics++ was named",
            code="forensics.manifest",
            expected="train.json, val.json or test.json",
            next="give at least one",
        )
    return items


def _read_frames(
    data: Mapping[str, Any], path: Path, compression: str, real: set[str]
) -> Iterator[Item]:
    for dataset, classes in _mapping(data, path).items():
        for name, splits in _mapping(classes, path).items():
            is_real = name in real if real else "real" in name.lower()
            for split, clips in _mapping(splits, path).items():
                if split not in _SPLITS:
                    raise _refused(path, f"has the split {split!r}", "train, val or test")
                for rate, clip, about in _clips(_mapping(clips, path), path):
                    if compression and rate and rate != compression:
                        continue
                    yield from _frames(dataset, name, is_real, _SPLITS[split], rate, clip, about)


def _clips(clips: Mapping[str, Any], path: Path) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield compression, clip and what is said of it; some data sets have one level more."""
    for name, about in clips.items():
        inside = _mapping(about, path)
        if "frames" in inside:
            yield "", name, inside
            continue
        for clip, found in inside.items():
            if "frames" not in _mapping(found, path):
                raise _refused(path, f"has no frames for {clip!r}", "frames of every clip")
            yield name, clip, found


def _frames(
    dataset: str,
    name: str,
    is_real: bool,
    split: str,
    rate: str,
    clip: str,
    about: Mapping[str, Any],
) -> Iterator[Item]:
    pair = _PAIR.search(clip)
    identity = pair[1] if pair else clip
    for frame in about["frames"]:
        place = _relative(str(frame), dataset)
        yield Item(
            id="/".join(
                part for part in (dataset, name, rate, clip, place.rsplit("/", 1)[-1]) if part
            ),
            path=place,
            label=0 if is_real else 1,
            generator="" if is_real else name,
            source=identity,
            identity=identity,
            others=(pair[2],) if pair and not is_real else (),
            split=split,
            compression=rate,
            dataset=dataset,
            clip=clip,
        )


def _relative(path: str, dataset: str) -> str:
    """Return a frame's path below the data's folder, whatever machine wrote it."""
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    named = [at for at, part in enumerate(parts) if part.lower() == dataset.lower()]
    if path.replace("\\", "/").startswith("/") or (parts and parts[0].endswith(":")):
        parts = parts[named[0] :] if named else [part for part in parts if not part.endswith(":")]
    return "/".join(parts)


def _ff_item(name: str, method: str, split: str, compression: str) -> Item:
    pair = _PAIR.match(name)
    folder = f"manipulated_sequences/{method}" if method else "original_sequences/youtube"
    return Item(
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


def _read_pairs(path: Path) -> list[tuple[str, str]]:
    rows = _load(path)
    if not isinstance(rows, list) or not all(
        isinstance(row, list) and len(row) == 2 and all(isinstance(name, str) for name in row)
        for row in rows
    ):
        raise _refused(path, "is no list of pairs", '[["071", "054"], ...]')
    return [(row[0], row[1]) for row in rows]


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _refused(path, f"cannot be read: {error}", "a JSON file") from error


def _mapping(value: Any, path: Path) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _refused(
            path, "is no list of DeepfakeBench", "data set, class, split, clip and frames, nested"
        )
    return value


def _refused(path: Path, what: str, expected: str) -> DataError:
    return DataError(
        f"{path.name} {what}",
        code="forensics.manifest",
        where=str(path),
        expected=expected,
        next="name the list as its authors publish it",
    )
