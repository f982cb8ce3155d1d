"""HTTP server: an OpenAI-compatible API over runs, and jobs that clients submit.

Chat answers come from the documents of a run, with citations, or from the model alone; completions
and embeddings are served as well. API keys are compared in constant time, sizes and concurrency are
bounded, and the generation of a client that disconnects is stopped. Recipes of clients run as jobs
in separate processes, confined to one folder. In: runs, indexes, checkpoints, the folder of jobs.
Out: HTTP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stillroom.exports import export_lazily

if TYPE_CHECKING:
    from stillroom.serve.access import RequestLimits
    from stillroom.serve.app import create_app
    from stillroom.serve.mounts import ServedModel, open_run
    from stillroom.serve.server import (
        JobServerSettings,
        MediaCheckSettings,
        ServerSettings,
        run_server,
    )

__all__ = [
    "JobServerSettings",
    "MediaCheckSettings",
    "RequestLimits",
    "ServedModel",
    "ServerSettings",
    "create_app",
    "open_run",
    "run_server",
]

__getattr__ = export_lazily(__name__)
