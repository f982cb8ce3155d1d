"""Audit of tokenizers, chat templates and end tokens: the field's most repeated quiet failures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stillroom.distill.preflight import Finding
from stillroom.distill.teacher import rows_in_common
from stillroom.evaluate.spans import Encoded
from stillroom.provenance import digest_text
from stillroom.records import Record

__all__ = ["audit_ends", "audit_template", "audit_vocabulary"]

_ROLES = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")
_DIGITS = 12


def audit_vocabulary(
    teacher: Any, student: Any | None, rows: Sequence[int], *, crosses: bool
) -> list[Finding]:
    """Compare two tokenizers and look at what their heads have beyond them.

    Args:
        teacher: Its tokenizer.
        student: Its tokenizer; None where it is made from the teacher.
        rows: Rows of the heads, by the configurations, teacher first.
        crosses: Whether the recipe distills across tokenizers.

    Raises:
        CheckpointError: If the ids differ and the recipe does not cross.
    """
    check = "vocabulary"
    if student is None:
        found = [Finding("ok", check, "the student is made from the teacher and has its tokenizer")]
    elif crosses:
        same = teacher.get_vocab() == student.get_vocab()
        what = "both tokenizers are the same" if same else "tokenizers differ, and crossing is set"
        hint = "leave crossing out: distributions can be compared as they are" if same else ""
        found = [Finding("note" if same else "ok", check, what, hint)]
    else:
        rows_in_common(teacher, student, min(rows))
        count = len(teacher.get_vocab())
        found = [Finding("ok", check, f"both give the same ids to the same {count} tokens")]
        odd = [name for name in _ROLES if _role(teacher, name) != _role(student, name)]
        if odd:
            said = ", ".join(
                f"{name} {_role(teacher, name)} and {_role(student, name)}" for name in odd
            )
            found.append(
                Finding(
                    "warning",
                    "special tokens",
                    f"teacher and student differ: {said}",
                    "make tokenizer_config.json and config.json of both say the same",
                )
            )
    used = max(teacher.get_vocab().values(), default=-1) + 1
    if any(count > used for count in rows):
        said = " and ".join(str(count) for count in rows)
        found.append(
            Finding(
                "note",
                "padded heads",
                f"heads have {said} rows for {used} tokens: all are cut to the narrowest before "
                "any softmax",
            )
        )
    return found


def audit_template(teacher: Any, student: Any | None) -> list[Finding]:
    """Compare the chat templates that teacher and student were given."""
    check = "chat template"
    ours = getattr(teacher, "chat_template", None) or ""
    if not ours:
        return [
            Finding(
                "note",
                check,
                "the teacher has none: turns are rendered as plain paragraphs headed by their role",
                "use an instruct checkpoint if the student shall chat",
            )
        ]
    digest = digest_text(str(ours))[:_DIGITS]
    theirs = ours if student is None else getattr(student, "chat_template", None) or ""
    if theirs != ours:
        return [
            Finding(
                "warning",
                check,
                f"the student's differs from the teacher's ({digest}): it learns in the teacher's "
                "and will be served in its own",
                "copy the teacher's chat_template.jinja into the student",
            )
        ]
    return [Finding("ok", check, f"the same for both ({digest})")]


def audit_ends(
    tokenizer: Any, folder: Path, encoded: Sequence[tuple[Record, Encoded]]
) -> list[Finding]:
    """Look whether what is learned ends with a token that ends a completion.

    Args:
        tokenizer: The one that records are read with.
        folder: Of the student or the teacher, for its config and generation_config.
        encoded: Records with their tokens; lone texts and cut ones are passed over.
    """
    ends = _end_ids(tokenizer, folder)
    found = [_audit_padding(tokenizer, ends)]
    last = []
    for record, one in encoded:
        is_turn = len(record.messages) > 1 and record.messages[-1].role == "assistant"
        if is_turn and not one.truncated and one.targets:
            last.append(one.ids[one.targets[-1]])
    missing = [token for token in last if token not in ends]
    check = "end of turn"
    names = ", ".join(repr(str(tokenizer.convert_ids_to_tokens(one))) for one in sorted(ends))
    if not last:
        found.append(
            Finding("note", check, "no whole conversation was among the records looked at")
        )
    elif missing:
        odd = str(tokenizer.convert_ids_to_tokens(missing[0]))
        found.append(
            Finding(
                "warning",
                check,
                f"{len(missing)} of {len(last)} answers end with a token that ends no completion "
                f"({odd!r}; those that do: {names or 'none'}): the student will not learn to stop",
                "add it to eos_token_id in generation_config.json, or use a chat template that "
                "closes the assistant's turn",
            )
        )
    else:
        found.append(Finding("ok", check, f"all {len(last)} answers end with one of {names}"))
    return found


def _audit_padding(tokenizer: Any, ends: frozenset[int]) -> Finding:
    pad = tokenizer.pad_token_id
    name = repr(str(tokenizer.convert_ids_to_tokens(pad))) if pad is not None else "none"
    if pad in ends:
        return Finding(
            "note",
            "padding",
            f"{name} pads and ends: handled, since masks are made from spans of text and lengths, "
            "never from ids",
        )
    return Finding("ok", "padding", f"the padding token {name} ends no completion")


def _end_ids(tokenizer: Any, folder: Path) -> frozenset[int]:
    found = {tokenizer.eos_token_id}
    for name in ("config.json", "generation_config.json"):
        file = folder / name
        if file.is_file():
            given = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
            found.update(given if isinstance(given, list) else [given])
    return frozenset(int(one) for one in found if one is not None)


def _role(tokenizer: Any, name: str) -> int | None:
    value = getattr(tokenizer, name, None)
    return value if value is None else int(value)
