"""Functions that a job kind names as text exist, with the arguments that are passed."""

import re
from importlib import import_module
from inspect import signature
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "stillroom"
_TRAINER = re.compile(r'declare_kind\(\s*\w+,\s*"(\w+):(\w+)"')
_DEFERRED = re.compile(r'defer\(\s*"([\w.]+):(\w+)"')


def _list_deferred() -> list[tuple[str, str, int]]:
    found = []
    for file in sorted(SOURCE.rglob("jobs/*.py")):
        text = file.read_text()
        found += [(f"stillroom.distill.trainers.{a}", b, 3) for a, b in _TRAINER.findall(text)]
        found += [(a, b, 1 if b.startswith("estimate") else 2) for a, b in _DEFERRED.findall(text)]
    return found


def test_there_are_deferred_functions() -> None:
    assert len(_list_deferred()) >= 10


@pytest.mark.parametrize(("module", "name", "count"), _list_deferred())
def test_a_deferred_function_takes_recipe_and_job(module: str, name: str, count: int) -> None:
    signature(getattr(import_module(module), name)).bind(*range(count))
