"""What is neither text nor a folder is refused as any other mistake, not as a fault of ours."""

import importlib
import json

import pytest
from click.testing import CliRunner

from stillroom.cli.app import stillroom
from stillroom.errors import StillroomError


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("stillroom.cli.recipes:check_command", "recipe.encoding"),
        ("stillroom.cli.forensics.provenance:init_ca_command", "data.exists"),
        ("stillroom.cli.merge.run:plan_command", "recipe.encoding"),
        ("stillroom.cli.rag.index:rebuild_command", "data.not-an-artifact"),
        ("stillroom.cli.synth.records:drops_command", "data.row"),
    ],
)
def test_a_file_of_other_bytes_is_refused_by_its_place(target, code, tmp_path):
    path = tmp_path / "junk.bin"
    path.write_bytes(b"kind: \xe9\xff\x00\n")
    module, name = target.split(":")
    command = getattr(importlib.import_module(module), name)
    with pytest.raises(StillroomError) as caught:
        command.main([str(path)], standalone_mode=False)
    assert caught.value.code == code
    assert caught.value.problems[0].next


def test_a_folder_without_an_index_is_not_rebuilt(tmp_path):
    module, name = "stillroom.cli.rag.index:rebuild_command".split(":")
    command = getattr(importlib.import_module(module), name)
    with pytest.raises(StillroomError) as caught:
        command.main([str(tmp_path)], standalone_mode=False)
    assert caught.value.code == "data.not-an-artifact"


@pytest.mark.parametrize("target", ["cli.show:show_command", "cli.artifacts:verify_command"])
def test_a_job_that_was_stopped_is_called_unfinished_under_its_own_name(target, tmp_path):
    (tmp_path / ".docx.partial").mkdir()
    module, name = f"stillroom.{target}".split(":")
    command = getattr(importlib.import_module(module), name)
    with pytest.raises(StillroomError, match="docx is unfinished") as caught:
        command.main([str(tmp_path / "docx")], standalone_mode=False)
    assert caught.value.code == "data.unfinished"
    assert "--resume" in caught.value.problems[0].next


def test_a_method_is_shown_beside_the_work_of_a_job_of_its_name(tmp_path, monkeypatch, capsys):
    from stillroom.cli.show import show_command

    monkeypatch.chdir(tmp_path)
    (tmp_path / ".sentence.partial").mkdir()
    show_command.main(["sentence"], standalone_mode=False)
    assert capsys.readouterr().out.startswith("sentence  (")


def test_a_page_of_checks_replaces_no_file(tmp_path):
    page = tmp_path / "page.html"
    page.write_text("mine")
    result = CliRunner().invoke(stillroom, ["forensics", "check", ".", "--html", str(page)])
    assert (result.exception.code, page.read_text()) == ("data.exists", "mine")
    words = ["forensics", "check", str(tmp_path), "--overwrite", "--html"]
    assert CliRunner().invoke(stillroom, [*words, str(page)]).exit_code == 1  # no media
    assert page.read_text().startswith("<!doctype html>")
    assert CliRunner().invoke(stillroom, [*words, str(tmp_path)]).exception.code == "data.exists"


def test_jobs_beside_one_that_cannot_be_read_are_listed(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "artifact.json").write_text("{")
    result = CliRunner().invoke(stillroom, ["list", "jobs", str(tmp_path), "--json"])
    rows = json.loads(result.stdout)["jobs"]
    assert [row["name"] for row in rows] == ["a", "b"]
    assert all("cannot be read" in row["summary"] for row in rows)


def test_jobs_beside_one_that_the_system_refuses_are_listed(tmp_path):
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "artifact.json").symlink_to("/proc/self/mem")  # reading it fails
    (tmp_path / "folder" / "artifact.json").mkdir(parents=True)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "other").mkdir()
    (tmp_path / "file.txt").touch()
    (tmp_path / ".begun.partial").mkdir()
    result = CliRunner().invoke(stillroom, ["list", "jobs", str(tmp_path), "--json"])
    rows = {row["name"]: row["summary"] for row in json.loads(result.stdout)["jobs"]}
    assert rows.keys() == {"damaged", "folder", "loop", "begun"}
    assert "cannot be read" in rows["damaged"]
    assert "holds no artifact.json" in rows["folder"]
    assert "Too many levels of symbolic links" in rows["loop"]


def test_jobs_of_a_folder_that_is_not_there_are_not_none(tmp_path):
    result = CliRunner().invoke(stillroom, ["list", "jobs", str(tmp_path / "missing")])
    assert isinstance(result.exception, FileNotFoundError)
