"""Audit of records: what bears loss, what is cut or empty, what is held out and learned, too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stillroom.distill.lessons import Split
from stillroom.distill.preflight import Finding
from stillroom.errors import DataError
from stillroom.evaluate.spans import Encoded, encode_record
from stillroom.records import Record
from stillroom.text.near_duplicates import find_near_duplicates
from stillroom.text.normalize import normalize_text

__all__ = ["audit_duplicates", "audit_labels", "encode_sample"]

_SAMPLE = 256
_COMPARED = 4000
_NEAR = 0.8
_FEW = 0.1


def encode_sample(
    tokenizer: Any, records: Sequence[Record], *, max_tokens: int
) -> list[tuple[Record, Encoded]]:
    """Return up to 256 records, evenly spaced, with their tokens.

    Raises:
        DataError: If the assistant's part of a conversation cannot be found.
    """
    step = max(-(-len(records) // _SAMPLE), 1)
    return [
        (record, encode_record(tokenizer, record, max_tokens=max_tokens))
        for record in records[::step]
    ]


def audit_labels(encoded: Sequence[tuple[Record, Encoded]], *, max_tokens: int) -> list[Finding]:
    """Look how much of the records bears loss.

    Raises:
        DataError: If nothing does.
    """
    count = len(encoded)
    masked = sum(not one.targets for _, one in encoded)
    empty = sum(
        not any(turn.content.strip() for turn in record.messages if turn.role == "assistant")
        for record, _ in encoded
    )
    cut = sum(bool(one.truncated) for _, one in encoded)
    if masked == count:
        raise DataError(
            f"none of {count} records has an assistant's token within {max_tokens} tokens",
            code="distill.no-positions",
            where="records",
            expected="assistant messages within max_tokens",
            next=f"raise max_tokens above {max_tokens}, or check who speaks in the records",
        )
    tokens = sum(len(one.targets) for _, one in encoded)
    read = sum(len(one.ids) for _, one in encoded)
    found = [
        Finding("ok", "labels", f"{tokens} of {read} tokens of {count} records are the assistant's")
    ]
    for number, check, what, hint in (
        (masked, "labels", "have no token to learn within max_tokens", "raise max_tokens"),
        (empty, "empty answers", "have an empty answer", "drop them"),
        (
            cut,
            "cut records",
            f"are cut at {max_tokens} tokens, and their ends not learned",
            "raise max_tokens, or split long records",
        ),
    ):
        if number:
            level = "warning" if check != "cut records" or number / count > _FEW else "note"
            said = f"{number} of {count} records looked at {what}"
            found.append(Finding("warning" if level == "warning" else "note", check, said, hint))
    return found


def audit_duplicates(split: Split) -> list[Finding]:
    """Look for held-out records that stand among those to learn from, exactly or nearly.

    Near is a Jaccard similarity of word 5-grams of at least 0.8, among the first 4,000 records to
    learn from.
    """
    check = "held-out records"
    if not split.held_out:
        return [
            Finding(
                "warning",
                check,
                "none: how near the student comes to its teacher will not be known",
                "give some records fields.split 'held_out'",
            )
        ]
    learned = {_text(record) for record in split.train}
    held = [_text(record) for record in split.held_out]
    same = sum(text in learned for text in held)
    compared = [_text(record) for record in split.train[:_COMPARED]]
    fresh = [text for text in held if text not in learned]
    near = sum(
        one.index >= len(compared) and one.kept < len(compared)
        for one in find_near_duplicates([*compared, *fresh], threshold=_NEAR)
    )
    count = len(held)
    if same or near:
        return [
            Finding(
                "warning",
                check,
                f"{same} of {count} are also learned from, word for word, and {near} nearly so: "
                "what is measured on them is memory",
                "hold out by document, and remove duplicates before splitting",
            )
        ]
    return [Finding("ok", check, f"none of {count} is, or nearly is, among those learned from")]


def _text(record: Record) -> str:
    return normalize_text(" ".join(message.content for message in record.messages))
