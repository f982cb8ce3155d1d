"""Byte-exact alignment of two tokenizations of one text into the finest common chunks.

A chunk is a run of teacher's tokens and a run of student's tokens that cover the same bytes, where
no shorter run does. Every byte that is a border of both tokenizations ends a chunk, so one pass
over marks of borders finds them all: the time is linear in bytes and tokens. Source of the idea:
Minixhofer et al. 2025, arXiv:2503.20083, section 3.1; here on bytes instead of characters, with
special tokens matched by role and everything that belongs to no chunk counted by reason.

Two chat templates write different text round the same messages: ``find_shared_spans`` finds the
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
    "MANY_TO_MANY",
    "MANY_TO_ONE",
    "ONE_TO_MANY",
    "ONE_TO_ONE",
    "SPECIAL_PAIR",
    "Alignment",
    "SharedSpan",
    "align",
    "find_shared_spans",
]

ONE_TO_ONE, ONE_TO_MANY, MANY_TO_ONE, MANY_TO_MANY, SPECIAL_PAIR = range(5)
KINDS = ("one_to_one", "one_to_many", "many_to_one", "many_to_many", "special")
"""Kinds of a chunk, teacher's tokens first: one_to_many is one of the teacher's, several of the
student's; special is a pair of special tokens of one role."""

_SPACE = 0x20

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SharedSpan:
    """The same bytes in two renderings: where they begin in each, and how many they are."""

    teacher: int
    student: int
    length: int


@dataclass(frozen=True)
class Alignment:
    """C chunks in the order of the text, and how many tokens belong to none.

    Args:
        teacher: First teacher token of each chunk and the one after its last, (C, 2), int64.
        student: The same for the student, (C, 2), int64.
        spans: First byte of each chunk in the student's text and the one after its last, (C, 2).
        kinds: Index into ``KINDS``, (C,), uint8.
        teacher_out: Teacher's tokens in no chunk, by reason: ``special`` (no counterpart),
            ``unknown`` (its bytes cannot be known), ``template`` (outside the common text, or over
            its border by more than a space), ``uneven`` (no common border before the common text
            ends, or beside one of the others).
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
        """Return how many chunks there are."""
        return len(self.kinds)


def align(
    teacher: TokenSpans, student: TokenSpans, regions: Sequence[SharedSpan] | None = None
) -> Alignment:
    """Return the finest common chunks of two tokenizations.

    Args:
        teacher: One tokenization.
        student: The other, of the same text unless ``regions`` are given.
        regions: The bytes that both texts share, in order and apart from one another.

    Raises:
        DataError: If the texts differ, within the regions or without them.
    """
    shared = _check_spans(teacher, student, regions)
    ours, theirs = (_Tokenization(side, shared, at) for at, side in enumerate((teacher, student)))
    borders = np.flatnonzero(ours.is_border & theirs.is_border)
    begin, end = borders[:-1], borders[1:]
    first = [side.reach(begin) for side in (ours, theirs)]
    last = [side.reach(end) for side in (ours, theirs)]
    holds = ours.holds(begin, end, first[0], last[0]) & theirs.holds(begin, end, first[1], last[1])
    begin, end = begin[holds], end[holds]
    pairs = [
        side.original(low[holds], high[holds])
        for side, low, high in zip((ours, theirs), first, last, strict=True)
    ]
    kinds = _classify_chunks(*pairs)
    specials = _pair_specials(teacher, student, ours, theirs)
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
        ours.count_out(rows[:, :2]),
        theirs.count_out(rows[:, 2:4]),
        teacher.is_exact and student.is_exact,
    )


def find_shared_spans(
    teacher_text: str, student_text: str, pieces: Sequence[str]
) -> tuple[list[SharedSpan], int]:
    """Find the messages of a conversation in two renderings of it.

    Args:
        teacher_text: As the teacher's template writes the conversation.
        student_text: As the student's does.
        pieces: The messages' texts in their order.

    Returns:
        The regions, in bytes, and how many pieces were not found in both texts.
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
        at = [text.find(content, begin) for text, begin in zip(texts, reached, strict=True)]
        if not content or min(at) < 0:
            missed += bool(piece.strip())
            continue
        size = len(content.encode())
        begin = [
            done + len(text[low:high].encode())
            for done, text, low, high in zip(passed, texts, reached, at, strict=True)
        ]
        regions.append(SharedSpan(begin[0], begin[1], size))
        reached = [place + len(content) for place in at]
        passed = [place + size for place in begin]
    return regions, missed


class _SharedText:
    """The common text: its regions one after another, a byte of no text between them as a wall."""

    def __init__(self, regions: Sequence[SharedSpan]) -> None:
        self.begins = [
            np.asarray([region.teacher for region in regions], dtype=np.int64),
            np.asarray([region.student for region in regions], dtype=np.int64),
        ]
        self.lengths = np.asarray([region.length for region in regions], dtype=np.int64)
        steps = self.lengths + 1
        self.bases = steps.cumsum() - steps
        self.size = int(steps.sum())

    def place(self, places: Ints, side: int) -> tuple[Ints, Ints]:
        """Return places of one text in the common text, and how many bytes of the region follow.

        The second is negative for places that are in no region nor at its end.
        """
        begins = self.begins[side]
        if not len(begins):
            return np.zeros_like(places), np.full_like(places, -1)
        region = np.maximum(np.searchsorted(begins, places, side="right") - 1, 0)
        into = places - begins[region]
        left = np.where(into >= 0, self.lengths[region] - into, -1)
        return self.bases[region] + into, left

    def clip(self, placed: TokenSpans, side: int) -> Ints:
        """Return where tokens start, without a template's space before a region.

        Many tokenizers join a space to the word after it: the first token of a message is then over
        the border by a byte that says nothing.
        """
        starts = placed.starts.copy()
        begins = self.begins[side][self.begins[side] > 0]
        begins = begins[placed.text[begins - 1] == _SPACE]
        at = np.searchsorted(starts, begins, side="left") - 1
        begins, at = begins[at >= 0], at[at >= 0]
        is_over = (starts[at] == begins - 1) & (placed.ends[at] > begins)
        ends = self.begins[side] + self.lengths
        is_over &= ~np.isin(begins, ends) & (placed.kinds[at] != SPECIAL)
        starts[at[is_over]] = begins[is_over]
        return starts

    def in_student(self, places: Ints) -> Ints:
        """Return places of the common text as bytes of the student's text."""
        if not len(self.bases):
            return places
        region = np.maximum(np.searchsorted(self.bases, places, side="right") - 1, 0)
        return places - self.bases[region] + self.begins[1][region]


class _Tokenization:
    """One tokenization in the common text: its text tokens that lie within a region."""

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

    def reach(self, places: Ints) -> Ints:
        """Return the first chosen token that begins at or after each place."""
        return np.searchsorted(self.starts, places, side="left")

    def holds(self, begin: Ints, end: Ints, first: Ints, last: Ints) -> npt.NDArray[np.bool_]:
        """Return which stretches are whole runs of neighboring tokens with known bytes."""
        whole = self.covered[end] - self.covered[begin] == end - begin
        whole &= last > first
        low, high = first[whole], last[whole]
        whole[whole] = self.chosen[high - 1] - self.chosen[low] == high - 1 - low
        unknown = _cumulate(self.unknown)
        known: npt.NDArray[np.bool_] = unknown[last] == unknown[first]
        known &= whole
        return known

    def original(self, first: Ints, last: Ints) -> Ints:
        """Return runs of chosen tokens as runs of all tokens, (C, 2)."""
        if not len(first):
            return np.zeros((0, 2), dtype=np.int64)
        return np.column_stack([self.chosen[first], self.chosen[last - 1] + 1])

    def count_out(self, runs: Ints) -> dict[str, int]:
        """Return how many tokens are in none of the runs, by reason."""
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
    """Return how many marks come before each place and the end, (N + 1,)."""
    return np.concatenate([[0], marks.cumsum()]).astype(np.int64)


def _check_spans(
    teacher: TokenSpans, student: TokenSpans, regions: Sequence[SharedSpan] | None
) -> _SharedText:
    if regions is None:
        if not np.array_equal(teacher.text, student.text):
            raise _count_distinct("teacher's and student's texts differ")
        return _SharedText([SharedSpan(0, 0, len(teacher.text))])
    reached = [0, 0]
    for at, region in enumerate(regions):
        ours = teacher.text[region.teacher : region.teacher + region.length]
        theirs = student.text[region.student : region.student + region.length]
        is_behind = region.teacher >= reached[0] and region.student >= reached[1]
        if not is_behind or len(ours) != region.length or not np.array_equal(ours, theirs):
            raise _count_distinct(f"region {at} is not the same bytes in both texts, in order")
        reached = [region.teacher + region.length, region.student + region.length]
    return _SharedText(regions)


def _count_distinct(what: str) -> DataError:
    return DataError(
        what,
        code="distill.texts-differ",
        where="alignment",
        expected="two tokenizations of the same bytes",
        next="where two chat templates render a conversation, give align the regions they share: "
        "find_regions",
    )


def _classify_chunks(ours: Ints, theirs: Ints) -> Ints:
    one, other = ours[:, 1] - ours[:, 0] == 1, theirs[:, 1] - theirs[:, 0] == 1
    return np.select(
        [one & other, one, other], [ONE_TO_ONE, ONE_TO_MANY, MANY_TO_ONE], MANY_TO_MANY
    ).astype(np.int64)


def _pair_specials(
    teacher: TokenSpans, student: TokenSpans, ours: _Tokenization, theirs: _Tokenization
) -> Ints:
    """Return one row for each pair of special tokens at one place with one role or surface."""
    waiting: dict[tuple[int, str], list[int]] = {}
    for at, (role, surface) in teacher.roles.items():
        for key in _special_keys(ours, at, role, surface):
            waiting.setdefault(key, []).append(at)
    rows, used = [], set[int]()
    for at, (role, surface) in student.roles.items():
        for key in _special_keys(theirs, at, role, surface):
            mate = next((one for one in waiting.get(key, ()) if one not in used), None)
            if mate is not None:
                used.add(mate)
                begin, end = int(student.starts[at]), int(student.ends[at])
                rows.append([mate, mate + 1, at, at + 1, begin, end, SPECIAL_PAIR])
                break
    return np.asarray(rows, dtype=np.int64).reshape(-1, 7)


def _special_keys(side: _Tokenization, at: int, role: str, surface: bytes) -> list[tuple[int, str]]:
    """Return what a special token is matched by: its place, with its role or else its surface."""
    if at == 0 and role in {"bos", "cls"}:
        return [(-1, "begin")]
    if side.left[at] < 0:
        return []
    place = int(side.places[at])
    found = [] if role == "control" else [(place, role)]
    return [*found, (place, f"surface {surface!r}")]
