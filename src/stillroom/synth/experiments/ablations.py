"""Ablations for data valuation: all records, without one group, and one group alone.

Two families are compared, each at one size, so that more data never passes for better data. In the
first every arm misses one group: what is lost without it? In the second every arm is one group:
what does it teach by itself? Where groups are filters, what a filter dropped is put back in.

Knows records and draws, no students.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from stillroom.errors import DataError
from stillroom.records import Record, find_record_file, read_records
from stillroom.synth.experiments.students import StudentSettings, sample_records

__all__ = [
    "Ablation",
    "AblationGroup",
    "DataValueResults",
    "DataValueStudy",
    "RecordPools",
    "make_ablation_groups",
    "read_record_pools",
    "sample_ablation",
]


By = Literal["generator", "filter"]
REJECTED_FILE = "dropped.jsonl"
ALL, UNFILTERED = "all", "unfiltered"
_NON_FILTERS = frozenset({"generator", "target", "limit", "mix"})
"""What lets a record fall without judging it."""


@dataclass(frozen=True, slots=True)
class Ablation:
    """A name, and the records that its students draw from."""

    name: str
    group: str
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class AblationGroup:
    """Arms of one size and the one that the others are compared with.

    ``sign`` is 1 where a group is worth its arm's loss minus the base's (it is missing from the
    arm), and -1 where the arm has it and the base does not single it out.
    """

    name: str
    base: Ablation
    arms: tuple[Ablation, ...]
    size: int
    sign: int


@dataclass(frozen=True, slots=True)
class RecordPools:
    """Kept records, those that each filter dropped, and the groups of the kept ones."""

    kept: tuple[Record, ...]
    dropped: Mapping[str, tuple[Record, ...]]
    groups: Mapping[str, tuple[Record, ...]]
    by: str


def read_record_pools(paths: Sequence[Path], by: str) -> RecordPools:
    """Read records and put them into groups.

    Args:
        paths: Files or artifacts of records, as ``stillroom run`` leaves them. Records that stand
            aside for evaluation (``split`` held_out or test) and plain passages are not taken.
        by: ``generator`` groups by the last step of the origin, ``filter`` by what dropped a record
            (``dropped.jsonl`` beside the records), anything else is the name of a field.

    Raises:
        DataError: If there is nothing to compare.
    """
    kept: list[Record] = []
    dropped: dict[str, list[Record]] = {}
    for path in paths:
        kept += [one for one in read_records(path) if _is_training_record(one)]
        for name, record in _read_dropped(path):
            dropped.setdefault(name, []).append(record)
    groups: dict[str, list[Record]] = {}
    if by != "filter":
        for record in kept:
            groups.setdefault(_group_of(record, by), []).append(record)
    _check(kept, dropped if by == "filter" else groups, by, paths)
    return RecordPools(
        tuple(kept),
        {name: tuple(found) for name, found in sorted(dropped.items())},
        {name: tuple(found) for name, found in sorted(groups.items())},
        by,
    )


def make_ablation_groups(
    pools: RecordPools, *, least: int, most: int, chosen: Sequence[str] = ()
) -> tuple[list[AblationGroup], list[str]]:
    """Return the families that can be compared, and the groups that are too small.

    Args:
        pools: From ``read_record_pools``.
        least: Records that a group needs to be compared.
        most: Records that an arm learns from at most.
        chosen: Names of the groups to compare; none compares all.

    Raises:
        DataError: If a name is that of no group.
    """
    families, small = _make_all_groups(pools, least, most)
    if not chosen:
        return families, small
    known = {arm.group for family in families for arm in family.arms}
    unknown = sorted(set(chosen) - known)
    if unknown:
        raise DataError(
            f"there is no group {unknown[0]!r} to compare",
            code="synth.no-group",
            expected=f"one of: {', '.join(sorted(known))}",
            next="name a group as the report does, or leave --group out for all",
        )
    kept = [
        replace(family, arms=tuple(arm for arm in family.arms if arm.group in chosen))
        for family in families
    ]
    return [family for family in kept if family.arms], small


def _make_all_groups(
    pools: RecordPools, least: int, most: int
) -> tuple[list[AblationGroup], list[str]]:
    if pools.by == "filter":
        return _make_filter_groups(pools, most), []
    small = [name for name, found in pools.groups.items() if len(found) < least]
    large = {name: found for name, found in pools.groups.items() if len(found) >= least}
    base = Ablation(ALL, "", pools.kept)
    families = []
    without = tuple(
        Ablation(f"without {name}", name, rest)
        for name, found in large.items()
        if len(rest := _without(pools.kept, found)) >= least
    )
    if without:
        size = min(most, *(len(arm.records) for arm in without))
        families.append(AblationGroup("leave one out", base, without, size, 1))
    only = tuple(Ablation(f"only {name}", name, found) for name, found in large.items())
    if only:
        size = min(most, *(len(arm.records) for arm in only))
        families.append(AblationGroup("only one", base, only, size, -1))
    return families, small


def sample_ablation(arm: Ablation, size: int, seed: int) -> list[Record]:
    """Return the records that a student of a seed learns from."""
    return sample_records(arm.records, size, seed)


def _make_filter_groups(pools: RecordPools, most: int) -> list[AblationGroup]:
    every = tuple(one for found in pools.dropped.values() for one in found)
    kept, unfiltered = Ablation("kept", "", pools.kept), (*pools.kept, *every)
    without = tuple(
        Ablation(f"without filter {name}", name, (*pools.kept, *found))
        for name, found in pools.dropped.items()
    )
    only = tuple(
        Ablation(f"only filter {name}", name, _without(unfiltered, found))
        for name, found in pools.dropped.items()
    )
    size = min(most, len(pools.kept))
    whole = Ablation(UNFILTERED, "all filters", unfiltered)
    return [
        AblationGroup("leave one out", kept, (whole, *without), size, 1),
        AblationGroup("only one", whole, only, size, -1),
    ]


def _without(records: Sequence[Record], found: Sequence[Record]) -> tuple[Record, ...]:
    gone = {id(one) for one in found}
    return tuple(one for one in records if id(one) not in gone)


def _is_training_record(record: Record) -> bool:
    is_aside = record.fields.get("split") in {"held_out", "test"}
    is_passage = len(record.messages) == 1 and "passage_id" in record.fields
    is_said = record.messages[-1].role == "assistant" and record.messages[-1].content.strip()
    return bool(is_said) and not is_aside and not is_passage


def _group_of(record: Record, by: str) -> str:
    if by == "generator":
        return record.origin.chain[-1].method if record.origin.chain else record.origin.kind
    value = record.fields.get(by)
    return "nothing" if value is None else str(value)


def _read_dropped(path: Path) -> Iterator[tuple[str, Record]]:
    """Yield the records that filters dropped, with the filter; none where nothing says so."""
    file = find_record_file(path).with_name(REJECTED_FILE)
    if not file.is_file():
        return
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if row["record"] is None or row["filter"] in _NON_FILTERS:
                continue
            record = Record.from_json(row["record"])
            if _is_training_record(record):
                yield row["filter"], record


def _check(
    kept: Sequence[Record], groups: Mapping[str, object], by: str, paths: Sequence[Path]
) -> None:
    where = ", ".join(map(str, paths))
    if not kept:
        raise DataError(
            "no record to learn from",
            code="synth.no-records",
            where=where,
            expected="records of a split other than held_out, with something the assistant says",
            next="name an artifact of records",
        )
    if by == "filter" and not groups:
        raise DataError(
            "no filter dropped a record here",
            code="synth.one-group",
            where=where,
            expected=f"{REJECTED_FILE} beside the records, with records in it",
            next="name the folder of a finished synth run, or compare by generator",
        )
    if by != "filter" and len(groups) < 2:
        raise DataError(
            f"all {len(kept)} records are of one group by '{by}'",
            code="synth.one-group",
            where=where,
            expected="two groups or more",
            next="name records of several generators, or a field whose values differ",
        )


Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class DataValueStudy:
    """Which records, measured on what, in which groups, and how large the experiment is.

    ``equal`` is what all arms of a family have as much of. ``records`` is the most that an arm
    learns from, ``held_out`` the most that is measured on, ``least`` what a group needs. ``groups``
    are compared, by default all; where groups are filters, one is called ``all filters``.
    """

    paths: tuple[Path, ...]
    human: Path
    by: str = "generator"
    seeds: int = 3
    records: int = 1000
    held_out: int = 200
    least: int = 20
    equal: Literal["tokens", "records"] = "tokens"
    student: StudentSettings = field(default_factory=StudentSettings)
    seed: int = 0
    groups: tuple[str, ...] = ()

    def to_text(self) -> str:
        """Return the settings as YAML, for the job."""
        told = asdict(self) | {
            "paths": [str(path) for path in self.paths],
            "human": str(self.human),
            "student": self.student.model_dump(mode="json"),
        }
        return "# stillroom synth worth\n" + "".join(
            f"{name}: {json.dumps(value)}\n" for name, value in told.items()
        )


@dataclass
class DataValueResults:
    """What was measured: the losses of every arm by seed and held-out record, (R, N)."""

    plan: DataValueStudy
    families: list[AblationGroup]
    small: list[str]
    tokens: Floats = field(default_factory=lambda: np.zeros(0))
    losses: dict[tuple[str, str], Floats] = field(default_factory=dict)
    learned: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)
    start: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    said: dict[str, Any] = field(default_factory=dict)
