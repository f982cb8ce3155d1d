"""Data selection: mixture rules, record ranks, spherical k-means and greedy coverage.

- ``accumulate``: everything; the error of a model trained on synthetic data stays bounded
  (Gerstgrasser et al. 2024, arXiv:2404.01413).
- ``replace``: only the newest records, along with the required share of human records. Errors
  accumulate without bound (Shumailov et al. 2024, doi:10.1038/s41586-024-07566-y).
- ``accumulate_subsample``: as many records as there are human ones, sampled from all; between
  the two (Kazdan et al. 2024, arXiv:2410.16713). The share of human records is a lower bound.

All vectors are L2-normalized rows, so that a dot product is a cosine. Memory grows linearly with
the number of rows.

Sources: Dhillon and Modha 2001 (spherical k-means); Arthur and Vassilvitskii 2007 (seeding, in its
greedy form); Gonzalez 1985 (farthest first); Minoux 1978 (lazy greedy).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil, floor
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from stillroom.errors import DataError
from stillroom.objects import resolve_local
from stillroom.recipes import DISTINCT, Reference, Settings
from stillroom.records import Record, read_records
from stillroom.synth.interfaces import CandidateSet, FilterResult, Selection
from stillroom.synth.types import derive_seed, read_split

if TYPE_CHECKING:
    from stillroom.synth.types import RejectedRecord

__all__ = [
    "BEYOND_BUDGET",
    "MixRule",
    "MixSettings",
    "MixtureResult",
    "assign_clusters",
    "choose_facilities",
    "choose_farthest",
    "cover_greedily",
    "format_record",
    "judge_existing",
    "make_selection",
    "mix_records",
    "rank_records",
    "read_existing",
    "refuse_unknown",
]

MixRule = Literal["replace", "accumulate", "accumulate_subsample"]
_FILTER = "mix"
T = TypeVar("T")


class MixSettings(Settings):
    """Settings for mixing new records with existing ones."""

    records: Annotated[tuple[Reference, ...], DISTINCT] = Field(
        (), description="files or artifacts of existing records"
    )
    rule: MixRule = Field(
        "accumulate",
        description="accumulate keeps the existing records; replace drops them, except for "
        "human_share: data replaced over generations collapses; "
        "accumulate_subsample samples from all as many as there are human records",
    )
    human_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="minimum share of human records among the training records; synthetic ones "
        "beyond it are left out",
    )
    unknown: Literal["refuse", "drop", "keep"] = Field(
        "refuse", description="how to treat training records of unknown origin"
    )


@dataclass(frozen=True, slots=True)
class MixtureResult:
    """The mixed training records, the rejected ones, and the number of existing ones."""

    records: tuple[Record, ...]
    dropped: tuple[RejectedRecord, ...]
    before: int


def mix_records(
    new_records: Sequence[Record],
    settings: MixSettings,
    *,
    judge: Callable[[Sequence[Record]], Iterable[FilterResult]] | None = None,
    seed: int = 0,
) -> MixtureResult:
    """Mix the training records of a recipe with existing ones.

    Existing records come first. Of these, only training records are taken: rows of another split
    are held out where they come from, and a row without one becomes a training record. Synthetic
    records beyond what ``human_share`` allows are removed from the end of the new ones, then of the
    existing ones; ``accumulate_subsample`` samples instead.

    Args:
        new_records: Training records of this run.
        settings: Existing records, and the rule.
        judge: Returns a verdict on each existing training record, in order; by default all are
            kept.
        seed: Seed of the subsample.

    Raises:
        DataError: If a record's origin is unknown and the settings do not say how to treat it
            (``synth.unknown-origin``), or there are no human records for ``human_share`` or for the
            subsample size (``synth.human-share``).
    """
    from stillroom.synth.types import RejectedRecord

    read = read_existing(settings)
    dropped: list[RejectedRecord] = []

    def reject(record: Record, reason: str, score: float = 0.0, limit: float | None = None) -> None:
        dropped.append(
            RejectedRecord("train", _FILTER, reason, record.id, score, record, limit=limit)
        )

    existing: list[Record] = []
    for record, verdict in judge_existing(read, judge):
        if verdict.keep:
            existing.append(record)
        else:
            reject(record, verdict.reason, verdict.score, verdict.limit)
    kept_ids: set[str] = set()
    rows: list[Record] = []
    for number, record in enumerate([*existing, *new_records]):
        is_new = number >= len(existing)
        if record.id in kept_ids:
            reject(record, "is there already")
        elif reason := _reject_by_rule(record, settings, is_new=is_new):
            reject(record, reason)
        else:
            kept_ids.add(record.id)
            rows.append(record)
    _require_human_records(rows, settings)
    human_share = sum(map(_is_human, rows)) / max(len(rows), 1)
    if settings.rule == "accumulate_subsample":
        final_ids, reason = _draw_ids(rows, settings.human_share, seed), "not drawn"
    else:
        final_ids = _fit_human_share(rows, settings.human_share)
        reason = "would crowd out what people wrote"
    for record in rows:
        if record.id not in final_ids:
            limit = settings.human_share if reason != "not drawn" else None
            reject(record, reason, human_share, limit)
    mixed = tuple(record for record in rows if record.id in final_ids)
    return MixtureResult(mixed, tuple(dropped), len(read))


def read_existing(settings: MixSettings) -> list[Record]:
    """Return the existing records of a mixture.

    Raises:
        DataError: If a file is missing or a row cannot be read.
    """
    return [record for path in settings.records for record in read_records(resolve_local(path))]


def refuse_unknown(records: Iterable[Record], settings: MixSettings) -> None:
    """Refuse training records of unknown origin, unless the settings say how to treat them.

    Raises:
        DataError: If there is one (``synth.unknown-origin``).
    """
    for record in records:
        if record.origin.kind == "unknown" and settings.unknown == "refuse":
            raise DataError(
                f"the origin of {record.id} is unknown",
                code="synth.unknown-origin",
                expected="human or synthetic, or a recipe that sets mix.unknown",
                next="set mix.unknown to keep or drop",
            )


def judge_existing(
    records: Sequence[Record], judge: Callable[[Sequence[Record]], Iterable[FilterResult]] | None
) -> Iterator[tuple[Record, FilterResult]]:
    """Yield existing records with verdicts; ``judge`` is asked about the training records."""
    training = []
    for record in records:
        if not record.fields.get("split") or read_split(record) == "train":
            training.append(replace(record, fields={**record.fields, "split": "train"}))
        else:
            yield record, FilterResult(False, "not of the split 'train'", 0.0)
    verdicts = [FilterResult(True)] * len(training) if judge is None else judge(training)
    yield from zip(training, verdicts, strict=True)


def _reject_by_rule(record: Record, settings: MixSettings, *, is_new: bool) -> str:
    """Return why the settings leave a record out; empty if they do not."""
    if record.origin.kind == "unknown" and settings.unknown != "keep":
        refuse_unknown([record], settings)
        return "origin unknown"
    is_needed = is_new or (settings.human_share > 0 and _is_human(record))
    return "replaced" if settings.rule == "replace" and not is_needed else ""


def _is_human(record: Record) -> bool:
    return record.origin.kind == "human"


def _subsample(
    human: Sequence[T], synthetic: Sequence[T], share: float, rng: np.random.Generator
) -> list[T]:
    """Sample as many records as there are human ones, with a minimum share of those."""
    size = len(human)
    natural = int(rng.hypergeometric(size, len(synthetic), size))
    num_human = max(natural, ceil(share * size - 1e-9))
    return [*_draw(human, num_human, rng), *_draw(synthetic, size - num_human, rng)]


def _draw(records: Sequence[T], count: int, rng: np.random.Generator) -> list[T]:
    """Sample records without replacement, in their original order."""
    count = min(count, len(records))
    return [records[index] for index in sorted(rng.permutation(len(records))[:count].tolist())]


def _draw_ids(rows: Sequence[Record], share: float, seed: int) -> set[str]:
    """Return the ids of as many records as there are human ones, sampled from all."""
    rng = np.random.default_rng(derive_seed(seed, "accumulate_subsample"))
    human = [record.id for record in rows if _is_human(record)]
    synthetic = [record.id for record in rows if not _is_human(record)]
    return set(_subsample(human, synthetic, share, rng))


def _fit_human_share(rows: Sequence[Record], share: float) -> set[str]:
    """Return the ids to keep for the share of human records; existing ones come first."""
    ids = [record.id for record in rows if _is_human(record)]
    synthetic = [record.id for record in rows if not _is_human(record)]
    max_synthetic = floor(len(ids) * (1 - share) / share + 1e-9) if share > 0 else len(synthetic)
    return {*ids, *synthetic[:max_synthetic]}


def _require_human_records(rows: Sequence[Record], settings: MixSettings) -> None:
    """Raise an error if a mixture is sized by human records and there are none."""
    is_drawn = settings.rule == "accumulate_subsample"
    if not rows or not (is_drawn or settings.human_share > 0) or any(map(_is_human, rows)):
        return
    rule_text = "mix.rule is accumulate_subsample" if is_drawn else ""
    raise DataError(
        f"none of {len(rows)} records is human-written, and "
        + (rule_text or f"mix.human_share is {settings.human_share:g}"),
        code="synth.human-share",
        expected="records of origin 'human'",
        next="name files of human records under mix.records, or "
        + ("choose another rule" if is_drawn else "set human_share to 0"),
    )


Vectors = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
_BLOCK = 4096
_CANDIDATE_TRIALS = 2
_ITERATIONS = 20


def assign_clusters(rows: Vectors, count: int, *, seed: int = 0) -> tuple[Integers, Vectors]:
    """Cluster rows by spherical k-means; return clusters, (N,), and centers, (count, D).

    Args:
        rows: (N, D).
        count: Number of clusters; at most N.
        seed: Seed of the first centers.
    """
    count = min(max(count, 1), len(rows))
    rng = np.random.default_rng(seed)
    centers = _seed_centers(rows, count, rng)
    assignment = np.full(len(rows), -1, dtype=np.int64)
    for _ in range(_ITERATIONS):  # or until nothing changes
        nearest_clusters, similarity = _nearest(rows, centers)
        if np.array_equal(nearest_clusters, assignment):
            break
        assignment = nearest_clusters
        for cluster in range(count):
            members = rows[assignment == cluster]
            if len(members):
                total = members.sum(0, dtype=np.float64)
                size = float(np.linalg.norm(total))
                centers[cluster] = total / size if size else members[0]
            else:  # an empty cluster takes the row farthest from its center
                worst = int(similarity.argmin())
                centers[cluster], similarity[worst] = rows[worst], np.inf
    return assignment, centers


def choose_farthest(
    rows: Vectors, budget: int, first: int, *, tie: Sequence[int] | None = None
) -> Iterator[tuple[int, float]]:
    """Yield rows that are each farthest from the earlier ones, with the cosine distance.

    Greedy k-center: its radius is at most twice the optimum.

    Args:
        rows: (N, D).
        budget: Number of rows.
        first: Index of the first row.
        tie: Rank of each row; ties go to the lowest.
    """
    order = np.asarray(tie if tie is not None else range(len(rows)))
    gap = np.full(len(rows), np.inf)
    index = first
    for _ in range(min(budget, len(rows))):
        yield index, float(gap[index])
        gap = np.minimum(gap, 1.0 - rows @ rows[index])
        gap[index] = -np.inf
        farthest = np.flatnonzero(gap >= gap.max() - 1e-7)
        index = int(farthest[order[farthest].argmin()])


def choose_facilities(
    rows: Vectors, budget: int, *, tie: Sequence[int] | None = None
) -> Iterator[tuple[int, float]]:
    """Select rows by lazy greedy facility location; yield each with its gain.

    Maximizes the sum over all rows of the highest cosine (at least 0) to a selected one; the greedy
    selection reaches 1 - 1/e of the optimum. An outdated bound is recomputed only when it reaches
    the top, since gains never grow.

    Args:
        rows: (N, D).
        budget: Number of rows.
        tie: Rank of each row; ties go to the lowest.
    """
    order = list(tie if tie is not None else range(len(rows)))
    served = np.zeros(len(rows))

    def gain(index: int) -> float:
        return float(np.maximum(rows @ rows[index] - served, 0.0).sum(dtype=np.float64))

    heap = []
    for start in range(0, len(rows), _BLOCK):
        block = np.maximum(rows @ rows[start : start + _BLOCK].T, 0.0).sum(0, dtype=np.float64)
        heap += [(-round(float(v), 6), order[start + i], start + i) for i, v in enumerate(block)]
    heapq.heapify(heap)
    for _ in range(min(budget, len(rows))):
        index, added = _pop_best(heap, gain)
        served = np.maximum(served, rows @ rows[index])
        yield index, added


def _pop_best(
    heap: list[tuple[float, int, int]], gain: Callable[[int], float]
) -> tuple[int, float]:
    while True:
        _, rank, index = heapq.heappop(heap)
        fresh = round(gain(index), 6)
        if not heap or (-fresh, rank) <= heap[0][:2]:
            return index, fresh
        heapq.heappush(heap, (-fresh, rank, index))


def cover_greedily(
    rows: Vectors, order: Sequence[int], limit: float
) -> Iterator[tuple[int, int, float]]:
    """Yield (row, nearest kept row or -1, cosine) in order; rows near a kept one are dropped.

    A row is kept if no kept row is nearer than ``limit``; so no row is dropped because of a dropped
    one.

    Args:
        rows: (N, D).
        order: Order of the rows.
        limit: Cosine above which a row is dropped.
    """
    kept_rows: list[int] = []
    block = np.empty((0, rows.shape[1]), dtype=np.float32)
    for index in order:
        position, similarity = -1, -1.0
        if kept_rows:
            likeness = block[: len(kept_rows)] @ rows[index]
            position = int(likeness.argmax())
            similarity = float(likeness[position])
        if similarity > limit:
            yield index, kept_rows[position], similarity
            continue
        if len(kept_rows) == len(block):
            block = np.concatenate([block, np.empty((max(len(block), 64), rows.shape[1]), "f4")])
        block[len(kept_rows)] = rows[index]
        kept_rows.append(index)
        yield index, -1, similarity


def _seed_centers(rows: Vectors, count: int, rng: np.random.Generator) -> Vectors:
    """Choose initial centers with probability by distance from the earlier ones (k-means++).

    For each, the best of a few candidates is taken: the one that leaves least distance.
    """
    first = int(rng.integers(len(rows)))
    centers = [rows[first]]
    distance = np.clip(1.0 - rows @ rows[first], 0.0, None)
    trials = _CANDIDATE_TRIALS + int(np.log(count))
    for _ in range(count - 1):
        chances = distance.astype(np.float64)
        total = float(chances.sum())
        if total <= 0:  # every row equals a center
            centers.append(rows[int(rng.integers(len(rows)))])
            continue
        candidates = np.unique(rng.choice(len(rows), trials, p=chances / total))
        remaining = np.minimum(distance, np.clip(1.0 - rows[candidates] @ rows.T, 0.0, None))
        best = int(remaining.sum(1, dtype=np.float64).argmin())
        centers.append(rows[candidates[best]])
        distance = remaining[best]
    return np.array(centers, dtype=np.float32)


def _nearest(rows: Vectors, centers: Vectors) -> tuple[Integers, npt.NDArray[np.float64]]:
    clusters = np.empty(len(rows), dtype=np.int64)
    similarity = np.empty(len(rows))
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK] @ centers.T
        clusters[start : start + _BLOCK] = block.argmax(1)
        similarity[start : start + _BLOCK] = block.max(1)
    return clusters, similarity


BEYOND_BUDGET = "beyond the budget"
_MAX_RECORD_CHARACTERS = 400


def rank_records(pool: CandidateSet, by: str = "") -> list[int]:
    """Return each record's rank: by a filter's score, highest first, then by id."""
    scores = [record_scores.get(by, float("-inf")) if by else 0.0 for record_scores in pool.scores]
    ids = [record.id for record in pool.records]
    order = sorted(range(len(ids)), key=lambda index: (-scores[index], ids[index], index))
    ranks = [0] * len(order)
    for rank, index in enumerate(order):
        ranks[index] = rank
    return ranks


def make_selection(
    pool: CandidateSet, selected: Iterable[int], reason: str, scores: dict[int, float]
) -> Selection:
    """Return a selection that rejects all other records for one reason, with their scores."""
    selected_ids = tuple(selected)
    selected_set = set(selected_ids)
    dropped = {
        index: FilterResult(False, reason, scores.get(index, 0.0))
        for index in range(len(pool.records))
        if index not in selected_set
    }
    return Selection(selected_ids, dropped)


def format_record(pool: CandidateSet, index: int) -> str:
    """Return a record's text, truncated, for the row of a record it replaced."""
    record = pool.records[index]
    words = " | ".join(message.content for message in record.messages)
    return f"{record.id}: {words}"[:_MAX_RECORD_CHARACTERS]
