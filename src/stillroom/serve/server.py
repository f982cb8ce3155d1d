"""HTTP server process (uvicorn): listening socket, startup checks and graceful shutdown.

uvicorn bounds the time of an idle connection, ``AuthMiddleware`` that of a body; request headers
sent one byte at a time are bounded here, since enough such connections would exhaust the file
descriptors.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from stillroom.errors import DataError, MissingExtraError, RecipeError, ResourceError
from stillroom.provenance.signing import Trust
from stillroom.serve.access import ApiKey, RequestLimits, read_keys
from stillroom.serve.jobs.processes import describe_sandbox_gap
from stillroom.serve.jobs.recipe_policy import RecipePolicy

if TYPE_CHECKING:
    from stillroom.provenance.text_marks import TextMarker
    from stillroom.rag.index.view import AccessContext
    from stillroom.serve.jobs.runner import JobRunner
    from stillroom.serve.mounts import Mount, ServedModel

__all__ = [
    "JobServerSettings",
    "MediaCheckSettings",
    "ServerSettings",
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
"""Seconds before the end of the grace period at which streams are ended."""


@dataclass(frozen=True)
class MediaCheckSettings:
    """Detectors and trust lists of the media check; see ``MediaCheckService``."""

    detectors: tuple[Path, ...] = ()
    official: tuple[Path, ...] = ()
    trust: tuple[Path, ...] = ()


@dataclass(frozen=True)
class JobServerSettings:
    """Folder of client jobs, their concurrency, and the resources outside it they may use."""

    folder: Path
    running: int = 1
    policy: RecipePolicy = field(default_factory=RecipePolicy)


@dataclass(frozen=True)
class ServerSettings:
    """Settings of a server.

    Args:
        host: Address to listen on; any but a loopback address requires keys.
        port: Port; 0 takes a free one.
        answers: Default answer settings.
        api_key_file: Key file, one key a line, in addition to STILLROOM_API_KEY.
        access: Access of clients whose key names no tenant, if the index has tenants.
        limits: Request limits.
        jobs: Settings of client jobs; None accepts none.
        media_check: Settings of the media check; None disables it.
        trust: Whose signatures of runs are trusted; by default nobody's.
        is_marked: Send a content credential (C2PA) in every generated text.
    """

    host: str = "127.0.0.1"
    port: int = 8151
    answers: Mapping[str, Any] | None = None
    api_key_file: Path | None = None
    access: AccessContext | None = None
    limits: RequestLimits = field(default_factory=RequestLimits)
    jobs: JobServerSettings | None = None
    media_check: MediaCheckSettings | None = None
    trust: Trust | None = None
    is_marked: bool = True


def run_server(
    mounts: Sequence[Mount],
    settings: ServerSettings,
    *,
    log: Callable[[str], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> None:
    """Serve artifacts, or a folder of jobs, or both, until interrupted.

    Raises:
        RecipeError: If the host is not a loopback address and there are no keys.
        DataError: If keys name tenants that the index does not have, or the index has tenants
            and no key names one.
        ResourceError: If the port is in use.
        MissingExtraError: If fastapi or uvicorn is not installed.
    """
    host, access, jobs = settings.host, settings.access, settings.jobs
    keys = read_keys(settings.api_key_file)
    check_host(host, keys)
    with MissingExtraError.guard("fastapi and uvicorn", "serve", "Serving"):
        from stillroom.serve.app import create_app
        from stillroom.serve.media_check import MediaCheckService
        from stillroom.serve.mounts import open_mounts

    tell = say or (lambda line: None)
    with ExitStack() as opened:
        listening = opened.enter_context(listen(host, settings.port))
        served = opened.enter_context(
            open_mounts(mounts, settings=settings.answers, access=access, say=say)
        )
        _check_key_tenants(served, keys, access)
        runner = opened.enter_context(_open_job_runner(jobs, keys)) if jobs else None
        checker = MediaCheckService(**vars(settings.media_check)) if settings.media_check else None
        app = create_app(
            served,
            api_keys=keys,
            limits=settings.limits,
            jobs=runner,
            media_check=checker,
            log=log,
            marker=_open_marker(tell) if served and settings.is_marked else None,
            trust=settings.trust,
        )
        names = [name for model in served for name in model.names] + (["jobs"] if runner else [])
        names += ["forensics"] if checker else []
        tell(f"serving {', '.join(names)} at {format_url(listening, host)}/v1")
        if (runner or checker) and (gap := describe_sandbox_gap()):
            tell(gap)
        tell("API keys are required" if keys else "no API keys: only this machine is served")

        drain_s = settings.limits.drain_s

        def on_stop() -> None:
            app.state.is_stopping = True
            app.state.desk.end_by(time.monotonic() + max(drain_s - _FINAL_EVENT_S, 0))
            if runner is not None:
                runner.begin_stop()

        run_app(app, listening, drain_s=drain_s, on_stop=on_stop)


def _open_marker(tell: Callable[[str], None]) -> TextMarker | None:
    """Return what marks texts, and tell by which key, or why there is none."""
    from stillroom.provenance.text_marks import open_marker

    try:
        marker = open_marker()
    except MissingExtraError as error:
        tell(f"texts carry no content credential: {error.problems[0].next} (or give --no-mark)")
        return None
    by = f"key {marker.signer.key_id[:16]}" if marker.is_kept else "a key that is not kept"
    tell(f"texts carry a content credential, signed by {by}; --no-mark sends clean text")
    return marker


@contextmanager
def _open_job_runner(jobs: JobServerSettings, keys: Sequence[ApiKey]) -> Iterator[JobRunner]:
    """Open the workspace and its job runner until the body ends."""
    from stillroom.serve.jobs.runner import JobRunner
    from stillroom.serve.workspace import Workspace

    for endpoint in jobs.policy.endpoints:
        _check_endpoint(endpoint)
    tenants = {key.access.tenant for key in keys if key.access is not None}
    with Workspace(jobs.folder, has_tenants=bool(tenants)).open() as workspace:
        for tenant in tenants:
            workspace.root(tenant)
        yield JobRunner(workspace, policy=jobs.policy, running=jobs.running)


def _check_endpoint(endpoint: str) -> None:
    parts = urlsplit(endpoint)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username is not None:
        raise RecipeError(
            f"{endpoint!r:.80} is not a URL that recipes could be allowed to use",
            code="serve.endpoint",
            where="--allow-endpoint",
            expected="http://HOST[:PORT]/PATH or https://",
            next="give the URL as in a recipe, without the model's name",
        )


def _check_key_tenants(
    served: Sequence[ServedModel], keys: Sequence[ApiKey], access: AccessContext | None
) -> None:
    """Refuse keys that no index can serve, at startup."""
    named = [key for key in keys if key.access is not None and "models" in key.scopes]
    rules = {model.access_rule for model in served if model.ask is not None}
    if "tenants" in rules and not named and access is None:
        raise DataError(
            "the index has tenants, and no API key names one",
            code="rag.access-needed",
            where="--api-key-file",
            expected="keys with tenant=NAME after them, or --tenant for all keys",
            next="write 'KEY tenant=NAME principal=LABEL' into the file of keys",
        )
    if "open" in rules and named:
        raise DataError(
            "a key names a tenant, and the index has none: every key would see all documents",
            code="rag.no-tenants",
            where="--api-key-file",
            expected="an index made with access: tenants",
            next="leave the tenants out, or build the index with access=tenants metadata=FILE",
        )


def check_host(host: str, keys: Sequence[ApiKey]) -> None:
    """Refuse to listen beyond the loopback interface without keys.

    Raises:
        RecipeError: If the host is not a loopback address and there are no keys.
    """
    if not is_loopback(host) and not keys:
        raise RecipeError(
            f"{host} can be reached from other machines, and there are no API keys",
            code="serve.open-host",
            where="--host",
            expected="127.0.0.1, or keys",
            next=f"export {_KEY_VARIABLE}=... or give --api-key-file",
        )


_HEADER_TIMEOUT_S = 15.0
_BACKLOG = 512
_NO_HTTP_HEAD = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n"
)


def is_loopback(host: str) -> bool:
    """Return whether a host is a loopback address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def format_url(listening: socket.socket, host: str) -> str:
    """Return the base URL for clients, under the given host name."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listening.getsockname()[1]}"


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        ResourceError: If the address is not one of this machine, or the port is in use.
    """
    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(address[0], socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address[4])
            listening.listen(
                _BACKLOG
            )  # connections made before the server has started wait in the backlog
        except OSError:
            listening.close()
            raise
    except OSError as error:
        raise ResourceError(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            code="serve.port",
            where="--host, --port",
            expected="an address of this machine and a free port",
            next="choose another --port; 0 takes a free one",
        ) from error
    return listening


def run_app(
    app: Any, listening: socket.socket, *, drain_s: int, on_stop: Callable[[], None]
) -> None:
    """Serve an ASGI app until SIGINT or SIGTERM.

    ``drain_s`` are the seconds to wait for running requests on shutdown; ``on_stop`` is called
    before the wait, to end streams that would never end.
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
    """Let a signal end the body alone: uvicorn raises it again after it has stopped.

    With the default handler the signal would end the process there, before models, traces and locks
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
    """Timer of request headers; further bytes of the same request do not restart it."""

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
    """Return uvicorn's HTTP protocol with a time limit for request headers.

    ``head_s`` counts from a connection's start, or the first byte of headers, to their end.
    """
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    from stillroom.serve.errors import ApiError, JsonReply

    base: Any = AutoHTTPProtocol
    refusal = ApiError(400, "the request is not valid HTTP", code="invalid_http")

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

        def send_400_response(self, msg: str) -> None:
            is_replying = self.cycle is not None and self.cycle.response_started
            if not is_replying or self.cycle.response_complete:
                body = bytes(JsonReply(refusal.to_json()).body)
                self.transport.write(_NO_HTTP_HEAD % len(body) + body)
            self.transport.close()

        def _give_up(self) -> None:
            if self._awaits_head():
                self.transport.close()

    return cast("type[asyncio.Protocol]", Patient)
