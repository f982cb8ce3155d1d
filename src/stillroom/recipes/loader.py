"""Recipe loading: files, text, plain values and KEY=VALUE overrides.

What pydantic refuses, such as an unknown key, is explained by ``problems``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from stillroom.errors import Problem, RecipeError
from stillroom.recipes import yaml_text
from stillroom.recipes.problems import COMMAND_LINE, OVERRIDE_PREFIX, explain_validation
from stillroom.recipes.schema import find_recipe_class, list_kinds
from stillroom.recipes.settings import Recipe, Secret, resolve_references_in
from stillroom.recipes.yaml_text import MAX_DEPTH, KeyPath, YamlTree, format_path, read_yaml
from stillroom.registry.catalog import suggest

__all__ = [
    "apply_overrides",
    "build_recipe",
    "iterate_texts",
    "load_recipe",
    "make_setting_locator",
    "parse_group",
    "parse_recipe",
    "parse_values",
]

_POSITION = re.compile(r":(\d+):(\d+)$")
_INDEX = re.compile(r"\d{1,18}")  # of an item; Python refuses to read thousands of digits
_INTERPOLATION = re.compile(r"\$\{env:")


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Load and validate the recipe in a file; relative paths start at the file's folder.

    Args:
        path: The YAML file; or the name of a kind, for a recipe of the overrides alone.
        overrides: ``KEY=VALUE`` strings, such as ``method.density=0.3``.

    Raises:
        RecipeError: With every problem of the file and the overrides.
    """
    tree = _read_tree(path)
    apply_overrides(tree, overrides)
    return _validate(tree, str(path), path.parent)


def make_setting_locator(
    path: Path, overrides: Sequence[str] = ()
) -> Callable[[yaml_text.KeyPath], str]:
    """Return a function from a setting's path to its position: file, line, column.

    Raises:
        RecipeError: As ``load_recipe`` does.
    """
    tree = _read_tree(path)
    apply_overrides(tree, overrides)
    return tree.place_of_value


def _read_tree(path: Path) -> YamlTree:
    """Return the tree of a file; or of the name of a kind, whose settings are yet to be given."""
    if path.exists() or str(path) not in list_kinds():
        return read_yaml(_read_text(path), str(path))
    return YamlTree({"kind": str(path)}, values={(): COMMAND_LINE})


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise RecipeError(
            f"{path} is not a file" if path.exists() else f"{path} does not exist",
            code="recipe.not-found",
            expected="a recipe, or a kind of `stillroom list kinds`",
            next=suggest(str(path), list_kinds(), likeness=0.8)
            or "stillroom new KIND > recipe.yaml makes one",
        )
    with path.open("rb") as file:
        data = file.read(yaml_text.MAX_TEXT_BYTES + 4)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if len(data) > yaml_text.MAX_TEXT_BYTES and error.end >= len(data) - 4:
            text = data.decode("utf-8-sig", "ignore")  # truncated; too large in any case
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
    """Validate a recipe in a text.

    ``where`` names the text in problems; without ``folder``, relative paths are unchanged.

    Raises:
        RecipeError: With every problem of the text and the overrides.
    """
    tree = read_yaml(text, where)
    apply_overrides(tree, overrides)
    return _validate(tree, where, folder)


def build_recipe(
    settings: Mapping[str, Any],
    where: str = "",
    overrides: Sequence[str] = (),
    *,
    folder: Path | None = None,
) -> Recipe:
    """Validate a recipe given as plain values, such as a step of a flow.

    Raises:
        RecipeError: With every problem; positions are ``where`` or an override, without a text.
    """
    tree = YamlTree(data=dict(settings))
    if where:
        tree.values[()] = where
    apply_overrides(tree, overrides)
    return _validate(tree, where, folder)


def _validate(tree: YamlTree, where: str, folder: Path | None) -> Recipe:
    recipe: Recipe | None = None
    problems = list(tree.problems)
    try:
        model = find_recipe_class(_read_kind(tree, where))
        with resolve_references_in(folder):
            recipe = model.model_validate(tree.data)
    except RecipeError as error:
        problems += [_add_position(problem, tree) for problem in error.problems]
    except ValidationError as error:
        problems += explain_validation(error, model, tree)
    if recipe is not None:
        problems += _misplaced_secrets(tree, recipe)
    if recipe is None or problems:
        raise RecipeError(sorted(problems, key=_line_of))
    return recipe


def _read_kind(tree: YamlTree, where: str) -> str:
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
        is_mergekit = "merge_method" in tree.data
        raise RecipeError(
            "kind is missing" if kind is None else f"kind cannot be {kind!r}",
            code="recipe.kind",
            where=tree.place_of_value(("kind",)) or where,
            expected=f"one of: {known}",
            next="a file of mergekit is run by 'stillroom merge run'"
            if is_mergekit
            else "add 'kind:' below 'version:'",
        )
    return kind


def _add_position(problem: Problem, tree: YamlTree) -> Problem:
    if problem.where:
        return problem
    where = tree.place_of_value(("kind",))
    return Problem(problem.what, problem.code, where, problem.expected, problem.next)


def _line_of(problem: Problem) -> tuple[int, int]:
    match = _POSITION.search(problem.where)
    return (int(match[1]), int(match[2])) if match else (2**31, 0)


def _misplaced_secrets(tree: YamlTree, recipe: Recipe) -> Iterator[Problem]:
    """Refuse ``${env:NAME}`` where it would silently stay text."""
    for path, text in iterate_texts(tree.data):
        if _INTERPOLATION.search(text) and not isinstance(_get_value(recipe, path), Secret):
            yield Problem(
                f"{format_path(path)} cannot take ${{env:NAME}}",
                "recipe.secret",
                tree.place_of_value(path),
                "the value itself: only secrets are read from the environment",
                f"pass it on the command line: {format_path(path)}=VALUE",
            )


def iterate_texts(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Yield every string of nested mappings and lists, with its place."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from iterate_texts(part, (*path, key))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from iterate_texts(part, (*path, index))


def _get_value(value: Any, path: yaml_text.KeyPath) -> Any:
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


def apply_overrides(tree: YamlTree, overrides: Sequence[str]) -> None:
    """Apply each override to the tree, in order, and add its problems to the tree's.

    ``method.density=0.3`` sets a key, ``models.0.weight=1`` one of an item; missing groups are
    created, an index one past the end appends, and a bare method name becomes ``{name: ...}``.
    """
    for override in overrides:
        where = f"{OVERRIDE_PREFIX}'{override}'"
        try:
            path, value = _read_override(override, where)
            tree.data = _set_value(tree.data, path, value.data, where)
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


def _read_override(override: str, where: str) -> tuple[KeyPath, YamlTree]:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise RecipeError(
            f"'{override}' is not an override",
            code="recipe.override",
            where=where,
            expected="KEY=VALUE, as seed=7 or method.density=0.3",
        )
    if len(parts) > MAX_DEPTH:
        raise RecipeError(
            f"the override sets a value {len(parts)} levels deep",
            code="recipe.too-large",
            where=where,
            expected=f"at most {MAX_DEPTH} levels",
        )
    tree = read_yaml(text, where)
    for places in (tree.keys, tree.values):
        for path in places:
            places[path] = where
    return tuple(int(part) if _INDEX.fullmatch(part) else part for part in parts), tree


def _set_value(data: Any, path: KeyPath, value: Any, where: str) -> Any:
    """Return ``data`` with the value at the path; groups on the way are created or copied."""
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
        items[head] = _set_value(items[head], rest, value, where)
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
    group[str(head)] = _set_value(group.get(str(head)), rest, value, where)
    return group


G = TypeVar("G", bound=BaseModel)


def parse_group(
    model: type[G], text: str = "{}", where: str = "settings", overrides: Sequence[str] = ()
) -> G:
    """Validate a group of settings in YAML text and overrides.

    ``where`` names the text in problems.

    Raises:
        RecipeError: With every problem of the text and the overrides.
    """
    tree = read_yaml(text, where)
    tree.data = tree.data or {}
    apply_overrides(tree, overrides)
    try:
        group = model.model_validate(tree.data)
    except ValidationError as error:
        tree.problems += explain_validation(error, model, tree)
    if tree.problems:
        raise RecipeError(tree.problems)
    return group


def parse_values(overrides: Sequence[str], where: str = "settings") -> dict[str, Any]:
    """Parse ``KEY=VALUE`` strings into plain values.

    Raises:
        RecipeError: With every malformed string.
    """
    tree = read_yaml("{}", where)
    apply_overrides(tree, overrides)
    if tree.problems:
        raise RecipeError(tree.problems)
    return dict(tree.data or {})
