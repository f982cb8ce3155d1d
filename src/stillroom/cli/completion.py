"""``stillroom completion``: shell completion scripts, and completion of names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from stillroom.cli.options import command, debug_option

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

__all__ = [
    "complete_recipes",
    "complete_registries",
    "complete_shown",
    "complete_stores",
    "completion_command",
]

_COMPLETE_VARIABLE = "_STILLROOM_COMPLETE"


@command(
    "completion",
    "stillroom completion bash > ~/.local/share/bash-completion/completions/stillroom",
    "stillroom completion zsh > ~/.zfunc/_stillroom",
    "stillroom completion fish > ~/.config/fish/completions/stillroom.fish",
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@debug_option
def completion_command(shell: str) -> None:
    """Print the shell completion script.

    Save it where SHELL looks for such files, as in the examples, and start a new shell. Names of
    commands, options, choices, methods and files are completed; zsh needs ~/.zfunc in its fpath.
    """
    from click.shell_completion import get_completion_class

    from stillroom.cli.app import stillroom

    kind = get_completion_class(shell)
    if kind is None:  # click supports all three
        raise click.UsageError(f"no completion for {shell}")
    script = kind(stillroom, {}, "stillroom", _COMPLETE_VARIABLE)
    click.echo(script.source_template % script.source_vars())


def complete_recipes(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[str]:
    """Complete KIND, and KIND/METHOD after a slash."""
    from stillroom.registry.catalog import (
        find_registries,
        list_examples,
        list_kind_names,
        list_names,
    )

    kind, slash, start = incomplete.partition("/")
    if not slash:
        return [name for name in list_kind_names() if name.startswith(kind)]
    room = f".{kind.partition('.')[0]}."
    folders = [folder for registry, folder in find_registries().items() if room in registry]
    names = {name for folder in folders for name in list_names(folder)}
    if kind in list_kind_names():
        names.update(list_examples(kind))
    return [f"{kind}/{name}" for name in sorted(names) if name.startswith(start)]


def complete_registries(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[str]:
    """Complete a registry such as ``merge.methods``."""
    from stillroom.registry.catalog import find_registries

    short = [registry.removeprefix("stillroom.") for registry in find_registries()]
    return [registry for registry in short if registry.startswith(incomplete)]


def complete_stores(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[str]:
    """Complete the stores of an index."""
    from stillroom.registry.catalog import find_registries, list_names

    names = list_names(find_registries()["stillroom.rag.stores"])
    return [name for name in names if name.startswith(incomplete)]


def complete_shown(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete a method's name, or a path if no method matches."""
    from click.shell_completion import CompletionItem

    from stillroom.registry.catalog import find_registries, list_names

    names = sorted({name for folder in find_registries().values() for name in list_names(folder)})
    matches = [name for name in names if incomplete and name.startswith(incomplete)]
    return [CompletionItem(name) for name in matches] or [CompletionItem(incomplete, type="file")]
