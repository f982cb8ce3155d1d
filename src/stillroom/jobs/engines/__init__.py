"""Execution engines: this process, or a Ray cluster.

A job's journal, caches and files stay in the process that runs it; a worker gets a ``WorkerTask``
once and then blocks of items, and returns one value for each. A value depends on its item and the
task only, so that the number of workers, the size of blocks and lost workers do not change the
result.
"""

from stillroom.jobs.engines.interfaces import Engine, WorkerResources, WorkerTask
from stillroom.jobs.engines.local import LocalEngine, open_engine, open_processes, require_engine

__all__ = [
    "Engine",
    "LocalEngine",
    "WorkerResources",
    "WorkerTask",
    "open_engine",
    "open_processes",
    "require_engine",
]
