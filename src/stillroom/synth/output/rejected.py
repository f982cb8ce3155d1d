"""Rejected records of a run, read row by row with reason, score and limit.

Reads the files written by runs, deduplications and decontaminations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.errors import DataError
from stillroom.jobs import get_working_folder
from stillroom.provenance import find_output, list_run_folders
from stillroom.provenance.digests import load_json

__all__ = ["RejectedRow", "count_rejected", "read_rejected"]

_FILES = ("dropped.jsonl", "contaminated.jsonl", "duplicates.jsonl")


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """One rejected record: its text, the reason, the score, and the text it was compared with."""

    method: str
    reason: str
    says: tuple[tuple[str, str], ...]
    score: float | None = None
    limit: float | None = None
    against: str = ""
    details: Mapping[str, Any] | None = None
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
            "details": dict(self.details or {}),
            "split": self.split,
            "turns": [list(turn) for turn in self.says],
        }


def read_rejected(
    run: Path, *, reason: str = "", method: str = "", step: str = ""
) -> Iterator[RejectedRow]:
    """Yield the rejected rows of a run, in the order of its file.

    Args:
        run: An artifact of records, a run with such steps, or a file of rejected rows.
        reason: Only rows whose reason contains this, ignoring case.
        method: Only rows rejected by this filter, generator or selector.
        step: Only rows of this step of the pipeline.

    Raises:
        DataError: If the run has no file of rejected rows, or a row is invalid.
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
    """Count the rejected rows by step, method and reason.

    Raises:
        DataError: As for ``read_rejected``.
    """
    return Counter((row.step, row.method, row.reason) for row in read_rejected(run))


def _find_files(run: Path) -> list[Path]:
    if run.is_file():
        return [run]
    folders = list_run_folders(run) if run.exists() else []
    if len(folders) <= 1:  # no run of several steps
        folders = [find_output(run, "records") if run.exists() else run]
    places = [place for folder in folders for place in (folder, folder / "output")]
    files = [place / name for place in places for name in _FILES if (place / name).is_file()]
    if not files and run.name:  # a job that kept nothing ends unfinished, and there one looks why
        files = sorted(get_working_folder(run).glob("scratch/*/*-dropped.jsonl"))
    if not files:
        raise DataError(
            f"{run} has no rejected rows" if run.exists() else f"{run} does not exist",
            code="synth.no-drops",
            where=str(run),
            expected=f"an artifact of records with one of: {', '.join(_FILES)}",
            next="name a job of kind synth.records, synth.dedup or synth.decontaminate",
        )
    return files


def _parse(line: str, path: Path, number: int) -> RejectedRow:
    try:
        data = load_json(line)
        return _make_row(data, path.name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"row {number} of {path} is invalid: {error}",
            code="data.row",
            where=f"{path}:{number}",
            expected="a row as written by a run",
            next="run the job again; rows are not meant to be edited",
        ) from error


def _make_row(data: Mapping[str, Any], name: str) -> RejectedRow:
    if name == "duplicates.jsonl":
        if "kept" not in data:
            return RejectedRow(
                "dedup", str(data["reason"]), (("row", f"{data['file']}:{data['row']}"),)
            )
        messages = (("record", str(data["id"])),)
        return RejectedRow(
            "dedup", "near duplicate", messages, float(data["jaccard"]), against=str(data["kept"])
        )
    record = data.get("record")
    says: tuple[tuple[str, str], ...]
    if record is not None:
        says = tuple((message["role"], message["content"]) for message in record["messages"])
    else:
        text = str(data.get("text", ""))
        says = (("said", text),) if text else (("passage", str(data.get("unit", ""))),)
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
        data.get("details", data.get("told")),  # the second: written before 2026-12
        str(data.get("step", "")),
        str(data.get("split", "")),
    )
