"""Assistant mask of a conversation (loss mask, completion mask): the tokens that are labels.

Prompts are masked (completion-only loss; TRL's ``completion_only_loss``, ``assistant_only_loss``):
no position of them is a label (the -100 of transformers). A chat template is rendered twice, before
and after each assistant turn; the difference is the assistant's text. Token offsets then give the
tokens inside. No model is needed. Training and evaluation share this.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stillroom.errors import DataError
from stillroom.models.tokenization.chat_template import (
    escape_control_tokens,
    list_control_tokens,
    render_beginnings,
)
from stillroom.records import Message, Record

__all__ = [
    "CharacterSpan",
    "EncodedConversation",
    "encode_conversation",
    "encode_conversations",
    "find_assistant_spans",
    "find_loss_spans",
]

CharacterSpan = tuple[int, int]


@dataclass(frozen=True, slots=True)
class EncodedConversation:
    """A tokenized record: ids, mask of the assistant's tokens, number of tokens cut off.

    ``excluded`` are the positions of turns that training leaves out even with the prompt.
    """

    ids: tuple[int, ...]
    is_assistant: tuple[bool, ...]
    truncated: int = 0
    excluded: frozenset[int] = frozenset()

    @property
    def targets(self) -> list[int]:
        """Positions of assistant tokens that have a preceding token to be predicted from."""
        return [index for index, counts in enumerate(self.is_assistant) if counts and index > 0]


def find_assistant_spans(
    tokenizer: Any, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()
) -> tuple[str, list[CharacterSpan]]:
    """Return the rendered conversation and the character spans of the assistant.

    A span holds the content and the end-of-turn marker, not the white space after it: the model
    must learn to stop, but not to write the template's line break. A lone assistant message is
    plain text: it is not rendered and counts as a whole.

    Raises:
        DataError: If the template rewrites earlier turns, so that spans cannot be found.
    """
    if len(messages) == 1 and messages[0].role == "assistant":
        plain = escape_control_tokens(messages[0].content, list_control_tokens(tokenizer))
        return plain, [(0, len(plain))]
    turns = [index for index, message in enumerate(messages) if message.role == "assistant"]
    cuts = [cut for index in turns for cut in ((index, True), (index + 1, False))]
    # A template may refuse a conversation of no messages, and what is before the first is nothing.
    opening = [""] if turns[:1] == [0] else []
    text, *rest = render_beginnings(
        tokenizer, messages, [(len(messages), False), *cuts[len(opening) :]], tools
    )
    pairs = iter([*opening, *rest])
    spans: list[CharacterSpan] = []
    for index, before, after in zip(turns, pairs, pairs, strict=True):
        message = messages[index]
        is_written = len(after) > len(before) or not message.content
        if is_written and after.startswith(before) and text.startswith(after):
            end = max(len(after.rstrip()), len(before) + len(message.content))
            spans.append((len(before), min(end, len(after))))
            continue
        # Where the rendered text starts to differ if this turn says something else: the same words
        # may stand in a question before it.
        other = [*messages[:index], Message("assistant", "\0"), *messages[index + 1 :]]
        rendered = render_beginnings(tokenizer, other, [(len(messages), False)], tools)
        shared = len(os.path.commonprefix([text, *rendered]))  # noqa: RUF071  # of characters
        start = text.find(message.content.strip(), shared)
        if start < 0 or not message.content.strip():
            raise DataError(
                f"the chat template hides the assistant's turn {message.content!r:.60}",
                code="data.hidden-turn",
                expected="a template that writes out every assistant message",
                next="use records of one turn each, or a checkpoint with a plain chat template",
            )
        end = start + len(message.content.strip())
        # Its end-of-turn marker, if the template writes the same one after the last turn.
        tail = after[after.rfind(message.content.strip()) + end - start :].rstrip()
        spans.append((start, end + len(tail) * text.startswith(tail, end)))
    return text, spans


def find_loss_spans(
    tokenizer: Any, record: Record
) -> tuple[str, list[CharacterSpan], list[CharacterSpan]]:
    """Return the rendered record and the spans of the assistant's turns with and without a loss.

    A turn of weight 0 (OpenAI's fine-tuning) has none, nor has an answer labelled as undesirable
    (``label: false``, as for KTO); see ``Record.turns_without_loss``. Where no turn has one, the
    whole text is without.

    Raises:
        DataError: If the template rewrites earlier turns, so that spans cannot be found.
    """
    text, spans = find_assistant_spans(tokenizer, record.messages, record.tools)
    turns = [i for i, message in enumerate(record.messages) if message.role == "assistant"]
    without = record.turns_without_loss
    kept = [span for i, span in zip(turns, spans, strict=True) if i not in without]
    excluded = [span for i, span in zip(turns, spans, strict=True) if i in without]
    return text, kept, excluded if kept or not excluded else [(0, len(text))]


def encode_conversation(tokenizer: Any, record: Record, *, max_tokens: int) -> EncodedConversation:
    """Tokenize a record and mark the assistant's tokens that have a loss; truncate at the end.

    The first ``max_tokens`` tokens are kept.

    Raises:
        DataError: If the assistant's part of the conversation cannot be found.
    """
    text, spans, excluded = find_loss_spans(tokenizer, record)
    is_plain = [message.role for message in record.messages] == ["assistant"]
    encoded = tokenizer(text, add_special_tokens=is_plain, return_offsets_mapping=True)
    ids, offsets = list(encoded["input_ids"]), list(encoded["offset_mapping"])
    marks = [
        end > start and any(first <= start < last for first, last in spans)
        for start, end in offsets
    ]
    return EncodedConversation(
        tuple(ids[:max_tokens]),
        tuple(marks[:max_tokens]),
        max(len(ids) - max_tokens, 0),
        frozenset(
            index
            for index, (start, _) in enumerate(offsets[:max_tokens] if excluded else ())
            if any(first <= start < last for first, last in excluded)
        ),
    )


def encode_conversations(
    tokenizer: Any,
    records: Sequence[Record],
    *,
    max_tokens: int,
    on_truncated: Callable[[int, int], None] | None = None,
) -> list[EncodedConversation]:
    """Tokenize records; ``on_truncated(index, tokens cut)`` is called for each truncation.

    Raises:
        DataError: If the assistant's part of a conversation cannot be found.
    """
    encoded = []
    for index, record in enumerate(records):
        encoded.append(encode_conversation(tokenizer, record, max_tokens=max_tokens))
        if encoded[-1].truncated and on_truncated:
            on_truncated(index, encoded[-1].truncated)
    return encoded
