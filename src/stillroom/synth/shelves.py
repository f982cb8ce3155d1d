"""Shelves: finished units and measures by what they depend on, kept beside a run when it is done.

A unit's key is the id of what it is about, its shelf is named by the digest of everything else that
it depends on: the method's settings, the model, the seed. So a run of a changed recipe, or of more
seeds, takes from the run before it whatever has not changed, and asks for the rest alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stillroom.jobs import Job, Journal, read_journal
from stillroom.provenance import digest_json

__all__ = ["UNITS", "Shelves", "UnitShelf"]

UNITS = "units"
"""The folder of a run that holds its shelves; no part of the artifact."""
_DIGITS = 16
_VERSION = 1


class UnitShelf:
    """One journal, with that of the run before behind it."""

    def __init__(self, journal: Journal, before: dict[str, Any]) -> None:
        """Look into ``before`` for what the journal lacks, and write down what is found."""
        self._journal, self._before = journal, before

    def get(self, key: str, default: object = None) -> object:
        """Return a value, from this run or the one before, or the default."""
        if key in self._journal:
            return self._journal[key]
        if key in self._before:
            self._journal.put(key, self._before.pop(key))
            return self._journal[key]
        return default

    def put(self, key: str, value: object) -> None:
        """Keep a value."""
        self._journal.put(key, value)


class Shelves:
    """The shelves of one run, each opened once."""

    def __init__(self, folder: Path, before: Path | None = None) -> None:
        """Open none yet; ``before`` is the folder of an earlier run's shelves."""
        self._folder, self._before = folder, before
        self._open: dict[str, tuple[UnitShelf, Journal]] = {}

    @classmethod
    def of(cls, job: Job) -> Shelves:
        """Return the shelves of a job, with those of the run that it replaces behind them."""
        before = job.previous / UNITS if job.previous is not None else None
        return cls(job.work / UNITS, before)

    def open(self, what: str, *depends: object) -> UnitShelf:
        """Return the shelf of some work.

        Args:
            what: ``units`` or ``measures``: the beginning of its file's name.
            depends: Everything that its values follow from beside their keys.
        """
        name = f"{what}-{digest_json([_VERSION, *depends])[:_DIGITS]}"
        if name not in self._open:
            journal = Journal(self._folder / f"{name}.jsonl")
            before = self._before / f"{name}.jsonl" if self._before is not None else None
            known = read_journal(before) if before is not None else {}
            self._open[name] = UnitShelf(journal, known), journal
        return self._open[name][0]

    def close(self) -> None:
        """Sync and close; closing twice does no harm."""
        for _, journal in self._open.values():
            journal.close()
