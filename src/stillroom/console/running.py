"""Running the console: where it listens, the key it makes, and what it says of both."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from stillroom.errors import DataError, MissingExtraError, RecipeError

if TYPE_CHECKING:
    from stillroom.rag.access import Access

__all__ = ["run_console"]

_KEY_BYTES = 24


def run_console(
    folder: Path,
    host: str = "127.0.0.1",
    port: int = 8152,
    *,
    access: Access | None = None,
    say: Callable[[str], None] | None = None,
) -> None:
    """Show a folder's pages until it is interrupted.

    Args:
        folder: The folder of runs; nothing outside it is shown.
        host: Where to listen; a name or address of this machine that only it reaches.
        port: The port; 0 takes a free one.
        access: Who asks, of indexes with tenants.
        say: Told the address with its key.

    Raises:
        DataError: If the folder is none.
        RecipeError: If others than this machine could reach the host.
        ResourceError: If the port is taken.
        MissingExtraError: If fastapi, uvicorn or jinja2 is not installed.
    """
    from stillroom.serve.listening import is_loopback, listen

    if not folder.is_dir():
        raise DataError(
            f"{folder} is not a folder",
            code="data.missing",
            expected="the folder that your runs lie in",
            next="stillroom console .",
        )
    if not is_loopback(host):
        raise RecipeError(
            f"the console would be reached from other machines at {host}",
            code="console.host",
            where="--host",
            expected="an address of this machine alone, as 127.0.0.1",
            next="forward the port: ssh -L 8152:127.0.0.1:8152 THIS-MACHINE",
        )
    try:
        import uvicorn

        from stillroom.console.app import create_console
    except ImportError as error:
        raise MissingExtraError.of(
            "jinja2, fastapi and uvicorn", "console", "The console"
        ) from error
    key = secrets.token_urlsafe(_KEY_BYTES)
    tell = say or (lambda line: None)
    with listen(host, port) as listening:
        app = create_console(folder, key=key, access=access, names=frozenset({host.lower()}))
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, timeout_keep_alive=15
        )
        taken = listening.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        tell(f"the console of {folder}: http://{shown}:{taken}/?key={key}")
        tell("the key lets in whoever has it, until the console is stopped (Ctrl+C)")
        uvicorn.Server(config).run(sockets=[listening])
