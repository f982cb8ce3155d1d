"""Harvest: ask unit by unit, judge in order, stop when enough is kept.

Units are asked in groups so that the teacher is kept busy, and journaled one by one; they are
judged in the plan's order, whatever was asked when. So neither the size of a group nor a kill
changes what is kept. Knows no files but the journal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.jobs import Spilled, SpilledRecords
from stillroom.models import ConcurrentModel
from stillroom.records import Record, RecordWriter
from stillroom.synth.budget import Purse
from stillroom.synth.method import Draft, Seed, Split, Verdict, Writer
from stillroom.synth.panel import Panel
from stillroom.synth.streaming import Shelf, is_lost, stream_units
from stillroom.synth.tallying import Tally

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = ["Dropped", "Harvest", "Panel", "Shelf", "draft_units", "drop_record", "gather"]


@dataclass(frozen=True, slots=True)
class Dropped:
    """What was not kept: the filter (or ``generator``), its reason, and the record or the text."""

    split: Split
    filter: str
    reason: str
    unit: str
    score: float = 0.0
    record: Record | None = None
    text: str = ""
    limit: float | None = None
    against: str = ""
    told: Mapping[str, Any] = field(default_factory=dict)
    step: str = ""

    def to_json(self) -> dict[str, object]:
        """Return a row of dropped.jsonl."""
        return {
            "split": self.split,
            "filter": self.filter,
            "reason": self.reason,
            "score": round(self.score, 4),
            "unit": self.unit,
            "record": self.record.to_json() if self.record is not None else None,
            "text": self.text,
            **({"limit": self.limit} if self.limit is not None else {}),
            **({"against": self.against} if self.against else {}),
            **({"told": dict(self.told)} if self.told else {}),
            **({"step": self.step} if self.step else {}),
        }

    def to_exact_json(self) -> dict[str, object]:
        """Return a row that gives back the same: its score is not rounded."""
        return {**self.to_json(), "score": self.score}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Dropped:
        """Read what ``to_json`` wrote."""
        record = data["record"]
        return cls(
            data["split"],
            data["filter"],
            data["reason"],
            data["unit"],
            data["score"],
            Record.from_json(record) if record is not None else None,
            data["text"],
            data.get("limit"),
            data.get("against", ""),
            data.get("told", {}),
            data.get("step", ""),
        )


def drop_record(
    split: Split, name: str, verdict: Verdict, unit: str, record: Record, step: str = ""
) -> Dropped:
    """Return the row of a record that a filter has dropped."""
    return Dropped(
        split,
        name,
        verdict.reason,
        unit,
        verdict.score,
        record,
        limit=verdict.limit,
        against=verdict.against,
        told=verdict.told,
        step=step,
    )


@dataclass(slots=True)
class Harvest:
    """What one side of the split gave; ``tally`` is what a page says of the records kept."""

    split: Split
    kept: list[Record] | SpilledRecords = field(default_factory=list)
    dropped: list[Dropped] | Spilled[Dropped] = field(default_factory=list)
    units: int = 0
    asked: int = 0
    parsed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    changed: int = 0
    trimmed: int = 0
    told: Mapping[str, Any] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    tally: Tally = field(default_factory=Tally, compare=False, repr=False)

    @classmethod
    def spilled(cls, split: Split, folder: Path, closing: ExitStack) -> Harvest:
        """Return one whose records and rows lie in a folder, until ``closing`` closes."""
        folder.mkdir(parents=True, exist_ok=True)
        kept = SpilledRecords(folder / f"{split}-kept.jsonl")
        rows = folder / f"{split}-dropped.jsonl"
        dropped = Spilled(rows, Dropped.to_exact_json, Dropped.from_json)
        return cls(split, closing.enter_context(kept), closing.enter_context(dropped))

    def drop(self, row: Dropped) -> None:
        """Put a row among what fell."""
        self.reasons[f"{row.filter}: {row.reason}"] += 1
        self.dropped.append(row)

    def keep(self, record: Record) -> None:
        """Put a record among what is kept."""
        self.trimmed += "written" in record.fields
        self.tally.add(record)
        self.kept.append(record)

    def write_to(self, writer: RecordWriter) -> None:
        """Write the records kept."""
        if isinstance(self.kept, SpilledRecords):
            self.kept.copy_to(writer)
            return
        for record in self.kept:
            writer.write(record)

    def count_reasons(self) -> dict[str, int]:
        """Return how many fell to each ``filter: reason``, commonest first."""
        return dict(sorted(self.reasons.items(), key=lambda item: (-item[1], item[0])))

    def add(self, draft: Draft, panel: Panel, wanted: int) -> None:
        """Judge a draft; once ``wanted`` records are kept, the rest of it is not looked at."""
        self.units += 1
        self.asked += draft.asked
        self.prompt_tokens += draft.prompt_tokens
        self.completion_tokens += draft.completion_tokens
        self.parsed += len(draft.records)
        self.counts.update(draft.counts)
        for failure in draft.failures:
            self.drop(
                Dropped(self.split, "generator", failure.reason, draft.key, text=failure.text)
            )
        if panel.is_costly and len(self.kept) < wanted:
            panel.prefetch(draft.records)
        for record in draft.records:
            if panel.is_costly and len(self.kept) >= wanted:  # nothing more is measured
                self._drop(draft, "target", Verdict(False, "beyond the number wanted"), record)
                continue
            name, verdict = panel.judge(record)
            if not verdict.keep:
                self._drop(draft, name, verdict, record)
            elif len(self.kept) >= wanted:
                self._drop(draft, "target", Verdict(False, "beyond the number wanted"), record)
            else:
                kept = verdict.changed or record
                self.changed += verdict.changed is not None
                panel.admit(kept)
                self.keep(kept)

    def _drop(self, draft: Draft, name: str, verdict: Verdict, record: Record) -> None:
        self.drop(drop_record(self.split, name, verdict, draft.key, record))


def draft_units(
    seeds: Iterable[Seed],
    writer: Writer,
    model: TextModel,
    shelf: Shelf,
    *,
    batch_size: int,
    pause: Callable[[], None] = lambda: None,
) -> Iterator[Draft]:
    """Yield the draft of every unit in order; finished ones come from the shelf.

    A teacher that takes several requests at once is asked unit by unit, on as many threads, with no
    waiting for the slowest of a group; others are asked in groups. Where the writer remembers, a
    round of units is drafted before the first of it is settled.

    Args:
        seeds: The units, in order.
        writer: How the teacher is asked.
        model: The teacher.
        shelf: Where finished units are kept, as they were drafted: before they are settled.
        batch_size: How many units are asked about at once, where the teacher works in groups.
        pause: Called where it is safe to stop.

    Raises:
        BackendError: If the teacher fails, or refuses the first many units one after another.
    """

    def draft(units: Iterable[Seed]) -> Iterator[Draft]:
        if isinstance(model, ConcurrentModel) and model.concurrency > 1:
            return stream_units(units, writer, model, shelf, workers=model.concurrency, pause=pause)
        return _draft_groups(units, writer, model, shelf, batch_size, pause)

    if not writer.round_size:
        yield from map(writer.settle, draft(seeds))
        return
    remaining = iter(seeds)
    while units := list(islice(remaining, writer.round_size)):
        yield from map(writer.settle, list(draft(units)))


def _draft_groups(
    seeds: Iterable[Seed],
    writer: Writer,
    model: TextModel,
    shelf: Shelf,
    batch_size: int,
    pause: Callable[[], None],
) -> Iterator[Draft]:
    remaining = iter(seeds)
    while group := list(islice(remaining, batch_size)):
        pause()
        missing = [seed for seed in group if shelf.get(seed.key) is None]
        lost: dict[str, Draft] = {}
        for draft in writer.generate(missing, model) if missing else ():
            if is_lost(draft):
                lost[draft.key] = draft
            else:
                shelf.put(draft.key, draft.to_json())
        for seed in group:
            if seed.key in lost:
                yield lost[seed.key]
            else:
                yield Draft.from_json(shelf.get(seed.key))  # type: ignore[arg-type]  # put above


def gather(
    split: Split,
    drafts: Iterable[Draft],
    panel: Panel,
    wanted: int,
    on_unit: Callable[[Harvest], None] = lambda harvest: None,
    purse: Purse | None = None,
    share: float = 1.0,
    harvest: Harvest | None = None,
) -> Harvest:
    """Judge drafts in order until ``wanted`` records are kept, or the purse's share is spent.

    What comes goes into ``harvest``, where one is given, else into memory.
    """
    harvest = Harvest(split) if harvest is None else harvest
    if purse is not None:
        purse.begin(harvest)
    if not wanted or (purse is not None and purse.reached(share)):
        return harvest
    for draft in drafts:
        harvest.add(draft, panel, wanted)
        on_unit(harvest)
        if len(harvest.kept) >= wanted or (purse is not None and purse.reached(share)):
            break
    harvest.told = panel.summarize()
    return harvest
