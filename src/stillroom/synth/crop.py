"""The crop of one side of a graph: what has arrived at its end, and the accounts that came with it.

Accounts are settled here, once each and in whatever order they come: a stream that was copied
carries those of the steps before it more than once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillroom.jobs import Spilled
from stillroom.synth.bundles import Bundle, Yield
from stillroom.synth.harvest import Harvest, drop_record
from stillroom.synth.method import Split, Verdict

__all__ = ["Crop"]


@dataclass(slots=True)
class Crop:
    """What one side of the split has given: records, rows of what fell, and each step's yield.

    Records, rows and scores (one for each record that has some) lie in files.
    """

    harvest: Harvest
    scores: Spilled[dict[str, Any]]
    steps: dict[str, Yield]
    told: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    _settled: dict[str, _Settled] = field(default_factory=lambda: defaultdict(_Settled))

    @classmethod
    def open(cls, split: Split, steps: Iterable[str], scratch: Path, closing: ExitStack) -> Crop:
        """Begin with nothing; the files in ``scratch`` are closed with ``closing``."""
        harvest = Harvest.spilled(split, scratch, closing)
        scores: Spilled[dict[str, Any]] = Spilled(scratch / "scores.jsonl", dict, dict)
        return cls(harvest, closing.enter_context(scores), {name: Yield(name) for name in steps})

    def take(self, bundle: Bundle, wanted: int) -> None:
        """Settle a bundle's accounts, and keep its records up to the number wanted."""
        harvest = self.harvest
        for account in bundle.accounts:
            if not self._settled[account.step].add(account.number):
                continue
            self.steps[account.step].add(account)
            harvest.units += account.units if account.asked else 0
            harvest.asked += account.asked
            harvest.prompt_tokens += account.prompt_tokens
            harvest.completion_tokens += account.completion_tokens
            harvest.parsed += account.given if account.asked else 0
            harvest.changed += account.changed
            for row in account.dropped:
                harvest.drop(row)
        for scored in bundle.records:
            if len(harvest.kept) < wanted:
                harvest.keep(scored.record)
                if scored.scores:
                    rounded = {name: round(value, 6) for name, value in scored.scores.items()}
                    self.scores.append({"id": scored.record.id, "scores": rounded})
            else:
                verdict = Verdict(False, "beyond the number wanted")
                harvest.drop(
                    drop_record(harvest.split, "target", verdict, scored.record.id, scored.record)
                )


class _Settled:
    """The numbers of a step's accounts that are settled: all below one, and a few beyond it."""

    def __init__(self) -> None:
        self._below = 0
        self._beyond: set[int] = set()

    def add(self, number: int) -> bool:
        """Settle an account; return whether it was not."""
        if number < self._below or number in self._beyond:
            return False
        self._beyond.add(number)
        while self._below in self._beyond:
            self._beyond.remove(self._below)
            self._below += 1
        return True
