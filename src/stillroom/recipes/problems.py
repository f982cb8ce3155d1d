"""Problems of a recipe in words: pydantic's errors as what, where, what is expected and what next.

An unknown key is refused with the keys of its group and the most similar one (did you mean).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from typing import Any

from pydantic import BaseModel, ValidationError

from stillroom.errors import Problem, StillroomError
from stillroom.recipes.schema import clean_path, find_group, iter_setting_paths
from stillroom.recipes.yaml_text import KeyPath, YamlTree, format_path
from stillroom.registry.catalog import find_nearest, suggest

__all__ = ["COMMAND_LINE", "OVERRIDE_PREFIX", "explain_validation", "is_override"]

COMMAND_LINE, OVERRIDE_PREFIX = "command line", "override "
"""Places of settings that are in no file; the override follows in quotes."""
_MAX_SHOWN = 60
_MAX_PATHS = 3
_MAX_LISTED = 2000  # settings of a recipe among which the nearest is looked for
_SURE = 0.8  # likeness of a name that is surely meant
_UNKNOWN = frozenset({"extra_forbidden", "unexpected_keyword_argument"})
_TAG_ERRORS = frozenset({"union_tag_invalid", "union_tag_not_found"})
_COUNT_WORDS = re.compile(r"\w+ should have (at (?:least|most) \d+ items?) after validation")
_PREFIXES = ("Input should be ", "Value error, ")


def explain_validation(
    error: ValidationError, model: type[BaseModel], tree: YamlTree
) -> list[Problem]:
    """Return one problem for each validation error; errors of a union are joined.

    Nested errors of methods and validators are split and placed at their settings. If a value may
    have several types and has an error within the selected one, the other types are not mentioned.
    """
    problems: list[Problem] = []
    list_paths = cache(lambda: list(islice(iter_setting_paths(model, tree.data), _MAX_LISTED)))
    refused: dict[KeyPath, int] = {}
    every = list(_flatten(error, ()))
    paths = [
        clean_path(error.location, tree.data, is_missing=error.details["type"] == "missing")
        for error in every
    ]
    for flat, path in zip(every, paths, strict=True):
        problem = flat.problem
        kind = flat.details["type"]
        if problem is not None:
            placed = _place_problem(problem, flat.location, tree)
            if problem.code == "recipe.step" and is_override(placed.where):
                placed = replace(
                    placed, next=_suggest_path(path, tree, list_paths()) or placed.next
                )
            problems.append(placed)
        elif kind in _UNKNOWN:
            problems.append(_explain_unknown_key(flat.location, model, tree, list_paths))
        elif kind in _TAG_ERRORS:
            problems.append(_explain_tag(path, flat.details, tree))
        elif kind == "missing":
            problems.append(_explain_missing(flat.location, model, tree))
        elif not _is_other_shape(flat.details, path, paths):
            refusal = _explain_value(path, flat, model, tree)
            if path in refused and refusal.expected:
                before = problems[refused[path]]
                problems[refused[path]] = replace(
                    before, expected=f"{before.expected}, or {refusal.expected}"
                )
            else:
                refused[path] = len(problems)
                problems.append(refusal)
    return list(dict.fromkeys(problems))


def _is_other_shape(details: Any, path: KeyPath, paths: Sequence[KeyPath]) -> bool:
    """Whether an error only follows from others inside the value.

    A mapping or list then has another type than was checked, or too few valid items.
    """
    return (
        (str(details["type"]).endswith("_type") or details["type"] == "too_short")
        and isinstance(details.get("input"), Mapping | list)
        and any(len(path) < len(other) and other[: len(path)] == path for other in paths)
    )


@dataclass(frozen=True)
class _FlatError:
    location: tuple[str | int, ...]
    details: Any
    problem: Problem | None = None


def _flatten(error: ValidationError, outer: tuple[str | int, ...]) -> Iterator[_FlatError]:
    for details in error.errors(include_url=False):
        location = (*outer, *details["loc"])
        inner = details.get("ctx", {}).get("error")
        if isinstance(inner, ValidationError):
            yield from _flatten(inner, location)
        elif isinstance(inner, StillroomError):
            for problem in inner.problems:
                yield _FlatError(location, details, problem)
        else:
            yield _FlatError(location, details)


def _place_problem(problem: Problem, location: tuple[str | int, ...], tree: YamlTree) -> Problem:
    """Place a method's problem at the value that caused it."""
    path = clean_path(location, tree.data, is_missing=False)
    if problem.where:
        named = (*path, *(int(p) if p.isdecimal() else p for p in problem.where.split(".")))
        if not tree.holds(named):
            return problem
        path = named
    what = f"{format_path(path)}: {problem.what}" if path else problem.what
    return replace(problem, what=what, where=tree.place_of_value(path))


def _explain_unknown_key(
    location: tuple[str | int, ...],
    model: type[BaseModel],
    tree: YamlTree,
    list_paths: Callable[[], Sequence[KeyPath]],
) -> Problem:
    """Explain an unknown key; did you mean a known one?"""
    path = clean_path(location, tree.data, is_missing=False)
    group = find_group(model, location, tree.data)
    known = [name for name in group.known if name not in {"version", "kind"}]
    return Problem(
        f"{format_path(path)} is not a setting" + (f" of '{group.label}'" if group.label else ""),
        "recipe.unknown-key",
        tree.place_of_key(path),
        f"one of: {', '.join(known)}" if known else f"no settings: '{group.label}' has none",
        suggest(str(location[-1]), known, _SURE)
        or _suggest_path(path, tree, list_paths(), likeness=1.0)
        or suggest(str(location[-1]), known)
        or _suggest_path(path, tree, list_paths())
        or "remove it",
    )


def _suggest_path(
    path: KeyPath, tree: YamlTree, settings: Sequence[KeyPath], likeness: float = _SURE
) -> str:
    """Return ``did you mean 'x.y'?`` for those of a recipe's settings that are nearest to a path.

    Their last name is at least so like that of the path, and they share most names with it.
    """
    value = tree.data
    for part in path:
        value = value[part]
    while isinstance(value, Mapping) and len(value) == 1:
        ((part, value),) = value.items()
        path = (*path, part)
    *above, name = map(str, path)
    known = [setting for setting in settings if setting != path]
    near = find_nearest(name, {str(setting[-1]) for setting in known}, likeness)
    shared = {
        setting: sum(str(part) in above for part in setting[:-1])
        for setting in known
        if setting[-1] == near
    }
    most = max(shared.values(), default=0)
    best = [format_path(setting) for setting, count in shared.items() if count == most]
    return f"did you mean {' or '.join(map(repr, best[:_MAX_PATHS]))}?" if best else ""


def _explain_missing(
    location: tuple[str | int, ...], model: type[BaseModel], tree: YamlTree
) -> Problem:
    path = clean_path(location, tree.data, is_missing=True)
    group = find_group(model, location, tree.data)
    field = group.model.model_fields.get(str(location[-1])) if group.model else None
    where = tree.place_of_key(path[:-1])
    next_step = f"add '{location[-1]}:' to '{group.label}'"
    if is_override(where):
        next_step = f"add {format_path(path)}=VALUE"
    elif where == COMMAND_LINE:
        next_step = f"add {format_path(path)}=VALUE; 'stillroom new {group.label}' shows the others"
    return Problem(
        f"{format_path(path)} is missing",
        "recipe.missing",
        where,
        (field.description or "") if field else "",
        next_step,
    )


def _explain_tag(path: KeyPath, details: Any, tree: YamlTree) -> Problem:
    """Explain the setting that chooses one of several groups of settings, missing or unknown."""
    context = details["ctx"]
    key, tags = str(context["discriminator"]).strip("'"), str(context.get("expected_tags", ""))
    name = format_path((*path, key))
    if not tags:
        return Problem(
            f"{name} is missing",
            "recipe.missing",
            tree.place_of_key(path),
            f"a group of settings with '{key}'",
            f"add '{key}:' to '{format_path(path)}'",
        )
    return Problem(
        f"{name} cannot be {_format_value(context['tag'])}",
        "recipe.value",
        tree.place_of_value((*path, key)),
        tags,
        suggest(str(context["tag"]), [tag.strip("' ") for tag in tags.split(",")]),
    )


def _explain_value(
    path: KeyPath, flat: _FlatError, model: type[BaseModel], tree: YamlTree
) -> Problem:
    details = flat.details
    message = str(details["msg"])
    value = details.get("input")
    for prefix in _PREFIXES:
        message = message.removeprefix(prefix)
    name = format_path(path) or "the recipe"
    is_scalar = value is None or isinstance(value, str | int | float | bool)
    shown = f" cannot be {_format_value(value)}" if is_scalar else " does not fit"
    if details["type"] in {"value_error", "assertion_error"}:
        return Problem(f"{name}: {message}", "recipe.value", tree.place_of_value(path))
    if details["type"] in {"tuple_type", "list_type"}:
        message = "a list, as [A, B]"
    elif details["type"] in {"dict_type", "model_type", "model_attributes_type"}:
        message = _describe_mapping(flat.location, model, tree)
    elif details["type"] in {"too_short", "too_long"}:
        message = _COUNT_WORDS.sub(r"\1", message)
    choices = str(details.get("ctx", {}).get("expected", ""))
    words = [part.strip(" '") for part in choices.replace(" or ", ",").split(",")]
    return Problem(
        f"{name}{shown}",
        "recipe.value",
        tree.place_of_value(path),
        message.split(", unable to")[0],
        suggest(value, words) if isinstance(value, str) and choices else "",
    )


def _describe_mapping(
    location: tuple[str | int, ...], model: type[BaseModel], tree: YamlTree
) -> str:
    """Describe the mapping that a setting should be, by its settings or its description."""
    inside = find_group(model, (*location, ""), tree.data)
    if inside.known:
        return f"a group of settings, as {{NAME: VALUE}}; settings: {', '.join(inside.known)}"
    group = find_group(model, location, tree.data)
    field = group.model.model_fields.get(str(location[-1])) if group.model else None
    about = f": {field.description}" if field and field.description else ""
    return f"a mapping, as {{NAME: VALUE}}{about}"


def _format_value(value: object) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def is_override(place: str) -> bool:
    """Return whether a position in a tree is an override, not a line of a file."""
    return place.startswith(f"{OVERRIDE_PREFIX}'")
