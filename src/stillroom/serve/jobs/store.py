"""Job store: one record and one event log for each job.

A record is a small JSON file that is replaced atomically; events are appended line by line, by the
server and by the job's process, and a reader can continue from the end of any line. Both survive
the server. Knows nothing of processes.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, get_args

from stillroom.jobs import atomic_write
from stillroom.objects.disk import append_line
from stillroom.provenance.digests import load_json

__all__ = [
    "EVENTS_FILE",
    "JobRecord",
    "JobState",
    "JobStore",
    "append_event",
    "format_now",
    "new_job_id",
    "read_events",
]

JobState = Literal["queued", "running", "finished", "failed", "cancelled"]
EVENTS_FILE = "events.jsonl"
_RECORD_FILE, _RECIPE_FILE = "ticket.json", "recipe.yaml"
_ID_PATTERN = re.compile(r"\d{8}-\d{6}(?:\d{6})?-[a-z][a-z0-9_.]{0,60}-[0-9a-f]{8}\Z")
_CHUNK_BYTES = 1 << 16
_LOCK = threading.Lock()


@dataclass(frozen=True, slots=True)
class JobRecord:
    """State of one job.

    ``takes`` counts the processes started for it; ``is_cancelling`` is set between a client's
    cancel request and the end of the job.
    """

    id: str
    tenant: str
    kind: str
    label: str = ""
    state: JobState = "queued"
    submitted: str = ""
    started: str = ""
    ended: str = ""
    takes: int = 0
    is_cancelling: bool = False
    request_key: str = ""
    recipe_digest: str = ""
    problems: tuple[Mapping[str, str], ...] = ()
    artifact: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        """Whether the job has ended and only a client can resume it."""
        return self.state not in {"queued", "running"}


class JobStore:
    """Job records, in memory and on disk."""

    def __init__(self, folder: Path) -> None:
        """Read the records in ``folder``; incomplete ones are left unchanged."""
        self.folder = folder
        self._all: dict[str, JobRecord] = {}
        self.unread: list[str] = []
        for path in sorted(folder.iterdir()):
            try:
                record = _from_json(load_json((path / _RECORD_FILE).read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError, KeyError):
                self.unread.append(path.name)
                continue
            self._all[record.id] = record

    def __iter__(self) -> Iterator[JobRecord]:
        """Yield all records, oldest first."""
        return iter(sorted(self._all.values(), key=lambda record: record.id))

    def get(self, name: str) -> JobRecord | None:
        """Return the record of an id."""
        return self._all.get(name)

    def folder_of(self, name: str) -> Path:
        """Return the folder of a job record."""
        return self.folder / name

    def add(self, record: JobRecord, recipe: str) -> JobRecord:
        """Write a new record and its recipe to disk.

        Raises:
            ResourceError: If the disk is full; nothing is kept then.
        """
        folder = self.folder_of(record.id)
        try:
            folder.mkdir(mode=0o700)
            with atomic_write(folder / _RECIPE_FILE) as file:
                file.write(recipe)
            append_event(folder / EVENTS_FILE, {"event": "state", "state": record.state})
            self._write(record)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._all[record.id] = record
        return record

    def recipe(self, name: str) -> str:
        """Return the recipe of a job."""
        return (self.folder_of(name) / _RECIPE_FILE).read_text(encoding="utf-8")

    def change(self, name: str, **fields: Any) -> JobRecord:
        """Replace fields of a record, in memory and then on disk.

        Raises:
            ResourceError: If the disk is full; the memory is updated nevertheless.
        """
        before = self._all[name]
        record = self._all[name] = replace(before, **fields)
        if record.state != before.state:
            event: dict[str, Any] = {"event": "state", "state": record.state}
            if record.problems:
                event["problems"] = list(record.problems)
            append_event(self.folder_of(name) / EVENTS_FILE, event)
        self._write(record)
        return record

    def remove(self, name: str) -> None:
        """Delete a job record and its events."""
        del self._all[name]
        shutil.rmtree(self.folder_of(name), ignore_errors=True)

    def _write(self, record: JobRecord) -> None:
        with atomic_write(self.folder_of(record.id) / _RECORD_FILE) as file:
            json.dump(asdict(record), file, ensure_ascii=False, indent=1)


_last_moment = datetime.min.replace(tzinfo=UTC)


def new_job_id(kind: str) -> str:
    """Return an unguessable id that sorts after all earlier ones of this process."""
    global _last_moment  # the clock may stop or go backward; ids must not
    with _LOCK:
        moment = max(datetime.now(UTC), _last_moment + timedelta(microseconds=1))
        _last_moment = moment
    return f"{moment:%Y%m%d-%H%M%S%f}-{kind}-{secrets.token_hex(4)}"


def format_now() -> str:
    """Return the current time in the format of records and events."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def append_event(path: Path, event: Mapping[str, Any]) -> None:
    """Append one event; an incomplete last line, left by a kill, is ended first."""
    row = {"time": format_now(), **event}
    append_line(path, json.dumps(row, ensure_ascii=False, default=str))


def read_events(path: Path, start: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield events from a byte offset on, each with the offset after it; broken lines are skipped.

    ``start`` is where an earlier reader stopped; it is moved to the start of the next line.
    """
    with path.open("rb") as file:
        start = min(start, path.stat().st_size)  # a client's may be larger than any file
        if start > 0:
            file.seek(start - 1)
            if file.read(1) != b"\n":
                file.readline(_CHUNK_BYTES)
        while (line := file.readline()).endswith(b"\n"):
            try:
                event = load_json(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                yield file.tell(), event


def _from_json(data: dict[str, Any]) -> JobRecord:
    record = JobRecord(**{**data, "problems": tuple(data["problems"])})
    if not _ID_PATTERN.match(record.id) or record.state not in get_args(JobState):
        raise ValueError("not a job record")
    return record
