"""The house keeps its rules: names, sizes, exports, docstrings, the seventh principle's nouns."""

import ast
import importlib
import re

import pytest

from stillroom.flow.job import find_job_kind
from stillroom.jobs.kind import JobKind
from stillroom.registry import find_registries
from stillroom.registry.catalog import list_kind_names
from tests.contracts.sources import PACKAGE, functions_of, modules, tree_of

MODULES = list(modules())
FORBIDDEN = {"utils", "helpers", "common", "misc", "base", "core", "manager"}
ROOMS = ("synth", "distill", "rag", "merge", "diffusion", "forensics")


def code_lines(function):
    """Return how many lines a function's body has, its docstring aside."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return function.end_lineno - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize(("name", "path"), MODULES, ids=[name for name, _ in MODULES])
def test_module_is_named_for_what_it_does_and_fits_on_a_few_screens(name, path):
    assert name.rsplit(".", 1)[-1] not in FORBIDDEN
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 600
    long = {
        function.name: lines
        for function in functions_of(tree_of(path))
        if (lines := code_lines(function)) > 60
    }
    assert not long


@pytest.mark.parametrize(("name", "path"), MODULES, ids=[name for name, _ in MODULES])
def test_every_public_definition_is_exported(name, path):
    tree = tree_of(path)
    exported = None
    defined = set()
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            exported = ast.literal_eval(node.value)
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            defined.add(node.name)
    if name.endswith("__main__"):
        return
    assert exported is not None or not defined, "the module has no __all__"
    assert defined <= set(exported or ())


@pytest.mark.parametrize("name", [name for name, _ in MODULES if name.count(".") <= 1])
def test_exports_of_a_package_exist(name):
    if name.endswith("__main__"):
        return
    module = importlib.import_module(name)
    for export in getattr(module, "__all__", ()):
        assert getattr(module, export) is not None


@pytest.mark.parametrize("room", ROOMS)
def test_room_has_the_same_door_and_hall(room):
    kinds = [name for name in list_kind_names() if name.startswith(f"{room}.")]
    halls = () if kinds else ("recipe.py", "run.py")
    for name in ("__init__.py", "interfaces.py", *halls):
        assert (PACKAGE / room / name).is_file()
    if kinds:  # declared in jobs/, each with run and estimate
        assert all(isinstance(find_job_kind(name), JobKind) for name in kinds)
        return
    run = importlib.import_module(f"stillroom.{room}.run")
    assert callable(run.run)
    assert callable(run.estimate)


def test_no_trace_of_unfinished_work():
    words = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|NotImplementedError")
    hits = [name for name, path in MODULES if words.search(path.read_text(encoding="utf-8"))]
    assert not hits


def test_every_place_that_the_glossary_names_exists():
    page = (PACKAGE.parents[1] / "docs" / "reference" / "glossary.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 30
    for _, term, _, places, _, _ in rows:
        found = re.findall(r"`([\w/.]+)`", places)
        assert found, f"{term.strip()} has no place"
        assert all((PACKAGE / place).exists() for place in found), f"{term.strip()}: {places}"


def test_no_public_class_name_is_used_twice():
    """The classes of interchangeable methods aside, which their folder tells apart."""
    seams = {folder for folder in find_registries().values()}
    homes = {}
    for name, path in MODULES:
        if path.parent in seams:
            continue
        for node in tree_of(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(name)
    assert not {name: found for name, found in homes.items() if len(found) > 1}


def test_no_folder_is_a_heap():
    """At most 15 modules stand flat in a folder, those of interchangeable methods aside."""
    seams = {folder for folder in find_registries().values()}
    heaps = {}
    for folder in {path.parent for _, path in MODULES} - seams:
        modules = [one for one in folder.glob("*.py") if one.name != "__init__.py"]
        if len(modules) > 15:
            heaps[str(folder)] = len(modules)
    assert not heaps
