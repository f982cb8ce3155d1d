"""Byte-exact alignment of two tokenizations of one text into the finest common chunks.

A chunk is a run of teacher tokens and a run of student tokens that cover the same bytes, where no
shorter run does. Every byte that is a token boundary in both tokenizations ends a chunk, so one
pass over boundary marks finds all chunks in time linear in bytes and tokens. Based on Minixhofer et
al. 2025, arXiv:2503.20083, section 3.1; here on bytes instead of characters, with special tokens
matched by role and all unaligned tokens counted by reason.

Two chat templates surround the same messages with different text: ``find_shared_spans`` locates the
messages in both, and ``align`` aligns within them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from stillroom.distill.cross_tokenizer.spans import TokenSpans
from stillroom.errors import DataError
from stillroom.models.tokenization.token_bytes import SPECIAL, UNKNOWN

__all__ = [
    "KINDS",
    "ONE_TO_ONE",
    "SPECIAL_PAIR",
    "Alignment",
    "SharedSpan",
    "align",
    "find_shared_spans",
]

ONE_TO_ONE, _ONE_TO_MANY, _MANY_TO_ONE, _MANY_TO_MANY, SPECIAL_PAIR = range(5)
KINDS = ("one_to_one", "one_to_many", "many_to_one", "many_to_many", "special")
"""Kinds of a chunk, teacher first: one_to_many is one teacher token and several student tokens;
special is a pair of special tokens of one role."""

_SPACE = 0x20

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SharedSpan:
    """Identical bytes in two renderings: start offset in each, and length in bytes."""

    teacher: int
    student: int
    length: int


@dataclass(frozen=True)
class Alignment:
    """C chunks in text order, and counts of unaligned tokens.

    Args:
        teacher: First and end index of each chunk's teacher tokens, (C, 2), int64.
        student: The same for the student, (C, 2), int64.
        spans: Start and end byte of each chunk in the student's text, (C, 2).
        kinds: Index into ``KINDS``, (C,), uint8.
        teacher_out: Teacher tokens in no chunk, by reason: ``special`` (no counterpart),
            ``unknown`` (bytes not recoverable), ``template`` (outside the shared text, or across
            its border by more than a space), ``uneven`` (no common boundary before the shared text
            ends, or next to a token of another reason).
        student_out: The same for the student.
        is_exact: Whether both tokenizations' spans are exact to the byte.
    """

    teacher: Ints
    student: Ints
    spans: Ints
    kinds: npt.NDArray[np.uint8]
    teacher_out: dict[str, int] = field(default_factory=dict)
    student_out: dict[str, int] = field(default_factory=dict)
    is_exact: bool = True

    def __len__(self) -> int:
        return len(self.kinds)


def align(
    teacher: TokenSpans, student: TokenSpans, regions: Sequence[SharedSpan] | None = None
) -> Alignment:
    """Return the finest common chunks of two tokenizations.

    Args:
        teacher: Teacher's tokenization.
        student: Student's tokenization, of the same text unless ``regions`` are given.
        regions: Byte spans shared by both texts, in order and disjoint.

    Raises:
        DataError: If the texts differ, within the regions or, without regions, anywhere.
    """
    shared = _check_spans(teacher, student, regions)
    teacher_side, student_side = (
        _Tokenization(side, shared, number) for number, side in enumerate((teacher, student))
    )
    borders = np.flatnonzero(teacher_side.is_border & student_side.is_border)
    begin, end = borders[:-1], borders[1:]
    first = [side.reach(begin) for side in (teacher_side, student_side)]
    last = [side.reach(end) for side in (teacher_side, student_side)]
    holds = teacher_side.holds(begin, end, first[0], last[0]) & student_side.holds(
        begin, end, first[1], last[1]
    )
    begin, end = begin[holds], end[holds]
    pairs = [
        side.original(low[holds], high[holds])
        for side, low, high in zip((teacher_side, student_side), first, last, strict=True)
    ]
    kinds = _classify_chunks(*pairs)
    specials = _pair_specials(teacher, student, teacher_side, student_side)
    rows = np.concatenate(
        [
            np.column_stack([*pairs, shared.in_student(begin), shared.in_student(end), kinds]),
            specials,
        ]
    )
    rows = rows[np.lexsort((rows[:, 0], rows[:, 2]))]
    return Alignment(
        rows[:, :2],
        rows[:, 2:4],
        rows[:, 4:6],
        rows[:, 6].astype(np.uint8),
        teacher_side.count_out(rows[:, :2]),
        student_side.count_out(rows[:, 2:4]),
        teacher.is_exact and student.is_exact,
    )


def find_shared_spans(
    teacher_text: str, student_text: str, pieces: Sequence[str]
) -> tuple[list[SharedSpan], int]:
    """Locate the messages of a conversation in two renderings.

    Args:
        teacher_text: Rendering by the teacher's chat template.
        student_text: Rendering by the student's chat template.
        pieces: Texts of the messages, in order.

    Returns:
        The shared regions, in bytes, and the number of pieces not found in both texts.
    """
    if teacher_text == student_text:
        size = len(teacher_text.encode())
        return ([SharedSpan(0, 0, size)] if size else []), 0
    regions, missed = [], 0
    texts = (teacher_text, student_text)
    reached = [0, 0]
    passed = [0, 0]  # the same in bytes
    for piece in pieces:
        content = piece if all(piece in text for text in texts) else piece.strip()
        positions = [text.find(content, begin) for text, begin in zip(texts, reached, strict=True)]
        if not content or min(positions) < 0:
            missed += bool(piece.strip())
            continue
        size = len(content.encode())
        begin = [
            done + len(text[low:high].encode())
            for done, text, low, high in zip(passed, texts, reached, positions, strict=True)
        ]
        regions.append(SharedSpan(begin[0], begin[1], size))
        reached = [position + len(content) for position in positions]
        passed = [position + size for position in begin]
    return regions, missed


class _SharedText:
    """Shared regions concatenated, each followed by one separator byte of no text."""

    def __init__(self, regions: Sequence[SharedSpan]) -> None:
        self.begins = [
            np.asarray([region.teacher for region in regions], dtype=np.int64),
            np.asarray([region.student for region in regions], dtype=np.int64),
        ]
        self.lengths = np.asarray([region.length for region in regions], dtype=np.int64)
        steps = self.lengths + 1
        self.bases = steps.cumsum() - steps
        self.size = int(steps.sum())

    def place(self, offsets: Ints, side: int) -> tuple[Ints, Ints]:
        """Map offsets in one text to the shared text; also return the bytes left in the region.

        The second is negative for offsets outside every region.
        """
        begins = self.begins[side]
        if not len(begins):
            return np.zeros_like(offsets), np.full_like(offsets, -1)
        region = np.maximum(np.searchsorted(begins, offsets, side="right") - 1, 0)
        into = offsets - begins[region]
        remaining = np.where(into >= 0, self.lengths[region] - into, -1)
        return self.bases[region] + into, remaining

    def clip(self, placed: TokenSpans, side: int) -> Ints:
        """Return token starts, without a template's space before a region.

        Many tokenizers join a space to the following word: the first token of a message then
        crosses the border by an insignificant byte.
        """
        starts = placed.starts.copy()
        begins = self.begins[side][self.begins[side] > 0]
        begins = begins[placed.text[begins - 1] == _SPACE]
        tokens = np.searchsorted(starts, begins, side="left") - 1
        begins, tokens = begins[tokens >= 0], tokens[tokens >= 0]
        is_over = (starts[tokens] == begins - 1) & (placed.ends[tokens] > begins)
        ends = self.begins[side] + self.lengths
        is_over &= ~np.isin(begins, ends) & (placed.kinds[tokens] != SPECIAL)
        starts[tokens[is_over]] = begins[is_over]
        return starts

    def in_student(self, offsets: Ints) -> Ints:
        """Map offsets in the shared text to bytes of the student's text."""
        if not len(self.bases):
            return offsets
        region = np.maximum(np.searchsorted(self.bases, offsets, side="right") - 1, 0)
        return offsets - self.bases[region] + self.begins[1][region]


class _Tokenization:
    """One tokenization in the shared text: its text tokens that lie within a region."""

    def __init__(self, placed: TokenSpans, shared: _SharedText, side: int) -> None:
        self.placed = placed
        starts = shared.clip(placed, side)
        sizes = placed.ends - starts
        self.places, self.left = shared.place(starts, side)
        self.within = self.left >= sizes
        self.chosen = np.flatnonzero(self.within & (placed.kinds != SPECIAL))
        self.starts = self.places[self.chosen]
        ends = self.starts + sizes[self.chosen]
        self.unknown = placed.kinds[self.chosen] == UNKNOWN
        opened = np.bincount(self.starts, minlength=shared.size + 1)
        closed = np.bincount(ends, minlength=shared.size + 1)
        self.is_border = (opened + closed) > 0
        self.covered = _cumulate((opened - closed).cumsum() > 0)

    def reach(self, offsets: Ints) -> Ints:
        """Return the index of the first text token that begins at or after each offset."""
        return np.searchsorted(self.starts, offsets, side="left")

    def holds(self, begin: Ints, end: Ints, first: Ints, last: Ints) -> npt.NDArray[np.bool_]:
        """Return which intervals are contiguous runs of whole tokens with known bytes."""
        is_contiguous = self.covered[end] - self.covered[begin] == end - begin
        is_contiguous &= last > first
        low, high = first[is_contiguous], last[is_contiguous]
        is_contiguous[is_contiguous] = self.chosen[high - 1] - self.chosen[low] == high - 1 - low
        unknown = _cumulate(self.unknown)
        known: npt.NDArray[np.bool_] = unknown[last] == unknown[first]
        known &= is_contiguous
        return known

    def original(self, first: Ints, last: Ints) -> Ints:
        """Convert runs of text tokens to runs of all tokens, (C, 2)."""
        if not len(first):
            return np.zeros((0, 2), dtype=np.int64)
        return np.column_stack([self.chosen[first], self.chosen[last - 1] + 1])

    def count_out(self, runs: Ints) -> dict[str, int]:
        """Return the number of tokens outside the runs, by reason."""
        change = np.zeros(len(self.placed) + 1, dtype=np.int64)
        np.add.at(change, runs[:, 0], 1)
        np.add.at(change, runs[:, 1], -1)
        out = change.cumsum()[:-1] == 0
        kinds = self.placed.kinds
        is_special, is_unknown = kinds == SPECIAL, kinds == UNKNOWN
        reasons = {
            "special": is_special,
            "unknown": is_unknown,
            "template": ~self.within & ~is_special & ~is_unknown,
            "uneven": self.within & ~is_special & ~is_unknown,
        }
        counts = {reason: int((out & mask).sum()) for reason, mask in reasons.items()}
        return {reason: count for reason, count in counts.items() if count}


def _cumulate(marks: npt.NDArray[np.bool_]) -> Ints:
    """Return the number of marks before each position and before the end, (N + 1,)."""
    return np.concatenate([[0], marks.cumsum()]).astype(np.int64)


def _check_spans(
    teacher: TokenSpans, student: TokenSpans, regions: Sequence[SharedSpan] | None
) -> _SharedText:
    if regions is None:
        if not np.array_equal(teacher.text, student.text):
            raise _count_distinct("teacher's and student's texts differ")
        return _SharedText([SharedSpan(0, 0, len(teacher.text))])
    reached = [0, 0]
    for number, region in enumerate(regions):
        teacher_bytes = teacher.text[region.teacher : region.teacher + region.length]
        student_bytes = student.text[region.student : region.student + region.length]
        is_behind = region.teacher >= reached[0] and region.student >= reached[1]
        if (
            not is_behind
            or len(teacher_bytes) != region.length
            or not np.array_equal(teacher_bytes, student_bytes)
        ):
            raise _count_distinct(f"region {number} is not the same bytes in both texts, in order")
        reached = [region.teacher + region.length, region.student + region.length]
    return _SharedText(regions)


def _count_distinct(message: str) -> DataError:
    return DataError(
        message,
        code="distill.texts-differ",
        where="alignment",
        expected="two tokenizations of the same bytes",
        next="if two chat templates render a conversation, pass align the shared regions from "
        "find_shared_spans",
    )


def _classify_chunks(teacher_runs: Ints, student_runs: Ints) -> Ints:
    one_teacher = teacher_runs[:, 1] - teacher_runs[:, 0] == 1
    one_student = student_runs[:, 1] - student_runs[:, 0] == 1
    return np.select(
        [one_teacher & one_student, one_teacher, one_student],
        [ONE_TO_ONE, _ONE_TO_MANY, _MANY_TO_ONE],
        _MANY_TO_MANY,
    ).astype(np.int64)


def _pair_specials(
    teacher: TokenSpans,
    student: TokenSpans,
    teacher_side: _Tokenization,
    student_side: _Tokenization,
) -> Ints:
    """Return one row for each pair of special tokens at one position with equal role or surface."""
    waiting: dict[tuple[int, str], list[int]] = {}
    for index, (role, surface) in teacher.roles.items():
        for key in _special_keys(teacher_side, index, role, surface):
            waiting.setdefault(key, []).append(index)
    rows, used = [], set[int]()
    for index, (role, surface) in student.roles.items():
        for key in _special_keys(student_side, index, role, surface):
            partner = next(
                (candidate for candidate in waiting.get(key, ()) if candidate not in used), None
            )
            if partner is not None:
                used.add(partner)
                begin, end = int(student.starts[index]), int(student.ends[index])
                rows.append([partner, partner + 1, index, index + 1, begin, end, SPECIAL_PAIR])
                break
    return np.asarray(rows, dtype=np.int64).reshape(-1, 7)


def _special_keys(
    side: _Tokenization, index: int, role: str, surface: bytes
) -> list[tuple[int, str]]:
    """Return the keys a special token is matched by: position with role, or else surface."""
    if index == 0 and role in {"bos", "cls"}:
        return [(-1, "begin")]
    if side.left[index] < 0:
        return []
    position = int(side.places[index])
    keys = [] if role == "control" else [(position, role)]
    return [*keys, (position, f"surface {surface!r}")]
