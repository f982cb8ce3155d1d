"""Human review: decisions on records, and the reviewed record set written from them.

Decisions are appended to a journal in whole lines; none is ever changed, the latest one counts. The
reviewed artifact is not modified: accepted records are written to a new one, together with the
trail.
"""

from __future__ import annotations

import getpass
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stillroom.errors import DataError, IntegrityError
from stillroom.jobs import Job, Journal, read_journal
from stillroom.provenance import Artifact, make_parent, read_artifact
from stillroom.provenance.sources import iter_objects
from stillroom.records import Link, Message, Record, combine_origins, read_records, write_records

__all__ = ["REVIEW_ACTIONS", "ReviewDecision", "ReviewLog", "write_reviewed_records"]

REVIEW_ACTIONS = ("accept", "reject", "edit", "undo")
_MAX_EDIT_CHARS = 200_000
_EDIT_METHOD = "console.edit"


@dataclass(frozen=True, slots=True)
class ReviewDecision:
    """Decision on one record, its time, and the edited turns."""

    key: str
    action: str
    who: str
    time: str
    messages: tuple[tuple[str, str], ...] = ()
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "key": self.key,
            "action": self.action,
            "who": self.who,
            "time": self.time,
            "messages": [list(turn) for turn in self.messages],
            "note": self.note,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ReviewDecision:
        """Parse the output of ``to_json``."""
        turns = tuple((str(role), str(text)) for role, text in data["messages"])
        return cls(data["key"], data["action"], data["who"], data["time"], turns, data["note"])


class ReviewLog:
    """Decisions on one artifact, keyed by its digest; safe for the threads of one server."""

    def __init__(self, home: Path, digest: str) -> None:
        """Read the trail in ``home``; no file is created before the first decision."""
        self.path = home / f"{digest}.jsonl"
        self._lock = threading.Lock()
        self._latest: dict[str, tuple[ReviewDecision, int]] = {}
        self._count = 0
        for value in read_journal(self.path, self._refuse_damage).values():
            self._take(ReviewDecision.from_json(value))

    def _refuse_damage(self, damage: str) -> None:
        """Refuse a damaged trail: the next decision would cut off those after the damage."""
        raise IntegrityError(
            damage,
            code="console.trail-damaged",
            expected="the decisions as they were written",
            next="restore the file from a backup, or move it away to review anew",
        )

    def latest(self, key: str) -> tuple[ReviewDecision | None, int]:
        """Return the latest decision on a record, and the number of its decisions."""
        decision, count = self._latest.get(key, (None, 0))
        return (None if decision is not None and decision.action == "undo" else decision), count

    def trail(self) -> list[ReviewDecision]:
        """Return every decision, oldest first."""
        values = read_journal(self.path, self._refuse_damage).values()
        return [ReviewDecision.from_json(value) for value in values]

    def decide(
        self,
        key: str,
        action: str,
        *,
        seen: int,
        messages: Sequence[tuple[str, str]] = (),
        note: str = "",
    ) -> ReviewDecision:
        """Append a decision; it is on disk when this returns.

        Raises:
            DataError: If the action is unknown, an edit is empty or too long, or another decision
                was made meanwhile.
            ResourceError: If the disk is full.
        """
        turns = tuple((role, text) for role, text in messages)
        _check_decision(action, turns)
        with self._lock:
            before, count = self._latest.get(key, (None, 0))
            if count != seen:
                raise DataError(
                    "another decision on the record was made meanwhile",
                    code="console.decided",
                    where=key,
                    expected="the current state of the page",
                    next="reload the page and decide again",
                )
            if before is not None and action in {"accept", "reject"}:
                turns = before.messages  # an edit stays in effect until it is undone
            moment = datetime.now(UTC).isoformat(timespec="milliseconds")
            decision = ReviewDecision(key, action, getpass.getuser(), moment, turns, note[:1000])
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with Journal(self.path, self._refuse_damage) as journal:
                journal.put(f"{self._count:09d}", decision.to_json())
            self._take(decision)
        return decision

    def _take(self, decision: ReviewDecision) -> None:
        self._latest[decision.key] = (decision, self._latest.get(decision.key, (None, 0))[1] + 1)
        self._count += 1


def write_reviewed_records(
    folder: Path,
    review: ReviewLog,
    out: Path,
    name: str,
    *,
    shown: Callable[[str], bool] = lambda key: True,
) -> Artifact:
    """Write a new artifact of records with edits and restored records, without rejected ones.

    ``name`` is that of the reviewed artifact, for the recipe's text. ``shown`` tells by its key
    whether a record is visible to the client; others are left out.

    Raises:
        DataError: If ``out`` exists, or no record is left.
    """
    records, counts = _apply_decisions(folder, review, shown)
    if not records:
        raise DataError(
            "every record was rejected",
            code="console.nothing-left",
            expected="at least one record that is not rejected",
            next="accept some records, then write the artifact",
        )
    recipe_text = f"# The records of {name} as a person reviewed them in `stillroom console`.\n"
    decided = [decision for decision in review.trail() if shown(decision.key)]
    recipe = f"{recipe_text}records: {name}\ndecisions: {len(decided)}\n"
    # Partial output of a killed attempt is discarded; a finished one is kept.
    with closing(Job.start(out, recipe, overwrite=not out.exists())) as job:
        write_records(job.output / "records.jsonl", records)
        with Journal(job.output / "review.jsonl") as trail:
            for number, decision in enumerate(decided):
                trail.put(f"{number:09d}", decision.to_json())
        origin = combine_origins(record.origin for record in records)
        return job.finish(
            "records",
            parents=[make_parent("records", folder, out)],
            origin=origin.to_json(),
            details={"review": counts, "of": read_artifact(folder).digest},
            is_timed=lambda path: path.endswith("review.jsonl"),
        )


def _apply_decisions(
    folder: Path, review: ReviewLog, shown: Callable[[str], bool]
) -> tuple[list[Record], dict[str, int]]:
    """Return the records left by a review, edits applied, and counts of each outcome."""
    records: list[Record] = []
    counts = {"kept": 0, "edited": 0, "rejected": 0, "rescued": 0}
    for record, key, was_kept in _iter_records(folder):
        if not shown(key):
            continue
        decision, _ = review.latest(key)
        action = decision.action if decision else ""
        if action == "reject" or (not was_kept and action not in {"accept", "edit"}):
            counts["rejected"] += was_kept
            continue
        edited = decision is not None and bool(decision.messages)
        records.append(_apply_edit(record, decision) if decision and edited else record)
        counts["edited"] += edited
        counts["kept" if was_kept else "rescued"] += 1
    return records, counts


def _iter_records(folder: Path) -> Iterator[tuple[Record, str, bool]]:
    for record in read_records(folder / "output"):
        yield record, record.id, True
    for number, row in enumerate(iter_objects(folder / "output/dropped.jsonl")):
        data = row.get("record")
        if isinstance(data, dict) and "messages" in data:
            yield Record.from_json(data), f"dropped-{number}", False


def _apply_edit(record: Record, decision: ReviewDecision) -> Record:
    """Return a record with edited turns; fields that repeat a turn are updated as well."""
    turns = tuple(Message.from_json({"role": r, "content": t}) for r, t in decision.messages)
    renamed = {
        old.content: new.content
        for old, new in zip(record.messages, turns, strict=False)
        if old.content != new.content
    }
    fields = {
        key: renamed.get(value, value) if isinstance(value, str) else value
        for key, value in record.fields.items()
    }
    origin = record.origin.then(Link(_EDIT_METHOD, parents=(record.id,)))
    return replace(record, messages=turns, fields=fields, origin=origin)


def _check_decision(action: str, turns: Sequence[tuple[str, str]]) -> None:
    size = sum(len(text) for _, text in turns)
    is_edit = action == "edit"
    is_whole = all(text.strip() for _, text in turns)
    if action in REVIEW_ACTIONS and is_edit == bool(turns) and size <= _MAX_EDIT_CHARS and is_whole:
        return
    raise DataError(
        f"{action!r:.40} with {len(turns)} turns of {size} characters is not a valid decision",
        code="console.decision",
        expected=f"one of: {', '.join(REVIEW_ACTIONS)}; an edit with its turns, none of them empty",
        next="use the buttons of the page",
    )
