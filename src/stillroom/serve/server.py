"""Running the server: where it listens, which keys it takes, and how it stops."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stillroom.errors import DataError, MissingExtraError, RecipeError, ResourceError
from stillroom.serve.keys import ApiKey, read_keys
from stillroom.serve.limits import Limits

if TYPE_CHECKING:
    from stillroom.rag.access import Access
    from stillroom.rag.asking import AskSettings
    from stillroom.serve.served import Served

__all__ = ["check_host", "run_server"]

_VARIABLE = "STILLROOM_API_KEY"


def run_server(
    run: Path,
    host: str = "127.0.0.1",
    port: int = 8151,
    *,
    model: str = "",
    settings: AskSettings | None = None,
    api_key_file: Path | None = None,
    access: Access | None = None,
    limits: Limits | None = None,
    say: Callable[[str], None] | None = None,
) -> None:
    """Serve a finished run until it is interrupted.

    Args:
        run: The folder of a finished run.
        host: Where to listen; another than this machine needs keys.
        port: The port; 0 takes a free one.
        model: Another model than the run's own.
        settings: How questions are answered where a client does not say.
        api_key_file: Keys, one a line; besides those of STILLROOM_API_KEY.
        access: As whom clients ask whose key names nobody, where the index has tenants.
        limits: What a client may ask for at most.
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
        import uvicorn

        from stillroom.serve.app import create_app
    except ImportError as error:
        raise MissingExtraError.of("fastapi and uvicorn", "serve", "Serving") from error
    from stillroom.serve.served import open_run

    tell = say or (lambda line: None)
    with (
        _listen(host, port) as listening,
        open_run(run, model=model, settings=settings, access=access, say=say) as served,
    ):
        _check_askers(served, keys, access)
        app = create_app(served, api_keys=keys, limits=limits)
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, timeout_keep_alive=15
        )
        taken = listening.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        tell(f"serving {', '.join(served.names)} at http://{shown}:{taken}/v1")
        tell("API keys are asked for" if keys else "no API keys: this machine alone may ask")
        uvicorn.Server(config).run(sockets=[listening])


def _check_askers(served: Served, keys: Sequence[ApiKey], access: Access | None) -> None:
    """Refuse keys that nobody could ask with, before the first question."""
    named = [key for key in keys if key.access is not None]
    if served.rule == "tenants" and not named and access is None:
        raise DataError(
            "the index has tenants, and no API key says who asks",
            code="rag.access-needed",
            where="--api-key-file",
            expected="keys with tenant=NAME after them, or --tenant for all",
            next="write 'KEY tenant=NAME principal=LABEL' into the file of keys",
        )
    if served.rule == "open" and named:
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
    try:
        is_local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_local = host == "localhost"
    if not is_local and not keys:
        raise RecipeError(
            f"{host} can be reached from elsewhere, and there are no API keys",
            code="serve.open-host",
            where="--host",
            expected="127.0.0.1, or keys",
            next=f"export {_VARIABLE}=... or give --api-key-file",
        )


def _listen(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(found[0], socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(found[4])
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
