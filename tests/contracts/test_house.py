"""The house keeps its rules: names, sizes, exports, docstrings, the seventh principle's nouns."""

import ast
import functools
import importlib
import re
from typing import NamedTuple

import pytest

from stillroom.flow.job import find_job_kind
from stillroom.recipes import list_kinds
from stillroom.registry import find_registries
from tests.contracts.sources import PACKAGE, functions_of, modules, tree_of

MODULES = list(modules())
FORBIDDEN = {"utils", "helpers", "common", "misc", "base", "core", "manager"}
ROOMS = ("synth", "distill", "rag", "merge", "diffusion", "forensics")


def code_lines(function):
    """Return how many lines a function's body has, its docstring aside."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return function.end_lineno - body[0].lineno + 1 if body else 0


@functools.cache
def outlines():
    """Return of each module its long functions, exports, public definitions and classes.

    Sources are parsed once, and no tree of them is kept.
    """
    found = {}
    for name, path in MODULES:
        tree = tree_of(path)
        lines = {one.name: code_lines(one) for one in functions_of(tree)}
        public = [
            node
            for node in tree.body
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        ]
        found[name] = Outline(
            {function: count for function, count in lines.items() if count > 60},
            find_exports(tree),
            {node.name for node in public},
            {node.name for node in public if isinstance(node, ast.ClassDef)},
        )
    return found


class Outline(NamedTuple):
    """What the rules ask of one module."""

    long: dict
    exports: set
    definitions: set
    classes: set


def find_exports(tree):
    """Return the names in ``__all__``."""
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            return set(ast.literal_eval(node.value))
    return set()


def test_modules_are_named_for_what_they_do_and_fit_on_a_few_screens():
    assert not [name for name, _ in MODULES if name.rsplit(".", 1)[-1] in FORBIDDEN]
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES}
    assert not {name: count for name, count in lines.items() if count > 600}
    assert not {name: outline.long for name, outline in outlines().items() if outline.long}


def test_every_public_definition_is_exported():
    missing = {
        name: outline.definitions - outline.exports
        for name, outline in outlines().items()
        if not name.endswith("__main__")
    }
    assert not {name: names for name, names in missing.items() if names}


@pytest.mark.parametrize("name", [name for name, _ in MODULES if name.count(".") <= 1])
def test_exports_of_a_package_exist(name):
    if name.endswith("__main__"):
        return
    module = importlib.import_module(name)
    for export in getattr(module, "__all__", ()):
        assert getattr(module, export) is not None


@pytest.mark.parametrize("room", ROOMS)
def test_room_has_the_same_door_and_hall(room):
    for name in ("__init__.py", "interfaces.py"):
        assert (PACKAGE / room / name).is_file()
    kinds = [kind for kind in list_kinds() if kind.partition(".")[0] == room]
    assert kinds
    for kind in kinds:
        declared = find_job_kind(kind)
        assert callable(declared.run)
        assert callable(declared.estimate)


def test_no_trace_of_unfinished_work():
    words = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|NotImplementedError")
    hits = [name for name, path in MODULES if words.search(path.read_text(encoding="utf-8"))]
    assert not hits


def test_every_place_of_the_glossary_has_the_term_and_what_it_is_also_called():
    page = (PACKAGE.parents[1] / "docs" / "reference" / "glossary.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 30
    missing = []
    for _, term, _, places, synonyms, _ in rows:
        found = re.findall(r"`([\w/.]+)`", places)
        assert found, f"{term.strip()} has no place"
        assert all((PACKAGE / place).exists() for place in found), f"{term.strip()}: {places}"
        paths = [PACKAGE / place for place in found]
        texts = [
            str(node.value.value)
            for path in paths
            for node in ast.walk(
                ast.parse((path / "__init__.py" if path.is_dir() else path).read_text("utf-8"))
            )
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        ]
        names = [(name, r"[ _]?") for name in term.split(",")]  # also as a class or variable
        names += [(name, " ") for name in re.split(r"[,()]", synonyms.replace("`", ""))]
        for name, space in names:
            pattern = r"(?<![A-Za-z])" + re.escape(name.strip()).replace(r"\ ", space)
            if not re.search(pattern, "\n".join(texts), re.IGNORECASE):
                missing.append(f"{name.strip()} in{places}")
    assert not missing


def is_place(parts, folder):
    """Whether a dotted name is a folder, a module, or a word of one below a folder."""
    for number, part in enumerate(parts):
        if (folder / part).is_dir():
            folder = folder / part
            continue
        is_module = (folder / f"{part}.py").exists()
        file = folder / (f"{part}.py" if is_module else "__init__.py")
        rest = parts[number + 1 :] if is_module else parts[number:]
        if not is_module and (not number or not file.exists()):
            return False
        words = set(re.findall(r"\w+", file.read_text(encoding="utf-8")))
        return words.issuperset(rest)
    return True


def test_every_module_that_a_docstring_names_exists():
    """A dotted name that starts with a package, from the root or from a package around it."""
    packages = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    named = re.compile(r"``(?:stillroom\.)?((?:[a-z_]\w*\.)+[A-Za-z_]\w*)``")
    kinds = set(list_kinds())
    hits = [
        f"{name}: {found}"
        for name, path in MODULES
        for found in named.findall(path.read_text(encoding="utf-8"))
        if found.split(".")[0] in packages
        and found not in kinds
        and found.rsplit(".", 1)[1] not in {"jsonl", "py"}
        and not any(is_place(found.split("."), p) for p in [PACKAGE, *list(path.parents)[:3]])
    ]
    assert not hits


def test_json_that_is_nested_too_deeply_is_refused_like_other_json_that_cannot_be_read():
    """Python raises no ValueError for it: a stranger's file would end the command as a bug."""
    unready = []
    for name, path in MODULES:
        if "json.loads(" not in path.read_text(encoding="utf-8"):
            continue
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Try):
                reads = any("json.loads(" in ast.unparse(line) for line in node.body)
                caught = " ".join(ast.unparse(one.type) for one in node.handlers if one.type)
                if reads and "ValueError" in caught and "RecursionError" not in caught:
                    unready.append(f"{name}:{node.lineno}")
    assert not unready, "load_json of provenance.digests raises ValueError"


def test_no_public_class_name_is_used_twice():
    """The classes of interchangeable methods aside, which their folder tells apart."""
    registries = {folder for folder in find_registries().values()}
    homes = {}
    for name, path in MODULES:
        if path.parent in registries:
            continue
        for one in outlines()[name].classes:
            homes.setdefault(one, []).append(name)
    assert not {name: found for name, found in homes.items() if len(found) > 1}


def test_no_folder_is_a_heap():
    """At most 15 modules stand flat in a folder, those of interchangeable methods aside."""
    registries = {folder for folder in find_registries().values()}
    heaps = {}
    for folder in {path.parent for _, path in MODULES} - registries:
        modules = [one for one in folder.glob("*.py") if one.name != "__init__.py"]
        if len(modules) > 15:
            heaps[str(folder)] = len(modules)
    assert not heaps
