"""Ablations for data valuation: all records, without one group, and one group alone.

Two families are compared, each at one size, so that a larger amount of data is not taken for better
data. In the first, every arm leaves out one group: what is lost without it? In the second, every
arm is one group: what does it contribute by itself? Where groups are filters, the records that a
filter dropped are added back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stillroom.errors import DataError
from stillroom.provenance import digest_json
from stillroom.provenance.sources import iter_objects
from stillroom.records import Record, find_record_file, read_records

if TYPE_CHECKING:
    from stillroom.synth.jobs.data_value import DataValueRecipe

__all__ = [
    "Ablation",
    "AblationGroup",
    "DataValueResults",
    "RecordPools",
    "describe_origins",
    "is_plain",
    "make_ablation_groups",
    "read_human_records",
    "read_record_pools",
    "sample_records",
]

REJECTED_FILE = "dropped.jsonl"
ALL, UNFILTERED = "all", "unfiltered"
_NON_FILTERS = frozenset({"generator", "target", "limit", "mix"})
"""Entries of ``filter`` in ``dropped.jsonl`` that are not filters."""


@dataclass(frozen=True, slots=True)
class Ablation:
    """A named pool of records for students to train on."""

    name: str
    group: str
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class AblationGroup:
    """Arms of one size and the baseline they are compared with.

    ``sign`` is 1 where the worth of a group is the loss of its arm minus that of the base (the arm
    leaves the group out), and -1 where the arm is the group itself.
    """

    name: str
    base: Ablation
    arms: tuple[Ablation, ...]
    size: int
    sign: int


@dataclass(frozen=True, slots=True)
class RecordPools:
    """Kept records, the records dropped by each filter, and the groups of the kept ones."""

    kept: tuple[Record, ...]
    dropped: Mapping[str, tuple[Record, ...]]
    groups: Mapping[str, tuple[Record, ...]]
    by: str


def read_record_pools(paths: Sequence[Path], by: str) -> RecordPools:
    """Read records and group them.

    Args:
        paths: Files or artifacts of records, as written by ``stillroom run``. Evaluation records
            (``split`` held_out or test) and plain passages are skipped.
        by: ``generator`` groups by the last step of the origin, ``filter`` by the filter that
            dropped a record (``dropped.jsonl`` next to the records), anything else is the name of a
            field.

    Raises:
        DataError: If there is nothing to compare.
    """
    records: list[Record] = []
    dropped: dict[str, list[Record]] = {}
    for path in paths:
        records += [record for record in read_records(path) if _is_training_record(record)]
        for name, record in _read_dropped(path):
            dropped.setdefault(name, []).append(record)
    groups: dict[str, list[Record]] = {}
    if by != "filter":
        for record in records:
            groups.setdefault(_group_of(record, by), []).append(record)
    _check(records, dropped if by == "filter" else groups, by, paths)
    return RecordPools(
        tuple(records),
        {name: tuple(group) for name, group in sorted(dropped.items())},
        {name: tuple(group) for name, group in sorted(groups.items())},
        by,
    )


def make_ablation_groups(
    pools: RecordPools, *, least: int, most: int, names: Sequence[str] = ()
) -> tuple[list[AblationGroup], list[str]]:
    """Return the families that can be compared, and what is too small to, with its size.

    Args:
        pools: Result of ``read_record_pools``.
        least: Minimum number of records of a group.
        most: Maximum number of records of an arm.
        names: Groups to compare; empty compares all.

    Raises:
        DataError: If a name is not that of a group that can be compared.
    """
    families, small = _make_all_groups(pools, least, most)
    if not names:
        return families, small
    known = {arm.group for family in families for arm in family.arms}
    unknown = sorted(set(names) - known)
    if unknown:
        size = len(pools.groups.get(unknown[0], ()))
        is_small = 0 < size < least
        raise DataError(
            f"group {unknown[0]!r} has {size} of the {least} records that it needs"
            if is_small
            else f"unknown group {unknown[0]!r}",
            code="synth.no-group",
            expected=f"one of: {', '.join(sorted(known))}",
            next=f"set min_group_size to {size} or less, or name another group"
            if is_small
            else "name a group as in the report, or leave 'groups' empty for all",
        )
    selected = [
        replace(family, arms=tuple(arm for arm in family.arms if arm.group in names))
        for family in families
    ]
    return [family for family in selected if family.arms], small


def _make_all_groups(
    pools: RecordPools, least: int, most: int
) -> tuple[list[AblationGroup], list[str]]:
    if pools.by == "filter":
        return _make_filter_groups(pools, most), []
    sizes = {name: len(records) for name, records in pools.groups.items()}
    small = [f"{name} ({size} of {least} records)" for name, size in sizes.items() if size < least]
    small += [
        f"all but {name} ({rest} of {least} records)"
        for name, size in sizes.items()
        if size >= least and (rest := len(pools.kept) - size) < least
    ]
    large = {name: records for name, records in pools.groups.items() if len(records) >= least}
    base = Ablation(ALL, "", pools.kept)
    families = []
    without = tuple(
        Ablation(f"without {name}", name, remaining)
        for name, records in large.items()
        if len(remaining := _without(pools.kept, records)) >= least
    )
    if without:
        size = min(most, *(len(arm.records) for arm in without))
        families.append(AblationGroup("leave one out", base, without, size, 1))
    only = tuple(Ablation(f"only {name}", name, records) for name, records in large.items())
    if only:
        size = min(most, *(len(arm.records) for arm in only))
        families.append(AblationGroup("only one", base, only, size, -1))
    return families, small


def read_human_records(path: Path) -> list[Record]:
    """Return the records of a file or artifact, or the lines of a text, that have an answer."""
    return [record for record in read_records(path) if _has_answer(record)]


def is_plain(record: Record) -> bool:
    """Return whether a record is plain text, not a conversation."""
    return len(record.messages) == 1 and record.messages[0].role == "assistant"


def sample_records(records: Sequence[Record], count: int, seed: int) -> list[Record]:
    """Return ``count`` records, or all, selected and ordered by hash."""
    order = sorted(
        range(len(records)),
        key=lambda index: (digest_json([seed, records[index].id, index]), index),
    )
    return [records[index] for index in order[:count]]


def describe_origins(records: Sequence[Record]) -> str:
    """Return a sentence if some records are not known to be human-written, else an empty string."""
    kinds = Counter(record.origin.kind for record in records)
    odd = ", ".join(f"{kinds[kind]} {kind}" for kind in ("unknown", "synthetic") if kinds[kind])
    if not odd:
        return ""
    return f"Of {len(records)} records taken as human, by their origin {odd}."


def _make_filter_groups(pools: RecordPools, most: int) -> list[AblationGroup]:
    every = tuple(record for records in pools.dropped.values() for record in records)
    baseline, unfiltered = Ablation("kept", "", pools.kept), (*pools.kept, *every)
    without = tuple(
        Ablation(f"without filter {name}", name, (*pools.kept, *records))
        for name, records in pools.dropped.items()
    )
    only = tuple(
        Ablation(f"only filter {name}", name, _without(unfiltered, records))
        for name, records in pools.dropped.items()
    )
    size = min(most, len(pools.kept))
    all_filters = Ablation(UNFILTERED, "all filters", unfiltered)
    return [
        AblationGroup("leave one out", baseline, (all_filters, *without), size, 1),
        AblationGroup("only one", all_filters, only, size, -1),
    ]


def _without(records: Sequence[Record], excluded: Sequence[Record]) -> tuple[Record, ...]:
    excluded_ids = {id(record) for record in excluded}
    return tuple(record for record in records if id(record) not in excluded_ids)


def _is_training_record(record: Record) -> bool:
    is_held_out = record.fields.get("split") in {"held_out", "test"}
    is_passage = len(record.messages) == 1 and "passage_id" in record.fields
    return _has_answer(record) and not is_held_out and not is_passage


def _has_answer(record: Record) -> bool:
    last = record.messages[-1] if record.messages else None
    return last is not None and last.role == "assistant" and bool(last.content.strip())


def _group_of(record: Record, by: str) -> str:
    if by == "generator":
        return record.origin.chain[-1].method if record.origin.chain else record.origin.kind
    value = record.fields.get(by)
    return f"(no {by})" if value is None else str(value)


def _read_dropped(path: Path) -> Iterator[tuple[str, Record]]:
    """Yield the records that filters dropped, with the filter's name; nothing without a file."""
    for row in iter_objects(find_record_file(path).with_name(REJECTED_FILE)):
        name, data = row.get("filter"), row.get("record")
        if not isinstance(name, str) or name in _NON_FILTERS or not isinstance(data, dict):
            continue
        if data.get("messages") and _is_training_record(record := Record.from_json(data)):
            yield name, record


def _check(
    records: Sequence[Record], groups: Mapping[str, object], by: str, paths: Sequence[Path]
) -> None:
    where = ", ".join(map(str, paths))
    if not records:
        raise DataError(
            "no training records",
            code="synth.no-records",
            where=where,
            expected="records of a split other than held_out, with an assistant message",
            next="name an artifact of records",
        )
    if by == "filter" and not groups:
        raise DataError(
            "no filter dropped a record",
            code="synth.one-group",
            where=where,
            expected=f"a {REJECTED_FILE} with records next to the records",
            next="name the folder of a finished synth run, or compare by generator",
        )
    if by != "filter" and len(groups) < 2:
        raise DataError(
            f"all {len(records)} records are in one group by '{by}'",
            code="synth.one-group",
            where=where,
            expected="two or more groups",
            next="name records of several generators, or a field whose values differ",
        )


Floats = npt.NDArray[np.float64]


@dataclass
class DataValueResults:
    """Losses of every arm by seed and held-out record, (R, N), and the training sizes."""

    recipe: DataValueRecipe
    families: list[AblationGroup]
    small: list[str]
    tokens: Floats = field(default_factory=lambda: np.zeros(0))
    losses: dict[tuple[str, str], Floats] = field(default_factory=dict)
    learned: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)
    start: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    said: dict[str, Any] = field(default_factory=dict)
