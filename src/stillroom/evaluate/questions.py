"""The held-out questions that models are asked, picked from records.

Knows records only. What cannot be asked is counted by reason, never left out in silence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.errors import DataError
from stillroom.provenance import digest_json, find_output
from stillroom.records import Record

__all__ = ["Question", "find_records", "pick_questions"]

_NAMES = ("records.jsonl", "records.jsonl.zst", "records.parquet")


@dataclass(frozen=True, slots=True)
class Question:
    """One question with the answer it should get and where the answer stands."""

    id: str
    text: str
    answer: str
    evidence: Mapping[str, Any]
    record: Record


def find_records(path: Path) -> Path:
    """Return the records file of an artifact, of a folder, or the file itself.

    Raises:
        DataError: If there is none.
    """
    folder = find_output(path, "records")
    if folder.is_file():
        return folder
    for name in _NAMES:
        if (folder / name).is_file():
            return folder / name
    raise DataError(
        f"{path} holds no records",
        code="data.missing",
        expected=f"one of: {', '.join(_NAMES)}",
        next="give a records artifact, or a file of records",
    )


def pick_questions(
    records: Iterable[Record], *, limit: int, seed: int, may_be_none: bool = False
) -> tuple[list[Question], dict[str, int]]:
    """Return the questions to ask, and how many records were passed over, by reason.

    Where any record says its split, only ``held_out`` ones are asked; data made elsewhere, that
    names no split, is asked whole. Past ``limit``, the seed and each record's id choose, so that
    the order of the file does not.

    Raises:
        DataError: If nothing is left to ask, unless ``may_be_none``.
    """
    every = list(records)
    has_splits = any("split" in record.fields for record in every)
    skipped: Counter[str] = Counter()
    found: dict[str, Question] = {}
    for record in every:
        if has_splits and record.fields.get("split") != "held_out":
            skipped["not held out"] += 1
            continue
        question = _read_question(record)
        if question is None:
            skipped["no question or no answer"] += 1
        elif question.id in found:
            skipped["the same record again"] += 1
        else:
            found[question.id] = question
    if not found and not may_be_none:
        raise DataError(
            f"none of {len(every)} records can be asked",
            code="data.no-questions",
            expected="records with a question, an answer and fields.split 'held_out'",
            next=f"passed over: {dict(skipped)}; "
            "make some with held_out=0.9 and target.held_out=100",
        )
    chosen = set(sorted(found, key=lambda name: digest_json([seed, name]))[:limit])
    if len(found) > len(chosen):
        skipped["more than max_questions"] = len(found) - len(chosen)
    return [question for name, question in found.items() if name in chosen], dict(skipped)


def _read_question(record: Record) -> Question | None:
    """Read question and answer from the fields, or from the last two turns."""
    fields = record.fields
    turns = record.messages
    question, answer = fields.get("question"), fields.get("answer")
    if not question:
        question = next((turn.content for turn in reversed(turns) if turn.role == "user"), "")
    if not answer:
        answer = turns[-1].content if turns and turns[-1].role == "assistant" else ""
    if not (isinstance(question, str) and isinstance(answer, str)):
        return None
    if not question.strip() or not answer.strip():
        return None
    evidence = fields.get("evidence")
    place = {"document_id": fields.get("document_id", "")}
    if isinstance(evidence, Mapping):
        place.update(evidence)
    return Question(record.id, question, answer, place, record)
