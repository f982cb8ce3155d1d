"""Alignment of any two tokenizers on any text, against slow and plain references."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.distill.zoo import EXACT, LINES, MAKERS, make

from stillroom.distill.cross_tokenizer.alignment import KINDS, SharedSpan, align
from stillroom.distill.cross_tokenizer.spans import TokenSpans, locate_tokens
from stillroom.models.tokenization.token_bytes import SPECIAL, UNKNOWN

PIECES = st.sampled_from(
    [
        *LINES,
        *"a b e s t 1 2 9 . , ' é ß 界 京 🙂 \u200d \u0301 \ufb01 \xa0 \u3000".split(" "),
        *(" ", "  ", "\n", "\r\n", "\t", "▁", "<0x41>", "</s>", "<|im_end|>", "[SEP]", "\x00"),
    ]
)
TEXTS = st.one_of(
    st.lists(PIECES, max_size=12).map("".join),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
)
ANY = st.sampled_from(sorted(MAKERS))
# Special tokens, and the two things that SentencePiece reads as something else than they are.
UNLIKE_PLAIN = ("</s>", "<s>", "<unk>", "<|im_end|>", "<|im_start|>", "▁", "<0x")


def walk(teacher, student):
    """Close a chunk whenever both sides have spelled the same number of bytes."""
    chunks, at, mate = [], 0, 0
    first = (0, 0)
    while at < len(teacher) or mate < len(student):
        reached = (
            int(teacher.ends[at - 1]) if at else -1,
            int(student.ends[mate - 1]) if mate else -1,
        )
        if at < len(teacher) and (reached[0] <= reached[1] or mate == len(student)):
            at += 1
        else:
            mate += 1
        if at and mate and teacher.ends[at - 1] == student.ends[mate - 1] > 0:
            chunks.append((first[0], at, first[1], mate))
            first = (at, mate)
    return chunks


def search(teacher, student):
    """Try every stretch between two neighboring common borders, token by token."""
    sides = []
    for side in (teacher, student):
        rows = [
            (int(side.starts[at]), int(side.ends[at]), at)
            for at in range(len(side))
            if side.kinds[at] != SPECIAL
        ]
        sides.append(rows)
    borders = [{place for row in rows for place in row[:2]} for rows in sides]
    common = sorted(borders[0] & borders[1])
    chunks = []
    for begin, end in itertools.pairwise(common):
        runs = []
        for side, rows in zip((teacher, student), sides, strict=True):
            inside = [row for row in rows if begin <= row[0] < end and row[1] <= end]
            bytes_in = {place for low, high, _ in inside for place in range(low, high)}
            found = [row[2] for row in inside]
            whole = bytes_in == set(range(begin, end))
            known = all(side.kinds[at] != UNKNOWN for at in found)
            if whole and known and found == list(range(found[0], found[-1] + 1)):
                runs.append((found[0], found[-1] + 1))
        if len(runs) == 2:
            chunks.append((*runs[0], *runs[1]))
    return chunks


def text_chunks(found):
    return [
        (*ours, *theirs)
        for ours, theirs, kind in zip(
            found.teacher.tolist(), found.student.tolist(), found.kinds, strict=True
        )
        if KINDS[kind] != "special"
    ]


@settings(max_examples=250, deadline=None)
@given(ANY, ANY, TEXTS, st.booleans())
def test_alignment_is_what_an_exhaustive_search_finds(one, other, text, add):
    sides = [locate_tokens(*make(name), text, add_special_tokens=add) for name in (one, other)]
    assert text_chunks(align(*sides)) == search(*sides)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(EXACT), st.sampled_from(EXACT), TEXTS)
def test_exact_tokenizers_cover_every_byte_of_plain_text(one, other, text):
    for mark in UNLIKE_PLAIN:
        text = text.replace(mark, "")
    sides = [locate_tokens(*make(name), text) for name in (one, other)]
    assert all(side.is_exact for side in sides)
    found = align(*sides)
    assert text_chunks(found) == walk(*sides)
    assert (found.spans[:, 1] - found.spans[:, 0]).sum() == len(text.encode())
    for side, name, runs in zip(sides, (one, other), (found.teacher, found.student), strict=True):
        tokens = make(name)[1]
        joined = b"".join(tokens.of(at) for at in side.ids)
        assert joined in (text.encode(), b" " + text.encode())
        for (low, high), (begin, end) in zip(runs.tolist(), found.spans.tolist(), strict=True):
            assert side.starts[low] == begin
            assert side.ends[high - 1] == end


@settings(max_examples=100, deadline=None)
@given(ANY, ANY, TEXTS)
def test_sides_can_be_exchanged(one, other, text):
    sides = [locate_tokens(*make(name), text) for name in (one, other)]
    found, turned = align(*sides), align(*reversed(sides))
    assert found.teacher.tolist() == turned.student.tolist()
    assert found.student.tolist() == turned.teacher.tolist()
    assert found.teacher_out == turned.student_out


@settings(max_examples=60, deadline=None)
@given(ANY, TEXTS)
def test_a_tokenizer_aligns_with_itself_token_by_token(name, text):
    side = locate_tokens(*make(name), text)
    found = align(side, side)
    if side.is_exact:
        sizes = side.ends - side.starts
        assert len(found) == int(((sizes > 0) | (side.kinds == SPECIAL)).sum())


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(EXACT), TEXTS, TEXTS, TEXTS)
def test_what_surrounds_a_message_moves_no_chunk_within_it(name, text, before, after):
    whole = locate_tokens(*make(name), text)
    size, begin = len(text.encode()), len(before.encode())
    raw = (before + text + after).encode()
    places = np.arange(len(raw))
    # The student reads one byte a token, so that every border is one of its own.
    kinds = np.zeros(len(raw), np.uint8)
    read = np.frombuffer(raw, np.uint8)
    bytewise = TokenSpans(read, places * 0, places, places + 1, kinds, {}, is_exact=True)
    kept = text_chunks(align(whole, bytewise, [SharedSpan(0, begin, size)] if size else []))
    for low, high, first, last in kept:
        assert first == whole.starts[low] + begin
        assert last == whole.ends[high - 1] + begin
    if whole.is_exact:
        plain = (whole.kinds != SPECIAL) & (whole.ends > whole.starts)
        assert len(kept) == int(plain.sum())


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_places_do_not_go_back(name):
    for text in LINES:
        side = locate_tokens(*make(name), text, add_special_tokens=True)
        assert (np.diff(side.starts) >= 0).all()
        assert (side.ends >= side.starts).all()
        assert side.ends.max() <= len(text.encode())
