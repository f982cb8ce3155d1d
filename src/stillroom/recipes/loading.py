"""From a recipe's text to a validated Recipe, with all that is wrong said at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from stillroom.errors import Problem, RecipeError
from stillroom.recipes import reading
from stillroom.recipes.kinds import list_kinds, recipe_class
from stillroom.recipes.overrides import apply_overrides
from stillroom.recipes.problems import explain
from stillroom.recipes.reading import Tree, dotted, read_yaml
from stillroom.recipes.settings import Recipe, Secret, resolve_in

__all__ = ["build_recipe", "load_recipe", "locate_settings", "parse_recipe"]

_PLACE = re.compile(r":(\d+):(\d+)$")
_INTERPOLATION = re.compile(r"\$\{env:")


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate the recipe in a file; its relative paths start at the file's folder.

    Args:
        path: The YAML file.
        overrides: ``KEY=VALUE`` each, as ``method.density=0.3``.

    Raises:
        RecipeError: With every problem of the file and the overrides.
    """
    return parse_recipe(_read_text(path), str(path), overrides, folder=path.parent)


def locate_settings(path: Path, overrides: Sequence[str] = ()) -> Callable[[reading.Path], str]:
    """Return what tells where a setting of a file's recipe stands: file, line, column.

    Raises:
        RecipeError: As ``load_recipe`` does.
    """
    tree = read_yaml(_read_text(path), str(path))
    apply_overrides(tree, overrides)
    return tree.place_of_value


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise RecipeError(
            f"{path} is not a file" if path.exists() else f"{path} does not exist",
            code="recipe.not-found",
            expected="a recipe",
            next="stillroom new KIND > recipe.yaml makes one",
        )
    with path.open("rb") as file:
        data = file.read(reading.MAX_TEXT_BYTES + 4)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if len(data) > reading.MAX_TEXT_BYTES and error.end >= len(data) - 4:
            text = data.decode("utf-8-sig", "ignore")  # cut within a letter: too large in any case
        else:
            line = data.count(b"\n", 0, error.start) + 1
            raise RecipeError(
                f"byte {error.start} of the recipe is not UTF-8",
                code="recipe.encoding",
                where=f"{path}:{line}:1",
                expected="UTF-8 text",
                next="save the file as UTF-8",
            ) from error
    return text


def parse_recipe(
    text: str,
    where: str = "recipe.yaml",
    overrides: Sequence[str] = (),
    *,
    folder: Path | None = None,
) -> Recipe:
    """Validate a recipe given as text.

    Args:
        text: YAML 1.2.
        where: What problems call the text.
        overrides: ``KEY=VALUE`` each.
        folder: Where relative paths start; by default they stay as written.

    Raises:
        RecipeError: With every problem of the text and the overrides.
    """
    tree = read_yaml(text, where)
    apply_overrides(tree, overrides)
    return _validate(tree, where, folder)


def build_recipe(
    settings: Mapping[str, Any], where: str = "", *, folder: Path | None = None
) -> Recipe:
    """Validate a recipe given as plain values, as a step of a flow holds them.

    Raises:
        RecipeError: With every problem; places are ``where`` alone, as there is no text.
    """
    tree = Tree(data=dict(settings))
    if where:
        tree.values[()] = where
    return _validate(tree, where, folder)


def _validate(tree: Tree, where: str, folder: Path | None) -> Recipe:
    recipe: Recipe | None = None
    problems = list(tree.problems)
    try:
        model = recipe_class(_kind(tree, where))
        with resolve_in(folder):
            recipe = model.model_validate(tree.data)
    except RecipeError as error:
        problems += [_with_place(problem, tree) for problem in error.problems]
    except ValidationError as error:
        problems += explain(error, model, tree)
    if recipe is not None:
        problems += _misplaced_secrets(tree, recipe)
    if recipe is None or problems:
        raise RecipeError(sorted(problems, key=_line_of))
    return recipe


def _kind(tree: Tree, where: str) -> str:
    known = ", ".join(list_kinds())
    if not isinstance(tree.data, dict):
        raise RecipeError(
            "the recipe is empty" if tree.data is None else "the recipe is not a mapping",
            code="recipe.kind",
            where=where,
            expected=f"settings by name, 'kind' first (one of: {known})",
            next="stillroom new KIND prints a recipe that works",
        )
    kind = tree.data.get("kind")
    if not isinstance(kind, str):
        raise RecipeError(
            "kind is missing" if kind is None else f"kind cannot be {kind!r}",
            code="recipe.kind",
            where=tree.place_of_value(("kind",)) or where,
            expected=f"one of: {known}",
            next="add 'kind:' below 'version:'",
        )
    return kind


def _with_place(problem: Problem, tree: Tree) -> Problem:
    if problem.where:
        return problem
    where = tree.place_of_value(("kind",))
    return Problem(problem.what, problem.code, where, problem.expected, problem.next)


def _line_of(problem: Problem) -> tuple[int, int]:
    match = _PLACE.search(problem.where)
    return (int(match[1]), int(match[2])) if match else (2**31, 0)


def _misplaced_secrets(tree: Tree, recipe: Recipe) -> Iterator[Problem]:
    """Refuse ``${env:NAME}`` where it would silently stay text."""
    for path, text in _texts(tree.data, ()):
        if _INTERPOLATION.search(text) and not isinstance(_look_up(recipe, path), Secret):
            yield Problem(
                f"{dotted(path)} cannot take ${{env:NAME}}",
                "recipe.secret",
                tree.place_of_value(path),
                "the value itself: only secrets are read from the environment",
                f"pass it on the command line: {dotted(path)}=VALUE",
            )


def _texts(value: Any, path: reading.Path) -> Iterator[tuple[reading.Path, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _texts(part, (*path, key))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _texts(part, (*path, index))


def _look_up(value: Any, path: reading.Path) -> Any:
    for part in path:
        if isinstance(value, BaseModel):
            fields = type(value).model_fields
            name = next((n for n, info in fields.items() if part == (info.alias or n)), str(part))
            value = getattr(value, name, None)
        elif isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list | tuple) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            return None
    return value
