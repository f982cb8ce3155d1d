"""``stillroom check``: validate a recipe and say what it will need; do nothing."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.options import debug_option, existing_path, json_option, print_json

__all__ = ["command"]


@click.command(
    "check",
    epilog="""
\b
Examples:
  stillroom check recipes/merge-ties.yaml
  stillroom check my.yaml --out /mnt/large/run seed=3
""",
)
@click.argument("recipe", type=existing_path)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--out", type=existing_path, default=Path("run"), help="Where it would be written.")
@json_option
@debug_option
def command(recipe: Path, overrides: tuple[str, ...], out: Path, as_json: bool) -> None:
    """Validate a recipe and estimate memory, disk and time.

    What it takes must be there: paths are looked for, references as hub:ORG/NAME and addresses are
    not.
    """
    from stillroom.flow import check_inputs, estimate_recipe, outline_recipe, preflight_recipe
    from stillroom.jobs import check_fits, describe_machine
    from stillroom.jobs.estimate import say_size
    from stillroom.recipes import load_recipe, locate_settings

    loaded = load_recipe(recipe, overrides)
    check_inputs(loaded, locate_settings(recipe, overrides))
    estimate = estimate_recipe(loaded)
    flight = preflight_recipe(loaded, out, machine=False)
    machine = describe_machine(out)
    outline = outline_recipe(loaded)
    if as_json:
        print_json(
            {
                "memory_bytes": estimate.memory_bytes,
                "disk_bytes": estimate.disk_bytes,
                "seconds": estimate.seconds,
                "basis": estimate.basis,
                **({"graph": outline} if outline else {}),
                **({"preflight": flight.to_json()} if flight else {}),
            }
        )
    else:
        rows = [
            ("memory", say_size(estimate.memory_bytes), machine.memory_bytes),
            ("disk", say_size(estimate.disk_bytes), machine.disk_bytes),
        ]
        for name, needed, free in rows:
            click.echo(f"{name:8} about {needed} of {free / 1e9:.1f} GB free")
        click.echo(f"time     about {_say_time(estimate.seconds)} on {machine.cores} cores")
        click.echo(f"basis    {estimate.basis}")
        for line in outline:
            click.echo(line)
        for line in flight.lines() if flight else ():
            click.echo(line)
    if flight:
        flight.raise_errors()
    check_fits(estimate, machine, str(recipe))
    if not as_json:
        click.echo(f"{recipe} is valid and fits")


def _say_time(seconds: float) -> str:
    if seconds < 1:
        return "a second"
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
