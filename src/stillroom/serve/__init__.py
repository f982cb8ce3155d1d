"""HTTP server of runs behind an OpenAI-compatible API, and of jobs that clients submit.

Chat answers from the run's documents with citations, or from the model alone; completions and
embeddings besides. Keys are compared in constant time, sizes and concurrency are bounded, a client
that leaves stops its generation. Recipes that clients send run as jobs in processes of their own,
confined to one folder. In: runs, indexes, checkpoints, the folder of jobs. Out: HTTP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillroom.serve.access import RequestLimits
    from stillroom.serve.app import create_app
    from stillroom.serve.mounts import ServedModel, open_run
    from stillroom.serve.server import JobServerSettings, MediaCheckSettings, run_server

__all__ = [
    "JobServerSettings",
    "MediaCheckSettings",
    "RequestLimits",
    "ServedModel",
    "create_app",
    "open_run",
    "run_server",
]

_HOMES = {
    "JobServerSettings": "server",
    "RequestLimits": "access",
    "MediaCheckSettings": "server",
    "ServedModel": "mounts",
    "create_app": "app",
    "open_run": "mounts",
    "run_server": "server",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use; fastapi comes with the app only."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"stillroom.serve.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
