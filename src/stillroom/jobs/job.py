"""Job (task): one run in a working folder, with journal, events, artifact, and resume.

Layout of the finished folder: ``recipe.yaml`` (resolved), ``artifact.json``, ``events.jsonl``,
``metrics.jsonl``, ``output/``. Until then they are in a hidden folder next to it,
``.NAME.partial``, together with ``journals/``, which exist only there.
"""

from __future__ import annotations

import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from stillroom.errors import Cancelled, DataError, ResourceError
from stillroom.jobs.engines.interfaces import Engine
from stillroom.jobs.engines.local import LocalEngine
from stillroom.jobs.files import lock_folder, replace_folder, sync_folder
from stillroom.jobs.journal import Journal
from stillroom.jobs.progress import Progress, QuietReporter, Reporter, emit_event
from stillroom.jobs.segments import LISTED_JOURNAL, commit_segments, digest_start
from stillroom.objects.disk import (
    append_line,
    atomic_write,
    full_disk_as_error,
    remove_temporary_files,
)
from stillroom.provenance.artifact import (
    ARTIFACT_FILE,
    Artifact,
    ArtifactKind,
    FileEntry,
    Parent,
    describe_host,
    get_working_folder,
    list_files,
    list_installed_versions,
    read_artifact,
)
from stillroom.provenance.digests import digest_file, digest_text, load_json
from stillroom.provenance.signing import PUBLIC_KEY_FILE, find_configured_key, sign_artifact
from stillroom.provenance.signing.artifacts import LOCK_FILE, UNSIGNED_FILES
from stillroom.provenance.sources import make_parent_absolute
from stillroom.recipes.yaml_text import KeyPath, format_path, read_yaml
from stillroom.records import Origin

__all__ = [
    "Job",
    "iter_events",
    "read_first_day",
    "sign_if_configured",
    "sum_work_seconds",
    "write_artifact",
    "write_manifest",
]

_MAX_WARNINGS = 100  # in the artifact
_WORKING_ONLY = ("journals", "scratch", LOCK_FILE)
_APART = (*_WORKING_ONLY, "recipe.yaml", ARTIFACT_FILE, PUBLIC_KEY_FILE, *UNSIGNED_FILES)
"""What has a digest or a signature of its own, or is no part of a finished folder."""


class Job:
    """One run of one recipe.

    Use ``Job.start`` to create or resume one, ``phase`` for progress, ``journal`` for units that
    must survive a kill, ``check_cancelled`` at safe points, ``engine`` for distributable work, and
    ``finish`` to publish.
    """

    def __init__(
        self, out: Path, work: Path, recipe_digest: str, seed: int, reporter: Reporter
    ) -> None:
        """Lock and open a working folder; use ``start`` instead."""
        self.out, self.work, self.recipe_digest, self.seed = out, work, recipe_digest, seed
        self.reporter = reporter
        self.engine: Engine = LocalEngine()
        self.previous: Path | None = out if (out / ARTIFACT_FILE).is_file() else None
        self._cancel = threading.Event()
        self._begun = time.process_time()
        self._journals: dict[str, Journal] = {}
        self.segment_journals: Sequence[str] = ()
        self.timed_keys: frozenset[str] = frozenset()
        busy = ResourceError(
            f"another process is writing {out}",
            code="resource.busy",
            where=str(work),
            expected="one job a folder",
            next="wait for it, or choose another --out",
        )
        self._lock = lock_folder(work, busy).lock

    @classmethod
    def start(
        cls,
        out: Path,
        recipe: str,
        *,
        seed: int = 0,
        resume: bool = False,
        overwrite: bool = False,
        reporter: Reporter | None = None,
    ) -> Job:
        """Create the working folder of a run, or resume that of a killed run.

        Args:
            out: The finished folder's path.
            recipe: The resolved recipe as YAML; a resumed run must have the same one.
            seed: The run's seed, stored in the artifact.
            resume: Continue a killed run.
            overwrite: Replace a finished folder, and discard an unfinished one.
            reporter: Progress display; by default none.

        Raises:
            DataError: If ``out`` exists, or has an unfinished run of another recipe, or the
                configured signing key cannot be read.
            ResourceError: If another process holds the folder, or the disk is full.
        """
        find_configured_key()  # a key that cannot be read is an error now, not at the end
        cls.recover(out)
        work = get_working_folder(out)
        if out.exists() and not (resume and work.exists()):
            _require_free_folder(out, overwrite=overwrite)
        unfinished = work.exists() and not resume
        with full_disk_as_error(out):
            work.mkdir(parents=True, exist_ok=True)
            job = cls(out, work, digest_text(recipe), seed, reporter or QuietReporter())
            try:
                if out.exists() and not (work / "recipe.yaml").exists():
                    _require_free_folder(out, overwrite=overwrite)  # finished by another just now
                if unfinished:
                    job._forget(overwrite=overwrite)
                job._begin(recipe)
            except BaseException:
                job.close()
                raise
        return job

    def _forget(self, *, overwrite: bool) -> None:
        """Empty the working folder of an earlier run, if that is allowed."""
        if not overwrite:
            raise DataError(
                f"an unfinished run of {self.out} is in {self.work}",
                code="data.unfinished",
                expected="--resume or --overwrite",
                next="add --resume to continue it, or --overwrite to start over",
            )
        for path in self.work.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK_FILE:
                path.unlink()

    def _begin(self, recipe: str) -> None:
        """Record the start, or resume; a recipe of another digest is refused."""
        recorded = self.work / "recipe.yaml"
        started = recorded.read_text(encoding="utf-8") if recorded.exists() else recipe
        if digest_text(started) != self.recipe_digest:
            before, now = (read_yaml(text, str(recorded)).data for text in (started, recipe))
            raise DataError(
                f"the unfinished run in {self.work} was started with another recipe: "
                + ", ".join(_list_changes(before, now)),
                code="data.other-recipe",
                expected=f"the recipe in {recorded}",
                next="restore that recipe, or start over with --overwrite",
            )
        self.output.mkdir(exist_ok=True)
        remove_temporary_files(self.output)
        self.event("resumed" if recorded.exists() else "started")
        with atomic_write(recorded) as file:
            file.write(recipe)

    @property
    def output(self) -> Path:
        """The folder of the artifact's own files."""
        return self.work / "output"

    @property
    def first_day(self) -> date:
        """Day in UTC on which the job was first started, also of a resumed or repeated one."""
        return read_first_day(self.work)

    @property
    def scratch(self) -> Path:
        """A folder for temporary files, removed at the end."""
        folder = self.work / "scratch"
        folder.mkdir(exist_ok=True)
        return folder

    def journal(self, name: str) -> Journal:
        """Return the journal of that name, opened once."""
        if name not in self._journals:
            path = self.work / "journals" / f"{name}.jsonl"
            self._journals[name] = Journal(path, self.warn_of_damage)
        return self._journals[name]

    def open_journal(self, path: Path) -> Journal:
        """Open a journal elsewhere in the folder, which stays there when the job is finished."""
        return Journal(path, self.warn_of_damage)

    def warn_of_damage(self, damage: str) -> None:
        """Warn of lines that a journal has lost, whose work is done again."""
        self.warn(f"{damage}: what they recorded is computed again")

    def commit(self, name: str, start: str, result: str) -> None:
        """Commit a segment whose result is stored elsewhere; see ``stillroom.jobs.segments``."""
        self.journal(LISTED_JOURNAL).put(name, [start, result])

    def is_drawn(self, name: str) -> bool:
        """Return whether a committed segment must be computed anew; only in a replay."""
        return False

    def event(self, kind: str, **fields: object) -> None:
        """Append one line to events.jsonl: time, kind, fields."""
        self._append("events.jsonl", {"time": _now(), "event": kind, **fields})

    def metric(self, name: str, value: float, **fields: object) -> None:
        """Append one line to metrics.jsonl: name, value, fields (such as ``step``)."""
        self._append("metrics.jsonl", {"time": _now(), "name": name, "value": value, **fields})

    @contextmanager
    def phase(
        self, name: str, total: int = 0, unit: str = "steps", *, done: int = 0, weight: float = 0
    ) -> Iterator[Progress]:
        """Run one phase with progress on the terminal and its duration in the events.

        ``weight`` is that of all units (see ``Progress``).
        """
        start, busy = time.monotonic(), time.process_time()
        with Progress(name, total, unit, self.reporter, done=done, weight=weight) as progress:
            yield progress
        self.event(
            "phase",
            name=name,
            count=progress.done,
            seconds=round(time.monotonic() - start, 3),
            cpu_seconds=round(time.process_time() - busy, 3),
        )

    def say(self, line: str, *, kind: str = "said") -> None:
        """Print a permanent message and add it to the events; ``choice``s are in a run's report."""
        self.reporter.say(line)
        self.event(kind, text=line)

    def warn(self, line: str) -> None:
        """Print a warning, and add it to the events and to the artifact's details."""
        self.reporter.warn(line)
        self.event("warning", text=line)

    def cancel(self) -> None:
        """Ask the job to stop at its next safe point."""
        self._cancel.set()

    def cancel_with(self, other: Job) -> None:
        """Cancel this job whenever ``other``, of which it is a part, is cancelled."""
        self._cancel = other._cancel

    def is_cancelled(self) -> bool:
        """Return whether the job was cancelled; for engines that poll."""
        return self._cancel.is_set()

    def check_cancelled(self) -> None:
        """Stop if the job was cancelled; call where the journal is consistent.

        Raises:
            Cancelled: If ``cancel`` was called or an interrupt was received.
        """
        if self._cancel.is_set():
            for journal in self._journals.values():
                journal.sync()
            self.event("cancelled")
            raise Cancelled(
                "stopped at a safe point; what was done is kept",
                code="job.cancelled",
                where=str(self.work),
                next="run the same command again with --resume",
            )

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Cancel on the first SIGINT or SIGTERM in the context; a second one exits at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, frame: FrameType | None) -> None:
            if self._cancel.is_set():
                raise KeyboardInterrupt
            self.reporter.say("stopping at the next safe point (repeat to exit at once)")
            self.cancel()

        before = {
            number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, previous in before.items():
                signal.signal(number, previous)

    def finish(
        self,
        kind: ArtifactKind,
        *,
        parents: Sequence[Parent] = (),
        origin: Mapping[str, Any] | None = None,
        details: Mapping[str, Any] | None = None,
        is_timed: Callable[[str], bool] = lambda path: False,
    ) -> Artifact:
        """Digest the output, write artifact.json, sync, and rename the folder into place.

        Args:
            kind: The artifact's kind.
            parents: The artifact's inputs.
            origin: The output's origin.
            details: Further metadata of the artifact.
            is_timed: Returns for a file, by its path in the folder, whether its bytes depend on the
                clock or on the course of the run, so that they are excluded from the digest.

        Raises:
            ResourceError: If the disk is full; the working folder stays for ``--resume``.
        """
        files = list_files(self.work)
        parents = tuple(make_parent_absolute(path, self.work) for path in parents)
        committed = self._commit_segments(parents)
        untimed = Artifact(kind, tuple(entry for entry in files if not is_timed(entry.path)))
        busy = round(time.process_time() - self._begun, 3)
        self.event("finished", digest=untimed.digest, cpu_seconds=busy)
        for journal in self._journals.values():
            journal.close()
        beside = list_files(self.work, "", {"output", *_APART})
        artifact = replace(
            untimed,
            timed_files=(*(entry for entry in files if is_timed(entry.path)), *beside),
            parents=parents,
            recipe_digest=self.recipe_digest,
            seed=self.seed,
            origin=origin or {},
            details={**(details or {}), **committed, **_list_warnings(self.work)},
            versions=list_installed_versions(),
            host=describe_host(),
            created=_now(),
        )
        with full_disk_as_error(self.out):
            sync_folder(self.work, but=_WORKING_ONLY)
            write_manifest(self.work, artifact, name=self.out.name, but=_WORKING_ONLY)
            self.close()
            self.recover(self.out)
        return read_artifact(self.out)

    def _commit_segments(self, parents: Sequence[Parent]) -> dict[str, Any]:
        """Write segments.jsonl, and keep the journals whose lines are segments."""
        listed = self.journal(LISTED_JOURNAL) if self._has_journal(LISTED_JOURNAL) else None
        start = digest_start(self.recipe_digest, parents)
        named = {name: self.journal(name) for name in self.segment_journals}
        return commit_segments(self.work, start, named, self.timed_keys, listed)

    def _has_journal(self, name: str) -> bool:
        return name in self._journals or (self.work / "journals" / f"{name}.jsonl").is_file()

    @staticmethod
    def recover(out: Path) -> bool:
        """Publish a run that was killed between its artifact.json and its rename.

        Returns:
            Whether ``out`` is now a finished folder.
        """
        work = get_working_folder(out)
        if (work / ARTIFACT_FILE).is_file():
            for name in _WORKING_ONLY:
                path = work / name
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            replace_folder(work, out)
        return (out / ARTIFACT_FILE).is_file()

    @property
    def seconds(self) -> float:
        """Seconds spent so far, summed over all sessions of a resumed run."""
        return sum_work_seconds(self.work)

    def discard_empty(self) -> None:
        """Remove the working folder if the run has written nothing; a started one stays."""
        files = {path.name for path in self.work.rglob("*") if path.is_file()}
        if files <= {"recipe.yaml", "events.jsonl", LOCK_FILE}:
            shutil.rmtree(self.work)

    def close(self) -> None:
        """Close journals and unlock the folder; the working folder stays."""
        for journal in self._journals.values():
            journal.close()
        self._lock.release()

    def _append(self, name: str, fields: Mapping[str, object]) -> None:
        with full_disk_as_error(self.work):
            append_line(self.work / name, json.dumps(fields, ensure_ascii=False, default=str))
        kind = "metric" if name == "metrics.jsonl" else "event"
        emit_event(self.reporter, kind, fields)


def sum_work_seconds(folder: Path) -> float:
    """Return the seconds a job worked, summed over its sessions, from its events."""
    total, begun, last = 0.0, 0.0, 0.0
    for event in iter_events(folder):
        moment = datetime.fromisoformat(event["time"]).timestamp()
        if event["event"] in ("started", "resumed"):
            total, begun = total + last - begun, moment
        last = moment
    return round(total + last - begun, 3)


def _list_warnings(folder: Path) -> dict[str, list[str]]:
    """Return the different warnings of all sessions of a job, as a detail of its artifact."""
    events = (event for event in iter_events(folder) if event["event"] == "warning")
    texts = list(dict.fromkeys(str(event.get("text")) for event in events))
    if len(texts) > _MAX_WARNINGS:
        more = f"{len(texts) - _MAX_WARNINGS} more, in events.jsonl"
        texts = [*texts[:_MAX_WARNINGS], more]
    return {"warnings": texts} if texts else {}


def read_first_day(folder: Path) -> date:
    """Return the day in UTC of a job's first event."""
    times = (datetime.fromisoformat(event["time"]) for event in iter_events(folder))
    return next(times, datetime.now(UTC)).astimezone(UTC).date()


def iter_events(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of a job, without those cut by a kill."""
    path = folder / "events.jsonl"
    for line in path.read_bytes().splitlines() if path.is_file() else ():  # U+2028 ends no line
        try:
            event = load_json(line)
            datetime.fromisoformat(event["time"])
            event["event"]
        except (ValueError, KeyError, TypeError):  # truncated by a kill, or a stranger's
            continue
        yield event


def _require_free_folder(out: Path, *, overwrite: bool) -> None:
    """Refuse an occupied folder; only artifacts and empty folders are replaced."""
    if not overwrite:
        raise DataError(
            f"{out} exists already",
            code="data.exists",
            expected="a new folder",
            next="choose another --out, or replace it with --overwrite",
        )
    if not out.is_dir() or (any(out.iterdir()) and not (out / ARTIFACT_FILE).is_file()):
        raise DataError(
            f"{out} is not an artifact, so it is not overwritten",
            code="data.exists",
            expected="the folder of an earlier job, or a new name",
            next="choose another --out",
        )


def _list_changes(old: Any, new: Any, path: KeyPath = ()) -> Iterator[str]:
    """Yield the settings that differ, with the old value of each."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            yield from _list_changes(old.get(key), new.get(key), (*path, key))
    elif old != new:
        yield f"{format_path(path)} was {json.dumps(old):.60}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def write_manifest(
    folder: Path,
    artifact: Artifact,
    *,
    name: str = "",
    but: Collection[str] = (),
    sign: bool = True,
) -> None:
    """Write a folder's artifact.json; with a configured key its signature comes first.

    Args:
        folder: The folder, with all other files in place.
        artifact: What artifact.json states.
        name: The folder's final name, if it is still a working folder.
        but: Files and folders of a working folder that will not be published.
        sign: Whether a configured key signs.

    Raises:
        DataError: If the configured key cannot be read.
        ResourceError: If the disk is full.
    """
    text = json.dumps(artifact.to_json(), ensure_ascii=False, indent=1)
    signer = find_configured_key() if sign else None
    if signer is not None:
        sign_artifact(folder, signer, artifact=artifact, manifest=text.encode(), name=name, but=but)
    with atomic_write(folder / ARTIFACT_FILE) as file:
        file.write(text)


def write_artifact(
    path: Path,
    kind: ArtifactKind,
    *,
    parents: Sequence[Parent],
    origin: Origin,
    details: Mapping[str, Any],
    seed: int = 0,
    name: str = "",
    files: Collection[str] = (),
    is_beside: bool = False,
) -> None:
    """Write the artifact.json of a file or a folder that a command, which is no job, has written.

    It is in the folder, next to the files that other programs load. That of a file is beside it, as
    ``NAME.artifact.json``; a configured key does not sign it, since only folders have signatures.

    Args:
        path: The file, or the folder with all its files in place.
        kind: The artifact's kind.
        parents: The artifact's inputs.
        origin: The output's origin.
        details: The command's settings, and further metadata.
        seed: The seed of the work.
        name: The folder's final name, if it is still a working folder.
        files: The output's files, if the folder has others: those of jobs of their own.
        is_beside: Write it beside the folder, whose readers take every file in it for data.

    Raises:
        DataError: If the configured key cannot be read, or something else than an artifact.json of
            ours has its name.
        IntegrityError: If there is a link among the files.
        ResourceError: If the disk is full.
    """
    names = ["."] if path.is_file() else files
    entries = tuple(
        FileEntry(name, (path / name).stat().st_size, digest_file(path / name)) for name in names
    )
    artifact = Artifact(
        kind,
        entries or list_files(path, "", {ARTIFACT_FILE}),
        tuple(parents),
        seed=seed,
        origin=origin.to_json(),
        details=details,
        versions=list_installed_versions(),
        host=describe_host(),
        created=_now(),
        is_flat=True,
    )
    if path.is_dir() and not is_beside:
        write_manifest(path, artifact, name=name)
        return
    beside = path.with_name(f"{path.name}.{ARTIFACT_FILE}")
    if beside.exists() and not _is_artifact(beside):
        raise DataError(
            f"{beside.name} is in the way: what {path.name} was made from cannot be written there",
            code="data.exists",
            where=str(beside),
            expected="the artifact.json of an earlier output, or nothing",
            next=f"move {beside.name} away, and export again",
        )
    with atomic_write(beside) as file:
        json.dump(artifact.to_json(), file, ensure_ascii=False, indent=1)


def _is_artifact(path: Path) -> bool:
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        if path.is_file():  # a pipe would wait for its reader
            Artifact.from_json(load_json(path.read_bytes()))
            return True
    return False


def sign_if_configured(folder: Path) -> bool:
    """Sign a finished folder if a key is configured; return whether it is signed now.

    Raises:
        DataError: If the configured key cannot be read.
    """
    signer = find_configured_key()
    if signer is not None:
        sign_artifact(folder, signer)
    return signer is not None
