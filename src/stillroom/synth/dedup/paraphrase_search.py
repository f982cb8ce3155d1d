"""Search of records for paraphrases of benchmark items, by embeddings of pieces of each message.

The score, cosine with lexical anchors, is ``text.dedup.paraphrases``'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from stillroom.records import Record
from stillroom.synth.dedup.benchmark_items import BenchmarkAnswers
from stillroom.synth.prompting.conversation import get_text_field
from stillroom.text.dedup.paraphrases import (
    ParaphraseIndex,
    ParaphraseScore,
    is_asking,
    split_question,
)
from stillroom.text.language import split_sentences

if TYPE_CHECKING:
    from stillroom.models import Embedder

__all__ = ["find_paraphrases"]

_PIECE_WORDS = 60


def find_paraphrases(
    records: Sequence[Record],
    index: ParaphraseIndex,
    embedder: Embedder,
    answers: BenchmarkAnswers,
) -> Iterator[tuple[int, str, ParaphraseScore]]:
    """Yield the most similar item of each piece of text, with the record's number and the piece.

    Raises:
        BackendError: If the embedder fails.
    """
    pieces = [
        (number, *piece) for number, record in enumerate(records) for piece in _split_pieces(record)
    ]
    if not pieces:
        return
    vectors = embedder.embed([text for _, text, _ in pieces], kind="passage")
    answered_alike = [answers.find_same(record) for record in records]
    is_denied = [answers.differ_from(record) for record in records]
    for (number, text, is_stated), vector in zip(pieces, vectors, strict=True):
        paraphrase = index.find(
            text, vector, answered_alike[number], is_stated=is_stated, denied=is_denied[number]
        )
        if paraphrase is not None:
            yield number, text, paraphrase


def _split_pieces(record: Record) -> Iterator[tuple[str, bool]]:
    """Yield each message in pieces, with a flag: whether the piece is a statement.

    A question is separated from its passage. Long texts are cut into pieces of whole sentences that
    overlap by half. Assistant messages and passages are statements where they have no question
    mark.
    """
    messages = [(message.content, message.role == "assistant") for message in record.messages]
    for text, is_assistant in (*messages, (get_text_field(record, "rejected"), True)):
        parts = split_question(text)
        if parts.passage:
            yield parts.question, False
        body = parts.passage or text
        is_statement = is_assistant or bool(parts.passage)
        yield from ((piece, is_statement and not is_asking(piece)) for piece in _cut_text(body))


def _cut_text(text: str) -> Iterator[str]:
    spans = split_sentences(text)
    if len(text.split()) <= 2 * _PIECE_WORDS or len(spans) < 2:
        if text.strip():
            yield text
        return
    first = 0
    while first < len(spans):
        last, count = first, 0
        while last < len(spans) and count < _PIECE_WORDS:
            count += len(text[slice(*spans[last])].split())
            last += 1
        yield text[spans[first][0] : spans[last - 1][1]]
        if last == len(spans):
            break
        first = max(first + 1, (first + last) // 2)
