"""Console server: bind address, generated key and startup checks."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from stillroom.errors import DataError, MissingExtraError, RecipeError

if TYPE_CHECKING:
    from stillroom.provenance.signing import Trust
    from stillroom.rag.index.view import AccessContext
    from stillroom.serve.jobs.recipe_policy import RecipePolicy
    from stillroom.serve.media_check import MediaCheckService

__all__ = ["run_console"]

_KEY_BYTES = 24
_DRAIN_TIMEOUT_S = 10


def run_console(
    folder: Path,
    host: str = "127.0.0.1",
    port: int = 8152,
    *,
    access: AccessContext | None = None,
    policy: RecipePolicy | None = None,
    media_check: MediaCheckService | None = None,
    trust: Trust | None = None,
    say: Callable[[str], None] | None = None,
) -> None:
    """Serve the pages of a folder until interrupted.

    Args:
        folder: Folder of runs; nothing outside it is shown.
        host: Loopback address to listen on.
        port: Port; 0 takes a free one.
        access: Access to indexes with tenants.
        policy: Resources outside the folder that jobs may use; none by default.
        media_check: Media check; by default without detectors and trust lists.
        trust: Whose signatures of runs are trusted; by default nobody's.
        say: Receives the address with its key.

    Raises:
        DataError: If the folder does not exist.
        RecipeError: If the host can be reached from other machines.
        ResourceError: If the port is in use.
        MissingExtraError: If fastapi or uvicorn is not installed.
    """
    from stillroom.serve.jobs.sandbox import describe_sandbox_gap
    from stillroom.serve.server import format_url, listen, run_app
    from stillroom.serve.views.folder import is_artifact

    _check_arguments(folder, host)
    try:
        from stillroom.console.app import create_console
        from stillroom.serve.jobs.runner import JobRunner
        from stillroom.serve.workspace import Workspace
    except ImportError as error:
        raise MissingExtraError.of("fastapi and uvicorn", "console", "The console") from error
    key = secrets.token_urlsafe(_KEY_BYTES)
    tell = say or (lambda line: None)
    with ExitStack() as opened:
        listening = opened.enter_context(listen(host, port))
        runner = None
        if not is_artifact(folder):
            workspace = opened.enter_context(Workspace(folder).open())
            runner = JobRunner(workspace, policy=policy)
        names = frozenset({host.lower()})
        app = create_console(
            folder,
            key=key,
            access=access,
            runner=runner,
            media_check=media_check,
            trust=trust,
            names=names,
        )
        tell(f"the console of {folder}: {format_url(listening, host)}/?key={key}")
        if gap := describe_sandbox_gap():
            tell(gap)
        tell("anyone with the key has access until the console is stopped (Ctrl+C)")
        on_stop = runner.begin_stop if runner is not None else lambda: None
        run_app(app, listening, drain_s=_DRAIN_TIMEOUT_S, on_stop=on_stop)


def _check_arguments(folder: Path, host: str) -> None:
    """Refuse a missing folder, and a host that other machines can reach."""
    from stillroom.serve.server import is_loopback

    if not folder.is_dir():
        raise DataError(
            f"{folder} is not a folder",
            code="data.missing",
            expected="the folder that contains your runs",
            next="stillroom console .",
        )
    if not is_loopback(host):
        raise RecipeError(
            f"the console could be reached from other machines at {host}",
            code="console.host",
            where="--host",
            expected="a loopback address such as 127.0.0.1",
            next="forward the port: ssh -L 8152:127.0.0.1:8152 THIS-MACHINE",
        )
