"""Every command is listed as it describes itself, shows examples, and starts fast."""

import tomllib

import click
import pytest
from click.testing import CliRunner

from stillroom.cli.app import CommandGroup, stillroom
from tests.contracts.sources import ROOT


def commands(group=stillroom, path=()):
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield (*path, name), command, group.found[name][1]
        if isinstance(command, CommandGroup):
            yield from commands(command, (*path, name))


COMMANDS = list(commands())


@pytest.mark.parametrize(
    ("path", "command", "line"), COMMANDS, ids=[" ".join(c[0]) for c in COMMANDS]
)
def test_command_is_listed_as_it_describes_itself_with_examples_and_options(path, command, line):
    assert command.name == path[-1]
    assert command.help.split("\n", 1)[0] == line
    examples = [row for row in command.epilog.splitlines() if "stillroom " in row]
    assert len(examples) >= 2
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help


_WITHOUT_JSON = {
    "completion": "prints a script",
    "console": "serves until it is stopped",
    "new": "prints a recipe, which is YAML",
    "serve": "serves until it is stopped",
}
"""Commands without ``--json``, each with its reason."""


def test_every_other_command_prints_json_when_asked():
    without = {
        " ".join(path)
        for path, command, _ in COMMANDS
        if not isinstance(command, click.Group)
        and "--json" not in {name for option in command.params for name in option.opts}
    }
    assert without == _WITHOUT_JSON.keys()


def test_every_extra_says_what_it_is_for():
    from stillroom.jobs.extras import PURPOSES

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = declared["optional-dependencies"].keys() - {"all", "dev", "docs", "release"}
    assert extras == PURPOSES.keys()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not {extra for extra in extras if f"`{extra}`" not in readme}


def test_every_whole_number_has_bounds():
    without = {
        (" ".join(path), option.opts[0])
        for path, command, _ in COMMANDS
        for option in command.params
        if type(option.type) is type(click.INT)
    }
    assert not without


_FRACTIONS = [
    pytest.param(command, option.opts[0], id=" ".join([*path, option.opts[0]]))
    for path, command, _ in COMMANDS
    for option in command.params
    if isinstance(option.type, type(click.FLOAT))
]


@pytest.mark.parametrize(("command", "option"), _FRACTIONS)
def test_every_number_with_a_fraction_is_finite(command, option):
    for number in ("nan", "-NaN", "inf", "-inf", "1e999"):
        told = CliRunner().invoke(command, [f"{option}={number}"])
        assert told.exit_code == 2
        assert f"Invalid value for '{option}'" in told.stderr
        assert "finite number" in told.stderr or "in the range" in told.stderr
