"""Contract checks of every method of every registry.

Lists, schemas and recipes rely on this contract; the identities are in ``families``.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterable
from pathlib import Path

from stillroom.registry import Method, Registry

__all__ = ["check_method"]

_STATUSES = ("stable", "experimental")


def check_method(seam: str, name: str) -> None:
    """Check a method's contract: summary, source, defaults, round trip, family identities.

    Args:
        seam: The registry's dotted name, such as ``stillroom.merge.methods``.
        name: The method's name.

    Raises:
        AssertionError: With the contract that is broken.
        RecipeError: If there is no such method.
    """
    method = _find_registry(seam).get(name)
    _check_contract(method)
    if not any(info.is_required() for info in method.model_fields.values()):
        _check_round_trip(method)
        _check_family(method())


def _find_registry(group: str) -> Registry[Method]:
    """Return the registry of a folder: in the room's ``interfaces``, or in another module."""
    room, beside = ".".join(group.split(".")[:2]), group.rpartition(".")[0]
    names = [f"{room}.interfaces"]
    names += [f"{beside}.{module.name}" for module in pkgutil.iter_modules(_path_of(beside))]
    for name in names:
        for member in vars(importlib.import_module(name)).values():
            if isinstance(member, Registry) and member.group == group:
                return member
    raise AssertionError(f"{room}.interfaces holds no Registry for {group}")


def _path_of(package: str) -> Iterable[str]:
    return importlib.import_module(package).__path__


def _check_family(method: Method) -> None:
    from stillroom.distill.interfaces import DistillationObjective, FeatureLoss
    from stillroom.merge.interfaces import MergeMethod
    from stillroom.testing.families import (
        check_chunker,
        check_feature,
        check_merge_method,
        check_objective,
    )
    from stillroom.text.interfaces import Chunker

    if isinstance(method, MergeMethod):
        check_merge_method(method)
    elif isinstance(method, DistillationObjective):
        check_objective(method)
    elif isinstance(method, FeatureLoss):
        check_feature(method)
    elif isinstance(method, Chunker):
        check_chunker(method)


def _check_contract(method: type[Method]) -> None:
    path = Path(inspect.getfile(method))
    tree = ast.parse(path.read_text(encoding="utf-8"))
    _check_docstring(method, ast.get_docstring(tree) or "")
    _check_file(method, path)
    for name, info in method.model_fields.items():
        _require(bool(info.description), f"{method.__name__}.{name} has no description")
    _require(method.status in _STATUSES, f"status is {method.status!r}, not one of {_STATUSES}")
    _require(isinstance(method.paper, str), "paper is not text")


def _check_docstring(method: type[Method], text: str) -> None:
    summary = text.split("\n", 1)[0]
    _require(bool(summary), f"the module of {method.__name__} has no summary line")
    _require(len(summary) <= 100, f"the summary is {len(summary)} characters long")
    _require(summary.endswith("."), f"the summary {summary!r} does not end in a full stop")
    named = "Source:" in text or not method.paper
    _require(named, f"the module of {method.__name__} does not say what it takes from its paper")


def _check_file(method: type[Method], path: Path) -> None:
    public = [
        name
        for name, member in vars(inspect.getmodule(method)).items()
        if inspect.isclass(member)
        and issubclass(member, Method)
        and member.__module__ == method.__module__
        and not name.startswith("_")
    ]
    _require(public == [method.__name__], f"{path.name} holds the methods {public}")
    class_name = "".join(part.capitalize() for part in path.stem.split("_"))
    _require(
        method.__name__.lower() == class_name.lower(),
        f"{path.name} holds {method.__name__}, not {class_name}",
    )


def _check_round_trip(method: type[Method]) -> None:
    built = method()
    dumped = built.model_dump(mode="json")
    _require(dumped.pop("name") == method.method_name(), "the dump does not name the method")
    again = method.model_validate(dumped)
    _require(again == built, f"{method.__name__} does not survive a round trip through JSON")
    schema = method.model_json_schema()
    _require(schema.get("additionalProperties") is False, "unknown settings are not refused")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)
