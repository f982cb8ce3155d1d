"""``KEY=VALUE`` overrides: read with the recipe's own YAML reader and put into its tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stillroom.errors import RecipeError
from stillroom.recipes.reading import Path, Tree, read_yaml

__all__ = ["apply_overrides", "is_override"]

_PLACE = "override "


def apply_overrides(tree: Tree, overrides: Sequence[str]) -> None:
    """Put each override into the tree, in order; what is wrong with one joins its problems.

    ``method.density=0.3`` sets a key, ``models.0.weight=1`` one of an item; missing groups are
    made, an index one past the end appends, and a bare method name becomes ``{name: ...}``.
    """
    for override in overrides:
        where = f"{_PLACE}'{override}'"
        try:
            path, value = _read(override, where)
            tree.data = _put(tree.data, path, value.data, where)
        except RecipeError as error:
            tree.problems.extend(error.problems)
            continue
        tree.problems.extend(value.problems)
        for places in (tree.keys, tree.values):
            for old in [known for known in places if known[: len(path)] == path]:
                del places[old]
        for length in range(1, len(path)):
            tree.values.setdefault(path[:length], where)
        tree.keys[path] = tree.values[path] = where
        for below in value.values:
            tree.keys[path + below] = tree.values[path + below] = where


def is_override(place: str) -> bool:
    """Return whether a place of a tree is an override, not a line of a file."""
    return place.startswith(f"{_PLACE}'")


def _read(override: str, where: str) -> tuple[Path, Tree]:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise RecipeError(
            f"'{override}' is not an override",
            code="recipe.override",
            where=where,
            expected="KEY=VALUE, as seed=7 or method.density=0.3",
        )
    tree = read_yaml(text, where)
    for places in (tree.keys, tree.values):
        for path in places:
            places[path] = where
    return tuple(int(part) if part.isdecimal() else part for part in parts), tree


def _put(data: Any, path: Path, value: Any, where: str) -> Any:
    """Return ``data`` with the value at the path; groups on the way are made or copied."""
    if not path:
        return value
    head, rest = path[0], path[1:]
    if isinstance(data, list):
        if not isinstance(head, int) or head > len(data):
            raise RecipeError(
                f"there is no item {head}",
                code="recipe.override",
                where=where,
                expected=f"an index from 0 to {len(data)}",
            )
        items = [*data, None] if head == len(data) else list(data)
        items[head] = _put(items[head], rest, value, where)
        return items
    group = (
        {"name": data}
        if isinstance(data, str)
        else dict(data or {})
        if not data or isinstance(data, dict)
        else None
    )
    if group is None:
        raise RecipeError(
            f"'{head}' cannot be set in {data!r}",
            code="recipe.override",
            where=where,
            expected="a group of settings at that place",
        )
    group[str(head)] = _put(group.get(str(head)), rest, value, where)
    return group
