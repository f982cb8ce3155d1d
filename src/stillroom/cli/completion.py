"""``stillroom completion``: what makes a shell complete commands, options and names."""

from __future__ import annotations

import click

from stillroom.cli.options import debug_option

__all__ = ["command"]

_VARIABLE = "_STILLROOM_COMPLETE"


@click.command(
    "completion",
    epilog="""
\b
Examples:
  stillroom completion bash > ~/.local/share/bash-completion/completions/stillroom
  stillroom completion zsh > ~/.zfunc/_stillroom
  stillroom completion fish > ~/.config/fish/completions/stillroom.fish
""",
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@debug_option
def command(shell: str) -> None:
    """Print what makes a shell complete commands.

    Put it where SHELL looks for such files, as the examples do, and open a new one. Names of
    commands, options, choices, methods and files are completed; zsh wants ~/.zfunc in its fpath.
    """
    from click.shell_completion import get_completion_class

    from stillroom.cli.app import stillroom

    kind = get_completion_class(shell)
    if kind is None:  # click brings all three
        raise click.UsageError(f"no completion for {shell}")
    script = kind(stillroom, {}, "stillroom", _VARIABLE)
    click.echo(script.source_template % script.source_vars())
