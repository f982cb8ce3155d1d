"""Running the server: where it listens, which keys it takes, and how it stops."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from stillroom.errors import DataError, MissingExtraError, RecipeError, ResourceError
from stillroom.serve.limits import Limits

if TYPE_CHECKING:
    from stillroom.rag.asking import AskSettings

__all__ = ["check_host", "read_keys", "run_server"]

_VARIABLE = "STILLROOM_API_KEY"
_SHORTEST_KEY = 16


def run_server(
    run: Path,
    host: str = "127.0.0.1",
    port: int = 8151,
    *,
    model: str = "",
    settings: AskSettings | None = None,
    api_key_file: Path | None = None,
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
        limits: What a client may ask for at most.
        say: Told where the server listens and what it serves.

    Raises:
        RecipeError: If the host is not this machine and there are no keys.
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
        open_run(run, model=model, settings=settings, say=say) as served,
    ):
        app = create_app(served, api_keys=keys, limits=limits)
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, timeout_keep_alive=15
        )
        taken = listening.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        tell(f"serving {', '.join(served.names)} at http://{shown}:{taken}/v1")
        tell("API keys are asked for" if keys else "no API keys: this machine alone may ask")
        uvicorn.Server(config).run(sockets=[listening])


def read_keys(path: Path | None = None) -> tuple[str, ...]:
    """Return the keys of a file (one a line, ``#`` begins a comment) and of the environment.

    Raises:
        DataError: If the file cannot be read or others may read it, or a key is short.
    """
    keys = [key.strip() for key in os.environ.get(_VARIABLE, "").split(",")]
    if path is not None:
        try:
            mode, text = path.stat().st_mode, path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path} cannot be read: {error}",
                code="serve.key-file",
                expected="a text file of keys, one a line",
                next="check the path and its permissions",
            ) from error
        if mode & 0o077:
            raise DataError(
                f"{path} can be read by others",
                code="serve.key-file",
                expected="a file that only its owner may read",
                next=f"chmod 600 {path}",
            )
        keys += [line.partition("#")[0].strip() for line in text.splitlines()]
    found = tuple(dict.fromkeys(key for key in keys if key))
    if any(len(key) < _SHORTEST_KEY for key in found):
        raise DataError(
            "an API key is too short to be secret",
            code="serve.weak-key",
            expected=f"at least {_SHORTEST_KEY} characters",
            next="python -c 'import secrets; print(secrets.token_urlsafe(24))'",
        )
    return found


def check_host(host: str, keys: tuple[str, ...]) -> None:
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
