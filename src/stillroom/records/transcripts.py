"""Transcripts of ``Human:`` and ``Assistant:``, as in hh-rlhf: chat turns in one text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

__all__ = ["STARTS", "split_transcripts"]

STARTS = ("prompt", "messages", "conversations")
"""Keys that may hold the turns before a pair of answers."""

_SPEAKERS = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def split_transcripts(row: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """Return a row whose transcripts are chat turns; a prompt that is joined to texts is None.

    A prompt is a transcript if it waits for an answer, texts if they are whole: without a prompt,
    or with it repeated. A transcript elsewhere is what is asked about, or what is answered.
    """
    prompt, texts = row.get("prompt"), [row[key] for key in keys]
    start = prompt.strip() if isinstance(prompt, str) else ""
    is_alone = not any(row.get(key) for key in STARTS)
    opening = _split_transcript(start)
    is_open = bool(opening) and opening[-1] == {"role": "assistant", "content": ""}
    if not all(isinstance(text, str) for text in texts):
        return {**row, "prompt": opening[:-1]} if is_open else row
    whole = [_split_transcript(text) for text in texts]
    if all(whole) and (is_alone or all(map(partial(_repeats_prompt, start), texts, whole))):
        return {**row, "prompt": None, **dict(zip(keys, whole, strict=True))}
    if not is_open:
        return row
    joined = [f"{start} {text.removeprefix(str(prompt))}" for text in texts]
    return {**row, "prompt": None, **dict(zip(keys, map(_split_transcript, joined), strict=True))}


def _repeats_prompt(start: str, text: str, turns: Sequence[Mapping[str, str]]) -> bool:
    is_opened = start.startswith("Human:") and text.strip().startswith(start)
    return bool(start) and (is_opened or turns[0]["content"] == start)


def _split_transcript(text: str) -> list[dict[str, str]]:
    """Return the turns of a transcript, as in hh-rlhf; none if the text is no transcript."""
    first, *parts = _SPEAKERS.split(f"\n\n{text.lstrip()}")
    if first or parts[0] != "Human" or "Assistant" not in parts:
        return []
    speeches = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": _ROLES[name], "content": speech.strip()} for name, speech in speeches]
