"""``stillroom serve`` and ``console``: options of the HTTP server (``serve``) and the console."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stillroom.cli.ask import ask_options, ask_settings, passages_option
from stillroom.cli.options import (
    access_options,
    build_access,
    command,
    count_option,
    debug_option,
    existing_path,
    flag_option,
    mark_option,
    official_option,
    path_option,
    paths_option,
    trust_option,
)
from stillroom.cli.output import print_text
from stillroom.errors import RecipeError

if TYPE_CHECKING:
    from stillroom.serve import ServerSettings

__all__ = [
    "console_command",
    "serve_command",
]

_signer_option = paths_option(
    "--signer", "signers", help="Public key of a signer of runs whom you trust; may be repeated."
)


@command(
    "serve",
    "stillroom serve run",
    "stillroom serve index --model ./my-checkpoint --pipeline dense+mmr --unsupported refuse",
    "stillroom serve student=./student teacher=./teacher.gguf docs=./index+./student",
    "stillroom serve --jobs ./workspace --job-workers 2",
    "STILLROOM_API_KEY=... stillroom serve run --host 0.0.0.0 --port 8000",
)
@click.argument("mounts", nargs=-1, metavar="[[NAME=]PATH[+MODEL]]...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@count_option(
    "--port",
    default=8151,
    show_default=True,
    least=0,
    most=65_535,
    help="Port; 0 takes a free one.",
)
@click.option("--model", default="", help="Model to use instead of a run's own, or with an index.")
@path_option("--api-key-file", help="API keys, one a line, with tenant and scopes.")
@passages_option(is_served=True)
@path_option("--jobs", help="Workspace folder of jobs.")
@count_option(
    "--job-workers", default=1, show_default=True, most=64, help="Number of jobs run at once."
)
@click.option(
    "--allow-endpoint",
    "endpoints",
    multiple=True,
    help="URL of a model server that recipes of clients may use; may be repeated.",
)
@flag_option("--allow-hub", help="Allow recipes of clients to download from the hub.")
@click.option(
    "--allow-variable",
    "variables",
    multiple=True,
    help="Variable that ${env:NAME} in recipes of clients may name; may be repeated.",
)
@click.option(
    "--new-key",
    metavar="WORDS",
    help="Generate a key, append its digest to --api-key-file, print it, and serve nothing. "
    "WORDS are 'tenant=NAME scope=SCOPE ...' or ''.",
)
@count_option(
    "--rate",
    default=0,
    show_default=True,
    least=0,
    help="Maximum number of requests a minute for each key; 0 for no limit.",
)
@flag_option("--log", "has_log", help="Log every request as a line of JSON.")
@flag_option("--forensics", help="Enable the media check.")
@paths_option(
    "--detector",
    "detectors",
    help="With --forensics: trained detector, applied to each face; may be repeated.",
)
@paths_option("--trust", help="With --forensics: certificate authorities that you trust, as PEM.")
@paths_option("--official", help="With --forensics: official C2PA trust list, as PEM.")
@mark_option
@_signer_option
@access_options
@ask_options
@debug_option
def serve_command(mounts: tuple[str, ...], **options: Any) -> None:
    """Serve runs and models through an OpenAI-compatible API, run clients' jobs, or both.

    Mounts each argument under its folder's name or the given one: runs, indexes,
    checkpoints (also .gguf files, diffusion models, hub: references and addresses), embedders and
    rerankers.

    Listens on 127.0.0.1 by default; another host needs API keys, from --api-key-file or the
    variable STILLROOM_API_KEY. In an index with tenants a client sees the documents of its key's
    tenant (KEY tenant=NAME principal=LABEL ...), or of --tenant.

    With --jobs clients submit recipes (POST /v1/jobs), which run in separate processes, confined to
    that folder; with tenants, to its subfolder tenants/NAME. With --forensics they submit media
    (POST /v1/forensics/check) and get findings on their origin. Both run in a kernel sandbox if
    Landlock is available; if not, a message at startup says so.
    """
    from stillroom.rag.observability import configure_from_environment
    from stillroom.serve import run_server
    from stillroom.serve.mounts import parse_mount

    if options["new_key"] is not None:
        print_text(_create_key(options["api_key_file"], options["new_key"]))
        return
    _refuse_idle_options(mounts, options)
    parsed_mounts = [parse_mount(text, options["model"]) for text in mounts]
    configure_from_environment()
    run_server(
        parsed_mounts,
        _read_server_settings(options),
        log=(lambda line: print_text(line, err=True)) if options["has_log"] else None,
        say=lambda line: print_text(line, err=True),
    )


def _refuse_idle_options(mounts: tuple[str, ...], options: Mapping[str, Any]) -> None:
    """Refuse a server that would serve nothing, and options of services that it does not have."""
    has_jobs, has_check = options["jobs"] is not None, options["forensics"]
    if not mounts and not has_jobs and not has_check:
        raise RecipeError(
            "there is nothing to serve",
            code="serve.nothing",
            where="stillroom serve",
            expected="the folder of a run, --jobs FOLDER or --forensics",
            next="stillroom serve RUN",
        )
    if (options["detectors"] or options["trust"] or options["official"]) and not has_check:
        raise RecipeError(
            "detectors and trust lists are for the media check",
            code="serve.nothing",
            where="stillroom serve",
            expected="--forensics as well",
            next="add --forensics",
        )
    if options["signers"] and not has_jobs:
        raise RecipeError(
            "signers are for the proof of runs in a workspace",
            code="serve.nothing",
            where="stillroom serve",
            expected="--jobs FOLDER as well",
            next="add --jobs, or stillroom verify RUN --key KEY.pub",
        )


def _read_server_settings(options: Mapping[str, Any]) -> ServerSettings:
    from stillroom.provenance.signing import load_trust
    from stillroom.serve import (
        JobServerSettings,
        MediaCheckSettings,
        RequestLimits,
        ServerSettings,
    )
    from stillroom.serve.jobs.recipe_policy import RecipePolicy

    jobs = media_check = None
    policy = RecipePolicy(options["endpoints"], options["allow_hub"], options["variables"])
    if options["jobs"] is not None:
        jobs = JobServerSettings(options["jobs"], options["job_workers"], policy)
    if options["forensics"]:
        lists = (options[name] for name in ("detectors", "official", "trust"))
        media_check = MediaCheckSettings(*lists)
    return ServerSettings(
        options["host"],
        options["port"],
        answers=ask_settings(options),
        api_key_file=options["api_key_file"],
        access=build_access(options["tenant"], options["principals"]),
        limits=RequestLimits(requests_per_minute=options["rate"]),
        jobs=jobs,
        media_check=media_check,
        trust=load_trust(options["signers"]) if options["signers"] else None,
        is_marked=options["is_marked"],
    )


def _create_key(path: Path | None, words: str) -> str:
    from stillroom.serve.access import create_key

    if path is None:
        raise RecipeError(
            "a new key is written to a key file",
            code="serve.nothing",
            where="--new-key",
            expected="--new-key together with --api-key-file FILE",
            next="stillroom serve --new-key '' --api-key-file keys.txt",
        )
    return create_key(path, words)


@command("console", "stillroom console", "stillroom console ./runs --port 0")
@click.argument("folder", type=existing_path, default=Path())
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@count_option(
    "--port",
    default=8152,
    show_default=True,
    least=0,
    most=65_535,
    help="Port; 0 takes a free one.",
)
@click.option(
    "--allow-endpoint",
    "endpoints",
    multiple=True,
    help="URL of a model server that recipes of jobs may use; may be repeated.",
)
@flag_option("--allow-hub", help="Allow recipes of jobs to download from the hub.")
@paths_option(
    "--detector", "detectors", help="Trained detector, applied to each face; may be repeated."
)
@trust_option
@official_option
@_signer_option
@access_options
@debug_option
def console_command(folder: Path, **options: Any) -> None:
    """Show a folder's runs, records and models in a browser.

    Listens on 127.0.0.1, loads nothing from the network, and requires the key that is printed with
    its address. FOLDER contains your runs; by default the current folder.
    """
    from stillroom.console import run_console
    from stillroom.provenance.signing import load_trust
    from stillroom.serve.jobs.recipe_policy import RecipePolicy
    from stillroom.serve.media_check import MediaCheckService

    run_console(
        folder,
        host=options["host"],
        port=options["port"],
        access=build_access(options["tenant"], options["principals"]),
        policy=RecipePolicy(options["endpoints"], options["allow_hub"]),
        media_check=MediaCheckService(
            detectors=options["detectors"],
            official=options["official"],
            trust=options["trust"],
        ),
        trust=load_trust(options["signers"]) if options["signers"] else None,
        say=lambda line: print_text(line, err=True),
    )
