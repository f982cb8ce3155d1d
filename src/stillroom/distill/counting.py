"""How many records and tokens a job learns from: counted by its own tokenizer where it is here.

A file's bytes say little of its tokens: chat templates add some to every message, and one tokenizer
cuts a text into twice as many as another. So some records, spread over the file, are read as the
job will read them. Where the tokenizer is elsewhere, characters stand in for it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.distill.lessons import is_learned
from stillroom.distill.recipe import DistillRecipe
from stillroom.distill.teacher_settings import ServerTeacher
from stillroom.errors import DataError
from stillroom.objects import local
from stillroom.records import Record, count_records, read_records

__all__ = ["Counted", "count_tokens"]

_SAMPLE = 64
_READ_WHOLE = 20_000  # records that are looked through to spread the sample
_CHARACTERS = 4.0  # of a token of prose, in a vocabulary of tens of thousands
_TEMPLATE = 5  # tokens that a chat template puts around a message
_UNKNOWN = (100, 256)  # records, and tokens of one, where the file is not there yet


@dataclass(frozen=True, slots=True)
class Counted:
    """What is learned from.

    Args:
        records: To learn from.
        tokens: Of all of them, as they are cut.
        positions: That bear loss.
        answer: Tokens of an assistant's last message, on average.
        held_out: Records that are only measured.
        basis: What the numbers stand on, in words.
    """

    records: int
    tokens: int
    positions: int
    answer: float
    held_out: int
    basis: str

    @property
    def mean(self) -> float:
        """Tokens of one record."""
        return self.tokens / max(self.records, 1)


def count_tokens(recipe: DistillRecipe) -> Counted:
    """Return how much a recipe learns from; exact up to sampling where its tokenizer is here.

    Raises:
        DataError: If the file is damaged.
    """
    path = local(recipe.records)
    if not path.exists():
        records, each = _UNKNOWN[0], min(_UNKNOWN[1], recipe.max_tokens)
        told = f"about {records * each} tokens (the file is not there yet)"
        return Counted(records, records * each, records * each, each / 2, records // 10, told)
    read = list(itertools.islice(read_records(path, on_drop=lambda row, why: None), _READ_WHOLE))
    has_splits = any("split" in record.fields for record in read)
    learned = [record for record in read if is_learned(record, has_splits=has_splits)]
    whole = len(read) if len(read) < _READ_WHOLE else count_records(path)
    count = round(whole * len(learned) / max(len(read), 1))
    sample = learned[:: max(len(learned) // _SAMPLE, 1)]
    if not sample:
        return Counted(0, 0, 0, 0.0, whole, "no record to learn from")
    tokenizer = _tokenizer_of(recipe)
    try:
        measured = [_measure(recipe, record, tokenizer) for record in sample]
    except DataError:  # a template that hides the assistant; the preflight says so
        tokenizer, measured = None, [_measure(recipe, record, None) for record in sample]
    scale = count / len(sample)
    tokens, positions, answers = (float(sum(one[at] for one in measured)) for at in range(3))
    by = "characters" if tokenizer is None else f"{len(sample)} records' tokens"
    return Counted(
        count,
        round(tokens * scale),
        round(positions * scale),
        answers / len(sample),
        round(whole * sum(_is_held_out(one, has_splits) for one in read) / len(read)),
        f"about {round(tokens * scale)} tokens (by {by})",
    )


def _is_held_out(record: Record, has_splits: bool) -> bool:
    is_named = not has_splits or record.fields.get("split") == "held_out"
    return is_named and not is_learned(record, has_splits=has_splits)


def _measure(recipe: DistillRecipe, record: Record, tokenizer: Any | None) -> Sequence[float]:
    """Return tokens, positions and the last answer's tokens of one record."""
    limit = recipe.max_tokens
    if tokenizer is None:
        sizes = [len(turn.content) / _CHARACTERS + _TEMPLATE for turn in record.messages]
        tokens = min(sum(sizes), limit)
        own = sum(
            size
            for size, turn in zip(sizes, record.messages, strict=True)
            if turn.role == "assistant"
        )
        return tokens, tokens if recipe.include_prompt else min(own, tokens), sizes[-1]
    from stillroom.evaluate.spans import encode_record

    encoded = encode_record(tokenizer, record, max_tokens=limit)
    tokens, own = len(encoded.ids), len(encoded.targets)
    if not own:
        return 0, 0, 0
    return tokens, max(tokens - 1, 0) if recipe.include_prompt else own, own


def _tokenizer_of(recipe: DistillRecipe) -> Any | None:
    """Return the tokenizer that the student reads with, if it lies on this disk."""
    teacher: object = recipe.teacher
    if isinstance(teacher, tuple):
        teacher = teacher[0].teacher
    named = teacher.tokenizer if isinstance(teacher, ServerTeacher) else teacher
    if recipe.crossing is not None:
        named = recipe.student
    path = Path(str(named))
    if not path.is_dir():
        return None
    from stillroom.models.causal import load_tokenizer
    from stillroom.provenance import find_output

    folder = find_output(path, "checkpoint")
    return load_tokenizer(folder) if any(folder.glob("tokenizer*")) else None
