from pathlib import Path

import pytest

from stillroom.errors import DataError
from stillroom.flow.opening import find_checkpoint, open_run
from stillroom.flow.run import read_make_recipe, run_make
from stillroom.provenance import read_artifact
from stillroom.rag.retrieval.pipeline import retrieve
from stillroom.testing import tiny_checkpoint


@pytest.fixture
def too_little(tmp_path):
    """Return the main job's arguments for a folder that gives no record."""
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "a.txt").write_text("Hello to all. It works.", encoding="utf-8")
    teacher = tiny_checkpoint(tmp_path / "teacher", layers=4, context_length=2048)
    student = "steps.student.student={layers: 2, max_parameters: 1.0}"
    return [f"inputs.teacher={teacher}", "inputs.embedder=builtin:static", student]


def test_a_folder_that_gives_no_record_ends_as_an_index_that_can_be_asked(tmp_path, too_little):
    out = tmp_path / "run"
    artifact = run_make(tmp_path / "documents", out, overrides=too_little)
    assert list(artifact.details["steps"]) == ["index"]
    assert "no training record is kept" in artifact.details["skipped"]["records"]
    assert artifact.details["skipped"]["merged"] == "it needs student"
    assert "no training record is kept" in (out / "report.html").read_text(encoding="utf-8")
    with open_run(out) as opened:
        assert opened.name == "teacher"
        (hit,) = retrieve(opened.index, "What works?")
        assert hit.passage.text == "Hello to all. It works."
    assert find_checkpoint(str(out)) == (tmp_path / "teacher", None)
    again = run_make(tmp_path / "documents", out, overrides=too_little)
    assert again.digest == artifact.digest
    assert read_artifact(out).digest == artifact.digest


def test_without_a_fallback_such_a_run_fails_with_the_reason(tmp_path, too_little):
    with pytest.raises(DataError) as caught:
        run_make(
            tmp_path / "documents",
            tmp_path / "run",
            overrides=[*too_little, "answer={index: index, model: merged}"],
        )
    assert caught.value.code == "synth.nothing-kept"


def test_paths_on_the_command_line_start_at_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = read_make_recipe(
        Path("documents"), ["inputs.teacher=./teacher", "inputs.embedder=builtin:static"]
    )
    assert recipe.inputs == {
        "documents": str(tmp_path / "documents"),
        "teacher": str(tmp_path / "teacher"),
        "embedder": "builtin:static",
    }
