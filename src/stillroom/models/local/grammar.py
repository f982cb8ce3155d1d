"""Constrained decoding by a JSON Schema (structured output, structured generation), by llguidance.

A backend requests a token mask before sampling, and reports the sampled token. No torch is
imported: ``models.backends.llamacpp`` checks schemas here and has grammars of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.errors import BackendError, MissingExtraError

__all__ = ["Grammar", "Matcher", "check_schema", "compact_schema"]

_MAX_ITEMS = 16_384  # 65,536 took llama.cpp 170 MB and several seconds, a billion all memory
_TYPES = {"array", "boolean", "integer", "null", "number", "object", "string"}
_COMPACT_SETTINGS = {
    "x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
}


def compact_schema(schema: Mapping[str, Any]) -> str:
    """Return the schema as JSON with fixed spacing, so that small models cannot add white space."""
    return json.dumps({**_COMPACT_SETTINGS, **schema})


def check_schema(schema: Mapping[str, Any]) -> None:
    """Check that a schema uses JSON types only, and no more array items than an engine can hold.

    Raises:
        BackendError: If it has another type, which engines silently drop, or too many items.
    """
    if _count_items(schema) > _MAX_ITEMS:
        raise _unusable(
            f"its minItems and maxItems add up to more than {_MAX_ITEMS}",
            "lower minItems and maxItems, or omit maxItems",
        )
    _check_types(schema)


def _count_items(schema: object) -> float:
    """Return the sum of all minItems and maxItems, each at most one above the limit."""
    total, nodes = 0.0, [schema]
    while nodes:
        node = nodes.pop()
        if isinstance(node, Mapping):
            counts = [node.get("minItems"), node.get("maxItems")]
            total += sum(min(n, _MAX_ITEMS + 1) for n in counts if isinstance(n, int | float))
            nodes += node.values()
        elif isinstance(node, list):
            nodes += node
    return total


def _check_types(schema: Mapping[str, Any]) -> None:
    types = schema.get("type", [])
    for name in [types] if isinstance(types, str) else types:
        if name not in _TYPES:
            raise _unusable(f"type {name!r} is not a JSON type", "correct the schema")
    for key in ("properties", "$defs", "definitions"):
        for part in (schema.get(key) or {}).values():
            if isinstance(part, Mapping):
                _check_types(part)
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        for part in schema.get(key) or ():
            if isinstance(part, Mapping):
                _check_types(part)
    if isinstance(schema.get("items"), Mapping):
        _check_types(schema["items"])


class Grammar:
    """Grammars over one tokenizer's vocabulary, for guided decoding."""

    def __init__(self, tokenizer: Any, vocabulary: int) -> None:
        """Prepare a transformers tokenizer and a model with ``vocabulary`` logits.

        Raises:
            MissingExtraError: If llguidance is not installed.
            BackendError: If llguidance does not support the tokenizer.
        """
        try:
            import llguidance
            import llguidance.hf
        except ImportError as error:
            raise MissingExtraError.of(
                "llguidance", "grammar", "holding a transformers model to a JSON Schema"
            ) from error
        self._library = llguidance
        self._vocabulary = vocabulary
        try:
            self._tokenizer = llguidance.hf.from_tokenizer(tokenizer, n_vocab=vocabulary)
        except (ValueError, TypeError, RuntimeError) as error:
            raise _unusable(str(error), "use a fast tokenizer, or backend 'llamacpp'") from error

    def start(self, schema: Mapping[str, Any]) -> Matcher:
        """Return a matcher for one completion.

        Raises:
            BackendError: If the schema cannot be compiled.
        """
        grammar = self._library.LLMatcher.grammar_from_json_schema(compact_schema(schema))
        problem = self._library.LLMatcher.validate_grammar(grammar, self._tokenizer)
        if problem:
            raise _unusable(problem.splitlines()[0], "simplify the schema")
        return Matcher(self._library.LLMatcher(self._tokenizer, grammar), self._vocabulary)


class Matcher:
    """Grammar state of one completion."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher = matcher
        self._bits = np.zeros((vocabulary + 31) // 32, dtype=np.int32)
        self._vocabulary = vocabulary

    def allowed(self) -> NDArray[np.bool_]:
        """Return the mask of allowed next tokens, (V,)."""
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        bits = np.unpackbits(self._bits.view(np.uint8), bitorder="little")
        return bits[: self._vocabulary].astype(np.bool_)

    def take(self, token: int) -> bool:
        """Advance by one token; return whether the completion must end."""
        self._matcher.consume_token(token)
        return bool(self._matcher.is_stopped())


def _unusable(problem: str, next_step: str) -> BackendError:
    return BackendError(
        f"the JSON Schema cannot be applied: {problem}",
        code="backend.schema",
        expected="a valid JSON Schema, and a tokenizer that the grammar supports",
        next=next_step,
    )
