"""Engines: where the pieces of a job's work are done, on this machine or on a cluster.

A job's journal, caches and files stay with the process that runs it; a worker is given a ``Work``
once and blocks of items after that, and gives back one value for each. What a value is follows from
its item and the work alone, so neither the number of workers nor the size of blocks nor a worker
that died changes a byte.
"""

from stillroom.jobs.engines.local import LocalEngine
from stillroom.jobs.engines.opening import open_engine, refuse_missing
from stillroom.jobs.engines.work import Engine, Opened, Work

__all__ = ["Engine", "LocalEngine", "Opened", "Work", "open_engine", "refuse_missing"]
