"""Segments: commitment of a job to its work in parts, so that a stranger can recompute some.

``segments.jsonl`` in a finished job's folder has one line a segment: its name, the digest of what
it starts from and the digest of its result. It is listed among the artifact's ``timed_files``:
verified and published with it, but outside the digest of the output, which so stays what it was.
The artifact's details hold its digest, and so does the claim. Nothing in it depends on the clock.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any, Protocol

from stillroom.errors import IntegrityError
from stillroom.jobs.journal import Journal
from stillroom.jobs.progress import Reporter
from stillroom.provenance import Artifact, Parent, digest_json
from stillroom.provenance.digests import load_json
from stillroom.recipes import Recipe

__all__ = [
    "COMMITTED_FOLDER",
    "LISTED_JOURNAL",
    "SEGMENTS_FILE",
    "CommittedSegment",
    "ReplayRequest",
    "Replayer",
    "SegmentOutcome",
    "commit_segments",
    "compare_commitment",
    "digest_start",
    "digest_value",
    "read_segments",
    "withdraw_segments",
]

LISTED_JOURNAL = "segments"
"""Journal of the segments whose results are stored elsewhere: start and result by name."""

SEGMENTS_FILE = "segments.jsonl"
COMMITTED_FOLDER = "committed"
"""Folder of a finished job with the journals whose lines are segments."""


@dataclass(frozen=True, slots=True)
class CommittedSegment:
    """One part of a job's work.

    Args:
        name: Unique within the job, as ``readings/KEY`` or ``steps/120-130``.
        start: Digest of what it starts from: inputs, or a committed state.
        result: Digest of its result.
    """

    name: str
    start: str
    result: str


@dataclass(frozen=True, slots=True)
class SegmentOutcome:
    """What the replay of one segment found.

    Args:
        name: The segment, or the output that was assembled from all of them.
        committed: Digest in ``segments.jsonl``, or of the file that the artifact lists.
        replayed: Digest of the recomputed result; empty if there is none.
        what: What differs, as a predicate; by default that the digests do.
        within: The stated bound within which the result was compared instead, where the machine
            differs in kind and the job's kind declares one; such an outcome is no difference.
    """

    name: str
    committed: str
    replayed: str
    what: str = ""
    within: str = ""

    @property
    def is_same(self) -> bool:
        """Whether nothing differs, or nothing beyond the stated bound."""
        return not self.what and (bool(self.within) or self.committed == self.replayed)

    def __str__(self) -> str:
        """Return a predicate for a sentence that starts with the segment's name."""
        if self.what or not self.replayed:
            return self.what or "was not recomputed"
        return f"was committed as {self.committed[:12]} and is recomputed as {self.replayed[:12]}"


_FOLLOWING = 4
"""Characters after a place that show which one it is, of two of which one begins the other."""


@dataclass(frozen=True)
class ReplayRequest:
    """A finished job to be replayed.

    Args:
        folder: The job's folder.
        artifact: Its artifact.
        recipe: Its recipe, with the present places of its inputs.
        scratch: An empty folder for what the replay writes.
        reporter: Display of progress and messages.
        run: Runs a started job (``flow.job.run_job``).
        moved: Present and former places of inputs that were moved; outputs name the former.
    """

    folder: Path
    artifact: Artifact
    recipe: Recipe
    scratch: Path
    reporter: Reporter
    run: Callable[[Recipe, Any], Artifact]
    moved: tuple[tuple[str, str], ...] = ()

    def restore_places(self, text: str, stored: str) -> str:
        """Return a text with the former places of the inputs, each where the stored text has one.

        A place that the stored text names as the present one stays.
        """
        if text == stored or not self.moved:
            return text
        places = re.compile("|".join(re.escape(now) for now, _ in self.moved))  # longest first
        parts, end, at = [], 0, 0
        matches = [*places.finditer(text)]
        starts = [*(match.start() for match in matches), len(text)]
        for match, following in zip(matches, starts[1:], strict=True):
            at += match.start() - end
            parts.append(text[end : match.start()])
            end = match.end()
            formers = [before for now, before in self.moved if now == match[0]]
            rest = text[end : min(end + _FOLLOWING, following)]
            fits = (one for one in (*formers, match[0]) if stored.startswith(one + rest, at))
            also = (one for one in (*formers, match[0]) if stored.startswith(one, at))
            parts.append(next(fits, next(also, formers[0])))
            at += len(parts[-1])
        return "".join([*parts, text[end:]])


class Replayer(Protocol):
    """Recomputes segments of one kind of job; declared as ``JobKind.replayer``."""

    @property
    def journals(self) -> Sequence[str]:
        """Names of the job's journals whose lines are segments and are kept for replays."""

    @property
    def timed(self) -> frozenset[str]:
        """Keys of journaled values that depend on the clock and do not count.

        A name with a slash, as ``speed/``, is a journal of nothing else: it is kept, too.
        """

    def find_open(self, request: ReplayRequest) -> str:
        """Return why the segments cannot be recomputed here; empty if they can."""

    def list_segments(self, request: ReplayRequest) -> list[CommittedSegment]:
        """Return the committed segments."""

    def estimate_costs(
        self, request: ReplayRequest, segments: Sequence[CommittedSegment]
    ) -> Mapping[str, float]:
        """Return about how many seconds each segment took, for the draw and the estimate."""

    def estimate_rest(self, request: ReplayRequest, *, is_whole: bool) -> float:
        """Return about how many seconds a replay takes besides the segments."""

    def replay(self, request: ReplayRequest, names: frozenset[str]) -> Iterable[SegmentOutcome]:
        """Recompute the named segments, and compare what was assembled from all of them.

        Yields:
            An outcome for each named segment, and for each output that was assembled.

        Raises:
            StillroomError: If the job cannot be repeated at all.
        """


def digest_start(recipe_digest: str, parents: Sequence[Parent]) -> str:
    """Return the digest of a job's recipe and inputs, from which its journaled segments start."""
    return digest_json([recipe_digest, [parent.digest for parent in parents]])


def digest_value(value: Any, timed: frozenset[str] = frozenset()) -> str:
    """Return the digest of JSON values without the keys that depend on the clock."""
    return digest_json(_drop(value, timed) if timed else value)


def _drop(value: Any, keys: frozenset[str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _drop(part, keys) for key, part in value.items() if key not in keys}
    return [_drop(part, keys) for part in value] if isinstance(value, list) else value


def commit_segments(
    folder: Path,
    start: str,
    journals: Mapping[str, Journal],
    timed: frozenset[str],
    listed: Journal | None,
) -> dict[str, Any]:
    """Write ``segments.jsonl``, and copy the journals whose lines are segments.

    Args:
        folder: Working folder of the job.
        start: Digest of the recipe and the inputs, from which journaled segments start.
        journals: Journals whose lines are segments, by name; empty ones are left out.
        timed: Keys of their values that do not count; see ``Replayer.timed``.
        listed: Journal of the other segments: start and result by name.

    Returns:
        What the job adds to its details: the number of segments and the digest of the sorted list,
            so that the artifact's claim covers them; nothing without segments.
    """
    segments = [
        CommittedSegment(f"{name}/{key}", start, digest_value(journal[key], timed))
        for name, journal in journals.items()
        if f"{name}/" not in timed
        for key in journal.keys()  # noqa: SIM118  # a journal is no mapping
    ]
    if listed is not None:
        rows = ((name, listed[name]) for name in listed.keys())  # noqa: SIM118
        segments += [CommittedSegment(name, *row) for name, row in rows if row is not None]
    if not segments:
        return {}
    with (folder / SEGMENTS_FILE).open("w", encoding="utf-8") as file:
        for segment in segments:
            file.write(json.dumps(asdict(segment), ensure_ascii=False) + "\n")
    for name, journal in journals.items():
        if len(journal):
            journal.sync()
            copy = folder / COMMITTED_FOLDER / f"{name}.jsonl"
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(journal.path, copy)
    return {"segments": _summarize(segments)}


def withdraw_segments(listed: Journal, kept: Container[str]) -> None:
    """Withdraw from ``LISTED_JOURNAL`` what an interrupted run committed beyond these names."""
    for name in listed.keys():  # noqa: SIM118
        if name not in kept and listed[name] is not None:
            listed.put(name, None)


def _summarize(segments: Sequence[CommittedSegment]) -> dict[str, Any]:
    digest = digest_json(sorted(astuple(segment) for segment in segments))
    return {"count": len(segments), "digest": digest}


def compare_commitment(folder: Path, artifact: Artifact) -> list[SegmentOutcome]:
    """Return whether a finished job's segments are those that its artifact states.

    Returns:
        One outcome; none for a job without segments.

    Raises:
        IntegrityError: If ``segments.jsonl`` cannot be read.
    """
    stated = artifact.details.get("segments")
    segments = read_segments(folder)
    if stated is None and not segments:
        return []
    found = _summarize(segments)
    stated = stated if isinstance(stated, Mapping) else {"count": 0, "digest": ""}
    what = ""
    if SEGMENTS_FILE not in {entry.path for entry in artifact.timed_files}:
        what = "is not listed in artifact.json"
    elif dict(stated) != found:
        what = (
            f"lists {found['count']} segments, and artifact.json states {stated.get('count')} "
            "with another digest"
        )
    return [SegmentOutcome(SEGMENTS_FILE, str(stated.get("digest")), found["digest"], what)]


def read_segments(folder: Path) -> list[CommittedSegment]:
    """Return the committed segments of a finished job; none if it committed none.

    Raises:
        IntegrityError: If the file cannot be read, or names a segment twice.
    """
    path = folder / SEGMENTS_FILE
    if not path.is_file():
        return []
    segments: dict[str, CommittedSegment] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            row = load_json(line)
            segment = CommittedSegment(str(row["name"]), str(row["start"]), str(row["result"]))
            if segments.setdefault(segment.name, segment) is not segment:
                raise ValueError(f"{segment.name} is named twice")
        except (ValueError, KeyError, TypeError) as error:
            raise IntegrityError(
                f"line {number} of {SEGMENTS_FILE} cannot be read: {error}",
                code="replay.segments",
                where=str(path),
                expected='{"name": NAME, "start": DIGEST, "result": DIGEST}, each name once',
                next="restore the file, or make the artifact again",
            ) from error
    return list(segments.values())
