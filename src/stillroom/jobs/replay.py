"""Replay of a finished job: it is resumed in another folder without the drawn segments.

The kept journals of a finished job hold every result that its output was assembled from. A replay
starts the job again as if a kill had lost the drawn lines: those are computed anew from the
committed inputs, the others are read, and the output is assembled again from all of them and
compared byte for byte. So a drawn segment that was forged is found, and so is an output that does
not follow from its segments, whatever was drawn.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from fnmatch import fnmatch
from pathlib import Path
from typing import IO, Any, Self

from stillroom.jobs.job import Job, iter_events, read_first_day
from stillroom.jobs.journal import Journal, find_break, index_journal, parse_line, read_journal
from stillroom.jobs.segments import (
    COMMITTED_FOLDER,
    SEGMENTS_FILE,
    CommittedSegment,
    ReplayRequest,
    SegmentOutcome,
    digest_start,
    digest_value,
    read_segments,
)
from stillroom.provenance import Artifact, digest_like
from stillroom.provenance.digests import load_json
from stillroom.recipes import dump_recipe, list_references

__all__ = [
    "JournalReplayer",
    "ReplayJob",
    "compare_output",
    "describe_difference",
    "has_processor_seconds",
    "join_differences",
    "list_differences",
    "read_phases",
    "sum_phases",
    "sum_work",
]

_SHOWN = 5
OTHER_START = "was committed as made from other inputs than the job has"


@dataclass
class _ReplaySession:
    """The drawn segments of a finished job, and the digests of what was recomputed."""

    folder: Path
    committed: Mapping[str, CommittedSegment]
    drawn: frozenset[str]
    journals: frozenset[str]
    timed: frozenset[str]
    found: dict[str, str] = field(default_factory=dict)
    starts: dict[str, str] = field(default_factory=dict)

    def note(self, name: str, digest: str, start: str = "") -> None:
        """Store the digest of a result, the first time; only drawn ones are computed.

        Args:
            name: The segment.
            digest: Digest of its result.
            start: Digest of what it starts from, where the job commits it itself.
        """
        if f"{name.partition('/')[0]}/" not in self.timed:
            self.found.setdefault(name, digest)
            self.starts[name] = self.starts.get(name) or start

    def list_outcomes(self) -> Iterator[SegmentOutcome]:
        """Yield an outcome for each drawn segment, and one for each that was not committed."""
        for name in sorted({*self.drawn, *self.found}):
            committed, found = self.committed.get(name), self.found.get(name, "")
            if committed is None:
                yield SegmentOutcome(name, "", found, "was not committed, but the job computes it")
            elif not found:
                what = "was committed, but the job does not compute it"
                yield SegmentOutcome(name, committed.result, "", what)
            elif self.starts[name] not in {"", committed.start}:
                yield SegmentOutcome(name, committed.result, found, OTHER_START)
            elif name in self.drawn or found != committed.result:
                yield SegmentOutcome(name, committed.result, found)


class _ReplayJournal(Journal):
    """A journal that serves the committed lines, except drawn ones that were not computed yet.

    A computed value that was committed is compared, and the committed one served: it holds the same
    but for times, and what follows from it stays comparable if it does not.
    """

    def __init__(self, path: Path, kept: Path, prefix: str, session: _ReplaySession) -> None:
        super().__init__(path)
        self._prefix, self._session = prefix, session
        self._kept = index_journal(kept)
        self._kept_file: IO[bytes] | None = kept.open("rb") if self._kept else None
        self._computed: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return self._serves(key) or super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        return self._read_kept(key) if self._serves(key) else super().__getitem__(key)

    def __len__(self) -> int:
        return len(self.keys())

    def keys(self) -> list[str]:
        return [*filter(self._serves, self._kept), *super().keys()]

    def get(self, key: str, default: Any = None) -> Any:
        return self._read_kept(key) if self._serves(key) else super().get(key, default)

    def put(self, key: str, value: Any) -> None:
        name = f"{self._prefix}/{key}"
        self._session.note(name, digest_value(_to_json(value), self._session.timed))
        self._computed.add(key)
        if key not in self._kept:
            super().put(key, value)

    def close(self) -> None:
        super().close()
        if self._kept_file is not None:
            self._kept_file.close()

    def _serves(self, key: str) -> bool:
        is_drawn = f"{self._prefix}/{key}" in self._session.drawn
        return key in self._kept and (not is_drawn or key in self._computed)

    def _read_kept(self, key: str) -> Any:
        assert self._kept_file is not None  # noqa: S101  # there is a key
        with self._opening:
            self._kept_file.seek(self._kept[key])
            return parse_line(self._kept_file.readline().removesuffix(b"\n"))[1]


def _to_json(value: Any) -> Any:
    """Return a value as it reads from a journal."""
    return json.loads(json.dumps(value, ensure_ascii=False, default=str))


class ReplayJob(Job):
    """A job that repeats a finished one in a scratch folder; see the module."""

    session: _ReplaySession

    @classmethod
    def open(
        cls,
        request: ReplayRequest,
        names: frozenset[str],
        journals: Iterable[str] = (),
        timed: frozenset[str] = frozenset(),
        *,
        reuses_output: bool = False,
    ) -> Self:
        """Start the repetition of a finished job.

        Args:
            request: The finished job.
            names: Names of the segments to compute anew.
            journals: Names of the journals whose lines are served.
            timed: Keys of their values that do not count.
            reuses_output: Whether the finished job is the ``previous`` one of the repetition.
        """
        job = cls.start(
            request.scratch / request.folder.name,
            dump_recipe(request.recipe),
            seed=request.artifact.seed,
            reporter=request.reporter,
        )
        assert isinstance(job, cls)  # noqa: S101  # start builds its own class
        job.recipe_digest = request.artifact.recipe_digest  # of the places then
        committed = {segment.name: segment for segment in read_segments(request.folder)}
        job.session = _ReplaySession(request.folder, committed, names, frozenset(journals), timed)
        job.previous = request.folder if reuses_output else None
        return job

    @property
    def first_day(self) -> date:
        """Day in UTC on which the finished job was first started."""
        return read_first_day(self.session.folder)

    def journal(self, name: str) -> Journal:
        """Return a journal; one that was kept serves its lines."""
        if name not in self.session.journals:
            return super().journal(name)
        if name not in self._journals:
            self._journals[name] = _ReplayJournal(
                self.work / "journals" / f"{name}.jsonl",
                self.session.folder / COMMITTED_FOLDER / f"{name}.jsonl",
                name,
                self.session,
            )
        return self._journals[name]

    def open_journal(self, path: Path) -> Journal:
        """Open a journal that serves the lines of its namesake in the finished job's folder."""
        kept = self.session.folder / path.relative_to(self.work)
        return _ReplayJournal(path, kept, path.stem, self.session)

    def commit(self, name: str, start: str, result: str) -> None:
        """Compare a result, and what it starts from, with the committed ones."""
        self.session.note(name, result, start)

    def is_drawn(self, name: str) -> bool:
        """Return whether a segment must be computed anew."""
        return name in self.session.drawn


@dataclass(frozen=True)
class JournalReplayer:
    """Replays jobs whose results are journaled, or committed by ``Job.commit``.

    Args:
        journals: Names of the journals whose lines are segments.
        timed: Keys of journaled values that depend on the clock, and journals of times (``NAME/``).
        course: Keys of the artifact's details that depend on the course of the run.
        reuses_output: Whether the committed results are in the output itself, as an index's are.
        phases: Phases of the job in which segments are computed; all of them if none is named.
        compared: Patterns of ``timed_files`` that do not depend on the clock where nothing was
            interrupted or reused, as a new index's.
        later_roles: Roles of inputs that earlier versions did not record as parents; today a job
            with such an input writes an event of that name.
        without: Settings of the recipe that only save work, as a cache, with the values to use.
    """

    journals: tuple[str, ...] = ()
    timed: frozenset[str] = frozenset()
    course: frozenset[str] = frozenset()
    reuses_output: bool = False
    phases: tuple[str, ...] = ()
    compared: tuple[str, ...] = ()
    later_roles: frozenset[str] = frozenset()
    without: Mapping[str, Any] = field(default_factory=dict)

    def find_open(self, request: ReplayRequest) -> str:
        """Return the endpoint whose answers cannot be recomputed; or empty."""
        for _, reference in list_references(request.recipe):
            if reference.startswith(("http://", "https://")):
                return f"{reference} answered, and what it answers now proves nothing"
        return ""

    def list_segments(self, request: ReplayRequest) -> list[CommittedSegment]:
        """Return the committed segments.

        Raises:
            IntegrityError: If a kept journal is damaged, or ``segments.jsonl`` cannot be read.
        """
        return read_segments(request.folder)

    def estimate_costs(
        self, request: ReplayRequest, segments: Sequence[CommittedSegment]
    ) -> dict[str, float]:
        """Return about how many seconds each segment took.

        Those whose value holds ``cpu_seconds`` took these; the others share what the phases took
        besides, as ``weigh`` tells. If there are no others, all share it.
        """
        known, weights = {}, {}
        for name, value in _read_values(request.folder, segments):
            seconds = _to_seconds(value.get("cpu_seconds"))
            if seconds is None:
                weights[name] = max(self.weigh(request, name, value), 0.0)
            else:
                known[name] = seconds
        rest = max(sum_phases(request.folder, self.phases) - sum(known.values()), 0.0)
        weights = weights or known
        share = rest / (sum(weights.values()) or 1.0)
        names = {**known, **weights}
        return {name: known.get(name, 0.0) + weights.get(name, 0.0) * share for name in names}

    def weigh(self, request: ReplayRequest, name: str, value: Mapping[str, Any]) -> float:
        """Return the relative cost of a segment whose seconds were not recorded.

        Args:
            request: The finished job.
            name: Name of the segment.
            value: Its journaled value if that is a map, else nothing. A model writes a token in
                about the time in which it reads ten.
        """
        counts = (_to_seconds(value.get(key)) for key in ("completion_tokens", "prompt_tokens"))
        written, read = (count or 0.0 for count in counts)
        return 1 + written + read / 10

    def estimate_rest(self, request: ReplayRequest, *, is_whole: bool) -> float:
        """Return the seconds between the phases, as of opening inputs, and of other phases."""
        opening = sum_work(request.folder) - sum_phases(request.folder)
        phases = read_phases(request.folder) if self.phases else []
        return opening + sum(seconds for name, seconds in phases if name not in self.phases)

    def replay(self, request: ReplayRequest, names: frozenset[str]) -> Iterator[SegmentOutcome]:
        """Repeat the job without the named segments, and compare them and the output."""
        yield from self._compare_journals(request)
        recipe = request.recipe.model_copy(update=dict(self.without))
        request = replace(request, recipe=recipe)
        job = ReplayJob.open(
            request, names, self.journals, self.timed, reuses_output=self.reuses_output
        )
        artifact = request.run(request.recipe, job)
        yield from job.session.list_outcomes()
        folder = request.scratch / request.folder.name
        recorded = [parent.role for parent in request.artifact.parents]
        recorded += [event["event"] for event in iter_events(request.folder)]
        later = self.later_roles.difference(map(str, recorded))
        parents = tuple(one for one in artifact.parents if one.role not in later)
        artifact = replace(artifact, parents=parents)
        yield from compare_output(request, artifact, folder, self.course, self.compared)

    def _compare_journals(self, request: ReplayRequest) -> Iterator[SegmentOutcome]:
        """Yield kept lines that are not what was committed, or that were removed."""
        segments = read_segments(request.folder)
        committed = {one.name: one.result for one in segments}
        start = digest_start(request.artifact.recipe_digest, request.artifact.parents)
        for one in segments:
            if one.name.partition("/")[0] in self.journals and one.start != start:
                yield SegmentOutcome(one.name, one.start, start, OTHER_START)
        for name in self.journals:
            if f"{name}/" in self.timed:
                continue
            path = request.folder / COMMITTED_FOLDER / f"{name}.jsonl"
            shown = f"{COMMITTED_FOLDER}/{path.name}"
            if broken := find_break(path):
                yield SegmentOutcome(shown, "", "", broken)
            kept = set()
            with _open_kept(path) as journal:
                for key, place in index_journal(path).items():
                    journal.seek(place)
                    value = parse_line(journal.readline().removesuffix(b"\n"))[1]
                    segment = f"{name}/{key}"
                    kept.add(segment)
                    digest = digest_value(value, self.timed)
                    if digest != committed.get(segment):
                        what = f"is in {shown}, but {SEGMENTS_FILE} has another digest or none"
                        yield SegmentOutcome(segment, committed.get(segment, ""), digest, what)
            for segment in committed:
                if segment.startswith(f"{name}/") and segment not in kept:
                    what = f"is in {SEGMENTS_FILE}, but its line is not in {shown}"
                    yield SegmentOutcome(segment, committed[segment], "", what)


def _read_values(
    folder: Path, segments: Sequence[CommittedSegment]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each segment with its journaled value, or with nothing if that is no map."""
    journals: dict[str, Mapping[str, Any]] = {}
    for segment in segments:
        prefix, _, key = segment.name.partition("/")
        if prefix not in journals:
            files = [path for path in folder.rglob("*.jsonl") if path.stem == prefix]
            journals[prefix] = read_journal(files[0]) if files else {}
        value = journals[prefix].get(key)
        yield segment.name, value if isinstance(value, Mapping) else {}


def _to_seconds(value: Any) -> float | None:
    """Return a finite number that is not negative; None for anything else."""
    is_number = isinstance(value, int | float) and 0 <= value <= sys.float_info.max
    return float(value) if is_number else None


def sum_phases(folder: Path, names: Sequence[str] = ()) -> float:
    """Return the processor seconds of a finished job's phases of these names; of all without."""
    return sum(seconds for name, seconds in read_phases(folder) if not names or name in names)


def sum_work(folder: Path) -> float:
    """Return the processor seconds of a finished job, at least those of its phases."""
    ends = [event for event in _read_events(folder) if event.get("event") == "finished"]
    whole = _to_seconds(ends[-1].get("cpu_seconds")) if ends else None
    return max(whole or 0.0, sum_phases(folder))


def has_processor_seconds(folder: Path) -> bool:
    """Return whether a finished job recorded processor seconds; earlier versions did not."""
    ends = [event for event in _read_events(folder) if event.get("event") == "finished"]
    return bool(ends) and "cpu_seconds" in ends[-1]


def read_phases(folder: Path) -> list[tuple[str, float]]:
    """Return the phases of a finished job with their processor seconds, in order.

    Of jobs of earlier versions, which did not record these, the time.
    """
    return [
        (
            str(event.get("name")),
            _to_seconds(event.get("cpu_seconds", event.get("seconds"))) or 0.0,
        )
        for event in _read_events(folder)
        if event.get("event") == "phase"
    ]


def _read_events(folder: Path) -> Iterator[Mapping[str, Any]]:
    path = folder / "events.jsonl"
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError):  # a kill can truncate a line
            event = load_json(line)
            if isinstance(event, Mapping):
                yield event


def _open_kept(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except FileNotFoundError:
        return Path("/dev/null").open("rb")  # closed by the caller


def compare_output(
    request: ReplayRequest,
    artifact: Artifact,
    folder: Path,
    course: frozenset[str] = frozenset(),
    compared: Iterable[str] = (),
) -> Iterator[SegmentOutcome]:
    """Yield an outcome for each output file of a job, its parents, origin and details.

    Args:
        request: The finished job.
        artifact: Artifact of its repetition.
        folder: The repetition's folder.
        course: Keys of the details that do not count.
        compared: Patterns of timed files that are compared, too.
    """
    recorded, repeated = (
        {
            entry.path: entry.digest
            for entry in (*one.files, *one.timed_files)
            if entry in one.files or any(fnmatch(entry.path, pattern) for pattern in compared)
        }
        for one in (request.artifact, artifact)
    )
    written = {entry.path for entry in (*artifact.files, *artifact.timed_files)}
    unknown = {
        entry.path: entry.digest
        for entry in request.artifact.timed_files
        if entry.path.startswith("output/") and entry.path not in written
    }
    recorded |= unknown  # the job does not write them, whatever the clock says
    for path in sorted({*recorded, *repeated}):
        what = ""
        if path not in repeated:
            what = "is listed, but the job does not write it"
        elif path not in recorded:
            what = "is written by the job, but not listed"
        elif recorded[path] != repeated[path] and request.moved:
            _restore_file(request, folder / path, request.folder / path)
            repeated[path] = digest_like(folder / path, recorded[path])
        if not what and recorded[path] != repeated[path]:
            what = describe_difference(request.folder / path, folder / path)
        yield SegmentOutcome(path, recorded.get(path, ""), repeated.get(path, ""), what)
    course |= {"segments", "warnings"}
    for name, old, new in (
        ("parents", _list_digests(request.artifact), _list_digests(artifact)),
        ("origin", request.artifact.origin, artifact.origin),
        ("details", *(_leave_out(one.details, course) for one in (request.artifact, artifact))),
    ):
        old = _to_json(old)
        new = _to_json(new)
        if differing := list(list_differences(old, new, "")):
            new = _restore_value(request, new, old)
            differing = list(list_differences(old, new, ""))
        what = f"differs: {join_differences(differing)}" if differing else ""
        yield SegmentOutcome(f"artifact.json {name}", digest_value(old), digest_value(new), what)


def _restore_file(request: ReplayRequest, path: Path, kept: Path) -> None:
    """Write the former places of the inputs into a text that the repetition wrote."""
    try:
        lines, stored = (one.read_bytes().decode("utf-8").split("\n") for one in (path, kept))
    except (OSError, UnicodeDecodeError):
        return
    pairs = itertools.zip_longest(lines, stored[: len(lines)], fillvalue="")
    restored = [request.restore_places(*pair) for pair in pairs]
    path.write_bytes("\n".join(restored).encode("utf-8"))


def _restore_value(request: ReplayRequest, value: Any, stored: Any) -> Any:
    """Return a value with the former places of the inputs where the stored one has them."""
    if isinstance(value, str):
        return request.restore_places(value, stored if isinstance(stored, str) else "")
    if isinstance(value, list):
        known = stored if isinstance(stored, list) else []
        pairs = itertools.zip_longest(value, known[: len(value)])
        return [_restore_value(request, *pair) for pair in pairs]
    if isinstance(value, dict):
        former = stored if isinstance(stored, dict) else {}
        names = {key: key if key in former else request.restore_places(key, "") for key in value}
        return {
            name: _restore_value(request, value[key], former.get(name))
            for key, name in names.items()
        }
    return value


def _list_digests(artifact: Artifact) -> list[list[str]]:
    return sorted([parent.role, parent.digest] for parent in artifact.parents)


def _leave_out(details: Mapping[str, Any], keys: frozenset[str]) -> dict[str, Any]:
    return {key: value for key, value in details.items() if key not in keys}


def describe_difference(stored: Path, repeated: Path) -> str:
    """Return a predicate that names the lines or values in which two files differ."""
    try:
        if stored.suffix == ".jsonl":
            lines = (path.read_bytes().splitlines() for path in (stored, repeated))  # not at U+2028
            old, new = (list(map(load_json, part)) for part in lines)
            rows = list(_list_rows(old, new))
        elif stored.suffix == ".json":
            pair = load_json(stored.read_bytes()), load_json(repeated.read_bytes())
            rows = list(list_differences(*pair, ""))
        else:
            rows = []
    except (OSError, ValueError):
        rows = []
    return (
        f"differs: {join_differences(rows)}"
        if rows
        else "does not follow from the inputs and the segments"
    )


def _list_rows(old: list[Any], new: list[Any]) -> Iterator[str]:
    """Yield what differs between two lists of rows: rows that one of them lacks."""
    texts = [[json.dumps(row, sort_keys=True) for row in rows] for rows in (old, new)]
    known = [set(rows) for rows in texts]
    for number, (row, text) in enumerate(zip(old, texts[0], strict=True), start=1):
        if text not in known[1]:
            yield f"line {number} ({_name_row(row)}) is not what the job writes"
    for row, text in zip(new, texts[1], strict=True):
        if text not in known[0]:
            yield f"the job writes {_name_row(row)}, which is missing"
    if not known[0] ^ known[1] and texts[0] != texts[1]:
        yield "the same rows in another order or number"


def _name_row(row: Any) -> str:
    if isinstance(row, Mapping):
        for key in ("id", "name", "path", "question", "key", "unit"):
            if isinstance(row.get(key), str):
                return f"{key} {row[key]!r:.80}"
    return f"{json.dumps(row, ensure_ascii=False)[:60]}"


def list_differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Yield the places in which JSON values differ, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            place = f"{path}.{key}" if path else key
            yield from list_differences(old.get(key), new.get(key), place)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, pair in enumerate(zip(old, new, strict=True)):
            yield from list_differences(*pair, f"{path}[{number}]")
    elif old != new and not (old != old and new != new):
        yield f"{path or 'it'} is {_shorten(old)}, recomputed {_shorten(new)}"


def _shorten(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def join_differences(differences: list[str]) -> str:
    """Return the first differences in a line."""
    more = len(differences) - _SHOWN
    return "; ".join(differences[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")
