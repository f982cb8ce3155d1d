"""Bundles: what one unit of work has become on its way through a graph, with the account of it.

An account is settled where the bundle arrives, in order. What was asked for ahead and never arrives
is never counted, so that a report does not depend on how far ahead work was begun.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeVar

from stillroom.records import Record
from stillroom.synth.harvest import Dropped

__all__ = ["Account", "Bundle", "Scored", "Yield", "take_turns", "tee"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Scored:
    """A record and what filters have scored it on its way."""

    record: Record
    scores: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"record": self.record.to_json(), "scores": dict(self.scores)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Scored:
        """Read what ``to_json`` wrote."""
        return cls(Record.from_json(data["record"]), data["scores"])


@dataclass(frozen=True, slots=True)
class Account:
    """What one unit cost and gave at one step; ``number`` is its place in the step's order."""

    step: str
    number: int
    units: int = 0
    taken: int = 0
    given: int = 0
    changed: int = 0
    asked: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    dropped: tuple[Dropped, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    measured: tuple[tuple[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        names = ("step", "number", "units", "taken", "given", "changed", "asked")
        told = {
            name: getattr(self, name) for name in (*names, "prompt_tokens", "completion_tokens")
        }
        return {
            **told,
            "dropped": [one.to_json() for one in self.dropped],
            "counts": dict(self.counts),
            "measured": [list(one) for one in self.measured],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Account:
        """Read what ``to_json`` wrote."""
        dropped = tuple(Dropped.from_json(row) for row in data["dropped"])
        measured = tuple((name, value) for name, value in data["measured"])
        return cls(**{**data, "dropped": dropped, "measured": measured})


@dataclass(frozen=True, slots=True)
class Bundle:
    """The records of one unit, and every account that is to be settled where they arrive."""

    records: tuple[Scored, ...] = ()
    accounts: tuple[Account, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "records": [one.to_json() for one in self.records],
            "accounts": [one.to_json() for one in self.accounts],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Bundle:
        """Read what ``to_json`` wrote."""
        return cls(
            tuple(Scored.from_json(one) for one in data["records"]),
            tuple(Account.from_json(one) for one in data["accounts"]),
        )


@dataclass(slots=True)
class Yield:
    """What one step has taken, given, dropped and cost, as far as it is settled."""

    step: str
    units: int = 0
    taken: int = 0
    given: int = 0
    changed: int = 0
    asked: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    measured: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, account: Account) -> None:
        """Settle one account."""
        for name in (
            "units",
            "taken",
            "given",
            "changed",
            "asked",
            "prompt_tokens",
            "completion_tokens",
        ):
            setattr(self, name, getattr(self, name) + getattr(account, name))
        self.reasons.update(f"{one.filter}: {one.reason}" for one in account.dropped)
        self.counts.update(account.counts)
        for name, value in account.measured:
            self.measured.setdefault(name, []).append(value)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "units": self.units,
            "taken": self.taken,
            "given": self.given,
            "changed": self.changed,
            "asked": self.asked,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "dropped": dict(sorted(self.reasons.items(), key=lambda one: (-one[1], one[0]))),
            **({"counts": dict(sorted(self.counts.items()))} if self.counts else {}),
        }


def take_turns(streams: Sequence[Iterator[T]]) -> Iterator[T]:
    """Yield one of each stream in turn until all have ended."""
    standing = deque(streams)
    while standing:
        stream = standing.popleft()
        for one in islice(stream, 1):
            yield one
            standing.append(stream)


def tee(
    stream: Iterator[Bundle], count: int, scratch: Path, closing: ExitStack
) -> list[Iterator[Bundle]]:
    """Return as many streams of the same bundles; what one has had and another not lies in a file.

    Every stream carries the accounts: whoever settles them looks at their numbers. The file is
    closed with ``closing``.
    """
    if count == 1:
        return [stream]
    scratch.mkdir(parents=True, exist_ok=True)
    file = closing.enter_context(tempfile.TemporaryFile(dir=scratch))  # noqa: SIM115  # it is one
    spool = _Spool(stream, file)
    return [spool.read() for _ in range(count)]


class _Spool:
    """A stream that is written down as it is taken, and read by several at their own pace."""

    def __init__(self, stream: Iterator[Bundle], file: IO[bytes]) -> None:
        self._stream, self._file = stream, file
        self._end = 0
        self._is_done = False

    def read(self) -> Iterator[Bundle]:
        at = 0
        while True:
            if at == self._end and not self._pull():
                return
            self._file.seek(at)
            line = self._file.readline()
            at = self._file.tell()
            yield Bundle.from_json(json.loads(line))

    def _pull(self) -> bool:
        if self._is_done:
            return False
        bundle = next(self._stream, None)
        if bundle is None:
            self._is_done = True
            return False
        self._file.seek(self._end)
        text = json.dumps(bundle.to_json(), ensure_ascii=False)
        self._file.write(text.encode("utf-8", "surrogatepass") + b"\n")
        self._end = self._file.tell()
        return True
