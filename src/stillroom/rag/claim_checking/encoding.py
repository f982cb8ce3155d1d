"""Encoding of a claim and the part of a passage that it is about, shared by training and answers.

The encoder reads ``[CLS] claim [SEP] title. window [SEP]``. The window is the run of at most three
sentences of the passage that shares most with the claim; a claim is seldom about more, and reading
all of a passage costs several times as much. Words are weighted by their place in the vocabulary,
which WordPiece sorts by frequency. Each token is marked if it stands on the other side, if it does
so with the token before it, and with the one behind it: an edit is where the marks end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stillroom.rag.answer_selection.encoding import PairTokenizer
from stillroom.text.language import split_sentences

__all__ = ["MARKS", "EncodedClaim", "EncodedSource", "encode_claim", "encode_source"]

MARKS = 3
"""Marks of a token: it is shared, and so is it with its left and with its right neighbor."""
_MAX_CLAIM_TOKENS, _MAX_TITLE_TOKENS, _MAX_WINDOW_TOKENS = 96, 12, 128
_MAX_SENTENCES, _MAX_SENTENCE_TOKENS = 3, 96
_UNRANKED_TOKENS = 1000  # special and unused ones, at the beginning of the vocabulary
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class EncodedSource:
    """A passage's token ids, the ranges of its sentences in them, and the ids of its title."""

    ids: list[int]
    sentences: list[Span]
    title: list[int]


@dataclass(frozen=True, slots=True)
class EncodedClaim:
    """A claim before a window of a passage.

    Args:
        ids: Token ids with ``[CLS]`` and ``[SEP]``.
        segments: 0 for the claim, 1 for title and window.
        marks: ``MARKS`` marks of each position.
        offsets: Character spans of the claim's tokens, which stand at positions 1 and after.
    """

    ids: list[int]
    segments: list[int]
    marks: list[tuple[int, ...]]
    offsets: list[Span]


def encode_source(tokenizer: PairTokenizer, text: str, title: str = "") -> EncodedSource:
    """Encode a passage; sentences of more than 96 tokens are divided."""
    ids: list[int] = []
    sentences: list[Span] = []
    for start, end in split_sentences(text):
        part = _encode(tokenizer, text[start:end])[0]
        for first in range(0, len(part), _MAX_SENTENCE_TOKENS):
            last = min(first + _MAX_SENTENCE_TOKENS, len(part))
            sentences.append((len(ids) + first, len(ids) + last))
        ids += part
    head = _encode(tokenizer, f"{title}. ")[0][-_MAX_TITLE_TOKENS:] if title else []
    return EncodedSource(ids, sentences, head)


def encode_claim(
    tokenizer: PairTokenizer, claim: str, source: EncodedSource, *, special: tuple[int, int]
) -> EncodedClaim:
    """Encode a claim, of which the first 96 tokens are read, with a window of a passage."""
    begin, stop = special
    said, offsets = _encode(tokenizer, claim)
    said, offsets = said[:_MAX_CLAIM_TOKENS], offsets[:_MAX_CLAIM_TOKENS]
    first, last = _find_window(said, source)
    read = [*source.title, *source.ids[first:last]]
    return EncodedClaim(
        [begin, *said, stop, *read, stop],
        [0] * (len(said) + 2) + [1] * (len(read) + 1),
        [(0,) * MARKS, *_mark(said, read), (0,) * MARKS, *_mark(read, said), (0,) * MARKS],
        offsets,
    )


def _find_window(said: Sequence[int], source: EncodedSource) -> Span:
    """Return the range of tokens of the sentences that share most with a claim."""
    weights = {token: math.log(max(token, _UNRANKED_TOKENS) / _UNRANKED_TOKENS) for token in said}
    best, found = -1.0, (0, 0)
    for place, (first, last) in enumerate(source.sentences):
        for _, end in source.sentences[place + 1 : place + _MAX_SENTENCES]:
            if end - first <= _MAX_WINDOW_TOKENS:
                last = end
        shared = set(source.ids[first:last])
        weight = sum(weight for token, weight in weights.items() if token in shared)
        if weight > best:
            best, found = weight, (first, last)
    return found


def _mark(here: Sequence[int], there: Sequence[int]) -> list[tuple[int, ...]]:
    known, pairs = set(there), set(zip(there, there[1:], strict=False))
    padded = [-1, *here, -1]
    return [
        (
            int(token in known),
            int((padded[place], token) in pairs),
            int((token, padded[place + 2]) in pairs),
        )
        for place, token in enumerate(here)
    ]


def _encode(tokenizer: PairTokenizer, text: str) -> tuple[list[int], list[Span]]:
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return list(encoding["input_ids"]), [tuple(span) for span in encoding["offset_mapping"]]
