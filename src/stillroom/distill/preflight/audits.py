"""Preflight report, and audits of records, tokenizers, chat templates and end tokens.

Each check gives findings of four levels: ``ok``, ``note`` (handled, worth knowing), ``warning``
(goes on, probably not what you want) and ``error`` (stops, with the code that the job would stop
with later). What is free on the machine changes, so ``preflight.json`` lies beside the output.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stillroom.distill.teachers.local import check_shared_vocabulary
from stillroom.errors import DataError, StillroomError
from stillroom.evaluate import paired_difference, warn_small_sample
from stillroom.evaluate.lm.encoding import EncodedConversation, encode_record
from stillroom.jobs import atomic_write
from stillroom.provenance import digest_text
from stillroom.records import Record
from stillroom.text.dedup.near_duplicates import find_near_duplicates
from stillroom.text.unicode import normalize_text
from stillroom.train.data import RecordSplit

if TYPE_CHECKING:
    from stillroom.distill.evaluation.metrics import Fidelity

__all__ = [
    "Level",
    "PreflightFinding",
    "PreflightReport",
    "audit_duplicates",
    "audit_ends",
    "audit_labels",
    "audit_template",
    "audit_vocabulary",
    "check_teacher_advantage",
    "encode_sample",
]


Level = Literal["ok", "note", "warning", "error"]


_LEVELS: tuple[Level, ...] = ("ok", "note", "warning", "error")


_FILE = "preflight.json"


@dataclass(frozen=True, slots=True)
class PreflightFinding:
    """What one check found.

    Args:
        level: How bad it is.
        check: What was looked at.
        what: One sentence, with its numbers.
        next: What helps, where something does.
        error: What stops the job, at level ``error``.
    """

    level: Level
    check: str
    what: str
    next: str = ""
    error: StillroomError | None = None

    @classmethod
    def of_error(cls, check: str, error: StillroomError) -> PreflightFinding:
        """Return the finding of a deliberate error."""
        problem = error.problems[0]
        return cls("error", check, f"{problem.what} [{problem.code}]", problem.next, error)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; the codes of an error's problems among them."""
        codes = [problem.code for problem in self.error.problems] if self.error else []
        return {
            "level": self.level,
            "check": self.check,
            "what": self.what,
            "next": self.next,
            **({"codes": codes} if codes else {}),
        }


@dataclass
class PreflightReport:
    """The findings of all checks, in order."""

    findings: list[PreflightFinding] = field(default_factory=list)

    @property
    def level(self) -> Level:
        """The worst level found; ``ok`` where nothing was."""
        return max((one.level for one in self.findings), key=_LEVELS.index, default="ok")

    def add(self, check: str, look: Callable[[], Sequence[PreflightFinding]]) -> None:
        """Run one check; a deliberate error becomes a finding, so that the others still run."""
        try:
            self.findings += look()
        except StillroomError as error:
            self.findings.append(PreflightFinding.of_error(check, error))

    def raise_errors(self) -> None:
        """Stop where anything was found that cannot go well.

        Raises:
            StillroomError: The first error found, of its own class, with the problems of all.
        """
        errors = [one.error for one in self.findings if one.error is not None]
        if errors:
            raise type(errors[0])([problem for error in errors for problem in error.problems])

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"level": self.level, "findings": [one.to_json() for one in self.findings]}

    def write(self, folder: Path) -> None:
        """Write preflight.json into ``folder``."""
        with atomic_write(folder / _FILE) as file:
            json.dump(self.to_json(), file, ensure_ascii=False, indent=1)
            file.write("\n")

    def lines(self, *, least: Level = "ok") -> list[str]:
        """Return the findings as a table, from a level upwards; what helps stands below."""
        shown = [one for one in self.findings if _LEVELS.index(one.level) >= _LEVELS.index(least)]
        width = max((len(one.check) for one in shown), default=0)
        lines = []
        for one in shown:
            lines.append(f"{one.level:8}{one.check:{width + 2}}{one.what}")
            if one.next and one.level != "ok":
                lines.append(f"{'':{width + 10}}next: {one.next}")
        return lines


def check_teacher_advantage(
    teacher: Fidelity, student: Fidelity, *, seed: int = 0
) -> PreflightFinding:
    """Say whether the teacher is better than the student on these records' own tokens.

    Args:
        teacher: Its loss by record.
        student: The student's, before training, on the same records.
        seed: Of the bootstrap.
    """
    pairs = [
        (one.loss, other.loss, one.tokens)
        for one, other in zip(teacher.rows, student.rows, strict=True)
        if one.tokens
    ]
    check = "teacher on this data"
    if len(pairs) < 2:
        return PreflightFinding(
            "note", check, warn_small_sample(len(pairs), "held-out records"), "hold more out"
        )
    gap = paired_difference(
        [one for one, _, _ in pairs],
        [other for _, other, _ in pairs],
        weights=[tokens for _, _, tokens in pairs],
        seed=seed,
    )
    said = (
        f"its loss less the student's is {gap.value:+.3f} nats a token (95 % {gap.low:+.3f} to "
        f"{gap.high:+.3f}) on {gap.n} held-out records"
    )
    if gap.is_few:
        few = warn_small_sample(gap.n, "held-out records").rstrip(".")
        return PreflightFinding("note", check, f"{few}: {said}", "hold more records out")
    if gap.side() > 0:
        return PreflightFinding(
            "warning",
            check,
            f"the teacher is worse than the student: {said}",
            "choose a teacher that knows this kind of text, or fine-tune it on the records first",
        )
    if not gap.side():
        return PreflightFinding(
            "note", check, f"no difference can be told: {said}", "hold more records out"
        )
    return PreflightFinding("ok", check, f"the teacher is better: {said}")


_SAMPLE_RECORDS = 256


_MAX_COMPARED = 4000


_NEAR_DUPLICATE = 0.8


_MIN_LOSS_SHARE = 0.1


def encode_sample(
    tokenizer: Any, records: Sequence[Record], *, max_tokens: int
) -> list[tuple[Record, EncodedConversation]]:
    """Return up to 256 records, evenly spaced, with their tokens.

    Raises:
        DataError: If the assistant's part of a conversation cannot be found.
    """
    step = max(-(-len(records) // _SAMPLE_RECORDS), 1)
    return [
        (record, encode_record(tokenizer, record, max_tokens=max_tokens))
        for record in records[::step]
    ]


def audit_labels(
    encoded: Sequence[tuple[Record, EncodedConversation]], *, max_tokens: int
) -> list[PreflightFinding]:
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
        PreflightFinding(
            "ok", "labels", f"{tokens} of {read} tokens of {count} records are the assistant's"
        )
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
            level = (
                "warning" if check != "cut records" or number / count > _MIN_LOSS_SHARE else "note"
            )
            said = f"{number} of {count} records looked at {what}"
            found.append(
                PreflightFinding("warning" if level == "warning" else "note", check, said, hint)
            )
    return found


def audit_duplicates(split: RecordSplit) -> list[PreflightFinding]:
    """Look for held-out records that stand among those to learn from, exactly or nearly.

    Near is a Jaccard similarity of word 5-grams of at least 0.8, among the first 4,000 records to
    learn from.
    """
    check = "held-out records"
    if not split.held_out:
        return [
            PreflightFinding(
                "warning",
                check,
                "none: how near the student comes to its teacher will not be known",
                "give some records fields.split 'held_out'",
            )
        ]
    learned = {_text(record) for record in split.train}
    held = [_text(record) for record in split.held_out]
    same = sum(text in learned for text in held)
    compared = [_text(record) for record in split.train[:_MAX_COMPARED]]
    fresh = [text for text in held if text not in learned]
    near = sum(
        one.index >= len(compared) and one.kept < len(compared)
        for one in find_near_duplicates([*compared, *fresh], threshold=_NEAR_DUPLICATE)
    )
    count = len(held)
    if same or near:
        return [
            PreflightFinding(
                "warning",
                check,
                f"{same} of {count} are also learned from, word for word, and {near} nearly so: "
                "what is measured on them is memory",
                "hold out by document, and remove duplicates before splitting",
            )
        ]
    return [
        PreflightFinding("ok", check, f"none of {count} is, or nearly is, among those learned from")
    ]


def _text(record: Record) -> str:
    return normalize_text(" ".join(message.content for message in record.messages))


_ROLES = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")


_DIGITS = 12


def audit_vocabulary(
    teacher: Any, student: Any | None, rows: Sequence[int], *, crosses: bool
) -> list[PreflightFinding]:
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
        found = [
            PreflightFinding(
                "ok", check, "the student is made from the teacher and has its tokenizer"
            )
        ]
    elif crosses:
        same = teacher.get_vocab() == student.get_vocab()
        what = "both tokenizers are the same" if same else "tokenizers differ, and crossing is set"
        hint = "leave crossing out: distributions can be compared as they are" if same else ""
        found = [PreflightFinding("note" if same else "ok", check, what, hint)]
    else:
        check_shared_vocabulary(teacher, student, min(rows))
        count = len(teacher.get_vocab())
        found = [
            PreflightFinding("ok", check, f"both give the same ids to the same {count} tokens")
        ]
        odd = [name for name in _ROLES if _role(teacher, name) != _role(student, name)]
        if odd:
            said = ", ".join(
                f"{name} {_role(teacher, name)} and {_role(student, name)}" for name in odd
            )
            found.append(
                PreflightFinding(
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
            PreflightFinding(
                "note",
                "padded heads",
                f"heads have {said} rows for {used} tokens: all are cut to the narrowest before "
                "any softmax",
            )
        )
    return found


def audit_template(teacher: Any, student: Any | None) -> list[PreflightFinding]:
    """Compare the chat templates that teacher and student were given."""
    check = "chat template"
    ours = getattr(teacher, "chat_template", None) or ""
    if not ours:
        return [
            PreflightFinding(
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
            PreflightFinding(
                "warning",
                check,
                f"the student's differs from the teacher's ({digest}): it learns in the teacher's "
                "and will be served in its own",
                "copy the teacher's chat_template.jinja into the student",
            )
        ]
    return [PreflightFinding("ok", check, f"the same for both ({digest})")]


def audit_ends(
    tokenizer: Any, folder: Path, encoded: Sequence[tuple[Record, EncodedConversation]]
) -> list[PreflightFinding]:
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
            PreflightFinding("note", check, "no whole conversation was among the records looked at")
        )
    elif missing:
        odd = str(tokenizer.convert_ids_to_tokens(missing[0]))
        found.append(
            PreflightFinding(
                "warning",
                check,
                f"{len(missing)} of {len(last)} answers end with a token that ends no completion "
                f"({odd!r}; those that do: {names or 'none'}): the student will not learn to stop",
                "add it to eos_token_id in generation_config.json, or use a chat template that "
                "closes the assistant's turn",
            )
        )
    else:
        found.append(
            PreflightFinding("ok", check, f"all {len(last)} answers end with one of {names}")
        )
    return found


def _audit_padding(tokenizer: Any, ends: frozenset[int]) -> PreflightFinding:
    pad = tokenizer.pad_token_id
    name = repr(str(tokenizer.convert_ids_to_tokens(pad))) if pad is not None else "none"
    if pad in ends:
        return PreflightFinding(
            "note",
            "padding",
            f"{name} pads and ends: handled, since masks are made from spans of text and lengths, "
            "never from ids",
        )
    return PreflightFinding("ok", "padding", f"the padding token {name} ends no completion")


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
