"""What servers tell in OpenAI's dialect, read with care: choices, counts, waits and errors."""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Mapping
from typing import Any

__all__ = [
    "error_text",
    "first_choice",
    "read_count",
    "read_end",
    "read_retry_after",
    "told_status",
]

_ENDS = {
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",
    "content_filter": "content_filter",
    **dict.fromkeys(("error", "abort", "aborted", "cancelled", "canceled"), "broken"),
}
"""Why a server says that it ended, where that is not the end of the answer."""


def first_choice(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the first choice of an answer or of an event; empty where there is none."""
    choices = answer.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    return choice if isinstance(choice, dict) else {}


def read_count(value: object) -> int:
    """Return a count of tokens as a server tells it; 0 for what is no count."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1 << 53:
        return 0
    return int(value)


def read_end(told: object) -> str:
    """Return why an answer ended: ``stop``, ``length``, ``content_filter``, or ``broken``.

    Broken is what the server gave up on: what came is no answer.
    """
    return _ENDS.get(str(told or "stop").lower(), "stop")


def read_retry_after(value: str) -> float:
    """Return the seconds that a Retry-After header asks for, by number or date; 0 if none."""
    value = value.strip()
    if not value:
        return 0.0
    try:
        return max(0.0, float(value)) if float(value) < float("inf") else 0.0
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0


def error_text(data: bytes) -> str:
    """Return what an answer says went wrong, on one line."""
    try:
        value = json.loads(data)
        error = value.get("error", value)
        said = error if isinstance(error, str) else error.get("message") or json.dumps(error)
        kind = "" if isinstance(error, str) else str(error.get("code") or error.get("type") or "")
        text = f"{said} ({kind})" if kind else str(said)
    except (ValueError, AttributeError, RecursionError):
        text = data.decode("utf-8", "replace")
    return " ".join(text.split())[:400] or "no reason given"


def told_status(error: object) -> int:
    """Return the HTTP status that the body of an answer tells; 500 where it tells none."""
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code < 600 else 500
