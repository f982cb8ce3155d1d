"""Texts of a record that are searched for benchmark items: messages, their join, and pieces."""

from __future__ import annotations

from collections.abc import Iterator

from stillroom.records import Record
from stillroom.synth.prompting.conversation import get_text_field
from stillroom.text.dedup.paraphrases import is_asking, split_question
from stillroom.text.language import split_sentences

__all__ = ["get_all_texts", "get_searched_texts", "split_pieces"]

_PIECE_WORDS = 60


def get_searched_texts(record: Record) -> tuple[list[tuple[str, bool]], str]:
    """Return each message and the rejected answer, and all messages joined.

    Each text comes with a flag: whether it is the assistant's.
    """
    texts = [(message.content, message.role == "assistant") for message in record.messages]
    texts = [(text, is_assistant) for text, is_assistant in texts if text.strip()]
    rejected = get_text_field(record, "rejected")
    rejected_texts = [(rejected, True)] if rejected.strip() else []
    return [*texts, *rejected_texts], "\n".join(text for text, _ in texts) if len(texts) > 1 else ""


def get_all_texts(record: Record) -> list[str]:
    """Return the texts of ``get_searched_texts``, the joined one last."""
    messages, joined = get_searched_texts(record)
    return [*(text for text, _ in messages), *([joined] if joined else [])]


def split_pieces(record: Record) -> Iterator[tuple[str, bool]]:
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
