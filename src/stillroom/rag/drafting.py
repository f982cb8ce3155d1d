"""Asking a model for a few short texts about a query, held to a JSON Schema.

What cannot be read all the same (an engine without a grammar, an answer that broke off at its
limit) is noticed, and the caller falls back to the query itself.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from stillroom.errors import DataError
from stillroom.provenance import digest_json
from stillroom.rag.method import Query
from stillroom.rag.notices import notice
from stillroom.records import Message, Prompt, Sampling
from stillroom.text.normalize import strip_invisible

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = ["ask_for_queries", "ask_for_texts", "distinct_texts", "require_model"]

_LONGEST = 160
_SHORTEST = 4
_FORM = 'You write search queries. You answer in JSON, as a list of texts under the key "queries".'


def require_model(model: TextModel | None, method: str, without: str) -> TextModel:
    """Return the model.

    Args:
        model: What was given.
        method: What needs it.
        without: The method of the seam that needs none.

    Raises:
        DataError: If none was given.
    """
    if model is None:
        raise DataError(
            f"{method} asks a model, but no model is given",
            code="rag.no-model",
            expected="a model",
            next=f"pass model=..., or use {without}, which needs none",
        )
    return model


def ask_for_texts(
    model: TextModel, request: str, *, most: int, max_new_tokens: int, method: str
) -> list[str]:
    """Return what the model writes: 1 to ``most`` texts of one line, or none that can be searched.

    Texts without a letter (numbers of a list, dots) are left out.

    Args:
        model: Any; where its engine can, it is held to the schema.
        request: What is asked, the query in it.
        most: How many texts are wanted.
        max_new_tokens: Longest answer.
        method: Who asks, for the notice.
    """
    text = {"type": "string", "minLength": _SHORTEST, "maxLength": _LONGEST}
    items = {"type": "array", "items": text, "minItems": 1, "maxItems": most}
    schema = {
        "type": "object",
        "properties": {"queries": items},
        "required": ["queries"],
        "additionalProperties": False,
    }
    # The form comes first and shows no texts: small models copy what stands last, or an example.
    messages = Message("system", _FORM), Message("user", request)
    prompt = Prompt(messages, schema=schema)
    seed = int(digest_json([method, request])[:8], 16)
    completion = model.generate([prompt], Sampling(max_new_tokens=max_new_tokens, seed=seed))[0]
    found = _read(completion.text)[:most]
    if not found:
        notice(f"{method}: the model's answer could not be read; the query is searched as it is")
    return found


def ask_for_queries(
    model: TextModel | None,
    query: Query,
    request: str,
    *,
    most: int,
    max_new_tokens: int,
    method: str,
) -> list[Query]:
    """Return the query and after it those that a model writes of it, without repeats.

    Args:
        model: What is asked.
        query: Comes first, whatever the model writes.
        request: What is asked; ``{count}`` and ``{query}`` in it are filled in.
        most: How many queries are wanted beside the first.
        max_new_tokens: Longest answer.
        method: The transform that asks, for notices and errors.

    Raises:
        DataError: If no model was given.
    """
    written = ask_for_texts(
        require_model(model, f"the transform {method}", "the transform expand"),
        request.format(count=most, query=query.text),
        most=most,
        max_new_tokens=max_new_tokens,
        method=method,
    )
    texts = distinct_texts([query.text, *written])
    return [query, *(replace(query, text=text, terms={}, drafts=()) for text in texts[1:])]


def distinct_texts(texts: list[str]) -> list[str]:
    """Return the texts without repeats, whatever their case and spacing; the first stays."""
    seen: dict[str, str] = {}
    for text in texts:
        seen.setdefault(" ".join(text.casefold().split()), text)
    return list(seen.values())


def _read(answer: str) -> list[str]:
    """Return the texts of a JSON answer, from its first brace to its last; none if it is not."""
    try:
        value = json.loads(answer[answer.index("{") : answer.rindex("}") + 1])
        texts = value["queries"]
    except (ValueError, KeyError, TypeError):
        return []
    if not isinstance(texts, list):
        return []
    lines = [" ".join(strip_invisible(text).split()) for text in texts if isinstance(text, str)]
    return distinct_texts([line[:_LONGEST] for line in lines if any(map(str.isalpha, line))])
