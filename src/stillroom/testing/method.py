"""Checks that hold for every method of every seam, whatever it does.

The rooms' own conformance tests (identities, shapes, bytes) stand with the rooms; these are the
promises that lists, schemas and recipes rely on.
"""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

from stillroom.registry import Method

__all__ = ["check_method"]

_STATUSES = ("stable", "experimental")


def check_method(method: type[Method]) -> None:
    """Check what every method promises: its summary, source, defaults and round trip.

    Args:
        method: The class, as ``Seam.get`` returns it.

    Raises:
        AssertionError: If a promise is broken; says which.
    """
    path = Path(inspect.getfile(method))
    tree = ast.parse(path.read_text(encoding="utf-8"))
    _check_docstring(method, ast.get_docstring(tree) or "")
    _check_file(method, tree, path)
    for name, info in method.model_fields.items():
        _require(bool(info.description), f"{method.__name__}.{name} has no description")
    _require(method.status in _STATUSES, f"status is {method.status!r}, not one of {_STATUSES}")
    _require(isinstance(method.paper, str), "paper is not text")
    _check_round_trip(method)


def _check_docstring(method: type[Method], text: str) -> None:
    summary = text.split("\n", 1)[0]
    _require(bool(summary), f"the module of {method.__name__} has no summary line")
    _require(len(summary) <= 100, f"the summary is {len(summary)} characters long")
    _require(summary.endswith("."), f"the summary {summary!r} does not end in a full stop")
    _require("Source:" in text, f"the module of {method.__name__} names no source")


def _check_file(method: type[Method], tree: ast.Module, path: Path) -> None:
    public = [
        node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    _require(public == [method.__name__], f"{path.name} holds the public classes {public}")
    wanted = "".join(part.capitalize() for part in path.stem.split("_"))
    _require(
        method.__name__.lower() == wanted.lower(),
        f"{path.name} holds {method.__name__}, not {wanted}",
    )


def _check_round_trip(method: type[Method]) -> None:
    if any(info.is_required() for info in method.model_fields.values()):
        return
    made = method()
    dumped = made.model_dump(mode="json")
    _require(dumped.pop("name") == method.method_name(), "the dump does not name the method")
    again = method.model_validate(dumped)
    _require(again == made, f"{method.__name__} does not survive a round trip through JSON")
    schema = method.model_json_schema()
    _require(schema.get("additionalProperties") is False, "unknown settings are not refused")


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)
