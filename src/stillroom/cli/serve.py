"""``stillroom serve`` and ``console``: the HTTP server and the web console."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stillroom.cli.ask import ask_options, ask_settings
from stillroom.cli.options import access_options, build_access, debug_option, existing_path

__all__ = [
    "console_command",
    "serve_command",
]


@click.command(
    "serve",
    epilog="""
\b
Examples:
  stillroom serve run
  stillroom serve index --model ./my-checkpoint --way dense+mmr --unsupported refuse
  stillroom serve student=./student teacher=./teacher.gguf docs=./index+./student
  stillroom serve --jobs ./workspace --job-workers 2
  STILLROOM_API_KEY=... stillroom serve run --host 0.0.0.0 --port 8000
""",
)
@click.argument("mounts", nargs=-1, metavar="[[NAME=]PATH[+MODEL]]...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=8151,
    show_default=True,
    help="The port; 0 takes a free one.",
)
@click.option("--model", default="", help="Another model than a run's own; the one of an index.")
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
@click.option("--jobs", type=existing_path, default=None, help="The folder that jobs run in.")
@click.option(
    "--job-workers",
    default=1,
    type=click.IntRange(min=1, max=64),
    show_default=True,
    help="How many jobs run at once.",
)
@click.option(
    "--allow-endpoint",
    "endpoints",
    multiple=True,
    help="An address that recipes of clients may ask models at; may be repeated.",
)
@click.option("--allow-hub", is_flag=True, help="Let recipes of clients download from the hub.")
@click.option(
    "--allow-variable",
    "variables",
    multiple=True,
    help="A variable that ${env:NAME} in recipes of clients may name; may be repeated.",
)
@click.option(
    "--new-key",
    default=None,
    metavar="WORDS",
    help="Draw a key, append its digest to --api-key-file, print it, and serve nothing. WORDS are "
    "'tenant=NAME scope=SCOPE ...' or ''.",
)
@click.option(
    "--rate",
    default=0,
    type=click.IntRange(min=0),
    show_default=True,
    help="Requests a minute that each key may send; 0 for no limit.",
)
@click.option("--log", "has_log", is_flag=True, help="Write a line of JSON for every request.")
@click.option("--forensics", is_flag=True, help="Look at media that clients send.")
@click.option(
    "--detector",
    "detectors",
    type=existing_path,
    multiple=True,
    help="With --forensics: a trained detector that looks at each face; may be repeated.",
)
@click.option(
    "--trust",
    type=existing_path,
    multiple=True,
    help="With --forensics: authorities that you trust, as PEM.",
)
@click.option(
    "--official",
    type=existing_path,
    multiple=True,
    help="With --forensics: the C2PA's own trust list, as PEM.",
)
@access_options
@ask_options
@debug_option
def serve_command(
    mounts: tuple[str, ...],
    host: str,
    port: int,
    model: str,
    api_key_file: Path | None,
    tenant: str,
    principals: tuple[str, ...],
    jobs: Path | None,
    job_workers: int,
    endpoints: tuple[str, ...],
    allow_hub: bool,
    variables: tuple[str, ...],
    new_key: str | None,
    rate: int,
    has_log: bool,
    forensics: bool,
    detectors: tuple[Path, ...],
    trust: tuple[Path, ...],
    official: tuple[Path, ...],
    **given: Any,
) -> None:
    """Serve a run behind an OpenAI-compatible API, jobs of clients, or both.

    Mounts what is named, each under its folder's name or the one given: runs, indexes with a model,
    checkpoints (.gguf files, diffusion models, hub: references and addresses too), embedders and
    rerankers.

    Listens on this machine alone unless told otherwise; another host needs API keys, from
    --api-key-file or the variable STILLROOM_API_KEY. Of an index with tenants a key's client sees
    what the key's own line says (KEY tenant=NAME principal=LABEL ...), or --tenant.

    With --jobs clients send recipes (POST /v1/jobs), which run in processes of their own, confined
    to that folder; with keys of tenants, to tenants/NAME of it. With --forensics they send media
    (POST /v1/forensics/check) and are told what is known of their origin. Both are fenced in by the
    kernel where it has Landlock; where not, that is said at the start.
    """
    from stillroom.errors import RecipeError
    from stillroom.rag.observability import configure_from_environment
    from stillroom.serve import JobServerSettings, MediaCheckSettings, RequestLimits, run_server
    from stillroom.serve.jobs.recipe_policy import RecipePolicy
    from stillroom.serve.mounts import parse_mount

    if new_key is not None:
        click.echo(_create_key(api_key_file, new_key))
        return
    if not mounts and jobs is None and not forensics:
        raise RecipeError(
            "there is nothing to serve",
            code="serve.nothing",
            where="stillroom serve",
            expected="the folder of a run, --jobs FOLDER or --forensics",
            next="stillroom serve RUN",
        )
    if (detectors or trust or official) and not forensics:
        raise RecipeError(
            "detectors and lists of authorities are for media that clients send",
            code="serve.nothing",
            where="stillroom serve",
            expected="--forensics beside them",
            next="add --forensics",
        )
    found = [parse_mount(text, model) for text in mounts]
    openings = RecipePolicy(endpoints, allow_hub, variables)

    configure_from_environment()
    run_server(
        found,
        host=host,
        port=port,
        settings=ask_settings(given),
        api_key_file=api_key_file,
        access=build_access(tenant, principals),
        limits=RequestLimits(requests_per_minute=rate),
        log=(lambda line: click.echo(line, err=True)) if has_log else None,
        looks=MediaCheckSettings(detectors, official, trust) if forensics else None,
        jobs=JobServerSettings(jobs, job_workers, openings) if jobs is not None else None,
        say=lambda line: click.echo(line, err=True),
    )


def _create_key(path: Path | None, words: str) -> str:
    from stillroom.errors import RecipeError
    from stillroom.serve.access import create_key

    if path is None:
        raise RecipeError(
            "a new key belongs in a file of keys",
            code="serve.nothing",
            where="--new-key",
            expected="--api-key-file FILE beside it",
            next="stillroom serve --new-key '' --api-key-file keys.txt",
        )
    return create_key(path, words)


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
def console_command(
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
    from stillroom.serve.jobs.recipe_policy import RecipePolicy
    from stillroom.serve.media_check import MediaCheckService

    run_console(
        folder,
        host=host,
        port=port,
        access=build_access(tenant, principals),
        openings=RecipePolicy(endpoints, allow_hub),
        looker=MediaCheckService(detectors=detectors, official=official, trust=trust),
        say=lambda line: click.echo(line, err=True),
    )
