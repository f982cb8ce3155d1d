"""HTTP server: listening socket, API keys, startup checks and graceful shutdown.

The server bounds how long a body may take and how long a connection may rest between requests; a
head that comes a byte at a time is neither, and enough of them would take every file descriptor.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from stillroom.errors import DataError, MissingExtraError, RecipeError, ResourceError
from stillroom.serve.access import ApiKey, RequestLimits, read_keys
from stillroom.serve.jobs.recipe_policy import RecipePolicy
from stillroom.serve.jobs.sandbox import describe_sandbox_gap

if TYPE_CHECKING:
    from stillroom.rag.index.view import AccessContext
    from stillroom.rag.settings import AnswerOptions
    from stillroom.serve.jobs.runner import JobRunner
    from stillroom.serve.mounts import Mount, ServedModel

__all__ = [
    "JobServerSettings",
    "MediaCheckSettings",
    "build_header_timeout_protocol",
    "check_host",
    "format_url",
    "is_loopback",
    "listen",
    "run_app",
    "run_server",
]


_KEY_VARIABLE = "STILLROOM_API_KEY"


_FINAL_EVENT_S = 1.0


"""How long before the end of its time a stream is told that it ends."""


@dataclass(frozen=True)
class MediaCheckSettings:
    """With what media of clients are looked at; see ``looking.Looker``."""

    detectors: tuple[Path, ...] = ()
    official: tuple[Path, ...] = ()
    trust: tuple[Path, ...] = ()


@dataclass(frozen=True)
class JobServerSettings:
    """Where jobs of clients run, how many at once, and what they may reach beside the folder."""

    folder: Path
    running: int = 1
    openings: RecipePolicy = field(default_factory=RecipePolicy)


def run_server(
    mounts: Sequence[Mount],
    host: str = "127.0.0.1",
    port: int = 8151,
    *,
    settings: AnswerOptions | None = None,
    api_key_file: Path | None = None,
    access: AccessContext | None = None,
    limits: RequestLimits | None = None,
    jobs: JobServerSettings | None = None,
    looks: MediaCheckSettings | None = None,
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
        from stillroom.serve.media_check import MediaCheckService
        from stillroom.serve.mounts import open_mounts
    except ImportError as error:
        raise MissingExtraError.of("fastapi and uvicorn", "serve", "Serving") from error

    tell = say or (lambda line: None)
    bounds = limits or RequestLimits()
    with ExitStack() as opened:
        listening = opened.enter_context(listen(host, port))
        served = opened.enter_context(
            open_mounts(mounts, settings=settings, access=access, say=say)
        )
        _check_key_tenants(served, keys, access)
        runner = opened.enter_context(_open_job_runner(jobs, keys)) if jobs else None
        looker = MediaCheckService(**vars(looks)) if looks is not None else None
        app = create_app(served, api_keys=keys, limits=bounds, jobs=runner, looker=looker, log=log)
        names = [name for one in served for name in one.names] + (["jobs"] if runner else [])
        names += ["forensics"] if looker else []
        tell(f"serving {', '.join(names)} at {format_url(listening, host)}/v1")
        if (runner or looker) and (gap := describe_sandbox_gap()):
            tell(gap)
        tell("API keys are asked for" if keys else "no API keys: this machine alone may ask")

        def on_stop() -> None:
            app.state.is_stopping = True
            app.state.desk.end_by(time.monotonic() + max(bounds.drain_s - _FINAL_EVENT_S, 0))
            if runner is not None:
                runner.begin_stop()

        run_app(app, listening, drain_s=bounds.drain_s, on_stop=on_stop)


@contextmanager
def _open_job_runner(jobs: JobServerSettings, keys: Sequence[ApiKey]) -> Iterator[JobRunner]:
    """Hold the folder of jobs until the body ends."""
    from stillroom.serve.jobs.runner import JobRunner
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


def _check_key_tenants(
    served: Sequence[ServedModel], keys: Sequence[ApiKey], access: AccessContext | None
) -> None:
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
            next=f"export {_KEY_VARIABLE}=... or give --api-key-file",
        )


"""What this machine calls itself."""


_HEADER_TIMEOUT_S = 15.0


_BACKLOG = 512


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def format_url(listening: socket.socket, host: str) -> str:
    """Return the address that a client asks, under the host that was named."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listening.getsockname()[1]}"


def listen(host: str, port: int) -> socket.socket:
    """Return a bound socket.

    Raises:
        ResourceError: If the address is not this machine's, or the port is taken.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(found[0], socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(found[4])
            listening.listen(_BACKLOG)  # who comes before the server has begun waits, unrefused
        except OSError:
            listening.close()
            raise
    except OSError as error:
        raise ResourceError(
            f"cannot listen at {host}:{port}: {error.strerror or error}",
            code="serve.port",
            where="--host, --port",
            expected="an address of this machine and a free port",
            next="choose another --port; 0 takes a free one",
        ) from error
    return listening


def run_app(
    app: Any, listening: socket.socket, *, drain_s: int, on_stop: Callable[[], None]
) -> None:
    """Serve an ASGI app until it is interrupted, or asked to end (SIGTERM), and return then.

    Args:
        app: The app.
        listening: A bound socket.
        drain_s: How long requests that run are waited for at the end.
        on_stop: Called before they are, so that those end that would go on for ever.
    """
    import uvicorn

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            on_stop()
            await super().shutdown(sockets)

    config = uvicorn.Config(
        app,
        http=build_header_timeout_protocol(_HEADER_TIMEOUT_S),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=drain_s,
    )
    with _survive_signal(signal.SIGTERM):
        Server(config).run(sockets=[listening])


@contextlib.contextmanager
def _survive_signal(number: signal.Signals) -> Iterator[None]:
    """Let a signal end the body alone: uvicorn raises it once more when it has stopped.

    Taken as it comes by default, it would end the process there, before models, traces and locks
    are closed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(number, before)


class _HeaderTimer:
    """Runs while a head is awaited; further bytes of the same head do not set it back."""

    def __init__(self, seconds: float, ring: Callable[[], None]) -> None:
        self._seconds, self._ring = seconds, ring
        self._timer: asyncio.TimerHandle | None = None

    def run(self, *, is_awaited: bool) -> None:
        if not is_awaited:
            self.stop()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self._ring)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def build_header_timeout_protocol(head_s: float) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol, closing connections whose next request's head takes too long.

    Args:
        head_s: Seconds from a connection's start, or a head's first bytes, to its end.
    """
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    base: Any = AutoHTTPProtocol

    class Patient(base):  # type: ignore[misc]  # whichever of uvicorn's two is installed
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._clock = _HeaderTimer(head_s, self._give_up)
            self._clock.run(is_awaited=True)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._clock.run(is_awaited=self._awaits_head())

        def connection_lost(self, exc: Exception | None) -> None:
            self._clock.stop()
            super().connection_lost(exc)

        def _awaits_head(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _give_up(self) -> None:
            if self._awaits_head():
                self.transport.close()

    return cast("type[asyncio.Protocol]", Patient)
