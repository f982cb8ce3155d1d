"""Input of the claim checker, in training and answers: a claim, and the sentences nearest to it.

The encoder reads ``[CLS] claim [SEP] title. sentences [SEP]``. Of a passage the few sentences are
read that together hold most of the claim's tokens; a token counts by how few of the passage's
sentences have it. A statement rests on few sentences, and the others would only cost time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from stillroom.rag.answer_selection.encoding import PairTokenizer, Span
from stillroom.text.language import split_sentences

__all__ = ["EncodedClaim", "encode_claim"]

_MAX_CLAIM_TOKENS, _MAX_TITLE_TOKENS, _MAX_SENTENCE_TOKENS = 96, 32, 120
_READ_SENTENCES = 3
_REPEATED_SHARE = 0.3  # of what a token counts that a chosen sentence has already


@dataclass(frozen=True, slots=True)
class EncodedClaim:
    """A claim with what is read of a passage.

    Args:
        ids: Token ids with ``[CLS]`` and ``[SEP]``.
        segments: 0 for the claim, 1 for title and sentences.
        shared: For each position, 1 if the token stands on both sides, else 0.
        offsets: Character spans of the claim's tokens in the claim; they are the positions from 1.
    """

    ids: list[int]
    segments: list[int]
    shared: list[int]
    offsets: list[Span]


def encode_claim(
    tokenizer: PairTokenizer, claim: str, title: str, passage: str, *, special: tuple[int, int]
) -> EncodedClaim:
    """Encode a claim with a passage.

    Args:
        tokenizer: Tokenizer of the encoder.
        claim: The claim; its first 96 tokens are read.
        title: Title and headings; the last 32 tokens are read.
        passage: Text of the passage; of a sentence the first 120 tokens are read.
        special: Ids of ``[CLS]`` and ``[SEP]``.
    """
    start, stop = special
    encoding = tokenizer(claim, add_special_tokens=False, return_offsets_mapping=True)
    ids = list(encoding["input_ids"])[:_MAX_CLAIM_TOKENS]
    offsets = [tuple(span) for span in encoding["offset_mapping"]][:_MAX_CLAIM_TOKENS]
    head = _tokenize(tokenizer, f"{title}. ")[-_MAX_TITLE_TOKENS:] if title else []
    sentences = [
        _tokenize(tokenizer, passage[first:last])[:_MAX_SENTENCE_TOKENS]
        for first, last in split_sentences(passage)
    ]
    read = [*head, *(token for row in _choose_nearest(ids, sentences) for token in row)]
    common = set(ids) & set(read)
    whole = [start, *ids, stop, *read, stop]
    return EncodedClaim(
        whole,
        [0] * (len(ids) + 2) + [1] * (len(read) + 1),
        [int(token in common) for token in whole],
        offsets,
    )


def _tokenize(tokenizer: PairTokenizer, text: str) -> list[int]:
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return list(encoding["input_ids"])


def _choose_nearest(claim: Sequence[int], sentences: Sequence[list[int]]) -> list[list[int]]:
    """Return the sentences that together hold most of a claim's tokens, in their order."""
    counts = Counter(token for sentence in sentences for token in set(sentence))
    weights = {
        token: math.log((len(sentences) + 1) / (counts[token] + 0.5))
        for token in sorted(set(claim))
    }
    missing, chosen = set(weights), list[int]()
    while len(chosen) < min(_READ_SENTENCES, len(sentences)):
        gains = {
            number: sum(
                weight * (1.0 if token in missing else _REPEATED_SHARE)
                for token, weight in weights.items()
                if token in present
            )
            for number, present in enumerate(map(set, sentences))
            if number not in chosen
        }
        best = max(gains, key=lambda number: (gains[number], -number))
        chosen.append(best)
        missing -= set(sentences[best])
    return [sentences[number] for number in sorted(chosen)]
