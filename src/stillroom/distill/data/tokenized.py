"""Tokenized records with loss positions, their micro-batches, and the size of a data set.

The positions come from spans of the rendered text, never from token ids: a tokenizer whose padding
token is its end-of-turn token would otherwise lose every end of turn.

A file's bytes say little of its tokens: chat templates add some to every message, and one tokenizer
cuts a text into twice as many as another. So some records, spread over the file, are read as the
job will read them. Where the tokenizer is elsewhere, characters stand in for it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stillroom.distill.losses.targets import Targets
from stillroom.distill.recipe import DistillRecipe
from stillroom.distill.settings import EndpointTeacherSettings
from stillroom.errors import DataError
from stillroom.evaluate.lm.encoding import encode_record
from stillroom.objects import resolve_local
from stillroom.provenance import digest_json
from stillroom.records import Record, count_records, read_records
from stillroom.train.data import is_training_record

__all__ = [
    "Batch",
    "DatasetSize",
    "SamplingInfo",
    "TokenizationStats",
    "TokenizedRecord",
    "make_batch",
    "measure_dataset_size",
    "tokenize_records",
]


@dataclass(frozen=True, slots=True)
class SamplingInfo:
    """How the token at each of N positions was drawn; (N,) each, 0 where it stands in a record.

    Args:
        old: The student's log-probability of it when it was drawn, at temperature 1.
        importance: The student's probability of it over that with which it was drawn.
        gains: The teacher's log-probability of it minus ``old``.
        credit: What a policy gradient credits it with.
    """

    old: Tensor
    importance: Tensor
    gains: Tensor
    credit: Tensor

    def rows(self, start: int, stop: int) -> SamplingInfo:
        """Return positions ``start`` to ``stop``."""
        return SamplingInfo(
            self.old[start:stop],
            self.importance[start:stop],
            self.gains[start:stop],
            self.credit[start:stop],
        )


@dataclass(frozen=True, slots=True)
class TokenizedRecord:
    """One record as tokens: ids (T,), and the positions whose next token bears loss, (N,).

    Args:
        record_id: The record's.
        ids: Of the whole text.
        positions: Rising.
        weight: The loss of every position is multiplied by it; it is not divided by it again.
        heard: The same labels as the teacher reads them, where it reads more than the student.
    """

    record_id: str
    ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    weight: float = 1.0
    heard: TokenizedRecord | None = None

    @property
    def by_teacher(self) -> TokenizedRecord:
        """The lesson as the teacher reads it."""
        return self.heard or self

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """The next token at each position, (N,)."""
        return self.ids[self.positions + 1]

    @property
    def key(self) -> str:
        """What the teacher's rows of this lesson follow from: tokens and positions."""
        return digest_json([self.ids.tolist(), self.positions.tolist()])

    @property
    def name(self) -> str:
        """What its loss follows from: both readings, and its weight."""
        return digest_json([self.key, self.by_teacher.key, self.weight])


@dataclass(slots=True)
class TokenizationStats:
    """What encoding did: records kept, cut, left out; tokens kept and cut off."""

    records: int = 0
    cut: int = 0
    left_out: int = 0
    tokens: int = 0
    tokens_cut: int = 0
    positions: int = 0

    def to_json(self) -> dict[str, int]:
        """Return the counts by name."""
        return {
            "records": self.records,
            "records_cut": self.cut,
            "records_left_out": self.left_out,
            "tokens": self.tokens,
            "tokens_cut": self.tokens_cut,
            "positions": self.positions,
        }


@dataclass(frozen=True, slots=True)
class Batch:
    """Several lessons, padded on the right, with the positions that bear loss in one row.

    Args:
        input_ids: (B, T), int64; padding is causally invisible, so no attention mask is needed.
        flat: Indices into (B * T) of the N positions that bear loss.
        labels: Next tokens there, (N,).
        target: What the teacher says there; None where the teacher is run instead.
        weights: What each position's loss is multiplied by, (N,); None is 1 everywhere.
        rollout: (N,), True where the position stands in the student's own text; None where no text
            is.
        heard: What the teacher reads in place of ``input_ids`` (B, T'), and its ``flat``.
        drawn: How the tokens of that text were drawn; None where no text is.
    """

    input_ids: Tensor
    flat: Tensor
    labels: Tensor
    record_ids: tuple[str, ...]
    tokens: int
    target: Targets | None = None
    weights: Tensor | None = None
    rollout: Tensor | None = None
    heard: tuple[Tensor, Tensor] | None = None
    drawn: SamplingInfo | None = None

    @property
    def valid(self) -> int:
        """Number of positions that bear loss."""
        return int(self.flat.shape[0])


def tokenize_records(
    tokenizer: Any,
    records: Sequence[Record],
    *,
    max_tokens: int,
    include_prompt: bool,
    on_done: Callable[[], None] | None = None,
) -> tuple[list[TokenizedRecord], TokenizationStats]:
    """Return the records as lessons, and what was cut or left out.

    A record none of whose positions bears loss within ``max_tokens`` is left out and counted.

    Raises:
        DataError: If a chat template hides the assistant's part.
    """
    lessons, counts = [], TokenizationStats()
    for record in records:
        encoded = encode_record(tokenizer, record, max_tokens=max_tokens)
        counts.cut += bool(encoded.truncated)
        counts.tokens_cut += encoded.truncated
        targets = range(1, len(encoded.ids)) if include_prompt else encoded.targets
        positions = np.asarray([at - 1 for at in targets], dtype=np.int64)
        if len(encoded.targets) == 0 or len(positions) == 0:
            counts.left_out += 1
        else:
            lesson = TokenizedRecord(record.id, np.asarray(encoded.ids, dtype=np.int64), positions)
            lessons.append(lesson)
            counts.records += 1
            counts.tokens += len(lesson.ids)
            counts.positions += len(positions)
        if on_done:
            on_done()
    return lessons, counts


def make_batch(
    lessons: Sequence[TokenizedRecord], target: Targets | None, device: torch.device | None = None
) -> Batch:
    """Pad lessons to one width and gather their positions; ``target`` has one row for each."""
    ids, flat = _pad(lessons, device)
    weights = None
    if any(lesson.weight != 1 for lesson in lessons):
        parts = [np.full(len(lesson.positions), lesson.weight, np.float32) for lesson in lessons]
        weights = torch.from_numpy(np.concatenate(parts)).to(device)
    is_heard = target is None and any(lesson.heard is not None for lesson in lessons)
    return Batch(
        ids,
        flat,
        torch.from_numpy(np.concatenate([lesson.labels for lesson in lessons])).to(device),
        tuple(lesson.record_id for lesson in lessons),
        sum(len(lesson.ids) for lesson in lessons),
        target,
        weights,
        heard=_pad([lesson.by_teacher for lesson in lessons], device) if is_heard else None,
    )


def _pad(lessons: Sequence[TokenizedRecord], device: torch.device | None) -> tuple[Tensor, Tensor]:
    """Return ids (B, T), padded on the right, and the places of all positions in (B * T)."""
    width = max(len(lesson.ids) for lesson in lessons)
    ids = np.zeros((len(lessons), width), dtype=np.int64)
    flat = []
    for row, lesson in enumerate(lessons):
        ids[row, : len(lesson.ids)] = lesson.ids
        flat.append(lesson.positions + row * width)
    return torch.from_numpy(ids).to(device), torch.from_numpy(np.concatenate(flat)).to(device)


_SAMPLE_RECORDS = 64


_MAX_EXACT_RECORDS = 20_000  # records that are looked through to spread the sample


_CHARACTERS_PER_TOKEN = 4.0  # of a token of prose, in a vocabulary of tens of thousands


_TEMPLATE_TOKENS = 5  # tokens that a chat template puts around a message


_DEFAULT_SIZE = (100, 256)  # records, and tokens of one, where the file is not there yet


@dataclass(frozen=True, slots=True)
class DatasetSize:
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


def measure_dataset_size(recipe: DistillRecipe) -> DatasetSize:
    """Return how much a recipe learns from; exact up to sampling where its tokenizer is here.

    Raises:
        DataError: If the file is damaged.
    """
    path = resolve_local(recipe.records)
    if not path.exists():
        records, each = _DEFAULT_SIZE[0], min(_DEFAULT_SIZE[1], recipe.max_tokens)
        told = f"about {records * each} tokens (the file is not there yet)"
        return DatasetSize(records, records * each, records * each, each / 2, records // 10, told)
    read = list(
        itertools.islice(read_records(path, on_drop=lambda row, why: None), _MAX_EXACT_RECORDS)
    )
    has_splits = any("split" in record.fields for record in read)
    learned = [record for record in read if is_training_record(record, has_splits=has_splits)]
    whole = len(read) if len(read) < _MAX_EXACT_RECORDS else count_records(path)
    count = round(whole * len(learned) / max(len(read), 1))
    sample = learned[:: max(len(learned) // _SAMPLE_RECORDS, 1)]
    if not sample:
        return DatasetSize(0, 0, 0, 0.0, whole, "no record to learn from")
    tokenizer = _open_tokenizer(recipe)
    try:
        measured = [_measure_record(recipe, record, tokenizer) for record in sample]
    except DataError:  # a template that hides the assistant; the preflight says so
        tokenizer, measured = None, [_measure_record(recipe, record, None) for record in sample]
    scale = count / len(sample)
    tokens, positions, answers = (float(sum(one[at] for one in measured)) for at in range(3))
    by = "characters" if tokenizer is None else f"{len(sample)} records' tokens"
    return DatasetSize(
        count,
        round(tokens * scale),
        round(positions * scale),
        answers / len(sample),
        round(whole * sum(_is_held_out(one, has_splits) for one in read) / len(read)),
        f"about {round(tokens * scale)} tokens (by {by})",
    )


def _is_held_out(record: Record, has_splits: bool) -> bool:
    is_named = not has_splits or record.fields.get("split") == "held_out"
    return is_named and not is_training_record(record, has_splits=has_splits)


def _measure_record(
    recipe: DistillRecipe, record: Record, tokenizer: Any | None
) -> Sequence[float]:
    """Return tokens, positions and the last answer's tokens of one record."""
    limit = recipe.max_tokens
    if tokenizer is None:
        sizes = [
            len(turn.content) / _CHARACTERS_PER_TOKEN + _TEMPLATE_TOKENS for turn in record.messages
        ]
        tokens = min(sum(sizes), limit)
        own = sum(
            size
            for size, turn in zip(sizes, record.messages, strict=True)
            if turn.role == "assistant"
        )
        return tokens, tokens if recipe.include_prompt else min(own, tokens), sizes[-1]
    from stillroom.evaluate.lm.encoding import encode_record

    encoded = encode_record(tokenizer, record, max_tokens=limit)
    tokens, own = len(encoded.ids), len(encoded.targets)
    if not own:
        return 0, 0, 0
    return tokens, max(tokens - 1, 0) if recipe.include_prompt else own, own


def _open_tokenizer(recipe: DistillRecipe) -> Any | None:
    """Return the tokenizer that the student reads with, if it lies on this disk."""
    teacher: object = recipe.teacher
    if isinstance(teacher, tuple):
        teacher = teacher[0].teacher
    named = teacher.tokenizer if isinstance(teacher, EndpointTeacherSettings) else teacher
    if recipe.crossing is not None:
        named = recipe.student
    path = Path(str(named))
    if not path.is_dir():
        return None
    from stillroom.models.local.causal_lm import load_tokenizer
    from stillroom.provenance import find_output

    folder = find_output(path, "checkpoint")
    return load_tokenizer(folder) if any(folder.glob("tokenizer*")) else None
