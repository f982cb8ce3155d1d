"""A job whose packages are not installed is refused before it starts, or leaves nothing."""

import importlib.util
from dataclasses import replace

import pytest
from click.testing import CliRunner

from stillroom.cli.app import stillroom
from stillroom.errors import MissingExtraError, RecipeError
from stillroom.flow import job as flow_job
from stillroom.flow import run_recipe
from stillroom.jobs import extras
from stillroom.recipes import load_recipe


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "a.txt").write_text("It works.", encoding="utf-8")
    kind = next(name for name in ("rag", "rag.index") if is_kind(name))
    path = tmp_path / "recipe.yaml"
    path.write_text(f"kind: {kind}\ndocuments: documents\nembedder: builtin:static\n")
    return path


def is_kind(name):
    from stillroom.recipes import list_kinds

    return name in list_kinds()


def declare(monkeypatch, **changes):
    find = flow_job.find_job_kind
    monkeypatch.setattr(flow_job, "find_job_kind", lambda kind: replace(find(kind), **changes))


def test_check_and_run_refuse_a_job_without_its_extra(recipe, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "torch" else find(name))
    declare(monkeypatch, extras=("models",))
    checked = CliRunner().invoke(stillroom, ["check", str(recipe)])
    assert isinstance(checked.exception, MissingExtraError)
    assert "fits" not in checked.output
    with pytest.raises(MissingExtraError):
        run_recipe(load_recipe(recipe), tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"documents", "recipe.yaml"}


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("no torch", name="torch"),
        RecipeError("unknown chat template", code="merge.chat-template"),
    ],
)
@pytest.mark.parametrize("has_worked", [False, True])
def test_a_run_that_is_refused_leaves_only_work(recipe, tmp_path, monkeypatch, has_worked, error):
    def run(recipe, job):
        if has_worked:
            (job.output / "part").write_text("done")
        raise error

    declare(monkeypatch, run=run)
    with pytest.raises(type(error)):
        run_recipe(load_recipe(recipe), tmp_path / "out")
    assert (tmp_path / ".out.partial").exists() == has_worked
