"""Running the server: where it listens, which keys it takes, and how it stops."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from stillroom.errors import DataError, MissingExtraError, RecipeError
from stillroom.serve.confining import Openings
from stillroom.serve.fence import find_gap
from stillroom.serve.keys import ApiKey, read_keys
from stillroom.serve.limits import Limits
from stillroom.serve.listening import address_of, is_loopback, listen, run_app

if TYPE_CHECKING:
    from stillroom.rag.access import Access
    from stillroom.rag.asking import AskSettings
    from stillroom.serve.mounts import Mount
    from stillroom.serve.running import JobRunner
    from stillroom.serve.served import Served

__all__ = ["JobsHere", "LooksHere", "check_host", "run_server"]

_VARIABLE = "STILLROOM_API_KEY"
_LAST_WORDS_S = 1.0
"""How long before the end of its time a stream is told that it ends."""


@dataclass(frozen=True)
class LooksHere:
    """With what media of clients are looked at; see ``looking.Looker``."""

    detectors: tuple[Path, ...] = ()
    official: tuple[Path, ...] = ()
    trust: tuple[Path, ...] = ()


@dataclass(frozen=True)
class JobsHere:
    """Where jobs of clients run, how many at once, and what they may reach beside the folder."""

    folder: Path
    running: int = 1
    openings: Openings = field(default_factory=Openings)


def run_server(
    mounts: Sequence[Mount],
    host: str = "127.0.0.1",
    port: int = 8151,
    *,
    settings: AskSettings | None = None,
    api_key_file: Path | None = None,
    access: Access | None = None,
    limits: Limits | None = None,
    jobs: JobsHere | None = None,
    looks: LooksHere | None = None,
    log: Callable[[str], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> None:
    """Serve artifacts, or a folder of jobs, or both, until it is interrupted.

    Args:
        mounts: Runs, indexes with models, checkpoints, embedders, rerankers; none serves jobs
            alone.
        host: Where to listen; another than this machine needs keys.
        port: The port; 0 takes a free one.
        settings: How questions are answered where a client does not say.
        api_key_file: Keys, one a line; besides those of STILLROOM_API_KEY.
        access: As whom clients ask whose key names nobody, where the index has tenants.
        limits: What a client may ask for at most.
        jobs: Where jobs of clients run; None takes none.
        looks: With what media of clients are looked at; None takes none.
        log: Told every request as one line of JSON, without anything that was said.
        say: Told where the server listens and what it serves.

    Raises:
        RecipeError: If the host is not this machine and there are no keys.
        DataError: If keys name tenants that the index has not, or the index has tenants and no key
            names one.
        ResourceError: If the port is taken.
        MissingExtraError: If fastapi or uvicorn is not installed.
    """
    keys = read_keys(api_key_file)
    check_host(host, keys)
    try:
        from stillroom.serve.app import create_app
        from stillroom.serve.looking import Looker
        from stillroom.serve.mounts import open_mounts
    except ImportError as error:
        raise MissingExtraError.of("fastapi and uvicorn", "serve", "Serving") from error

    tell = say or (lambda line: None)
    bounds = limits or Limits()
    with ExitStack() as opened:
        listening = opened.enter_context(listen(host, port))
        served = opened.enter_context(
            open_mounts(mounts, settings=settings, access=access, say=say)
        )
        _check_askers(served, keys, access)
        runner = opened.enter_context(_open_jobs(jobs, keys)) if jobs else None
        looker = Looker(**vars(looks)) if looks is not None else None
        app = create_app(served, api_keys=keys, limits=bounds, jobs=runner, looker=looker, log=log)
        names = [name for one in served for name in one.names] + (["jobs"] if runner else [])
        names += ["forensics"] if looker else []
        tell(f"serving {', '.join(names)} at {address_of(listening, host)}/v1")
        if (runner or looker) and (gap := find_gap()):
            tell(gap)
        tell("API keys are asked for" if keys else "no API keys: this machine alone may ask")

        def on_stop() -> None:
            app.state.is_stopping = True
            app.state.desk.end_by(time.monotonic() + max(bounds.drain_s - _LAST_WORDS_S, 0))
            if runner is not None:
                runner.begin_stop()

        run_app(app, listening, drain_s=bounds.drain_s, on_stop=on_stop)


@contextmanager
def _open_jobs(jobs: JobsHere, keys: Sequence[ApiKey]) -> Iterator[JobRunner]:
    """Hold the folder of jobs until the body ends."""
    from stillroom.serve.running import JobRunner
    from stillroom.serve.workspace import Workspace

    for endpoint in jobs.openings.endpoints:
        _check_endpoint(endpoint)
    tenants = {key.access.tenant for key in keys if key.access is not None}
    with Workspace(jobs.folder, has_tenants=bool(tenants)).open() as workspace:
        for tenant in tenants:
            workspace.root(tenant)
        yield JobRunner(workspace, openings=jobs.openings, running=jobs.running)


def _check_endpoint(endpoint: str) -> None:
    parts = urlsplit(endpoint)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username is not None:
        raise RecipeError(
            f"{endpoint!r:.80} is no address that recipes could be let ask",
            code="serve.endpoint",
            where="--allow-endpoint",
            expected="http://HOST[:PORT]/PATH or https://",
            next="give the address as a recipe would, without a model's name",
        )


def _check_askers(served: Sequence[Served], keys: Sequence[ApiKey], access: Access | None) -> None:
    """Refuse keys that nobody could ask with, before the first question."""
    named = [key for key in keys if key.access is not None and "models" in key.scopes]
    rules = {one.rule for one in served if one.ask is not None}
    if "tenants" in rules and not named and access is None:
        raise DataError(
            "the index has tenants, and no API key says who asks",
            code="rag.access-needed",
            where="--api-key-file",
            expected="keys with tenant=NAME after them, or --tenant for all",
            next="write 'KEY tenant=NAME principal=LABEL' into the file of keys",
        )
    if "open" in rules and named:
        raise DataError(
            "a key names a tenant, and the index has none: all keys would see all of it",
            code="rag.no-tenants",
            where="--api-key-file",
            expected="an index made with access: tenants",
            next="leave the tenants out, or build the index with access=tenants metadata=FILE",
        )


def check_host(host: str, keys: Sequence[ApiKey]) -> None:
    """Refuse to listen to others without keys.

    Raises:
        RecipeError: If the host is not this machine and there are no keys.
    """
    if not is_loopback(host) and not keys:
        raise RecipeError(
            f"{host} can be reached from elsewhere, and there are no API keys",
            code="serve.open-host",
            where="--host",
            expected="127.0.0.1, or keys",
            next=f"export {_VARIABLE}=... or give --api-key-file",
        )
