"""The house keeps its rules: names, sizes, exports, docstrings, the seventh principle's nouns."""

import ast
import importlib
import re

import pytest

from stillroom.flow.job import find_job_kind
from stillroom.recipes import list_kinds
from stillroom.registry import find_registries
from tests.contracts.sources import PACKAGE, modules

MODULES = list(modules())
FORBIDDEN = {"utils", "helpers", "common", "misc", "base", "core", "manager"}
ROOMS = ("synth", "distill", "rag", "merge", "diffusion", "forensics")


def test_modules_are_named_for_what_they_do_and_fit_on_a_few_screens():
    assert not [name for name, _ in MODULES if name.rsplit(".", 1)[-1] in FORBIDDEN]
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES}
    assert not {name: count for name, count in lines.items() if count > 600}


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


def test_no_folder_is_a_heap():
    """At most 15 modules stand flat in a folder, those of interchangeable methods aside."""
    registries = {folder for folder in find_registries().values()}
    heaps = {}
    for folder in {path.parent for _, path in MODULES} - registries:
        modules = [one for one in folder.glob("*.py") if one.name != "__init__.py"]
        if len(modules) > 15:
            heaps[str(folder)] = len(modules)
    assert not heaps
