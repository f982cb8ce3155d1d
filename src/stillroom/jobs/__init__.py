"""Job: one run of one recipe, in one folder, that survives a kill.

``Job`` works under a temporary name and is renamed when all is written and synced; ``Journal``
keeps finished units of work so that ``--resume`` goes on to the same bytes; ``files`` writes
atomically; ``estimate`` says beforehand what a job will need.
"""

from stillroom.jobs.estimate import Estimate, Machine, check_fits, describe_machine
from stillroom.jobs.files import atomic_write, replace_folder, sync_folder
from stillroom.jobs.job import Job, count_seconds, working_folder
from stillroom.jobs.journal import Journal, read_journal
from stillroom.jobs.progress import (
    Listener,
    Progress,
    QuietReporter,
    Reporter,
    choose_reporter,
    plain_line,
    tell_listener,
)
from stillroom.jobs.spill import Spilled, SpilledRecords

__all__ = [
    "Estimate",
    "Job",
    "Journal",
    "Listener",
    "Machine",
    "Progress",
    "QuietReporter",
    "Reporter",
    "Spilled",
    "SpilledRecords",
    "atomic_write",
    "check_fits",
    "choose_reporter",
    "count_seconds",
    "describe_machine",
    "plain_line",
    "read_journal",
    "replace_folder",
    "sync_folder",
    "tell_listener",
    "working_folder",
]
