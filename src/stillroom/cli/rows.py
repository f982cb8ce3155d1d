"""Rows of a name and what is to be said of it, for people; ``--json`` is for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

from stillroom.cli.options import hang

__all__ = ["describe_value", "print_rows"]

_LONGEST = 200


def describe_value(value: object, *, is_inner: bool = False) -> str:
    """Return a JSON value as words: names with what they stand for, and no brackets of Python's."""
    if value is None or value in ("", [], {}, ()):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        told = ", ".join(
            f"{name}: {describe_value(one, is_inner=True)}" for name, one in value.items()
        )
        return f"({told})" if is_inner else told
    if isinstance(value, Sequence) and not isinstance(value, str):
        if any(isinstance(one, Mapping) for one in value):
            names = [
                str(one["name"]) for one in value if isinstance(one, Mapping) and "name" in one
            ]
            return ", ".join(names) if len(names) == len(value) else f"{len(value)} of them"
        told = ", ".join(describe_value(one, is_inner=True) for one in value)
        return f"({told})" if is_inner else told
    return str(value)


def print_rows(rows: Sequence[tuple[str, object]]) -> None:
    """Print rows below each other, names padded to one width, long texts cut at their end."""
    width = max((len(name) for name, _ in rows), default=0) + 2
    for name, value in rows:
        text = describe_value(value)
        text = text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
        click.echo(hang(f"  {name:{width}}", text))
