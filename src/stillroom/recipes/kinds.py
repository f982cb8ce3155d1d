"""Kinds of recipes: packages that hold a ``recipe.py``, imported only when one is chosen."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

from stillroom.errors import RecipeError
from stillroom.recipes.settings import Recipe
from stillroom.registry import listing

__all__ = ["kind_folder", "list_kinds", "recipe_class"]

_PACKAGE = Path(__file__).resolve().parent.parent


def list_kinds() -> list[str]:
    """Return the name of every kind, sorted."""
    return listing.name_kinds(_PACKAGE)


def kind_folder(kind: str) -> Path:
    """Return the folder of the package that a kind belongs to.

    Raises:
        RecipeError: If there is no such kind; the nearest name is suggested.
    """
    known = list_kinds()
    if kind not in known:
        raise RecipeError(
            f"'{kind}' is not a kind of recipe",
            code="recipe.unknown-kind",
            expected=f"one of: {', '.join(known)}",
            next=listing.suggest(kind, known) or "stillroom list kinds",
        )
    return _PACKAGE / kind


def recipe_class(kind: str) -> type[Recipe]:
    """Return the class whose ``kind`` is the given one, importing only its recipe module.

    Raises:
        RecipeError: If there is no such kind.
    """
    folder = kind_folder(kind)
    module = importlib.import_module(f"{_PACKAGE.name}.{folder.name}.recipe")
    for member in vars(module).values():
        if not inspect.isclass(member) or not issubclass(member, Recipe):
            continue
        if member.__module__ == module.__name__ and member.model_fields["kind"].default == kind:
            return member
    raise TypeError(f"{module.__name__} declares no Recipe whose kind is '{kind}'")
