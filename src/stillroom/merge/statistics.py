"""Statistics of a model on records, kept beside it for the methods that weigh by them.

A folder holds statistics.json (of which model, which records, how many tokens) and
statistics.safetensors, its arrays by the names of the model's tensors. Methods find a parent's
statistics by the parent's fingerprint, so that neither order nor place of the models matters.
Knows how statistics are kept, not how they are gathered: that is ``calibration``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stillroom.errors import CheckpointError, RecipeError
from stillroom.merge.method import Array
from stillroom.merge.reading import (
    TensorFile,
    ToWrite,
    new_folder,
    read_rows,
    write_json,
    write_tensors,
)

__all__ = ["Kind", "Statistics", "find_statistics", "write_statistics"]

Kind = Literal["fisher", "gram"]
_ABOUT, _ARRAYS = "statistics.json", "statistics.safetensors"
_VERSION = 1


class Statistics:
    """The statistics of one model. Use ``Statistics.open``."""

    def __init__(self, folder: Path, about: Mapping[str, Any], file: TensorFile) -> None:
        """Stand over an opened file; callers use ``open``."""
        self.folder = folder
        self.about = about
        self.kind: str = about["kind"]
        self.model: str = about["model"]
        self.tokens: int = about["tokens"]
        self._same: Mapping[str, str] = about.get("same") or {}
        self._file = file

    @classmethod
    def open(cls, folder: Path) -> Statistics:
        """Open a folder that ``write_statistics`` wrote.

        Raises:
            CheckpointError: If it is missing or broken.
        """
        try:
            about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
            if about["version"] != _VERSION or about["kind"] not in ("fisher", "gram"):
                raise ValueError("it is of another version or kind")
            if not (isinstance(about["model"], str) and isinstance(about["tokens"], int)):
                raise TypeError("model or tokens is not what it should be")
            if not isinstance(about.get("same", {}), dict):
                raise TypeError("same is not a mapping")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointError(
                f"{folder} cannot be read as statistics: {error!s:.120}",
                code="merge.statistics-broken",
                where=str(folder),
                expected=f"{_ABOUT} and {_ARRAYS}",
                next="gather the statistics again",
            ) from error
        path = folder / _ARRAYS
        if not path.is_file():
            raise CheckpointError(
                f"{folder} holds no {_ARRAYS}",
                code="merge.statistics-broken",
                where=str(folder),
                expected=f"{_ABOUT} and {_ARRAYS}",
                next="gather the statistics again",
            )
        return cls(folder, about, TensorFile(path))

    def __contains__(self, name: str) -> bool:
        """Return whether there is an array for a tensor of the model."""
        return self._home(name) in self._file.entries

    def names(self) -> list[str]:
        """Return the names of all tensors that have an array, sorted."""
        return sorted({*self._file.entries, *self._same})

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor's array."""
        return self._file.entry(self._home(name)).shape

    def array(self, name: str, *, dtype: Any = np.float64) -> Array:
        """Return a tensor's whole array."""
        return self._file.array(self._home(name), dtype)

    def rows(self, name: str, start: int, stop: int, *, dtype: Any = np.float32) -> Array:
        """Return rows of a tensor's array, (rows, ...)."""
        return read_rows(self._file, self._home(name), start, stop, dtype=dtype)

    def _home(self, name: str) -> str:
        return self._same.get(name, name)


def write_statistics(
    folder: Path,
    kind: Kind,
    arrays: Mapping[str, Array],
    *,
    model: str,
    tokens: int,
    records: str = "",
    same: Mapping[str, str] | None = None,
    details: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Statistics:
    """Write statistics, whole or not at all, and open them.

    Args:
        folder: Where they are written.
        kind: ``fisher``, squared gradients in float32, or ``gram``, products of inputs in float64.
        arrays: By the names of the model's tensors.
        model: The model's fingerprint.
        tokens: How many tokens the arrays are means over.
        records: The digest of what they were gathered on.
        same: Tensors that share the array of another, which is named.
        details: What else to keep.
        overwrite: Replace what lies at ``folder``.

    Raises:
        DataError: If ``folder`` exists.
        ResourceError: If the disk is full.
    """
    squares = math.fsum(
        float(np.sum(np.square(array, dtype=np.float64))) for array in arrays.values()
    )
    about = {
        "version": _VERSION,
        "kind": kind,
        "model": model,
        "tokens": tokens,
        "records": records,
        "norm": math.sqrt(squares),
        "same": dict(same or {}),
        **(details or {}),
    }
    stored = "F32" if kind == "fisher" else "F64"
    with new_folder(folder, overwrite=overwrite) as work:
        write_tensors(
            work / _ARRAYS, {name: ToWrite.of(stored, array) for name, array in arrays.items()}
        )
        write_json(work / _ABOUT, about)
    return Statistics.open(folder)


def find_statistics(
    folders: Sequence[str], keys: Sequence[str], kind: Kind, method: str
) -> list[Statistics]:
    """Return the statistics of every parent, found by its fingerprint.

    Args:
        folders: Where statistics lie.
        keys: The parents', as the engine gives them: a fingerprint, and a count after ``#``.
        kind: What is needed.
        method: Who asks.

    Raises:
        RecipeError: If a parent has none, or they are of another kind.
        CheckpointError: If a folder is broken.
    """
    about = [Path(folder) / _ABOUT for folder in folders]
    stamps = tuple(path.stat().st_mtime_ns if path.is_file() else 0 for path in about)
    return list(_find(tuple(folders), stamps, tuple(keys), kind, method))


@lru_cache(maxsize=8)
def _find(
    folders: tuple[str, ...],
    _: tuple[int, ...],
    keys: tuple[str, ...],
    kind: str,
    method: str,
) -> tuple[Statistics, ...]:
    opened = [Statistics.open(Path(folder)) for folder in folders]
    known = {statistics.model: statistics for statistics in opened if statistics.kind == kind}
    found = [known.get(key.partition("#")[0]) for key in keys]
    missing = [key for key, statistics in zip(keys, found, strict=True) if statistics is None]
    if missing:
        held = ", ".join(f"{each.folder.name} ({each.kind})" for each in opened)
        raise RecipeError(
            f"{method} has no {kind} statistics of the model with fingerprint {missing[0]:.20}",
            code="merge.statistics",
            where="method.statistics",
            expected=f"a folder of {kind} statistics for every model; given: {held or 'none'}",
            next=f"stillroom merge calibrate MODEL --records RECORDS --for {method} --out DIR",
        )
    return tuple(statistics for statistics in found if statistics is not None)
