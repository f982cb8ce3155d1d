"""From words to requests and back: prompts, holes in a text, and the text that was written.

A hole is written ``[[N]]``: N open places, whatever stands before and behind.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from stillroom.diffusion.canvas import Request
from stillroom.diffusion.writing import Sample
from stillroom.models.chat import render_prompt
from stillroom.records import Message, Prompt

__all__ = [
    "chat_request",
    "decode",
    "holes_request",
    "piece_texts",
    "prompt_request",
    "text_request",
]

_HOLE = re.compile(r"\[\[(\d+)\]\]")


def chat_request(tokenizer: Any, text: str, max_new_tokens: int) -> Request:
    """Return the request for an answer to one user message."""
    return prompt_request(tokenizer, Prompt((Message("user", text),)), max_new_tokens)


def prompt_request(
    tokenizer: Any, prompt: Prompt, max_new_tokens: int, seed: int | None = None
) -> Request:
    """Return the request for a completion of a prompt, as other backends encode it."""
    own = not (prompt.messages and getattr(tokenizer, "chat_template", None))
    ids = tokenizer(render_prompt(tokenizer, prompt), add_special_tokens=own)["input_ids"]
    if not ids and tokenizer.bos_token_id is not None:
        ids = [tokenizer.bos_token_id]
    return Request(tuple(ids), max_new_tokens, seed)


def text_request(tokenizer: Any, text: str, max_new_tokens: int) -> Request:
    """Return the request that goes on with a text, no template around it."""
    return prompt_request(tokenizer, Prompt(text=text), max_new_tokens)


def holes_request(tokenizer: Any, text: str) -> Request:
    """Return the request that fills the holes ``[[N]]`` of a text.

    Each piece between holes is tokenized by itself, the first as a text begins.
    """
    parts = _HOLE.split(text)
    ids: list[int | None] = list(tokenizer(parts[0])["input_ids"])
    for count, piece in zip(parts[1::2], parts[2::2], strict=True):
        ids += [None] * int(count)
        ids += tokenizer(piece, add_special_tokens=False)["input_ids"] if piece else []
    return Request(tuple(ids), 0)


def decode(tokenizer: Any, sample: Sample, *, whole: bool) -> str:
    """Return the text that was written, or all of it with what was given.

    Args:
        tokenizer: The model's.
        sample: What was written.
        whole: All of it, for texts with holes.
    """
    ids = list(sample.ids if whole else sample.new_ids)
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def piece_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Return each token's own text, as far as a token has one.

    Tokens are decoded in company of those before, so that leading spaces stay; a character that
    several tokens make up together stands at the last of them.
    """
    texts, before = [], ""
    for stop in range(1, len(ids) + 1):
        start = max(0, stop - 8)
        now = _decode(tokenizer, ids[start:stop])
        before = _decode(tokenizer, ids[start : stop - 1])
        texts.append(now[len(before) :] if now.startswith(before) else now)
    return texts


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(
        tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    ).rstrip("\ufffd")
