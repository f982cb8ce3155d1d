"""Rejected records of a run, read row by row with reason, score and limit.

Reads the files that runs, deduplications and decontaminations leave; a file is read row by row.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.errors import DataError
from stillroom.provenance import find_output

__all__ = ["RejectedRow", "count_rejected", "read_rejected"]

_FILES = ("dropped.jsonl", "contaminated.jsonl", "duplicates.jsonl")


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """One dropped record: what it says, why it fell, by what measure, and against what."""

    method: str
    reason: str
    says: tuple[tuple[str, str], ...]
    score: float | None = None
    limit: float | None = None
    against: str = ""
    told: Mapping[str, Any] | None = None
    step: str = ""
    split: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the values as plain JSON types."""
        return {
            "step": self.step,
            "method": self.method,
            "reason": self.reason,
            "score": self.score,
            "limit": self.limit,
            "against": self.against,
            "told": dict(self.told or {}),
            "split": self.split,
            "says": [list(turn) for turn in self.says],
        }


def read_rejected(
    run: Path, *, reason: str = "", method: str = "", step: str = ""
) -> Iterator[RejectedRow]:
    """Yield the dropped rows of a run, in the order of its file.

    Args:
        run: An artifact of records, or a file of dropped rows.
        reason: Only those whose reason holds this, in any case.
        method: Only those that this filter, generator or selector dropped.
        step: Only those of this step of a graph.

    Raises:
        DataError: If the run has no file of dropped rows, or a row is broken.
    """
    for path in _find_files(run):
        with path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, 1):
                row = _parse(line, path, number)
                if (
                    reason.casefold() in row.reason.casefold()
                    and method in {"", row.method}
                    and step in {"", row.step}
                ):
                    yield row


def count_rejected(run: Path) -> Counter[tuple[str, str, str]]:
    """Return how many rows fell at each step to each method for each reason.

    Raises:
        DataError: As ``read_rejected``.
    """
    return Counter((row.step, row.method, row.reason) for row in read_rejected(run))


def _find_files(run: Path) -> list[Path]:
    if run.is_file():
        return [run]
    folder = find_output(run, "records") if run.exists() else run
    found = [folder / name for name in _FILES if (folder / name).is_file()]
    if not found:
        raise DataError(
            f"{run} holds no dropped rows",
            code="synth.no-drops",
            where=str(run),
            expected=f"an artifact of records with one of: {', '.join(_FILES)}",
            next="name the folder that a run, synth dedup or synth decontaminate left",
        )
    return found


def _parse(line: str, path: Path, number: int) -> RejectedRow:
    try:
        data = json.loads(line)
        return _make_row(data, path.name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"row {number} of {path} is broken: {error}",
            code="data.row",
            where=f"{path}:{number}",
            expected="a row as a run writes it",
            next="run it again; rows are never edited by hand",
        ) from error


def _make_row(data: Mapping[str, Any], name: str) -> RejectedRow:
    if name == "duplicates.jsonl":
        if "kept" not in data:
            return RejectedRow(
                "dedup", str(data["reason"]), (("row", f"{data['file']}:{data['row']}"),)
            )
        twin = (("record", str(data["id"])),)
        return RejectedRow(
            "dedup", "near duplicate", twin, float(data["jaccard"]), against=str(data["kept"])
        )
    record = data.get("record")
    says: tuple[tuple[str, str], ...]
    if record is not None:
        says = tuple((one["role"], one["content"]) for one in record["messages"])
    else:
        says = (("said", str(data.get("text", ""))),)
    if name == "contaminated.jsonl":
        return RejectedRow(
            "decontaminate",
            str(data.get("kind", "holds an item")),
            says,
            data.get("share"),
            against=f"{data['item']['file']}:{data['item']['row']} {data['item']['text']}",
        )
    return RejectedRow(
        str(data["filter"]),
        str(data["reason"]),
        says,
        data.get("score"),
        data.get("limit"),
        str(data.get("against", "")),
        data.get("told"),
        str(data.get("step", "")),
        str(data.get("split", "")),
    )
