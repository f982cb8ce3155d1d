"""mergekit's parameters: scalars, gradients over layers, and lists that depend on tensor names.

What holds is looked up from the narrowest level to the widest; within a level the first entry whose
filter is part of the tensor's name counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from stillroom.errors import Problem
from stillroom.recipes.reading import Path, Tree, dotted

__all__ = ["Condition", "Values", "read_parameter", "to_pattern"]

_WORDS = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}
_NUMBER = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")

Scalar = float | bool


@dataclass(frozen=True, slots=True)
class Condition:
    """What a parameter is for tensors whose name holds ``word``; for all where that is empty."""

    value: Scalar | tuple[float, ...]
    word: str = ""

    def to_variation(self, setting: str, model: int | None = None) -> dict[str, Any]:
        """Return it as an entry of our ``vary``."""
        made: dict[str, Any] = {"setting": setting}
        if model is not None:
            made["model"] = model
        if self.word:
            made["tensors"] = [to_pattern(self.word)]
        if isinstance(self.value, tuple):
            return made | {"layers": list(self.value)}
        return made | {"value": self.value}


@dataclass(frozen=True, slots=True)
class Values:
    """What a parameter is, the first condition that fits counting."""

    conditions: tuple[Condition, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether there is a value for every tensor."""
        return bool(self.conditions) and not self.conditions[-1].word

    @property
    def scalar(self) -> Scalar | None:
        """The one value for all tensors, where that is all."""
        if len(self.conditions) != 1 or self.conditions[0].word:
            return None
        value = self.conditions[0].value
        return None if isinstance(value, tuple) else value

    def before(self, wider: Values) -> Values:
        """Return both, these first; what can never count is left out."""
        found: list[Condition] = []
        for condition in (*self.conditions, *wider.conditions):
            found.append(condition)
            if not condition.word:
                break
        return Values(tuple(found))


def to_pattern(word: str) -> str:
    """Return the name pattern for names that hold a word."""
    return "*" + re.sub(r"([*?[])", r"[\1]", word) + "*"


def read_parameter(
    tree: Tree, path: Path, value: Any, problems: list[Problem], *, wants_bool: bool = False
) -> Values:
    """Return what is written at a path; what cannot be meant joins the problems."""
    return Values(tuple(_read(tree, path, value, problems, wants_bool=wants_bool)))


def _read(
    tree: Tree, path: Path, value: Any, problems: list[Problem], *, wants_bool: bool
) -> Iterator[Condition]:
    if isinstance(value, dict):
        listed = [(path, value)]
    elif isinstance(value, list) and any(isinstance(part, dict) for part in value):
        listed = [((*path, number), part) for number, part in enumerate(value)]
    else:
        yield Condition(_read_value(tree, path, value, problems, wants_bool=wants_bool))
        return
    for here, part in listed:
        if not isinstance(part, dict) or "value" not in part or part.keys() - {"value", "filter"}:
            expected = "{filter: PART_OF_A_NAME, value: X}"
            problems.append(_problem(tree, here, "is no condition", expected))
            continue
        read = _read_value(tree, (*here, "value"), part["value"], problems, wants_bool=wants_bool)
        word = part.get("filter")
        yield Condition(read, "" if word in (None, "*") else str(word))


def _read_value(
    tree: Tree, path: Path, value: Any, problems: list[Problem], *, wants_bool: bool
) -> Scalar | tuple[float, ...]:
    """Return what is written; 0, with a problem, where that cannot be read."""
    if isinstance(value, list):
        return _read_gradient(tree, path, value, problems, wants_bool=wants_bool)
    read = _read_scalar(value, wants_bool=wants_bool)
    if read is None:
        expected = "true or false" if wants_bool else "a number, or a list of numbers"
        problems.append(_problem(tree, path, f"cannot be {value!r:.60}", expected))
    return 0.0 if read is None else read


def _read_gradient(
    tree: Tree, path: Path, value: Sequence[Any], problems: list[Problem], *, wants_bool: bool
) -> tuple[float, ...]:
    read = [_read_scalar(part, wants_bool=False) for part in value]
    if wants_bool or not read or any(part is None or isinstance(part, bool) for part in read):
        expected = "one value for all layers" if wants_bool else "a list of numbers"
        problems.append(_problem(tree, path, "is no gradient that can be honored", expected))
        return (0.0,)
    return tuple(float(part) for part in read if part is not None)


def _read_scalar(value: Any, *, wants_bool: bool) -> Scalar | None:
    """Return a number or truth value, also where YAML 1.1 writes it differently."""
    if isinstance(value, str):
        word = value.strip().lower()
        if word in _WORDS:
            value = _WORDS[word]
        elif _NUMBER.fullmatch(word):
            value = float(word)
    if wants_bool:
        return bool(value) if isinstance(value, bool) or value in (0, 1) else None
    if isinstance(value, bool):
        return None
    is_finite = isinstance(value, int | float) and abs(value) < float("inf")
    return float(value) if is_finite else None


def _problem(tree: Tree, path: Path, what: str, expected: str) -> Problem:
    return Problem(
        f"{dotted(path)} {what}",
        "merge.mergekit-value",
        tree.place_of_value(path),
        expected,
        "change the value",
    )
