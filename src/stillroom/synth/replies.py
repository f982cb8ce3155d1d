"""Reading what a teacher said: labels, wrapping and JSON around questions and answers.

Takes any text and never raises; what cannot be read comes back empty.
"""

from __future__ import annotations

import json
import re

from stillroom.synth.wording import collapse

__all__ = ["clean_answer", "clean_question", "parse_pair", "unquote"]

_LABELS = re.compile(r"^\s*(?:(?:question|answer)\s*[:.]|[qa]\s*:)\s*", re.IGNORECASE)
_QUOTES = {('"', '"'), ("“", "”"), ("'", "'"), ("`", "`")}


def clean_question(text: str) -> str:
    """Return the first line without labels and wrapping, cut after its first question mark."""
    line = next((part for part in text.strip().splitlines() if part.strip()), "")
    line = _LABELS.sub("", line)
    for mark in "?？؟":
        head, found, _ = line.partition(mark)
        line = head + found
    line = collapse(line)
    if line[:1] in "\"“'`" and line.count(line[:1]) == 1:
        line = line[1:]  # its other half stood behind the question mark
    return line[1:-1].strip() if _is_wrapped(line) else line.strip("*_` ")


def clean_answer(text: str) -> str:
    """Return an answer on one line, without labels and wrapping."""
    line = _LABELS.sub("", collapse(text))
    return line[1:-1].strip() if _is_wrapped(line) else line


def parse_pair(text: str) -> tuple[str, str] | None:
    """Return question and answer from the teacher's JSON; nothing if it is not that."""
    start, end = text.find("{"), text.rfind("}")
    try:
        data = json.loads(text[start : end + 1]) if 0 <= start < end else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict):
        return None
    question, answer = data.get("question"), data.get("answer")
    if not isinstance(question, str) or not isinstance(answer, str):
        return None
    pair = clean_question(question), clean_answer(answer)
    return pair if all(pair) else None


def unquote(text: str) -> str:
    """Return a text without one pair of quotes around all of it; what it quotes itself stays."""
    bare = text.strip()
    return bare[1:-1].strip() if _is_wrapped(bare) else bare


def _is_wrapped(line: str) -> bool:
    """Return whether one pair of quotes stands around all of a line, and no other of the kind."""
    if len(line) < 3 or (line[0], line[-1]) not in _QUOTES:
        return False
    return not {line[0], line[-1]} & set(line[1:-1])
