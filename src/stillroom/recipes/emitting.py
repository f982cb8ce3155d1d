"""Plain values to YAML that our own reader reads back, the same bytes for the same values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from stillroom.recipes.reading import resolve_scalar
from stillroom.recipes.settings import Recipe

__all__ = ["dump_recipe", "emit", "emit_scalar"]

_PLAIN = re.compile(r"[A-Za-z0-9_./~][\w./@+=~-]*(?:[ :][\w./@+=~-]+)*")
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def dump_recipe(recipe: Recipe) -> str:
    """Return the resolved recipe: every setting with its value; secrets as references."""
    return "\n".join(emit(recipe.model_dump(mode="json", by_alias=True))) + "\n"


def emit(value: Any, indent: int = 0) -> Iterator[str]:
    """Yield the lines of a mapping or a sequence in block style."""
    space = " " * indent
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _entry(f"{space}{emit_scalar(str(key))}:", part, indent)
    else:
        for part in value:
            yield from _entry(f"{space}-", part, indent)


def emit_scalar(value: Any) -> str:
    """Return one scalar, or an empty container, on one line."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case float():
            mantissa, e, exponent = repr(value).partition("e")
            return f"{mantissa}{'' if '.' in mantissa or not e else '.0'}{e}{exponent}"
        case int():
            return str(value)
        case str():
            return value if _is_plain(value) else _quote(value)
        case Mapping():
            return "{}"
    return "[]"


def _entry(head: str, value: Any, indent: int) -> Iterator[str]:
    if isinstance(value, Mapping | list | tuple) and value:
        yield head
        yield from emit(value, indent + 2)
    elif isinstance(value, str) and (mark := _literal_mark(value)):
        yield f"{head} {mark}"
        for line in value.removesuffix("\n").split("\n"):
            yield f"{' ' * (indent + 2)}{line}" if line else ""
    else:
        yield f"{head} {emit_scalar(value)}"


def _is_plain(text: str) -> bool:
    return (
        text.isascii()
        and len(text) <= 200
        and _PLAIN.fullmatch(text) is not None
        and not text.startswith("...")
        and isinstance(resolve_scalar(text), str)
    )


def _literal_mark(text: str) -> str:
    """Return the mark of a literal block that holds the text exactly, or an empty string."""
    body = text.removesuffix("\n")
    lines = body.split("\n")
    if len(lines) < 2 or not lines[0].strip() or not lines[-1].strip():
        return ""
    if lines[0][0] == " " or any(not line.isprintable() for line in lines):
        return ""
    if any(line and not line.strip() for line in lines):
        return ""
    return "|" if text.endswith("\n") else "|-"


def _quote(text: str) -> str:
    return f'"{"".join(_escape(letter) for letter in text)}"'


def _escape(letter: str) -> str:
    if letter in _ESCAPES:
        return _ESCAPES[letter]
    if letter == " " or letter.isprintable():
        return letter
    number = ord(letter)
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
