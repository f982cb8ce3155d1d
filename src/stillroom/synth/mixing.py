"""Mixing: what is learned from, of what people wrote, what was there before, and what is new.

- ``accumulate``: everything; the error of a model that learns from models' words stays bounded
  (Gerstgrasser et al. 2024, arXiv:2404.01413).
- ``replace``: only what is newest, beside the share of human records that is asked for. Errors add
  up without end (Shumailov et al. 2024, doi:10.1038/s41586-024-07566-y).
- ``accumulate_subsample``: as many records as people wrote, drawn from all of that; between the two
  (Kazdan et al. 2024, arXiv:2410.16713). The share of human records is a floor.

``mix_records`` is for a recipe: it takes whatever size there is, looks at origins, and what it
leaves out is a dropped row like any other. ``mix_generation`` is for the experiment over
generations: its mixtures are of one size, so that only the rules differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

import numpy as np
from pydantic import Field

from stillroom.errors import DataError
from stillroom.objects import local
from stillroom.recipes import Reference, Settings
from stillroom.records import Record, read_records
from stillroom.synth.method import derive_seed

if TYPE_CHECKING:
    from stillroom.synth.harvest import Dropped

__all__ = [
    "RULES",
    "MixSettings",
    "Mixed",
    "Rule",
    "mix_generation",
    "mix_records",
]

Rule = Literal["replace", "accumulate", "accumulate_subsample"]
RULES: tuple[Rule, ...] = get_args(Rule)

_FILTER = "mix"
T = TypeVar("T")


class MixSettings(Settings):
    """What becomes of the new records beside those that were there before."""

    records: tuple[Reference, ...] = Field(
        (), description="files or artifacts of records that are there already"
    )
    rule: Rule = Field(
        "accumulate",
        description="accumulate keeps what was there; replace drops it, but for what human_share "
        "asks for: data replaced over generations collapses; accumulate_subsample draws from all "
        "as many as people wrote",
    )
    human_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the training records that people wrote, at least; synthetic ones "
        "beyond it are left out",
    )
    unknown: Literal["refuse", "drop", "keep"] = Field(
        "refuse", description="what becomes of training records whose origin nobody has told"
    )


@dataclass(frozen=True, slots=True)
class Mixed:
    """The training records as they are written, what was left out, and how many were there."""

    records: tuple[Record, ...]
    dropped: tuple[Dropped, ...]
    before: int


@dataclass(frozen=True, slots=True)
class _Row:
    """A record on its way into the mixture, and whether the recipe made it."""

    record: Record
    is_new: bool

    @property
    def is_human(self) -> bool:
        return self.record.origin.kind == "human"


def mix_records(new: Sequence[Record], settings: MixSettings, *, seed: int = 0) -> Mixed:
    """Return the training records of a recipe, mixed as it says.

    What was there comes first. Synthetic records beyond what ``human_share`` allows are left out
    from the end of the new ones, then of the old ones; ``accumulate_subsample`` draws instead.

    Args:
        new: The records that the recipe made, of the training side.
        settings: What they are mixed with, and how.
        seed: Of the draws.

    Raises:
        DataError: If a record's origin is unknown and nobody said what to do with it
            (``synth.unknown-origin``), or no record of people is there for ``human_share`` or to
            count the draws by (``synth.human-share``).
    """
    from stillroom.synth.harvest import Dropped

    old = [record for path in settings.records for record in read_records(local(path))]
    dropped: list[Dropped] = []

    def leave(record: Record, reason: str, score: float = 0.0, limit: float | None = None) -> None:
        dropped.append(Dropped("train", _FILTER, reason, record.id, score, record, limit=limit))

    seen: set[str] = set()
    kept: list[_Row] = []
    for row in [_Row(one, False) for one in old] + [_Row(one, True) for one in new]:
        record = row.record
        if record.id in seen:
            leave(record, "is there already")
        elif record.origin.kind == "unknown" and settings.unknown != "keep":
            if settings.unknown == "refuse":
                raise _refuse_unknown(record)
            leave(record, "origin unknown")
        elif settings.rule == "replace" and not (row.is_new or _outlives(row, settings)):
            leave(record, "replaced")
        else:
            seen.add(record.id)
            kept.append(row)
    _check_humans(kept, settings)
    stands = sum(row.is_human for row in kept) / max(len(kept), 1)
    if settings.rule == "accumulate_subsample":
        stays, reason = _drawn(kept, settings.human_share, seed), "not drawn"
    else:
        stays, reason = _fitting(kept, settings.human_share), "would crowd out what people wrote"
    for row in kept:
        if row.record.id not in stays:
            limit = settings.human_share if reason != "not drawn" else None
            leave(row.record, reason, stands, limit)
    return Mixed(
        tuple(row.record for row in kept if row.record.id in stays), tuple(dropped), len(old)
    )


def mix_generation(
    rule: Rule,
    human: Sequence[T],
    written: Sequence[Sequence[T]],
    *,
    human_share: float = 0.0,
    seed: int = 0,
) -> list[T]:
    """Return what the next generation learns from, in a drawn order.

    Args:
        rule: How it is put together.
        human: The records that people wrote.
        written: What the students of all generations before wrote, oldest first; at least one.
        human_share: Least share of human records in the mixture, 0 to below 1; the size of the
            mixture does not change by it, and ``accumulate`` keeps all of them anyway.
        seed: Of the draws.
    """
    rng = np.random.default_rng(derive_seed(seed, rule, len(written)))
    size = len(human)
    if rule == "accumulate":
        chosen = [*human, *(one for part in written for one in part)]
    elif rule == "replace":
        kept = round(human_share * size)
        chosen = [*_draw(human, kept, rng), *_draw(written[-1], size - kept, rng)]
    else:
        chosen = _subsample(human, [one for part in written for one in part], human_share, rng)
    return [chosen[at] for at in rng.permutation(len(chosen)).tolist()]


def _subsample(
    human: Sequence[T], others: Sequence[T], share: float, rng: np.random.Generator
) -> list[T]:
    """Return as many as people wrote, drawn from all, at least a share of them by people."""
    size = len(human)
    natural = int(rng.hypergeometric(size, len(others), size))
    kept = max(natural, round(share * size))
    return [*_draw(human, kept, rng), *_draw(others, size - kept, rng)]


def _draw(records: Sequence[T], count: int, rng: np.random.Generator) -> list[T]:
    """Return some of the records, none twice while there are enough."""
    count = min(count, len(records))
    return [records[at] for at in sorted(rng.permutation(len(records))[:count].tolist())]


def _outlives(row: _Row, settings: MixSettings) -> bool:
    """Return whether a record outlives its replacement: people's do, where a share is asked."""
    return settings.human_share > 0 and row.is_human


def _drawn(kept: Sequence[_Row], share: float, seed: int) -> set[str]:
    """Return the ids of as many records as people wrote, drawn from all."""
    rng = np.random.default_rng(derive_seed(seed, "accumulate_subsample"))
    human = [row.record.id for row in kept if row.is_human]
    return set(_subsample(human, [row.record.id for row in kept if not row.is_human], share, rng))


def _fitting(kept: Sequence[_Row], share: float) -> set[str]:
    """Return the ids of what stays so that people's share holds: old ones before new ones."""
    ids = [row.record.id for row in kept if row.is_human]
    others = [row.record.id for row in kept if not row.is_human and not row.is_new]
    others += [row.record.id for row in kept if not row.is_human and row.is_new]
    room = floor(len(ids) * (1 - share) / share + 1e-9) if share > 0 else len(others)
    return {*ids, *others[:room]}


def _check_humans(kept: Sequence[_Row], settings: MixSettings) -> None:
    """Refuse a mixture that is measured by what people wrote where there is none."""
    is_drawn = settings.rule == "accumulate_subsample"
    if not kept or not (is_drawn or settings.human_share > 0) or any(one.is_human for one in kept):
        return
    asked = "mix.rule is accumulate_subsample" if is_drawn else ""
    raise DataError(
        f"none of {len(kept)} records is by people, and "
        + (asked or f"mix.human_share is {settings.human_share:g}"),
        code="synth.human-share",
        expected="records of origin 'human'",
        next="name files of them under mix.records, or "
        + ("take another rule" if is_drawn else "set human_share to 0"),
    )


def _refuse_unknown(record: Record) -> DataError:
    return DataError(
        f"nobody has told the origin of {record.id}",
        code="synth.unknown-origin",
        expected="human or synthetic, or a recipe that says what to do",
        next="set mix.unknown to keep or drop",
    )
