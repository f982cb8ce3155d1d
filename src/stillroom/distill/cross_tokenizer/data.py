"""Records in two aligned tokenizations, and micro-batches of them.

Both sides render a record with their own chat template; the messages are the common text. Tokens
are those that ``encode_record`` gives, so that a teacher is run on exactly what it was trained to
read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stillroom.distill.cross_tokenizer.alignment import (
    ONE_TO_ONE,
    SPECIAL_PAIR,
    Alignment,
    align,
    find_shared_spans,
)
from stillroom.distill.cross_tokenizer.spans import TokenSpans, locate_tokens
from stillroom.distill.data.tokenized import TokenizedRecord
from stillroom.distill.interfaces import CrossTokenizerLoss, VocabularyLoss
from stillroom.evaluate.lm.encoding import find_assistant_spans
from stillroom.models.tokenization.token_bytes import TokenBytes
from stillroom.records import Record

__all__ = [
    "AlignedBatch",
    "AlignedRecord",
    "TokenizerView",
    "encode_aligned",
    "get_row_pairing",
    "make_aligned_batch",
    "make_aligned_record",
    "render_record",
]


_SPACE = 0x20


Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TokenizerView:
    """One side's tokenizer and its tokens' bytes."""

    tokenizer: Any
    tokens: TokenBytes
    max_tokens: int


@dataclass(frozen=True, slots=True)
class AlignedRecord:
    """One record in both tokenizations, and which of their tokens are compared.

    A position is the place of the token before the one that is predicted, as in
    ``TokenizedRecord``.

    Args:
        record_id: The record's.
        teacher_ids: (Tt,), int64.
        student_ids: (Ts,), int64.
        positions: The student's positions that bear loss, (N,), rising.
        chunk_of: Chunk of the token predicted at each of them, (N,), -1 for none.
        teacher_positions: The teacher's positions whose tokens are in a chunk, (M,), rising.
        teacher_chunk_of: Their chunks, (M,).
        kinds: Kind of each chunk, (C,), uint8; every chunk has positions on both sides.
        sizes: Bytes of text of each chunk, (C,), int64; 0 for a pair of special tokens.
        is_own: Whether the student wrote the text itself: no cross-entropy is taken with it.
    """

    record_id: str
    teacher_ids: Ints
    student_ids: Ints
    positions: Ints
    chunk_of: Ints
    teacher_positions: Ints
    teacher_chunk_of: Ints
    kinds: npt.NDArray[np.uint8]
    sizes: Ints
    is_own: bool = False

    @property
    def taught(self) -> TokenizedRecord:
        """The teacher's side: its tokens, and its positions that are in chunks."""
        return TokenizedRecord(self.record_id, self.teacher_ids, self.teacher_positions)

    @property
    def learned(self) -> TokenizedRecord:
        """The student's side: its tokens, and its positions that bear loss."""
        return TokenizedRecord(self.record_id, self.student_ids, self.positions)

    @property
    def key(self) -> str:
        """What the teacher's numbers of this lesson follow from: its tokens and positions."""
        return self.taught.key

    def rows(self, *, one_to_one: bool, by_index: bool = False) -> tuple[Ints, Ints]:
        """Return which positions are compared row by row.

        Args:
            one_to_one: Only chunks of one token each; else the first token of any chunk.
            by_index: The first position with the first and so on, whatever the text; the teacher's
                are those in chunks.

        Returns:
            Indices into ``positions`` and teacher's positions, (R,) each.
        """
        if by_index:
            count = min(len(self.positions), len(self.teacher_positions))
            return np.arange(count), self.teacher_positions[:count]
        inside = np.flatnonzero(self.chunk_of >= 0)
        chunks, first = np.unique(self.chunk_of[inside], return_index=True)
        teacher_chunks, teacher_first = np.unique(self.teacher_chunk_of, return_index=True)
        rows, taught = inside[first], self.teacher_positions[teacher_first]
        if not np.array_equal(chunks, teacher_chunks):  # make_aligned_record leaves no such chunk
            raise ValueError("a chunk has positions on one side only")
        if one_to_one:
            keep = np.isin(self.kinds[chunks], (ONE_TO_ONE, SPECIAL_PAIR))
            rows, taught = rows[keep], taught[keep]
        return rows, taught


@dataclass(frozen=True, slots=True)
class AlignedBatch:
    """Several lessons, padded on the right; ``record_ids``, ``valid``, ``tokens`` as in ``Batch``.

    Args:
        student_ids: (B, Ts), int64; padding is causally invisible.
        teacher_ids: (B, Tt), int64.
        flat: Indices into (B * Ts) of the N student positions that bear loss.
        labels: Next tokens there, (N,).
        chunk_of: Chunk of each, (N,), numbered over the batch; -1 for none.
        teacher_flat: Indices into (B * Tt): of the M positions in chunks, or of the R rows.
        teacher_labels: Next tokens there.
        teacher_chunk_of: Chunk of each, (M,).
        rows: Index into the N positions of each compared row, (R,); in step with ``teacher_flat``.
        chunks: How many chunks there are.
        own: Whether each of the N positions stands in the student's own text, (N,).
        teacher_logprobs: The teacher's log-probabilities of ``teacher_labels``, (M,), where they
            were captured before; None where the teacher is run.
    """

    student_ids: Tensor
    teacher_ids: Tensor
    flat: Tensor
    labels: Tensor
    chunk_of: Tensor
    teacher_flat: Tensor
    teacher_labels: Tensor
    teacher_chunk_of: Tensor
    rows: Tensor
    chunks: int
    own: Tensor
    record_ids: tuple[str, ...]
    tokens: int
    teacher_logprobs: Tensor | None = None

    @property
    def valid(self) -> int:
        """Number of the student's positions that bear loss."""
        return int(self.flat.shape[0])


def encode_aligned(
    teacher: TokenizerView,
    student: TokenizerView,
    records: Sequence[Record],
    *,
    include_prompt: bool,
    on_aligned: Callable[[Alignment, TokenSpans, TokenSpans], None] | None = None,
    tell: Callable[[Record], Record | None] | None = None,
) -> tuple[list[AlignedRecord], dict[str, int]]:
    """Return the records as lessons for two tokenizers, and what was left out, by reason.

    Args:
        teacher: Its tokenizer, and the most tokens it is given.
        student: The same.
        records: What to learn from.
        include_prompt: Whether the prompt's tokens bear loss too.
        on_aligned: Told each record's alignment, for a report.
        tell: Gives a record as the teacher reads it, with more before the question; None where it
            cannot be read so, and is left out.

    Returns:
        The lessons; and counts: ``records``, ``records_left_out`` (no chunk to learn),
        ``without_context`` (which ``tell`` gives nothing for),
        ``records_by_offsets`` (aligned by character offsets), ``messages_missed`` (not found in
        both renderings), ``chunks``, ``chunks_cut`` (past max_tokens), ``chunks_first`` (a first
        token, which nothing predicts), ``chunks_masked`` (bear no loss), ``positions``,
        ``positions_outside`` (bear loss but are in no chunk), ``tokens``.
    """
    lessons, counts = [], Counter[str]()
    for record in records:
        told = record if tell is None else tell(record)
        if told is None:
            counts["without_context"] += 1
            continue
        text, spans, placed = render_record(student, record)
        teacher_text, _, taught = render_record(teacher, told)
        contents = [message.content for message in record.messages]
        regions, missed = find_shared_spans(teacher_text, text, contents)
        found = align(taught, placed, regions)
        if on_aligned:
            on_aligned(found, taught, placed)
        counts["messages_missed"] += missed
        counts["records_by_offsets"] += not found.is_exact
        marks = _mask_loss(placed, text, None if include_prompt else spans)
        lesson = make_aligned_record(
            record.id, taught, placed, found, marks, (teacher, student), counts
        )
        if len(lesson.kinds) == 0:
            counts["records_left_out"] += 1
            continue
        lessons.append(lesson)
        counts["records"] += 1
        counts["chunks"] += len(lesson.kinds)
        counts["positions"] += len(lesson.positions)
        counts["positions_outside"] += int((lesson.chunk_of < 0).sum())
        counts["tokens"] += len(lesson.student_ids)
    return lessons, dict(counts)


def make_aligned_batch(
    lessons: Sequence[AlignedRecord],
    *,
    rows: Callable[[AlignedRecord], tuple[Ints, Ints]] | None = None,
    teacher_logprobs: Sequence[npt.NDArray[np.float32]] | None = None,
    device: torch.device | None = None,
) -> AlignedBatch:
    """Pad lessons and number their chunks through.

    Args:
        lessons: At least one.
        rows: Which rows are compared (``AlignedRecord.rows``); None where chunks are.
        teacher_logprobs: Of each lesson's ``teacher_positions``, (M,), where they are known.
        device: Where to.
    """
    student, teacher = (
        _pad([getattr(lesson, name) for lesson in lessons])
        for name in ("student_ids", "teacher_ids")
    )
    parts: dict[str, list[npt.NDArray[Any]]] = {}
    chunks = positions = 0
    for at, lesson in enumerate(lessons):
        chosen, taught = (np.zeros(0, np.int64), lesson.teacher_positions)
        teacher_chunk_of = lesson.teacher_chunk_of + chunks
        if rows is not None:
            chosen, taught = rows(lesson)
            teacher_chunk_of = np.full(len(taught), -1)
        for name, value in (
            ("flat", lesson.positions + at * student.shape[1]),
            ("labels", lesson.student_ids[lesson.positions + 1]),
            ("chunk_of", np.where(lesson.chunk_of < 0, -1, lesson.chunk_of + chunks)),
            ("teacher_flat", taught + at * teacher.shape[1]),
            ("teacher_labels", lesson.teacher_ids[taught + 1]),
            ("teacher_chunk_of", teacher_chunk_of),
            ("rows", chosen + positions),
            ("own", np.full(len(lesson.positions), lesson.is_own)),
        ):
            parts.setdefault(name, []).append(value)
        chunks, positions = chunks + len(lesson.kinds), positions + len(lesson.positions)
    known = None if teacher_logprobs is None else np.concatenate(teacher_logprobs)
    return AlignedBatch(
        student_ids=torch.from_numpy(student).to(device),
        teacher_ids=torch.from_numpy(teacher).to(device),
        **{
            name: torch.from_numpy(_concatenate(values)).to(device)
            for name, values in parts.items()
        },
        chunks=chunks,
        record_ids=tuple(lesson.record_id for lesson in lessons),
        tokens=sum(len(lesson.student_ids) for lesson in lessons),
        teacher_logprobs=None if known is None else torch.from_numpy(known).to(device),
    )


def render_record(
    reader: TokenizerView, record: Record
) -> tuple[str, list[tuple[int, int]], TokenSpans]:
    """Return a record as one side renders it, the spans of its assistant's turns, and its tokens.

    Spans are in characters.
    """
    text, spans = find_assistant_spans(reader.tokenizer, record.messages)
    is_plain = [message.role for message in record.messages] == ["assistant"]
    placed = locate_tokens(reader.tokenizer, reader.tokens, text, add_special_tokens=is_plain)
    return text, spans, placed


def _mask_loss(
    placed: TokenSpans, text: str, spans: Sequence[tuple[int, int]] | None
) -> npt.NDArray[np.bool_]:
    """Return which tokens bear loss: all, or those that begin within the character spans."""
    marks = np.ones(len(placed), dtype=np.bool_)
    if spans is not None:
        marks[:] = False
        for first, last in spans:
            begin, end = len(text[:first].encode()), len(text[:last].encode())
            marks |= (placed.starts >= begin) & (placed.starts < end)
            if begin and placed.text[begin - 1] == _SPACE:  # as ``align`` has it
                marks |= (placed.starts == begin - 1) & (placed.ends > begin)
        marks &= placed.ends > placed.starts
    marks[:1] = False  # nothing predicts the first
    return marks


def make_aligned_record(
    record_id: str,
    teacher: TokenSpans,
    student: TokenSpans,
    found: Alignment,
    marks: npt.NDArray[np.bool_],
    readers: tuple[TokenizerView, TokenizerView],
    counts: Counter[str],
    *,
    is_own: bool = False,
) -> AlignedRecord:
    """Return the lesson of one text as both sides read it.

    Args:
        record_id: The record's.
        teacher: The teacher's tokens.
        student: The student's.
        found: Which of them stand for the same bytes.
        marks: Which of the student's tokens bear loss.
        readers: The teacher's and the student's, for their limits.
        counts: Of what falls out; see ``encode_aligned``.
        is_own: Whether the student wrote the text.
    """
    limits = [reader.max_tokens for reader in readers]
    is_cut = (found.teacher[:, 1] > limits[0]) | (found.student[:, 1] > limits[1])
    is_first = (found.teacher[:, 0] == 0) | (found.student[:, 0] == 0)
    marked = np.concatenate([[0], marks.cumsum()])
    is_masked = marked[found.student[:, 1]] - marked[found.student[:, 0]] < (
        found.student[:, 1] - found.student[:, 0]
    )
    counts["chunks_cut"] += int(is_cut.sum())
    counts["chunks_first"] += int((is_first & ~is_cut).sum())
    counts["chunks_masked"] += int((is_masked & ~is_first & ~is_cut).sum())
    keep = ~(is_cut | is_first | is_masked)
    chunk_of = _number_runs(found.student[keep], len(student))
    teacher_chunk_of = _number_runs(found.teacher[keep], len(teacher))
    targets = np.flatnonzero(marks[: limits[1]])
    taught = np.flatnonzero(teacher_chunk_of >= 0)
    return AlignedRecord(
        record_id,
        teacher.ids[: limits[0]],
        student.ids[: limits[1]],
        targets - 1,
        chunk_of[targets],
        taught - 1,
        teacher_chunk_of[taught],
        found.kinds[keep],
        np.where(found.kinds == SPECIAL_PAIR, 0, found.spans[:, 1] - found.spans[:, 0])[keep],
        is_own,
    )


def _number_runs(runs: Ints, size: int) -> Ints:
    """Return the number of the run that each token is in, -1 for none."""
    numbers = np.full(size, -1, dtype=np.int64)
    lengths = runs[:, 1] - runs[:, 0]
    places = np.repeat(runs[:, 0] - (lengths.cumsum() - lengths), lengths)
    numbers[places + np.arange(len(places))] = np.repeat(np.arange(len(runs)), lengths)
    return numbers


def _concatenate(parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    whole = np.concatenate(parts)
    return whole if whole.dtype == np.bool_ else whole.astype(np.int64)


def _pad(rows: Sequence[Ints]) -> Ints:
    padded = np.zeros((len(rows), max(len(row) for row in rows)), dtype=np.int64)
    for at, row in enumerate(rows):
        padded[at, : len(row)] = row
    return padded


def get_row_pairing(
    crossing: CrossTokenizerLoss,
) -> Callable[[AlignedRecord], tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] | None:
    """Return what ``make_aligned_batch`` takes as ``rows`` for a crossing."""
    if not isinstance(crossing, VocabularyLoss):
        return None
    one_to_one, by_index = crossing.needs_one_to_one, crossing.pairs_by_index()

    def rows(lesson: AlignedRecord) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        return lesson.rows(one_to_one=one_to_one, by_index=by_index)

    return rows
