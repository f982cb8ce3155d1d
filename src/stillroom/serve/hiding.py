"""Hiding where things lie on the server: clients are told names of theirs, never its own."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any

__all__ = ["hider", "put_names"]


def hider(places: Mapping[str, str] | Mapping[Path, str]) -> Callable[[Any], Any]:
    """Return what puts names for places into JSON values.

    Args:
        places: Absolute paths, and what each is called instead; an empty name is that of the
            folder which names start at. The innermost path that fits counts.

    Returns:
        A function from a JSON value to the same with names in all of its texts.
    """
    names: dict[str, str] = {}
    for place, name in places.items():
        for path in (os.path.abspath(place), os.path.realpath(place)):  # noqa: PTH100
            if len(Path(path).parts) > 1:  # of "/" everything would be a part
                names.setdefault(path, name)
    if not names:
        return lambda value: value
    longest = sorted(names, key=len, reverse=True)
    pattern = re.compile(f"({'|'.join(map(re.escape, longest))})(/|(?![\\w.-]))")

    def put(match: re.Match[str]) -> str:
        name, slash = names[match[1]], match[2]
        return f"{name}{slash}" if name else "" if slash else "."

    def hide(value: Any) -> Any:
        if isinstance(value, (str, PurePath)):
            return pattern.sub(put, str(value))
        if isinstance(value, Mapping):
            return {key: hide(one) for key, one in value.items()}
        if isinstance(value, (list, tuple)):
            return [hide(one) for one in value]
        return value

    return hide


def put_names(value: Any, names: Mapping[str, str]) -> Any:
    """Return a JSON value with names put for others in all of its texts.

    Args:
        value: Any JSON value, or what ``json`` takes for one.
        names: What stands nowhere by accident (a random file name), and what is said instead.
    """
    if isinstance(value, str):
        for own, told in names.items():
            value = value.replace(own, told)
        return value
    if isinstance(value, Mapping):
        return {key: put_names(one, names) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [put_names(one, names) for one in value]
    return value
