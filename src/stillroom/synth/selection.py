"""Data selection: mixture rules, record ranks, spherical k-means and greedy coverage.

- ``accumulate``: everything; the error of a model that learns from models' words stays bounded
  (Gerstgrasser et al. 2024, arXiv:2404.01413).
- ``replace``: only what is newest, beside the share of human records that is asked for. Errors add
  up without end (Shumailov et al. 2024, doi:10.1038/s41586-024-07566-y).
- ``accumulate_subsample``: as many records as people wrote, drawn from all of that; between the two
  (Kazdan et al. 2024, arXiv:2410.16713). The share of human records is a floor.

``mix_records`` is for a recipe: it takes whatever size there is, looks at origins, and what it
leaves out is a dropped row like any other. ``mix_generation`` is for the experiment over
generations: its mixtures are of one size, so that only the rules differ.

All vectors are L2-normalized rows, so that a dot product is a cosine. Memory grows with the number
of rows, never with its square.

Sources: Dhillon and Modha 2001 (spherical k-means); Arthur and Vassilvitskii 2007 (seeding, in
its greedy form); Gonzalez 1985 (farthest first); Minoux 1978 (lazy greedy).

Knows records by their ids and numbers.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import floor
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt
from pydantic import Field

from stillroom.errors import DataError
from stillroom.objects import resolve_local
from stillroom.recipes import Reference, Settings
from stillroom.records import Record, read_records
from stillroom.synth.interfaces import CandidateSet, FilterResult, Selection
from stillroom.synth.types import derive_seed

if TYPE_CHECKING:
    from stillroom.synth.types import RejectedRecord

__all__ = [
    "BEYOND_BUDGET",
    "MIX_RULES",
    "MixRule",
    "MixSettings",
    "MixtureResult",
    "assign_clusters",
    "choose_facilities",
    "choose_farthest",
    "cover_greedily",
    "format_record",
    "make_selection",
    "mix_generation",
    "mix_records",
    "rank_records",
]


MixRule = Literal["replace", "accumulate", "accumulate_subsample"]
MIX_RULES: tuple[MixRule, ...] = get_args(MixRule)
_FILTER = "mix"
T = TypeVar("T")


class MixSettings(Settings):
    """What becomes of the new records beside those that were there before."""

    records: tuple[Reference, ...] = Field(
        (), description="files or artifacts of records that are there already"
    )
    rule: MixRule = Field(
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
class MixtureResult:
    """The training records as they are written, what was left out, and how many were there."""

    records: tuple[Record, ...]
    dropped: tuple[RejectedRecord, ...]
    before: int


@dataclass(frozen=True, slots=True)
class _MixtureRow:
    """A record on its way into the mixture, and whether the recipe made it."""

    record: Record
    is_new: bool

    @property
    def is_human(self) -> bool:
        return self.record.origin.kind == "human"


def mix_records(new: Sequence[Record], settings: MixSettings, *, seed: int = 0) -> MixtureResult:
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
    from stillroom.synth.types import RejectedRecord

    old = [record for path in settings.records for record in read_records(resolve_local(path))]
    dropped: list[RejectedRecord] = []

    def leave(record: Record, reason: str, score: float = 0.0, limit: float | None = None) -> None:
        dropped.append(
            RejectedRecord("train", _FILTER, reason, record.id, score, record, limit=limit)
        )

    seen: set[str] = set()
    kept: list[_MixtureRow] = []
    for row in [_MixtureRow(one, False) for one in old] + [_MixtureRow(one, True) for one in new]:
        record = row.record
        if record.id in seen:
            leave(record, "is there already")
        elif record.origin.kind == "unknown" and settings.unknown != "keep":
            if settings.unknown == "refuse":
                raise _make_unknown_origin_error(record)
            leave(record, "origin unknown")
        elif settings.rule == "replace" and not (
            row.is_new or _survives_replacement(row, settings)
        ):
            leave(record, "replaced")
        else:
            seen.add(record.id)
            kept.append(row)
    _require_human_records(kept, settings)
    stands = sum(row.is_human for row in kept) / max(len(kept), 1)
    if settings.rule == "accumulate_subsample":
        stays, reason = _draw_ids(kept, settings.human_share, seed), "not drawn"
    else:
        stays, reason = (
            _fit_human_share(kept, settings.human_share),
            "would crowd out what people wrote",
        )
    for row in kept:
        if row.record.id not in stays:
            limit = settings.human_share if reason != "not drawn" else None
            leave(row.record, reason, stands, limit)
    return MixtureResult(
        tuple(row.record for row in kept if row.record.id in stays), tuple(dropped), len(old)
    )


def mix_generation(
    rule: MixRule,
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


def _survives_replacement(row: _MixtureRow, settings: MixSettings) -> bool:
    """Return whether a record outlives its replacement: people's do, where a share is asked."""
    return settings.human_share > 0 and row.is_human


def _draw_ids(kept: Sequence[_MixtureRow], share: float, seed: int) -> set[str]:
    """Return the ids of as many records as people wrote, drawn from all."""
    rng = np.random.default_rng(derive_seed(seed, "accumulate_subsample"))
    human = [row.record.id for row in kept if row.is_human]
    return set(_subsample(human, [row.record.id for row in kept if not row.is_human], share, rng))


def _fit_human_share(kept: Sequence[_MixtureRow], share: float) -> set[str]:
    """Return the ids of what stays so that people's share holds: old ones before new ones."""
    ids = [row.record.id for row in kept if row.is_human]
    others = [row.record.id for row in kept if not row.is_human and not row.is_new]
    others += [row.record.id for row in kept if not row.is_human and row.is_new]
    room = floor(len(ids) * (1 - share) / share + 1e-9) if share > 0 else len(others)
    return {*ids, *others[:room]}


def _require_human_records(kept: Sequence[_MixtureRow], settings: MixSettings) -> None:
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


def _make_unknown_origin_error(record: Record) -> DataError:
    return DataError(
        f"nobody has told the origin of {record.id}",
        code="synth.unknown-origin",
        expected="human or synthetic, or a recipe that says what to do",
        next="set mix.unknown to keep or drop",
    )


Vectors = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
_BLOCK = 4096
_CANDIDATE_TRIALS = 2


def assign_clusters(
    rows: Vectors, count: int, *, seed: int = 0, rounds: int = 20
) -> tuple[Integers, Vectors]:
    """Return each row's cluster, (N,), and the clusters' centers, (count, D), by spherical k-means.

    Args:
        rows: (N, D).
        count: How many clusters; at most N.
        seed: Of the first centers.
        rounds: At most; ends when nothing moves.
    """
    count = min(max(count, 1), len(rows))
    rng = np.random.default_rng(seed)
    centers = _seed_centers(rows, count, rng)
    held = np.full(len(rows), -1, dtype=np.int64)
    for _ in range(rounds):
        found, near = _nearest(rows, centers)
        if np.array_equal(found, held):
            break
        held = found
        for cluster in range(count):
            mine = rows[held == cluster]
            if len(mine):
                total = mine.sum(0, dtype=np.float64)
                size = float(np.linalg.norm(total))
                centers[cluster] = total / size if size else mine[0]
            else:  # an empty cluster takes the row that is worst served
                worst = int(near.argmin())
                centers[cluster], near[worst] = rows[worst], np.inf
    return held, centers


def choose_farthest(
    rows: Vectors, budget: int, first: int, *, tie: Sequence[int] | None = None
) -> Iterator[tuple[int, float]]:
    """Yield rows so that each is farthest from those before it, with its cosine distance to them.

    Greedy k-center: its radius is at most twice the best one.

    Args:
        rows: (N, D).
        budget: How many.
        first: Which row comes first.
        tie: Rank of each row; of equally far ones the lowest comes first.
    """
    order = np.asarray(tie if tie is not None else range(len(rows)))
    gap = np.full(len(rows), np.inf)
    at = first
    for _ in range(min(budget, len(rows))):
        yield at, float(gap[at])
        gap = np.minimum(gap, 1.0 - rows @ rows[at])
        gap[at] = -np.inf
        farthest = np.flatnonzero(gap >= gap.max() - 1e-7)
        at = int(farthest[order[farthest].argmin()])


def choose_facilities(
    rows: Vectors, budget: int, *, tie: Sequence[int] | None = None
) -> Iterator[tuple[int, float]]:
    """Yield rows that serve all rows best, each with what it adds: lazy greedy facility location.

    Maximizes the sum over all rows of the highest cosine (at least 0) to a chosen one; the greedy
    choice reaches 1 - 1/e of the best sum. A bound that was overtaken is computed anew only when it
    comes to the top, since a gain never grows.

    Args:
        rows: (N, D).
        budget: How many.
        tie: Rank of each row; of equal gains the lowest comes first.
    """
    order = list(tie if tie is not None else range(len(rows)))
    served = np.zeros(len(rows))

    def gain(at: int) -> float:
        return float(np.maximum(rows @ rows[at] - served, 0.0).sum(dtype=np.float64))

    heap = []
    for start in range(0, len(rows), _BLOCK):
        block = np.maximum(rows @ rows[start : start + _BLOCK].T, 0.0).sum(0, dtype=np.float64)
        heap += [(-round(float(v), 6), order[start + i], start + i) for i, v in enumerate(block)]
    heapq.heapify(heap)
    for _ in range(min(budget, len(rows))):
        at, added = _pop_best(heap, gain)
        served = np.maximum(served, rows @ rows[at])
        yield at, added


def _pop_best(
    heap: list[tuple[float, int, int]], gain: Callable[[int], float]
) -> tuple[int, float]:
    while True:
        _, rank, at = heapq.heappop(heap)
        fresh = round(gain(at), 6)
        if not heap or (-fresh, rank) <= heap[0][:2]:
            return at, fresh
        heapq.heappush(heap, (-fresh, rank, at))


def cover_greedily(
    rows: Vectors, order: Sequence[int], limit: float
) -> Iterator[tuple[int, int, float]]:
    """Yield (row, nearest kept row or -1, cosine) in order; a row near a kept one is not kept.

    A row is kept if no kept row is nearer than ``limit``; so nothing falls to what itself fell.

    Args:
        rows: (N, D).
        order: In which rows are looked at.
        limit: Cosine above which a row falls.
    """
    kept: list[int] = []
    block = np.empty((0, rows.shape[1]), dtype=np.float32)
    for at in order:
        place, near = -1, -1.0
        if kept:
            likeness = block[: len(kept)] @ rows[at]
            place = int(likeness.argmax())
            near = float(likeness[place])
        if near > limit:
            yield at, kept[place], near
            continue
        if len(kept) == len(block):
            block = np.concatenate([block, np.empty((max(len(block), 64), rows.shape[1]), "f4")])
        block[len(kept)] = rows[at]
        kept.append(at)
        yield at, -1, near


def _seed_centers(rows: Vectors, count: int, rng: np.random.Generator) -> Vectors:
    """Return first centers, each likelier the farther it is from those before (k-means++).

    Of a few that are drawn for each the one is taken that leaves least distance.
    """
    first = int(rng.integers(len(rows)))
    centers = [rows[first]]
    gap = np.clip(1.0 - rows @ rows[first], 0.0, None)
    tries = _CANDIDATE_TRIALS + int(np.log(count))
    for _ in range(count - 1):
        chances = gap.astype(np.float64)
        total = float(chances.sum())
        if total <= 0:  # every row is a center's own
            centers.append(rows[int(rng.integers(len(rows)))])
            continue
        drawn = np.unique(rng.choice(len(rows), tries, p=chances / total))
        left = np.minimum(gap, np.clip(1.0 - rows[drawn] @ rows.T, 0.0, None))
        best = int(left.sum(1, dtype=np.float64).argmin())
        centers.append(rows[drawn[best]])
        gap = left[best]
    return np.array(centers, dtype=np.float32)


def _nearest(rows: Vectors, centers: Vectors) -> tuple[Integers, npt.NDArray[np.float64]]:
    found = np.empty(len(rows), dtype=np.int64)
    near = np.empty(len(rows))
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK] @ centers.T
        found[start : start + _BLOCK] = block.argmax(1)
        near[start : start + _BLOCK] = block.max(1)
    return found, near


BEYOND_BUDGET = "beyond the budget"
_MAX_RECORD_CHARACTERS = 400


def rank_records(pool: CandidateSet, by: str = "") -> list[int]:
    """Return each record's rank: by a filter's score, the highest first, then by id."""
    scores = [one.get(by, float("-inf")) if by else 0.0 for one in pool.scores]
    ids = [record.id for record in pool.records]
    order = sorted(range(len(ids)), key=lambda at: (-scores[at], ids[at], at))
    ranks = [0] * len(order)
    for rank, at in enumerate(order):
        ranks[at] = rank
    return ranks


def make_selection(
    pool: CandidateSet, kept: Iterable[int], reason: str, scores: dict[int, float]
) -> Selection:
    """Return a selection that drops all others for one reason, each with its score."""
    chosen = tuple(kept)
    standing = set(chosen)
    dropped = {
        at: FilterResult(False, reason, scores.get(at, 0.0))
        for at in range(len(pool.records))
        if at not in standing
    }
    return Selection(chosen, dropped)


def format_record(pool: CandidateSet, at: int) -> str:
    """Return a record's words, cut short, for the row of one that fell to it."""
    record = pool.records[at]
    words = " | ".join(one.content for one in record.messages)
    return f"{record.id}: {words}"[:_MAX_RECORD_CHARACTERS]
