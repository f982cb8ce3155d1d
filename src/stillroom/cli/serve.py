"""``stillroom serve``: a run behind an OpenAI-compatible API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stillroom.cli.asking import ask_options, ask_settings
from stillroom.cli.judged import find_access
from stillroom.cli.options import access_options, debug_option, existing_path

__all__ = ["command"]


@click.command(
    "serve",
    epilog="""
\b
Examples:
  stillroom serve run
  stillroom serve index --model ./my-checkpoint --way dense+mmr --unsupported refuse
  STILLROOM_API_KEY=... stillroom serve run --host 0.0.0.0 --port 8000
""",
)
@click.argument("run", type=existing_path)
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", default=8151, show_default=True, help="The port; 0 takes a free one.")
@click.option("--model", default="", help="Another model than the run's own.")
@click.option(
    "--api-key-file", type=existing_path, default=None, help="Keys, one a line, with who asks."
)
@click.option(
    "--k",
    default=3,
    type=click.IntRange(min=1, max=50),
    show_default=True,
    help="How many passages the model is shown.",
)
@access_options
@ask_options
@debug_option
def command(
    run: Path,
    host: str,
    port: int,
    model: str,
    api_key_file: Path | None,
    tenant: str,
    principals: tuple[str, ...],
    **given: Any,
) -> None:
    """Serve a run behind an OpenAI-compatible API.

    Listens on this machine alone unless told otherwise; another host needs API keys, from
    --api-key-file or the variable STILLROOM_API_KEY. Of an index with tenants a key's client sees
    what the key's own line says (KEY tenant=NAME principal=LABEL ...), or --tenant.
    """
    from stillroom.rag.tracing import trace_if_asked
    from stillroom.serve import run_server

    trace_if_asked()
    run_server(
        run,
        host=host,
        port=port,
        model=model,
        settings=ask_settings(given),
        api_key_file=api_key_file,
        access=find_access(tenant, principals),
        say=lambda line: click.echo(line, err=True),
    )
