"""The scripts of the house and the benchmarks fail where they should."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from stillroom.cli.app import stillroom
from stillroom.registry.catalog import find_registries, list_names
from tests.fuzz.commands import list_recipes
from tests.fuzz.replay import CALLS

ROOT = Path(__file__).resolve().parents[2]


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


def test_benchmarks_and_scripts_import_what_exists():
    """They are run by hand and checked by no types, so a name that moves is found out late."""
    missing = []
    for path in sorted([*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("stillroom"):
                base = ROOT / "src" / node.module.replace(".", "/")
                file = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
                text = file.read_text() if file.is_file() else ""
                missing += [
                    f"{path.relative_to(ROOT)}: {node.module}.{alias.name}"
                    for alias in node.names
                    if not re.search(rf"\b{alias.name}\b", text)
                    and not (base / alias.name).is_dir()
                    and not (base / f"{alias.name}.py").is_file()
                ]
    assert not missing


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
