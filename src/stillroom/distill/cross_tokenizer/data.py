"""Records in two aligned tokenizations, and micro-batches of them.

Each side renders a record with its own chat template; the messages are the shared text. Tokens
equal those of ``encode_conversation``: a teacher reads exactly the format it was trained on.
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
from stillroom.models.tokenization.assistant_mask import CharacterSpan, find_loss_spans
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
    """Tokenizer, token bytes and length limit of one side."""

    tokenizer: Any
    tokens: TokenBytes
    max_tokens: int


@dataclass(frozen=True, slots=True)
class AlignedRecord:
    """One record in both tokenizations, and the tokens to compare.

    A position is the index of the token before the predicted one, as in ``TokenizedRecord``.

    Args:
        record_id: Id of the record.
        teacher_ids: (Tt,), int64.
        student_ids: (Ts,), int64.
        positions: Student's loss positions, (N,), ascending.
        chunk_of: Chunk of the token predicted at each position, (N,), -1 for none.
        teacher_positions: Teacher's positions whose tokens are in a chunk, (M,), ascending.
        teacher_chunk_of: Chunks of those tokens, (M,).
        kinds: Kind of each chunk, (C,), uint8; every chunk has positions on both sides.
        sizes: Bytes of text of each chunk, (C,), int64; 0 for a pair of special tokens.
        is_own: Whether the student generated the text, which excludes it from cross-entropy.
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
    def teacher_view(self) -> TokenizedRecord:
        """Teacher's side: its tokens, and its positions in chunks."""
        return TokenizedRecord(self.record_id, self.teacher_ids, self.teacher_positions)

    @property
    def student_view(self) -> TokenizedRecord:
        """Student's side: its tokens, and its loss positions."""
        return TokenizedRecord(self.record_id, self.student_ids, self.positions)

    @property
    def key(self) -> str:
        """Cache key of the teacher's scores: a digest of its tokens and positions."""
        return self.teacher_view.key

    def rows(self, *, one_to_one: bool, by_index: bool = False) -> tuple[Ints, Ints]:
        """Return the pairs of positions to compare row by row.

        Args:
            one_to_one: Use only chunks of one token each; else the first token of any chunk.
            by_index: Pair the i-th position with the teacher's i-th position in a chunk, regardless
                of the text.

        Returns:
            Indices into ``positions``, and teacher's positions, (R,) each.
        """
        if by_index:
            count = min(len(self.positions), len(self.teacher_positions))
            return np.arange(count), self.teacher_positions[:count]
        inside = np.flatnonzero(self.chunk_of >= 0)
        chunks, first = np.unique(self.chunk_of[inside], return_index=True)
        teacher_chunks, teacher_first = np.unique(self.teacher_chunk_of, return_index=True)
        rows, teacher_rows = inside[first], self.teacher_positions[teacher_first]
        if not np.array_equal(chunks, teacher_chunks):  # make_aligned_record leaves no such chunk
            raise ValueError("a chunk has positions on one side only")
        if one_to_one:
            keep = np.isin(self.kinds[chunks], (ONE_TO_ONE, SPECIAL_PAIR))
            rows, teacher_rows = rows[keep], teacher_rows[keep]
        return rows, teacher_rows


@dataclass(frozen=True, slots=True)
class AlignedBatch:
    """Records padded on the right; ``record_ids``, ``valid`` and ``tokens`` as in ``Batch``.

    Args:
        student_ids: (B, Ts), int64; padding is causally invisible.
        teacher_ids: (B, Tt), int64.
        flat: Indices into (B * Ts) of the student's N loss positions.
        labels: Next token at each, (N,).
        chunk_of: Chunk of each, (N,), numbered over the batch; -1 for none.
        teacher_flat: Indices into (B * Tt) of the M positions in chunks, or of the R rows.
        teacher_labels: Next token at each.
        teacher_chunk_of: Chunk of each, (M,).
        rows: Index into the N positions of each compared row, (R,), parallel to ``teacher_flat``.
        chunks: Number of chunks.
        own: Whether each of the N positions is in text generated by the student, (N,).
        teacher_logprobs: Captured log-probabilities of ``teacher_labels``, (M,); None if the
            teacher is run.
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
        """Number of the student's loss positions."""
        return int(self.flat.shape[0])


def encode_aligned(
    teacher: TokenizerView,
    student: TokenizerView,
    records: Sequence[Record],
    *,
    include_prompt: bool,
    on_aligned: Callable[[Alignment, TokenSpans, TokenSpans], None] | None = None,
    add_context: Callable[[Record], Record | None] | None = None,
) -> tuple[list[AlignedRecord], dict[str, int]]:
    """Tokenize and align records for two tokenizers.

    Args:
        teacher: Teacher's tokenizer and length limit.
        student: Student's tokenizer and length limit.
        records: Records to train on.
        include_prompt: Whether the prompt's tokens have a loss too.
        on_aligned: Callback for each record's alignment, used by a report.
        add_context: Returns a record with added context as the teacher reads it, or None to skip
            the record.

    Returns:
        The aligned records; and counts: ``records``, ``records_left_out`` (no chunk),
        ``without_context`` (``add_context`` returned None), ``records_by_offsets`` (aligned by
        character offsets), ``messages_missed`` (not found in both renderings), ``chunks``,
        ``chunks_cut`` (beyond max_tokens), ``chunks_first`` (contains the first token, which is
        never predicted), ``chunks_masked`` (no loss), ``positions``, ``positions_outside`` (loss
        positions outside of chunks), ``tokens``.
    """
    aligned_records, counts = [], Counter[str]()
    for record in records:
        teacher_record = record if add_context is None else add_context(record)
        if teacher_record is None:
            counts["without_context"] += 1
            continue
        text, (spans, excluded), student_tokens = render_record(student, record)
        teacher_text, _, teacher_tokens = render_record(teacher, teacher_record)
        contents = [message.content for message in record.messages]
        regions, missed = find_shared_spans(teacher_text, text, contents)
        alignment = align(teacher_tokens, student_tokens, regions)
        if on_aligned:
            on_aligned(alignment, teacher_tokens, student_tokens)
        counts["messages_missed"] += missed
        counts["records_by_offsets"] += not alignment.is_exact
        marks = _mark_tokens(student_tokens, text, excluded if include_prompt else spans)
        if include_prompt:
            marks = ~marks
        else:
            marks &= student_tokens.ends > student_tokens.starts
        marks[:1] = False  # the first token is never predicted
        aligned = make_aligned_record(
            record.id, teacher_tokens, student_tokens, alignment, marks, (teacher, student), counts
        )
        if len(aligned.kinds) == 0:
            counts["records_left_out"] += 1
            continue
        aligned_records.append(aligned)
        counts["records"] += 1
        counts["chunks"] += len(aligned.kinds)
        counts["positions"] += len(aligned.positions)
        counts["positions_outside"] += int((aligned.chunk_of < 0).sum())
        counts["tokens"] += len(aligned.student_ids)
    return aligned_records, dict(counts)


def make_aligned_batch(
    records: Sequence[AlignedRecord],
    *,
    rows: Callable[[AlignedRecord], tuple[Ints, Ints]] | None = None,
    teacher_logprobs: Sequence[npt.NDArray[np.float32]] | None = None,
    device: torch.device | None = None,
) -> AlignedBatch:
    """Pad aligned records and number their chunks consecutively.

    Args:
        records: At least one aligned record.
        rows: Selects the rows to compare (``AlignedRecord.rows``); None compares chunks.
        teacher_logprobs: Log-probabilities at each record's ``teacher_positions``, (M,), if known.
        device: Device of the tensors.
    """
    student, teacher = (
        _pad([getattr(record, name) for record in records])
        for name in ("student_ids", "teacher_ids")
    )
    parts: dict[str, list[npt.NDArray[Any]]] = {}
    chunks = positions = 0
    for number, record in enumerate(records):
        row_indices, teacher_rows = (np.zeros(0, np.int64), record.teacher_positions)
        teacher_chunk_of = record.teacher_chunk_of + chunks
        if rows is not None:
            row_indices, teacher_rows = rows(record)
            teacher_chunk_of = np.full(len(teacher_rows), -1)
        for name, value in (
            ("flat", record.positions + number * student.shape[1]),
            ("labels", record.student_ids[record.positions + 1]),
            ("chunk_of", np.where(record.chunk_of < 0, -1, record.chunk_of + chunks)),
            ("teacher_flat", teacher_rows + number * teacher.shape[1]),
            ("teacher_labels", record.teacher_ids[teacher_rows + 1]),
            ("teacher_chunk_of", teacher_chunk_of),
            ("rows", row_indices + positions),
            ("own", np.full(len(record.positions), record.is_own)),
        ):
            parts.setdefault(name, []).append(value)
        chunks, positions = chunks + len(record.kinds), positions + len(record.positions)
    known = None if teacher_logprobs is None else np.concatenate(teacher_logprobs)
    return AlignedBatch(
        student_ids=torch.from_numpy(student).to(device),
        teacher_ids=torch.from_numpy(teacher).to(device),
        **{
            name: torch.from_numpy(_concatenate(values)).to(device)
            for name, values in parts.items()
        },
        chunks=chunks,
        record_ids=tuple(record.record_id for record in records),
        tokens=sum(len(record.student_ids) for record in records),
        teacher_logprobs=None if known is None else torch.from_numpy(known).to(device),
    )


def render_record(
    view: TokenizerView, record: Record
) -> tuple[str, tuple[list[CharacterSpan], list[CharacterSpan]], TokenSpans]:
    """Render and tokenize a record for one side.

    Returns:
        The text, the assistant turns with and without a loss, and the tokens.
    """
    text, kept, excluded = find_loss_spans(view.tokenizer, record)
    is_plain = [message.role for message in record.messages] == ["assistant"]
    placed = locate_tokens(view.tokenizer, view.tokens, text, add_special_tokens=is_plain)
    return text, (kept, excluded), placed


def _mark_tokens(
    placed: TokenSpans, text: str, spans: Sequence[CharacterSpan]
) -> npt.NDArray[np.bool_]:
    """Return which tokens begin within the character spans."""
    marks = np.zeros(len(placed), dtype=np.bool_)
    for first, last in spans:
        begin, end = len(text[:first].encode()), len(text[:last].encode())
        marks |= (placed.starts >= begin) & (placed.starts < end)
        if begin and placed.text[begin - 1] == _SPACE:  # as in ``align``
            marks |= (placed.starts == begin - 1) & (placed.ends > begin)
    return marks


def make_aligned_record(
    record_id: str,
    teacher: TokenSpans,
    student: TokenSpans,
    alignment: Alignment,
    marks: npt.NDArray[np.bool_],
    readers: tuple[TokenizerView, TokenizerView],
    counts: Counter[str],
    *,
    is_own: bool = False,
) -> AlignedRecord:
    """Build the aligned record of one text.

    Args:
        record_id: Id of the record.
        teacher: Teacher's tokens.
        student: Student's tokens.
        alignment: Alignment of the two.
        marks: Which of the student's tokens have a loss.
        readers: Teacher's and student's views, for their length limits.
        counts: Updated with what is dropped; see ``encode_aligned``.
        is_own: Whether the student generated the text.
    """
    limits = [reader.max_tokens for reader in readers]
    is_cut = (alignment.teacher[:, 1] > limits[0]) | (alignment.student[:, 1] > limits[1])
    is_first = (alignment.teacher[:, 0] == 0) | (alignment.student[:, 0] == 0)
    marked = np.concatenate([[0], marks.cumsum()])
    is_masked = marked[alignment.student[:, 1]] - marked[alignment.student[:, 0]] < (
        alignment.student[:, 1] - alignment.student[:, 0]
    )
    counts["chunks_cut"] += int(is_cut.sum())
    counts["chunks_first"] += int((is_first & ~is_cut).sum())
    counts["chunks_masked"] += int((is_masked & ~is_first & ~is_cut).sum())
    keep = ~(is_cut | is_first | is_masked)
    chunk_of = _number_runs(alignment.student[keep], len(student))
    teacher_chunk_of = _number_runs(alignment.teacher[keep], len(teacher))
    targets = np.flatnonzero(marks[: limits[1]])
    teacher_targets = np.flatnonzero(teacher_chunk_of >= 0)
    return AlignedRecord(
        record_id,
        teacher.ids[: limits[0]],
        student.ids[: limits[1]],
        targets - 1,
        chunk_of[targets],
        teacher_targets - 1,
        teacher_chunk_of[teacher_targets],
        alignment.kinds[keep],
        np.where(alignment.kinds == SPECIAL_PAIR, 0, alignment.spans[:, 1] - alignment.spans[:, 0])[
            keep
        ],
        is_own,
    )


def _number_runs(runs: Ints, size: int) -> Ints:
    """Return the index of the run that contains each token, -1 for none."""
    numbers = np.full(size, -1, dtype=np.int64)
    lengths = runs[:, 1] - runs[:, 0]
    offsets = np.repeat(runs[:, 0] - (lengths.cumsum() - lengths), lengths)
    numbers[offsets + np.arange(len(offsets))] = np.repeat(np.arange(len(runs)), lengths)
    return numbers


def _concatenate(parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    joined = np.concatenate(parts)
    return joined if joined.dtype == np.bool_ else joined.astype(np.int64)


def _pad(rows: Sequence[Ints]) -> Ints:
    padded = np.zeros((len(rows), max(len(row) for row in rows)), dtype=np.int64)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = row
    return padded


def get_row_pairing(
    criterion: CrossTokenizerLoss,
) -> Callable[[AlignedRecord], tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] | None:
    """Return the ``rows`` argument of ``make_aligned_batch`` for a cross-tokenizer loss."""
    if not isinstance(criterion, VocabularyLoss):
        return None
    one_to_one, by_index = criterion.needs_one_to_one, criterion.pairs_by_index()

    def rows(record: AlignedRecord) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        return record.rows(one_to_one=one_to_one, by_index=by_index)

    return rows
