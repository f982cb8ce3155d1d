"""Catalog of methods, read from source files without importing them.

Only files and docstrings are read; dependencies of a method are not checked.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

__all__ = [
    "MethodListing",
    "MethodSetting",
    "find_kind_modules",
    "find_nearest",
    "find_registries",
    "list_examples",
    "list_kind_names",
    "list_kinds",
    "list_methods",
    "list_names",
    "read_docstring",
    "read_settings",
    "suggest",
]

_PACKAGE = Path(__file__).resolve().parent.parent
_REGISTRY_MARK = re.compile(r"^REGISTRY = ", re.MULTILINE)
_KIND_MARK = re.compile(r"^JOB_KIND = ", re.MULTILINE)


@dataclass(frozen=True)
class MethodListing:
    """Name, registry and summary of one method in a list."""

    name: str
    registry: str
    summary: str
    path: Path
    paper: str = ""
    status: str = "stable"


@dataclass(frozen=True)
class MethodSetting:
    """One setting of a method: its default as in a recipe (empty: none), and its description."""

    name: str
    default: str
    description: str


def find_registries(package: Path = _PACKAGE) -> dict[str, Path]:
    """Return every folder of methods by dotted name, sorted.

    A folder of methods is a sub-package whose ``__init__`` assigns ``REGISTRY`` (its one-line
    description), such as ``stillroom.merge.methods``.
    """
    folders: dict[str, Path] = {}
    for init in sorted(package.rglob("__init__.py")):
        if _REGISTRY_MARK.search(init.read_text(encoding="utf-8")):
            folder = init.parent
            folders[".".join(["stillroom", *folder.relative_to(package).parts])] = folder
    return folders


def list_names(folder: Path) -> list[str]:
    """Return the method names of a folder, sorted; private files are not methods."""
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def list_methods(registries: dict[str, Path] | None = None) -> Iterator[MethodListing]:
    """Yield every method of the given folders (default: all) in order of folder and name."""
    for registry, folder in (find_registries() if registries is None else registries).items():
        for name in list_names(folder):
            yield _read_method(folder / f"{name}.py", registry)


def list_kinds(package: Path = _PACKAGE) -> dict[str, str]:
    """Return every job kind with the summary of its module, sorted."""
    return {
        name: read_docstring(path).split("\n", 1)[0]
        for name, path in find_kind_modules(package).items()
    }


@cache
def find_kind_modules(package: Path = _PACKAGE) -> Mapping[str, Path]:
    """Return the module of every job kind by name, sorted; the files are read once a process.

    A module ``<room>/jobs/<name>.py`` that assigns ``JOB_KIND`` declares the kind ``room.name``;
    ``flow``, which is made of other kinds, is ``flow/recipe.py``.
    """
    modules = {
        f"{path.parent.parent.name}.{path.stem}": path
        for path in package.glob("*/jobs/*.py")
        if _KIND_MARK.search(path.read_text(encoding="utf-8"))
    }
    if (flow := package / "flow" / "recipe.py").is_file():
        modules["flow"] = flow
    return MappingProxyType(dict(sorted(modules.items())))


def list_kind_names(package: Path = _PACKAGE) -> list[str]:
    """Return the name of every job kind, sorted."""
    return list(find_kind_modules(package))


def list_examples(kind: str, package: Path = _PACKAGE) -> list[str]:
    """Return the names of the example recipes of a kind's room, sorted, without reading files."""
    return sorted(path.stem for path in (package / kind.partition(".")[0]).glob("*.yaml"))


def read_docstring(path: Path) -> str:
    """Return a module's docstring without importing the module."""
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def read_settings(path: Path) -> list[MethodSetting]:
    """Return the settings of a method, base classes last, without importing it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    settings: dict[str, MethodSetting] = {}
    for node in _find_method_classes(path, tree):
        for setting in _iter_settings(node, tree):
            settings.setdefault(setting.name, setting)
    return list(settings.values())


def _find_method_classes(path: Path, tree: ast.Module) -> list[ast.ClassDef]:
    """Return the class that a method's file is named for; other classes are helpers."""
    name = path.stem.replace("_", "")
    return [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name.lower() == name]


def _iter_settings(node: ast.ClassDef, tree: ast.Module) -> Iterator[MethodSetting]:
    """Yield the settings of a class, then those of its base classes in this package."""
    for statement in node.body:
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if "ClassVar" not in ast.unparse(
            statement.annotation
        ) and not statement.target.id.startswith("_"):
            value, _ = _find_definition(statement.value, tree)
            yield _read_setting(
                statement.target.id, value if isinstance(value, ast.Call) else statement.value
            )
    for base in node.bases:
        definition, module = _find_definition(base, tree)
        if isinstance(definition, ast.ClassDef):
            yield from _iter_settings(definition, module)


def _find_definition(
    node: ast.expr | None, tree: ast.Module
) -> tuple[ast.ClassDef | ast.expr | None, ast.Module]:
    """Return the class or value that a name of a file stands for, and the file that defines it.

    Names that are imported from this package are followed; anything else stands for itself.
    """
    if not isinstance(node, ast.Name):
        return node, tree
    for part in tree.body:
        if isinstance(part, ast.ClassDef) and part.name == node.id:
            return part, tree
        if isinstance(part, ast.Assign) and ast.unparse(part.targets[0]) == node.id:
            return part.value, tree
        if isinstance(part, ast.ImportFrom) and any(name.name == node.id for name in part.names):
            first, *rest = (part.module or "").split(".")
            place = _PACKAGE.joinpath(*rest).with_suffix(".py")
            if first == _PACKAGE.name and rest and place.is_file():
                return _find_definition(node, ast.parse(place.read_text(encoding="utf-8")))
    return node, tree


def _read_setting(name: str, value: ast.expr | None) -> MethodSetting:
    if not (isinstance(value, ast.Call) and ast.unparse(value.func).endswith("Field")):
        return MethodSetting(name, _format_default(value), "")
    keywords = {word.arg: word.value for word in value.keywords}
    default = value.args[0] if value.args else keywords.get("default")
    description = keywords.get("description")
    text = str(description.value) if isinstance(description, ast.Constant) else ""
    return MethodSetting(name, _format_default(default), text)


def _format_default(default: ast.expr | None) -> str:
    """Return a default in recipe syntax."""
    if not isinstance(default, ast.Constant):
        return ast.unparse(default) if default is not None else ""
    if isinstance(default.value, bool) or default.value is None:
        return {True: "true", False: "false", None: "null"}[default.value]
    return str(default.value) if default.value != "" else "''"


def suggest(word: str, known: Iterable[str], likeness: float = 0.66) -> str:
    """Return ``did you mean 'x'?`` for ``find_nearest``, or ''."""
    near = find_nearest(word, known, likeness)
    return f"did you mean '{near}'?" if near else ""


def find_nearest(word: str, known: Iterable[str], likeness: float = 0.66) -> str:
    """Return the nearest known word at least so like it, or ''.

    By default it allows one wrong letter of three: a name that is gone suggests no other method.
    """
    listed = list(known)
    near = [
        match
        for spelt in (word, word.lower())
        for match in difflib.get_close_matches(spelt, listed, n=1, cutoff=likeness)
    ]
    return near[0] if near else ""


def _read_method(path: Path, registry: str) -> MethodListing:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    summary = (ast.get_docstring(tree) or "").split("\n", 1)[0]
    constants: dict[str, str] = {}
    for node in _find_method_classes(path, tree):
        for statement in node.body:
            target = statement.target if isinstance(statement, ast.AnnAssign) else None
            value = statement.value if isinstance(statement, ast.AnnAssign) else None
            if isinstance(target, ast.Name) and isinstance(value, ast.Constant):
                constants[target.id] = str(value.value)
    return MethodListing(
        path.stem,
        registry,
        summary,
        path,
        constants.get("paper", ""),
        constants.get("status", "stable"),
    )
