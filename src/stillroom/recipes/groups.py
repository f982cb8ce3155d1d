"""A group of settings that is no recipe: what a command takes from a file and KEY=VALUE words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from stillroom.errors import RecipeError
from stillroom.recipes.overrides import apply_overrides
from stillroom.recipes.problems import explain
from stillroom.recipes.reading import read_yaml

__all__ = ["parse_group", "parse_values"]

G = TypeVar("G", bound=BaseModel)


def parse_group(
    model: type[G], text: str = "{}", where: str = "settings", overrides: Sequence[str] = ()
) -> G:
    """Validate a group of settings given as YAML text and overrides.

    Args:
        model: The group's class.
        text: YAML 1.2; empty is no setting.
        where: What problems call the text.
        overrides: ``KEY=VALUE`` each, as ``commit.threshold=0.8``.

    Raises:
        RecipeError: With every problem of the text and the overrides.
    """
    tree = read_yaml(text, where)
    tree.data = tree.data or {}
    apply_overrides(tree, overrides)
    found: G | None = None
    problems = list(tree.problems)
    try:
        found = model.model_validate(tree.data)
    except ValidationError as error:
        problems += explain(error, model, tree)
    if found is None or problems:
        raise RecipeError(problems)
    return found


def parse_values(overrides: Sequence[str], where: str = "settings") -> dict[str, Any]:
    """Return ``KEY=VALUE`` words as plain values.

    Raises:
        RecipeError: With every word that is none.
    """
    tree = read_yaml("{}", where)
    apply_overrides(tree, overrides)
    if tree.problems:
        raise RecipeError(tree.problems)
    return dict(tree.data or {})
