from pathlib import Path

from stillroom.flow.run import read_make_recipe


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
