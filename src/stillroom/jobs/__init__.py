"""Jobs: one run of a recipe in one folder, resumable after a kill.

``Job`` works under a temporary name and is renamed when everything is written and synced;
``Journal`` stores finished units of work so that ``--resume`` continues to the same bytes;
``files`` writes atomically; ``preflight`` compares a job's estimated resources with the
machine's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stillroom.exports import export_lazily

if TYPE_CHECKING:
    from stillroom.jobs.files import (
        DiskList,
        DiskRecordList,
        cache_folder,
        replace_folder,
        sync_folder,
    )
    from stillroom.jobs.job import Job, sum_work_seconds
    from stillroom.jobs.journal import Journal, read_journal
    from stillroom.jobs.preflight import Estimate, Machine, check_fits, describe_machine
    from stillroom.jobs.progress import (
        EventListener,
        LineReporter,
        MessageLog,
        Progress,
        QuietReporter,
        Reporter,
        choose_reporter,
        emit_event,
        escape_line,
        tell_warnings,
    )
    from stillroom.objects.disk import atomic_write
    from stillroom.provenance.artifact import get_working_folder

__all__ = [
    "DiskList",
    "DiskRecordList",
    "Estimate",
    "EventListener",
    "Job",
    "Journal",
    "LineReporter",
    "Machine",
    "MessageLog",
    "Progress",
    "QuietReporter",
    "Reporter",
    "atomic_write",
    "cache_folder",
    "check_fits",
    "choose_reporter",
    "describe_machine",
    "emit_event",
    "escape_line",
    "get_working_folder",
    "read_journal",
    "replace_folder",
    "sum_work_seconds",
    "sync_folder",
    "tell_warnings",
]

__getattr__ = export_lazily(__name__)
