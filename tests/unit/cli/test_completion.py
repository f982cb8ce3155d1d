"""Shells complete commands, options, choices and names of methods."""

import shutil
import subprocess

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from stillroom.cli.app import stillroom


def complete(*words):
    *before, incomplete = words
    shell = ShellComplete(stillroom, {}, "stillroom", "_STILLROOM_COMPLETE")
    return [item.value for item in shell.get_completions(list(before), incomplete)]


def test_a_dotted_kind_takes_the_methods_of_its_room():
    assert complete("new", "merge.weights/tie") == ["merge.weights/ties"]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("doc",), ["doctor"]),
        (("merge", "ca"), ["calibrate"]),
        (("checkpoint", "export", "--ty"), ["--type"]),
        (("checkpoint", "export", "--type", "q"), ["q8_0"]),
        (("new", "merge.w"), ["merge.weights"]),
        (("new", "merge.weights/tie"), ["merge.weights/ties"]),
        (("new", "flow/"), ["flow/make", "flow/student"]),
        (("rag", "migrate", "index", "--to", "p"), ["postgres"]),
        (("list", "methods", "merge."), ["merge.methods"]),
        (("show", "breadcrumbs_"), ["breadcrumbs_ties"]),
        (("completion", ""), ["bash", "zsh", "fish"]),
    ],
)
def test_names_are_completed(words, found):
    assert complete(*words) == found


def test_a_path_is_completed_where_no_method_begins_so():
    shell = ShellComplete(stillroom, {}, "stillroom", "_STILLROOM_COMPLETE")
    assert [item.type for item in shell.get_completions(["show"], "runs/")] == ["file"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_script(shell):
    done = CliRunner().invoke(stillroom, ["completion", shell])
    assert done.exit_code == 0
    assert f"_STILLROOM_COMPLETE={shell}_complete" in done.output


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_takes_the_script():
    script = CliRunner().invoke(stillroom, ["completion", "bash"]).output
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert isinstance(stillroom, click.Group)
