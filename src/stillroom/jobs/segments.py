"""Segments: the parts in which a job commits its work, so that a stranger can recompute some.

``segments.jsonl`` in a finished job's folder has one line a segment: its name, the digest of what
it starts from and the digest of its result. It is listed among the artifact's ``timed_files``:
verified and published with it, but outside the digest of the output, which so stays what it was.
Nothing in it depends on the clock.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from stillroom.errors import IntegrityError
from stillroom.jobs.progress import Reporter
from stillroom.provenance import Artifact, digest_json
from stillroom.recipes import Recipe

__all__ = [
    "SEGMENTS_FILE",
    "ReplayRequest",
    "Replayer",
    "Segment",
    "SegmentOutcome",
    "digest_value",
    "read_segments",
    "write_segments",
]

SEGMENTS_FILE = "segments.jsonl"


@dataclass(frozen=True, slots=True)
class Segment:
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
        is_same_machine: Whether the machine is of the kind that made the job.
    """

    folder: Path
    artifact: Artifact
    recipe: Recipe
    scratch: Path
    reporter: Reporter
    run: Callable[[Recipe, Any], Artifact]
    is_same_machine: bool = True


class Replayer(Protocol):
    """Recomputes segments of one kind of job; declared as ``JobKind.replayer``."""

    @property
    def journals(self) -> Sequence[str]:
        """Names of the job's journals whose lines are segments and are kept for replays."""

    @property
    def timed(self) -> frozenset[str]:
        """Keys of journaled values that depend on the clock and do not count."""

    def find_open(self, request: ReplayRequest) -> str:
        """Return why the segments cannot be recomputed here; empty if they can."""

    def list_segments(self, request: ReplayRequest) -> list[Segment]:
        """Return the committed segments."""

    def replay(self, request: ReplayRequest, names: frozenset[str]) -> Iterable[SegmentOutcome]:
        """Recompute the named segments, and compare what was assembled from all of them.

        Yields:
            An outcome for each named segment, and for each output that was assembled.

        Raises:
            StillroomError: If the job cannot be repeated at all.
        """


def digest_value(value: Any, timed: frozenset[str] = frozenset()) -> str:
    """Return the digest of JSON values without the keys that depend on the clock."""
    return digest_json(_drop(value, timed) if timed else value)


def _drop(value: Any, keys: frozenset[str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _drop(part, keys) for key, part in value.items() if key not in keys}
    return [_drop(part, keys) for part in value] if isinstance(value, list) else value


def write_segments(folder: Path, segments: Iterable[Segment]) -> int:
    """Write ``segments.jsonl``; return the number of segments, without any no file."""
    path, count = folder / SEGMENTS_FILE, 0
    path.unlink(missing_ok=True)
    for segment in segments:
        if not count:
            file = path.open("w", encoding="utf-8")
        row = {"name": segment.name, "start": segment.start, "result": segment.result}
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
        count += 1
    if count:
        file.close()
    return count


def read_segments(folder: Path) -> list[Segment]:
    """Return the committed segments of a finished job; none if it committed none.

    Raises:
        IntegrityError: If the file cannot be read, or names a segment twice.
    """
    path = folder / SEGMENTS_FILE
    if not path.is_file():
        return []
    segments: dict[str, Segment] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line)
            segment = Segment(str(row["name"]), str(row["start"]), str(row["result"]))
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
