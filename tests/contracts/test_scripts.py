"""The scripts of the house and the benchmarks fail where they should."""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import click
import pytest

from stillroom.cli.app import stillroom
from stillroom.recipes import load_recipe
from stillroom.registry.catalog import find_registries, list_names
from tests.fuzz.commands import list_recipes
from tests.fuzz.replay import CALLS

ROOT = Path(__file__).resolve().parents[2]
OURS = re.compile(r"(stillroom|benchmarks|tests)\b")


def load(path: str):
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("line", "allowed", "said"),
    [
        ("import nowhere_at_all", [], "house.room.deep needs nowhere_at_all"),
        ("import nowhere_at_all", ["nowhere_at_all"], ""),
        ("from house.gone import x", [], "house.room.deep needs house.gone"),
        ("from house.errors import MissingExtraError as E; raise E", [], ""),
    ],
)
def test_a_wheel_that_lacks_a_package_of_its_core_is_refused(tmp_path, line, allowed, said):
    script = load("scripts/check_wheel.py")
    room = tmp_path / "house" / "room"
    room.mkdir(parents=True)
    (tmp_path / "house" / "__init__.py").write_text("")
    (tmp_path / "house" / "errors.py").write_text("class MissingExtraError(Exception): pass\n")
    (room / "__init__.py").write_text("")
    (room / "deep.py").write_text(line + "\n")
    words = [sys.executable, "-S", "-c", script._IMPORT_ALL, "house", json.dumps(allowed)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode != 0) == bool(said)
    assert said in done.stderr
    assert said or done.stdout.startswith("3 modules; extras absent: ")


def test_modules_of_extras_are_known_by_the_names_they_are_imported_by():
    optional = load("scripts/check_wheel.py").list_optional()
    assert {"ray", "s3fs", "cv2", "docx", "torch"} <= set(optional)
    assert not {"numpy", "stillroom", "pytest"} & set(optional)


@pytest.mark.parametrize("words", [["3", "askss"], ["0"], ["many"]])
def test_a_benchmark_that_would_measure_nothing_is_refused(words, capsys):
    bench = load("benchmarks/scale/bench_ray.py")
    with pytest.raises(SystemExit) as caught:
        bench.read_arguments(words)
    assert caught.value.code == 2
    assert bench.read_arguments([]) == (3, ("asks", "reading"))
    assert bench.read_arguments(["2", "asks"]) == (2, ["asks"])


@functools.cache
def read_module(name: str) -> str:
    base = ROOT / ("src" if name.startswith("stillroom") else "") / name.replace(".", "/")
    file = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    return file.read_text() if file.is_file() else ""


def exists(module: str, name: str) -> bool:
    named = re.search(rf"\b{name}\b", read_module(module))
    return bool(named or read_module(f"{module}.{name}"))


@functools.cache
def find_function(module: str, name: str) -> ast.arguments | None:
    """Return the parameters of a function, looked for behind a package's imports too.

    Only its first lines are parsed: whole modules would take seconds.
    """
    text = read_module(module)
    if head := re.search(rf"^def {name}(\(.*?\)[^()]*?):$", text, re.MULTILINE | re.DOTALL):
        return ast.parse(f"def f{head[1]}: ...").body[0].args
    line = re.search(rf"^from (stillroom\S+) import [^)]*?\b{name}\b", text, re.MULTILINE)
    return find_function(line[1], name) if line else None


def misfits(call: ast.Call, takes: ast.arguments) -> set[str | None]:
    """Return the arguments of a call that are not taken, and those needed that it does not give."""
    plain = [one.arg for one in (*takes.posonlyargs, *takes.args)]
    named = [one.arg for one in takes.kwonlyargs]
    given = {one.arg for one in call.keywords}
    unknown = set() if takes.kwarg else given - {*plain, *named, None}
    if None in given or any(isinstance(one, ast.Starred) for one in call.args):
        return unknown
    needed = {*plain[len(call.args) : len(plain) - len(takes.defaults)]}
    needed |= {name for name, default in zip(named, takes.kw_defaults, strict=True) if not default}
    extra = [] if takes.vararg else call.args[len(plain) :]
    return unknown | (needed - given) | {ast.unparse(one) for one in extra}


def test_benchmarks_and_scripts_call_what_exists_as_it_wants_to_be_called():
    """They are run by hand and checked by no types, so a name that moves is found out late."""
    faults = []
    for path in sorted([*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]):
        functions, calls = {}, []
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and OURS.match(node.module or ""):
                for alias in node.names:
                    if not exists(node.module, alias.name):
                        faults.append(f"{path.relative_to(ROOT)}: {node.module}.{alias.name}")
                    elif found := find_function(node.module, alias.name):
                        functions[alias.asname or alias.name] = found
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                calls.append(node)
        faults += [
            f"{path.relative_to(ROOT)}:{call.lineno}: {call.func.id}: {wrong}"
            for call in calls
            if call.func.id in functions and (wrong := misfits(call, functions[call.func.id]))
        ]
    assert not faults


def test_the_recipes_that_the_engine_is_measured_with_are_valid(tmp_path, monkeypatch):
    runs, endpoint = load("benchmarks/synth/engine_runs.py"), SimpleNamespace(port=9)
    monkeypatch.setattr(runs, "WORK", tmp_path)
    for other in (None, endpoint):
        load_recipe(runs.write_recipe("asked", runs.make_prompts(2), endpoint, other=other))


@pytest.mark.parametrize("line", CALLS)
def test_a_replayed_command_is_one_that_exists(line):
    """A call of a command that is gone would have equal digests for ever."""
    context, arguments = click.Context(stillroom), shlex.split(line)
    while isinstance(context.command, click.Group):
        name, command, arguments = context.command.resolve_command(context, arguments)
        context = click.Context(command, parent=context, info_name=name)
    options = command.make_parser(context).parse_args(arguments)[0]
    missing = [one.name for one in command.params if one.required and not options.get(one.name)]
    assert not missing


def test_the_slow_files_are_there():
    """A file that moved would be run at every save again."""
    listed = (ROOT / "tests/slow_files.txt").read_text(encoding="utf-8").split()
    assert [name for name in listed if not (ROOT / name).is_file()] == []


def test_every_method_that_a_recipe_can_choose_is_replayed():
    recipes = list_recipes()
    names = {name.partition("/")[2] for name, _ in recipes}
    folders = find_registries()
    for seam in ("merge.methods", "synth.filters", "distill.methods", "text.chunkers"):
        assert set(list_names(folders[f"stillroom.{seam}"])) <= names, seam
    assert len({text for _, text in recipes}) == len(recipes)
