"""``stillroom console``: pages over a folder of runs, on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.judged import find_access
from stillroom.cli.options import access_options, debug_option, existing_path

__all__ = ["command"]


@click.command(
    "console",
    epilog="""
\b
Examples:
  stillroom console
  stillroom console ./runs --port 0
""",
)
@click.argument("folder", type=existing_path, default=Path())
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=8152,
    show_default=True,
    help="The port; 0 takes a free one.",
)
@click.option(
    "--allow-endpoint",
    "endpoints",
    multiple=True,
    help="An address that recipes of jobs may ask models at; may be repeated.",
)
@click.option("--allow-hub", is_flag=True, help="Let recipes of jobs download from the hub.")
@click.option(
    "--detector",
    "detectors",
    type=existing_path,
    multiple=True,
    help="A trained detector that looks at each face of media; may be repeated.",
)
@click.option(
    "--trust", type=existing_path, multiple=True, help="Authorities that you trust, as PEM."
)
@click.option(
    "--official", type=existing_path, multiple=True, help="The C2PA's own trust list, as PEM."
)
@access_options
@debug_option
def command(
    folder: Path,
    host: str,
    port: int,
    endpoints: tuple[str, ...],
    allow_hub: bool,
    detectors: tuple[Path, ...],
    trust: tuple[Path, ...],
    official: tuple[Path, ...],
    tenant: str,
    principals: tuple[str, ...],
) -> None:
    """Show a folder's runs, records and models in a browser.

    Listens on this machine alone, fetches nothing from elsewhere, and asks for the key that it
    prints with its address. FOLDER is the folder that your runs lie in; by default this one.
    """
    from stillroom.console import run_console
    from stillroom.serve.confining import Openings
    from stillroom.serve.looking import Looker

    run_console(
        folder,
        host=host,
        port=port,
        access=find_access(tenant, principals),
        openings=Openings(endpoints, allow_hub),
        looker=Looker(detectors=detectors, official=official, trust=trust),
        say=lambda line: click.echo(line, err=True),
    )
