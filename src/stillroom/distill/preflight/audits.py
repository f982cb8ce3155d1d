"""Audits of records, tokenizers, chat templates and end tokens (EOS) before a distillation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stillroom.checkpoints.config_file import read_end_tokens
from stillroom.distill.teachers.local import check_shared_vocabulary
from stillroom.errors import DataError
from stillroom.evaluate import paired_difference, warn_small_sample
from stillroom.jobs.preflight import PreflightFinding
from stillroom.models.tokenization.assistant_mask import EncodedConversation, encode_conversation
from stillroom.provenance import digest_text
from stillroom.records import Record
from stillroom.records.types import EXTRAS_FIELD
from stillroom.text.dedup.near_duplicates import find_near_duplicates
from stillroom.text.unicode import normalize_text
from stillroom.train.data import RecordSplit

if TYPE_CHECKING:
    from stillroom.distill.evaluation.metrics import Fidelity

__all__ = [
    "audit_duplicates",
    "audit_ends",
    "audit_labels",
    "audit_template",
    "audit_vocabulary",
    "audit_weights",
    "check_teacher_advantage",
    "encode_sample",
]


def check_teacher_advantage(
    teacher: Fidelity, student: Fidelity, *, seed: int = 0
) -> PreflightFinding:
    """Test whether the teacher's loss on these records is lower than the student's."""
    pairs = [
        (teacher_row.loss, student_row.loss, teacher_row.tokens)
        for teacher_row, student_row in zip(teacher.rows, student.rows, strict=True)
        if teacher_row.tokens
    ]
    check = "teacher on this data"
    if len(pairs) < 2:
        return PreflightFinding(
            "note", check, warn_small_sample(len(pairs), "held-out record"), "hold more out"
        )
    gap = paired_difference(
        [teacher_row for teacher_row, _, _ in pairs],
        [student_row for _, student_row, _ in pairs],
        weights=[tokens for _, _, tokens in pairs],
        seed=seed,
    )
    summary = (
        f"its loss minus the student's is {gap.value:+.3f} nats per token (95 % {gap.low:+.3f} to "
        f"{gap.high:+.3f}) on {gap.n} held-out records"
    )
    if gap.is_few:
        warning = warn_small_sample(gap.n, "held-out record").rstrip(".")
        return PreflightFinding("note", check, f"{warning}: {summary}", "hold more records out")
    if gap.side() > 0:
        return PreflightFinding(
            "warning",
            check,
            f"the teacher is worse than the student: {summary}",
            "choose a teacher that knows this kind of text, or fine-tune it on the records first",
        )
    if not gap.side():
        return PreflightFinding(
            "note", check, f"no significant difference: {summary}", "hold more records out"
        )
    return PreflightFinding("ok", check, f"the teacher is better: {summary}")


_SAMPLE_RECORDS = 256
_MAX_COMPARED = 4000
_NEAR_DUPLICATE = 0.8
_MIN_LOSS_SHARE = 0.1


def encode_sample(
    tokenizer: Any, records: Sequence[Record], *, max_tokens: int
) -> list[tuple[Record, EncodedConversation]]:
    """Tokenize up to 256 records, evenly spaced.

    Raises:
        DataError: If the assistant's part of a conversation cannot be located.
    """
    step = max(-(-len(records) // _SAMPLE_RECORDS), 1)
    return [
        (record, encode_conversation(tokenizer, record, max_tokens=max_tokens))
        for record in records[::step]
    ]


def audit_labels(
    encoded: Sequence[tuple[Record, EncodedConversation]], *, max_tokens: int
) -> Iterator[PreflightFinding]:
    """Check how many tokens of the records have a loss.

    Raises:
        DataError: If none has.
    """
    count = len(encoded)
    masked = sum(not conversation.targets for _, conversation in encoded)
    empty = sum(
        not any(turn.content.strip() for turn in record.messages if turn.role == "assistant")
        for record, _ in encoded
    )
    cut = sum(bool(conversation.truncated) for _, conversation in encoded)
    if masked == count:
        raise DataError(
            f"none of {count} records has an assistant's token within {max_tokens} tokens",
            code="distill.no-positions",
            where="records",
            expected="assistant messages within max_tokens",
            next=f"raise max_tokens above {max_tokens}, or check the roles in the records",
        )
    tokens = sum(len(conversation.targets) for _, conversation in encoded)
    read = sum(len(conversation.ids) for _, conversation in encoded)
    yield PreflightFinding(
        "ok", "labels", f"{tokens} of {read} tokens of {count} records are the assistant's"
    )
    for affected, check, problem, hint in (
        (
            masked,
            "labels",
            "have no loss token within max_tokens, and are dropped",
            "raise max_tokens, or check that an assistant answers in them",
        ),
        (empty, "empty answers", "have an empty answer", "remove them"),
        (
            cut,
            "cut records",
            f"are truncated to {max_tokens} tokens, without loss on their ends",
            "raise max_tokens, or split long records",
        ),
    ):
        if affected:
            is_minor = check == "cut records" and affected / count <= _MIN_LOSS_SHARE
            level: Literal["note", "warning"] = "note" if is_minor else "warning"
            message = f"{affected} of {count} sampled records {problem}"
            yield PreflightFinding(level, check, message, hint)


def audit_weights(records: Sequence[Record]) -> list[PreflightFinding]:
    """Count records with turns that have no loss, and with weights that the loss ignores."""
    without_loss = sum(bool(record.turns_without_loss) for record in records)
    labels = [record.fields.get("label") for record in records if len(record.messages) > 1]
    named_false = sum(isinstance(one, str) and one.strip().lower() == "false" for one in labels)
    extras = [record.fields.get(EXTRAS_FIELD) for record in records]
    weighted = sum(
        any(
            isinstance(turn, dict) and turn.get("weight", 1) not in (0, 1)
            for turn in extra.values()
        )
        for extra in extras
        if isinstance(extra, dict)
    )
    return [
        PreflightFinding("warning", "weights", f"{count} of {len(records)} records {what}", hint)
        for count, what, hint in (
            (
                without_loss,
                "have turns of weight 0, or answers labelled false: they are not trained on",
                "nothing to do, if that is meant",
            ),
            (
                named_false,
                "have the text 'False' as label, which names a class: they are trained on",
                "nothing to do, unless it marks undesirable answers (KTO): write a boolean then",
            ),
            (
                weighted,
                "give turns a weight other than 0 and 1, which the loss ignores",
                "remove the turns that must not count",
            ),
        )
        if count
    ]


def audit_duplicates(split: RecordSplit) -> Iterator[PreflightFinding]:
    """Search for held-out records that are also training records, exactly or nearly.

    Near duplicates have a Jaccard similarity of word 5-grams of at least 0.8; they are searched
    among the first 4,000 training records.
    """
    check = "held-out records"
    if not split.held_out:
        yield PreflightFinding(
            "warning",
            check,
            "none: the distance of the student to its teacher cannot be measured",
            "give some records fields.split 'held_out'",
        )
        return
    training_texts = {_text(record) for record in split.train}
    held_out_texts = [_text(record) for record in split.held_out]
    exact = sum(text in training_texts for text in held_out_texts)
    compared = [_text(record) for record in split.train[:_MAX_COMPARED]]
    fresh = [text for text in held_out_texts if text not in training_texts]
    near = sum(
        duplicate.index >= len(compared) and duplicate.kept < len(compared)
        for duplicate in find_near_duplicates([*compared, *fresh], threshold=_NEAR_DUPLICATE)
    )
    count = len(held_out_texts)
    if exact or near:
        yield PreflightFinding(
            "warning",
            check,
            f"{exact} of {count} are also training records, word for word, and {near} nearly: "
            "measurements on them reflect memorization",
            "hold out by document, and remove duplicates before splitting",
        )
    else:
        yield PreflightFinding("ok", check, f"none of {count} is, or nearly is, a training record")


def _text(record: Record) -> str:
    return normalize_text(" ".join(message.content for message in record.messages))


_ROLES = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")
_DIGITS = 12


def audit_vocabulary(
    teacher: Any, student: Any | None, rows: Sequence[int], *, crosses: bool
) -> Iterator[PreflightFinding]:
    """Compare two tokenizers, and report rows of the heads beyond them.

    Args:
        teacher: Tokenizer of the teacher.
        student: Tokenizer of the student; None if it is derived from the teacher.
        rows: Rows of the heads, by the configurations, teacher first.
        crosses: Whether the recipe distills across tokenizers.

    Raises:
        CheckpointError: If the ids differ and the recipe has no cross-tokenizer loss.
    """
    check = "vocabulary"
    if student is None:
        yield PreflightFinding(
            "ok", check, "the student is derived from the teacher and has its tokenizer"
        )
    elif crosses:
        same = teacher.get_vocab() == student.get_vocab()
        message = (
            "both tokenizers are the same" if same else "tokenizers differ, as this kind expects"
        )
        hint = "use kind distill.logits: distributions can be compared directly" if same else ""
        yield PreflightFinding("note" if same else "ok", check, message, hint)
    else:
        check_shared_vocabulary(teacher, student, min(rows))
        count = len(teacher.get_vocab())
        yield PreflightFinding("ok", check, f"both assign the same ids to the same {count} tokens")
        differing = [name for name in _ROLES if _role(teacher, name) != _role(student, name)]
        if differing:
            listed = ", ".join(
                f"{name} {_role(teacher, name)} and {_role(student, name)}" for name in differing
            )
            yield PreflightFinding(
                "warning",
                "special tokens",
                f"teacher and student differ: {listed}",
                "make tokenizer_config.json and config.json of both agree",
            )
    used = max(teacher.get_vocab().values(), default=-1) + 1
    if any(count > used for count in rows):
        listed = " and ".join(str(count) for count in rows)
        yield PreflightFinding(
            "note",
            "padded heads",
            f"heads have {listed} rows for {used} tokens: all are truncated to the narrowest "
            "before any softmax",
        )


def audit_template(teacher: Any, student: Any | None) -> Iterator[PreflightFinding]:
    """Compare the chat templates of teacher and student."""
    check = "chat template"
    teacher_template = getattr(teacher, "chat_template", None) or ""
    if not teacher_template:
        yield PreflightFinding(
            "note",
            check,
            "the teacher has none: turns are rendered as plain paragraphs with their role",
            "use an instruct checkpoint for a chat student",
        )
        return
    digest = digest_text(str(teacher_template))[:_DIGITS]
    student_template = (
        teacher_template if student is None else getattr(student, "chat_template", None) or ""
    )
    if student_template != teacher_template:
        yield PreflightFinding(
            "warning",
            check,
            f"the student's differs from the teacher's ({digest}): it is trained with the "
            "teacher's and will be served with its own",
            "copy the teacher's chat_template.jinja into the student",
        )
    else:
        yield PreflightFinding("ok", check, f"the same for both ({digest})")


def audit_ends(
    tokenizer: Any, folder: Path, encoded: Sequence[tuple[Record, EncodedConversation]]
) -> Iterator[PreflightFinding]:
    """Check whether training text ends with a token that ends a completion.

    Args:
        tokenizer: Tokenizer of the records.
        folder: Checkpoint of student or teacher, for its config and generation_config.
        encoded: Tokenized records; plain texts and truncated ones are skipped.
    """
    ids = read_end_tokens(folder, "config.json", "generation_config.json")
    ends = frozenset(token for token in [tokenizer.eos_token_id, *ids] if token is not None)
    yield _audit_padding(tokenizer, ends)
    last = []
    for record, one in encoded:
        is_turn = len(record.messages) > 1 and record.messages[-1].role == "assistant"
        if is_turn and not one.truncated and one.targets:
            last.append(one.ids[one.targets[-1]])
    missing = [token for token in last if token not in ends]
    check = "end of turn"
    names = ", ".join(repr(str(tokenizer.convert_ids_to_tokens(token))) for token in sorted(ends))
    if not last:
        yield PreflightFinding("note", check, "no complete conversation among the sampled records")
    elif missing:
        unexpected = str(tokenizer.convert_ids_to_tokens(missing[0]))
        yield PreflightFinding(
            "warning",
            check,
            f"{len(missing)} of {len(last)} answers end with a token that ends no completion "
            f"({unexpected!r}; those that do: {names or 'none'}): the student will not learn "
            "to stop",
            "add it to eos_token_id in generation_config.json, or use a chat template that "
            "closes the assistant's turn",
        )
    else:
        yield PreflightFinding("ok", check, f"all {len(last)} answers end with one of {names}")


def _audit_padding(tokenizer: Any, ends: frozenset[int]) -> PreflightFinding:
    pad = tokenizer.pad_token_id
    name = repr(str(tokenizer.convert_ids_to_tokens(pad))) if pad is not None else "none"
    if pad in ends:
        return PreflightFinding(
            "note",
            "padding",
            f"{name} pads and ends: handled, because masks are derived from text spans and "
            "lengths, never from ids",
        )
    return PreflightFinding("ok", "padding", f"the padding token {name} ends no completion")


def _role(tokenizer: Any, name: str) -> int | None:
    value = getattr(tokenizer, name, None)
    return value if value is None else int(value)
