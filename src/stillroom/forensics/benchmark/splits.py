"""Benchmark splits without shared identities, sources, or generators.

Related rows stay together: rows that share an identity (either of a swap's two) or a recording form
one component, and each component is assigned to one split by a hash of its name, so that no other
row can move it.

Leaving out a generator or a source (cross-dataset evaluation) holds out both classes: a detector
that has seen the real recordings of the test would look better at fakes of an unseen generator than
it is.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from stillroom.errors import DataError
from stillroom.forensics.benchmark.manifest import ManifestItem
from stillroom.provenance import digest_text

__all__ = ["LeaveOneOutFold", "SplitBy", "leave_one_out", "split_items"]

SplitBy = Literal["identity", "source", "generator"]
_MAX_COMPONENT_SHARE = 0.6


@dataclass(frozen=True, slots=True)
class LeaveOneOutFold:
    """Training and test rows with ``name`` held out."""

    name: str
    train: tuple[ManifestItem, ...]
    test: tuple[ManifestItem, ...]


def split_items(
    items: Sequence[ManifestItem],
    *,
    by: SplitBy = "identity",
    held_out: float = 0.2,
    validation: float = 0.1,
    seed: int = 0,
) -> list[ManifestItem]:
    """Assign a split to each item.

    Args:
        items: Rows; each needs the column to split by.
        by: ``identity`` separates people, ``source`` recordings; ``generator`` puts whole
            generators into one split, and real rows by their source.
        held_out: Approximate share of the test split.
        validation: Approximate share of the validation split.
        seed: Seed of the assignment.

    Raises:
        DataError: If a row lacks the column, most rows are connected, or shares exceed the whole.
    """
    if held_out + validation > 1:
        raise _refused(
            f"the shares {held_out:g} and {validation:g} are more than the whole",
            "shares of the test and validation splits that add up to at most 1",
            "lower --held-out or --validation",
        )
    keys = [_keys(item, by) for item in items]
    for item, row_keys in zip(items, keys, strict=True):
        if not row_keys:
            raise _refused(
                f"{item.id!r} has no {_column(item, by)}, and cannot be split by {by}",
                f"the column {_column(item, by)} in every row",
                "fill in the column, or split by another one",
            )
    names = _components(keys)
    name, count = Counter(names).most_common(1)[0]
    if count > _MAX_COMPONENT_SHARE * len(items):
        raise _refused(
            f"{count} of {len(items)} rows are connected through {name!r}",
            f"at most {_MAX_COMPONENT_SHARE:.0%} in one component",
            "split by source, or drop rows that connect everyone",
        )
    return [
        dataclasses.replace(item, split=_choose(name, seed, held_out, validation))
        for item, name in zip(items, names, strict=True)
    ]


def leave_one_out(
    items: Sequence[ManifestItem], by: Literal["generator", "source"], *, seed: int = 0
) -> Iterator[LeaveOneOutFold]:
    """Yield one fold for each generator, or each source of real recordings.

    By generator: the test has its fakes and half of the real recordings; the training the other
    fakes and the other half, so that both classes are new. Fakes of other generators made from a
    test recording are in neither. By source: the test has all its rows.

    Raises:
        DataError: If there are fewer than two to hold out.
    """
    if by == "source":
        names = sorted({item.dataset or item.source for item in items})
        _require_two(names, by)
        for name in names:
            inside = tuple(item for item in items if (item.dataset or item.source) == name)
            outside = tuple(item for item in items if (item.dataset or item.source) != name)
            yield LeaveOneOutFold(name, outside, inside)
        return
    names = sorted({item.generator for item in items if item.label})
    _require_two(names, by)
    joined = _components([_keys(item, "source") or (("row", item.id),) for item in items])
    is_test = {name: _place(f"{name}", seed) < 0.5 for name in set(joined)}
    for name in names:
        test: list[ManifestItem] = []
        train: list[ManifestItem] = []
        for item, part in zip(items, joined, strict=True):
            is_out = item.label == 1 and item.generator == name
            if item.label == 0:
                (test if is_test[part] else train).append(item)
            elif is_out and is_test[part]:
                test.append(item)
            elif not is_out and not is_test[part]:
                train.append(item)
        yield LeaveOneOutFold(name, tuple(train), tuple(test))


def _keys(item: ManifestItem, by: SplitBy) -> tuple[tuple[str, str], ...]:
    if by == "identity":
        return tuple(("identity", f"{item.dataset}/{name}") for name in item.people)
    if by == "generator" and item.label:
        return (("generator", item.generator),) if item.generator else ()
    return (("source", f"{item.dataset}/{item.source}"),) if item.source else ()


def _column(item: ManifestItem, by: SplitBy) -> str:
    return "source" if by == "generator" and not item.label else by


def _components(keys: Iterable[Sequence[Hashable]]) -> list[str]:
    """Return for each row the name of its connected component."""
    parent: dict[Hashable, Hashable] = {}

    def top(key: Hashable) -> Hashable:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    rows = [list(row_keys) for row_keys in keys]
    order: Callable[[Hashable], str] = str
    for row_keys in rows:
        for related_key in row_keys[1:]:
            first, second = sorted((top(row_keys[0]), top(related_key)), key=order)
            parent[second] = first
    return [str(top(row_keys[0])) for row_keys in rows]


def _choose(name: str, seed: int, held_out: float, validation: float) -> str:
    position = _place(name, seed)
    if position < held_out:
        return "test"
    return "validation" if position < held_out + validation else "train"


def _place(name: str, seed: int) -> float:
    return int(digest_text(f"{seed} {name}")[:12], 16) / 16**12


def _require_two(names: Sequence[str], by: str) -> None:
    if len(names) < 2 or not all(names):
        raise _refused(
            f"there are {len(names)} {by}s to leave out",
            f"at least two, and the column {by} in every row",
            "add rows of another one, or evaluate without leaving one out",
        )


def _refused(problem: str, expected: str, next_step: str) -> DataError:
    return DataError(problem, code="forensics.split", expected=expected, next=next_step)
