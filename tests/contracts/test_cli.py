"""Every command is listed as it describes itself, shows examples, and starts fast."""

import subprocess
import sys

import click
import pytest

from stillroom.cli.app import LazyGroup, stillroom


def commands(group=stillroom, path=()):
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield (*path, name), command, group.lazy[name][1]
        if isinstance(command, LazyGroup):
            yield from commands(command, (*path, name))


COMMANDS = list(commands())


@pytest.mark.parametrize(
    ("path", "command", "line"), COMMANDS, ids=[" ".join(c[0]) for c in COMMANDS]
)
def test_command_is_listed_as_it_describes_itself(path, command, line):
    assert command.name == path[-1]
    assert command.help.split("\n", 1)[0] == line


@pytest.mark.parametrize(
    ("path", "command", "line"), COMMANDS, ids=[" ".join(c[0]) for c in COMMANDS]
)
def test_command_shows_two_examples_and_explains_its_options(path, command, line):
    examples = [row for row in command.epilog.splitlines() if "stillroom " in row]
    assert len(examples) >= 2
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help


@pytest.mark.parametrize("arguments", [["--help"], ["list", "methods"], ["show", "linear"]])
def test_start_imports_neither_torch_nor_pydantic(arguments):
    code = (
        "import sys\nfrom stillroom.cli import stillroom\n"
        f"stillroom.main({arguments!r}, standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'pydantic', 'numpy', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
