"""Execution engines: this process, or a Ray cluster.

A job's journal, caches and files stay with the process that runs it; a worker is given a ``Work``
once and blocks of items after that, and gives back one value for each. What a value is follows from
its item and the work alone, so neither the number of workers nor the size of blocks nor a worker
that died changes a byte.
"""

from stillroom.jobs.engines.interfaces import Engine, WorkerResources, WorkerTask
from stillroom.jobs.engines.local import LocalEngine, open_engine, require_engine

__all__ = [
    "Engine",
    "LocalEngine",
    "WorkerResources",
    "WorkerTask",
    "open_engine",
    "require_engine",
]
