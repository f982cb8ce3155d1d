"""Comparison of fine-tuned models: cosine and sign conflict of task vectors, loss along paths.

Every statistic of a tensor is a sum over its elements, so those of a layer or of the model are sums
of them. Tensors are streamed in blocks; only the loss path loads models. A cosine near 0 and little
overlap mean that the models changed different parameters; whether their sum is good can only be
measured as a loss on records.

The loss path interpolates two models in memory, in float32, at 11 points by default; nothing is
written. The barrier is the largest excess of the loss over the line between the end points. Near
zero, averages of the two models can be expected to work.

Source: task vectors and their cosines (arXiv:2212.04089); sign conflict and the overlap of trimmed
vectors (TIES, arXiv:2306.01708); linear mode connectivity, loss barriers (Frankle et al. 2019,
arXiv:1912.05671).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from stillroom.checkpoints.safetensors_format import FLOATS
from stillroom.errors import CheckpointError, DataError, RecipeError
from stillroom.merge.interfaces import (
    Array,
    BlockContext,
    InMemoryBlocks,
    RowBlock,
    TensorBlocks,
)
from stillroom.merge.lora.adapter import AdaptedCheckpoint, Adapter, is_adapter
from stillroom.merge.tensors.storage import count_block_rows, open_checkpoint, read_rows
from stillroom.merge.tensors.structure import check_floats, locate_tensor, pair_tensors
from stillroom.merge.tensors.task_vectors import exact_sum, gram_matrix
from stillroom.merge.tensors.trimming import TrimThreshold, find_thresholds, trim

if TYPE_CHECKING:
    from stillroom.checkpoints import Checkpoint
    from stillroom.evaluate.metrics.bootstrap import Metric
    from stillroom.records import Record

__all__ = [
    "InspectedModel",
    "Inspection",
    "LossPath",
    "TensorStats",
    "bootstrap_loss",
    "inspect_models",
    "load_model",
    "measure_loss_path",
    "open_model",
]

POINTS = 11


@dataclass(frozen=True, slots=True)
class LossPath:
    """Losses (nats per token) from the first model (share 0) to the second (share 1)."""

    names: tuple[str, str]
    shares: tuple[float, ...]
    losses: tuple[Metric, ...]

    @property
    def barrier(self) -> float:
        """Largest excess of the loss over the line between the end points; at least 0."""
        first, last = self.losses[0].value, self.losses[-1].value
        return max(
            loss.value - (1 - share) * first - share * last
            for share, loss in zip(self.shares, self.losses, strict=True)
        )

    @property
    def best(self) -> int:
        """Index of the point with the lowest loss."""
        return min(range(len(self.losses)), key=lambda index: self.losses[index].value)

    def to_json(self) -> dict[str, Any]:
        """Return JSON-serializable values."""
        return {
            "parents": list(self.names),
            "barrier": self.barrier,
            "points": [
                {"share": share, **loss.to_json()}
                for share, loss in zip(self.shares, self.losses, strict=True)
            ],
        }

    def __str__(self) -> str:
        """Return the printed report."""
        lines = [f"loss from {self.names[0]} to {self.names[1]}, barrier {self.barrier:.4f} nats"]
        lines += [
            f"  {share:>5.2f} {loss.value:>9.4f}  [{loss.low:.4f}, {loss.high:.4f}]"
            for share, loss in zip(self.shares, self.losses, strict=True)
        ]
        return "\n".join(lines)


def measure_loss_path(
    names: tuple[str, str],
    ends: tuple[Checkpoint | AdaptedCheckpoint, Checkpoint | AdaptedCheckpoint],
    records: Sequence[Record],
    *,
    max_tokens: int = 1024,
    points: int = POINTS,
    device: str = "auto",
    on_point: Callable[[], None] | None = None,
) -> LossPath:
    """Measure the loss at evenly spaced points between two models.

    Args:
        names: Display names of the models.
        ends: Models of one architecture and tokenizer; both are held in memory, in float32.
        records: Held-out records; neither model should have been trained on them.
        max_tokens: Maximum tokens read per record.
        points: Number of points, both ends included.
        device: Torch device of the models.
        on_point: Called after each point.

    Raises:
        DataError: If no record has an assistant token.
        CheckpointError: If a model cannot be loaded.
    """
    import torch

    from stillroom.evaluate.lm.loss import held_out_loss

    model, tokenizer = load_model(ends[0], device)
    other_model, _ = load_model(ends[1], device)
    pairs = [
        (parameter, parameter.detach().clone(), end.detach())
        for (_, parameter), (_, end) in zip(
            model.named_parameters(), other_model.named_parameters(), strict=True
        )
    ]
    shares = tuple(point / (points - 1) for point in range(points))
    losses = []
    for share in shares:
        with torch.no_grad():
            for parameter, start, end in pairs:
                parameter.copy_(torch.lerp(start, end, share))
        record_losses = held_out_loss(model, tokenizer, records, max_tokens=max_tokens)
        counted = [(nats, tokens) for nats, tokens in record_losses if tokens]
        if not counted:
            raise DataError(
                "no record has an assistant token",
                code="merge.no-records",
                expected="records with an assistant's turn",
                next="give other records",
            )
        losses.append(bootstrap_loss(f"loss/{share:.2f}", counted))
        if on_point:
            on_point()
    return LossPath(names, shares, tuple(losses))


def bootstrap_loss(name: str, losses: Sequence[tuple[float, int]]) -> Metric:
    """Return the mean loss in nats per token, of each record's sum of nats and tokens."""
    from stillroom.evaluate.metrics.bootstrap import bootstrap

    means, tokens = [nats / count for nats, count in losses], [count for _, count in losses]
    return bootstrap(means, weights=tokens, name=name, unit="nats/token")


def load_model(weights: Checkpoint | AdaptedCheckpoint, device: str = "auto") -> tuple[Any, Any]:
    """Load a model and its tokenizer in float32; an adapter is merged into its base.

    Raises:
        CheckpointError: If it cannot be loaded, or an adapted tensor is not a parameter.
    """
    import torch

    from stillroom.models import load_causal_lm

    if not isinstance(weights, AdaptedCheckpoint):
        return load_causal_lm(weights.folder, dtype="float32", device=device)
    model, tokenizer = load_causal_lm(weights.base.folder, dtype="float32", device=device)
    parameters = dict(model.named_parameters())
    for name in weights.adapter.names():
        if name not in weights.base:
            continue
        if name not in parameters:
            raise CheckpointError(
                f"the adapter changes '{name:.120}', which is not a parameter of the loaded model",
                code="merge.adapter-fit",
                where=str(weights.adapter.folder),
                expected="a model whose parameters are named as in its files",
                next="merge the adapter into its base, and inspect that checkpoint",
            )
        rows = weights.rows(name, 0, math.prod(weights.base.shape(name)[:1]))
        with torch.no_grad():
            parameters[name].copy_(torch.from_numpy(rows))
    return model, tokenizer


T = TypeVar("T")
_SMALL = 1 << 22


@dataclass(frozen=True)
class InspectedModel:
    """A model under comparison: a checkpoint, or an adapter over the base."""

    name: str
    weights: Checkpoint | AdaptedCheckpoint

    def rows(self, name: str, start: int, stop: int, dtype: Any) -> Array:
        """Return rows of a tensor as floats."""
        if isinstance(self.weights, AdaptedCheckpoint):
            return self.weights.rows(name, start, stop, dtype=dtype)
        return read_rows(self.weights, name, start, stop, dtype=dtype)


@dataclass
class TensorStats:
    """Sums over the elements of one tensor, or of several.

    Attributes:
        gram: Inner products of the parents' task vectors, (n, n).
        magnitude: Sum of the task vectors' absolute values.
        cancelled: Part of ``magnitude`` that vanishes when the task vectors are added.
        both: Per pair of parents, the number of elements that both changed.
        opposed: Those of ``both`` with opposite signs.
        trimmed_both: As ``both``, after trimming.
        trimmed_either: Per pair, the elements that trimming keeps of at least one parent.
        trimmed_opposed: As ``opposed``, after trimming.
    """

    size: int = 0
    base_square: float = 0.0
    gram: Array = field(default_factory=lambda: np.zeros((0, 0)))
    magnitude: float = 0.0
    cancelled: float = 0.0
    both: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    opposed: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    trimmed_both: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    trimmed_either: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    trimmed_opposed: Array = field(default_factory=lambda: np.zeros(0, np.int64))

    @classmethod
    def sum_of(cls, facts: Iterable[TensorStats]) -> TensorStats:
        """Return the sums over several tensors."""
        listed = list(facts)
        if not listed:
            return cls()
        names = cls.__dataclass_fields__
        return cls(*(sum(getattr(stats, name) for stats in listed) for name in names))

    def norm(self, parent: int) -> float:
        """Return the L2 norm of a task vector."""
        return math.sqrt(max(0.0, float(self.gram[parent, parent])))

    def relative(self, parent: int) -> float:
        """Return the L2 norm of a task vector relative to the base's."""
        return self.norm(parent) / math.sqrt(self.base_square) if self.base_square > 0 else 0.0

    def cosine(self, i: int, j: int) -> float:
        """Return the cosine similarity of two task vectors; NaN if one is zero."""
        lengths = self.norm(i) * self.norm(j)
        return min(1.0, max(-1.0, float(self.gram[i, j]) / lengths)) if lengths > 0 else math.nan

    @property
    def cancelling(self) -> float:
        """Share of the magnitude that vanishes in the sum of the task vectors."""
        return self.cancelled / self.magnitude if self.magnitude > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return JSON-serializable values."""
        count = len(self.gram)
        return {
            "size": self.size,
            "norms": [self.norm(n) for n in range(count)],
            "relative_norms": [self.relative(n) for n in range(count)],
            "cancelling": self.cancelling,
            "pairs": [
                {
                    "parents": [i, j],
                    "cosine": _or_null(self.cosine(i, j)),
                    "sign_conflict": _divide_or_null(self.opposed[pair], self.both[pair]),
                    "kept_overlap": _divide_or_null(
                        self.trimmed_both[pair], self.trimmed_either[pair]
                    ),
                    "kept_conflict": _divide_or_null(
                        self.trimmed_opposed[pair], self.trimmed_both[pair]
                    ),
                }
                for pair, (i, j) in enumerate(combinations(range(count), 2))
            ],
        }


@dataclass(frozen=True)
class Inspection:
    """Result of a comparison: statistics by tensor, and loss paths between pairs of parents."""

    base: str
    parents: tuple[str, ...]
    density: float
    tensors: dict[str, TensorStats]
    paths: tuple[LossPath, ...] = ()
    skipped: tuple[str, ...] = ()

    @property
    def whole(self) -> TensorStats:
        """The sums over all tensors."""
        return TensorStats.sum_of(self.tensors.values())

    def by_layer(self) -> dict[str, TensorStats]:
        """Return the sums by layer, in order; tensors outside the layers keep their names."""
        return _group(self.tensors, lambda name: locate_tensor(name)[0])

    def by_module(self) -> dict[str, TensorStats]:
        """Return the sums by module type (``q_proj``) over all layers."""
        return _group(self.tensors, lambda name: locate_tensor(name)[1])

    def to_json(self) -> dict[str, Any]:
        """Return JSON-serializable values."""
        return {
            "base": self.base,
            "parents": list(self.parents),
            "density": self.density,
            "whole": self.whole.to_json(),
            "layers": {name: facts.to_json() for name, facts in self.by_layer().items()},
            "modules": {name: facts.to_json() for name, facts in self.by_module().items()},
            "tensors": {name: facts.to_json() for name, facts in self.tensors.items()},
            "paths": [path.to_json() for path in self.paths],
            "skipped": list(self.skipped),
        }

    def __str__(self) -> str:
        """Return the printed report."""
        total = self.whole
        lines = [f"task vectors over {self.base}, {total.size / 1e6:.1f} M numbers"]
        lines += [
            f"  {name}: length {total.norm(n):.4g}, {total.relative(n):.2%} of the base"
            for n, name in enumerate(self.parents)
        ]
        for pair in total.to_json()["pairs"]:
            i, j = pair["parents"]
            lines.append(
                f"  {self.parents[i]} and {self.parents[j]}: cosine "
                f"{_format_number(pair['cosine'])}, "
                f"signs apart {_format_number(pair['sign_conflict'])}, of the largest "
                f"{self.density:.0%}: {_format_number(pair['kept_overlap'])} in common, "
                f"{_format_number(pair['kept_conflict'])} of those apart"
            )
        lines.append(f"  cancels in the sum: {total.cancelling:.1%} of all magnitude")
        lines.append("layer                       cosine   cancels")
        for name, facts in self.by_layer().items():
            cosines = [facts.cosine(i, j) for i, j in combinations(range(len(self.parents)), 2)]
            mean = sum(cosines) / len(cosines) if cosines else math.nan
            shown = _format_number(_or_null(mean))
            lines.append(f"  {name:<24} {shown:>7} {facts.cancelling:>8.1%}")
        lines += [str(path) for path in self.paths]
        lines += [f"not looked at, no floats: {name}" for name in self.skipped]
        return "\n".join(lines)


def open_model(reference: str, base: Checkpoint) -> InspectedModel:
    """Open a model for comparison: a checkpoint, or the folder of an adapter over ``base``."""
    path = Path(reference)
    if is_adapter(path):
        return InspectedModel(path.name, AdaptedCheckpoint(base, Adapter.open(path)))
    return InspectedModel(path.name or reference, open_checkpoint(reference))


def inspect_models(
    base: Checkpoint,
    parents: Sequence[InspectedModel],
    *,
    density: float = 0.2,
    on_tensor: Callable[[], None] | None = None,
) -> Inspection:
    """Compare the task vectors of models, tensor by tensor.

    Args:
        base: Common base model.
        parents: At least two models with the base's tensor shapes.
        density: Share of each tensor's elements kept by trimming, by magnitude.
        on_tensor: Called after each tensor.

    Raises:
        RecipeError: If there are fewer than two parents, or the density is out of range.
        CheckpointError: If the models do not match.
        ShapeError: If shapes differ.
    """
    if len(parents) < 2 or not 0 < density <= 1:
        raise RecipeError(
            f"{len(parents)} models are compared at density {density:g}",
            code="merge.inspect-settings",
            expected="two models or more, and a density above 0 and up to 1",
            next="stillroom merge inspect BASE A B",
        )
    tensors, skipped = {}, []
    for name, is_float in _iter_common_tensors(base, parents):
        if is_float:
            tensors[name] = _measure_tensor(base, parents, name, density)
        else:
            skipped.append(name)
        if on_tensor:
            on_tensor()
    names = _make_unique([parent.name for parent in parents])
    return Inspection(base.folder.name, names, density, tensors, (), tuple(skipped))


def _iter_common_tensors(
    base: Checkpoint, parents: Sequence[InspectedModel]
) -> Iterator[tuple[str, bool]]:
    """Yield every common tensor, and whether it is a float tensor in all models.

    An output head that is tied in the base is skipped.
    """
    checkpoints = [p.weights for p in parents if not isinstance(p.weights, AdaptedCheckpoint)]
    for checkpoint in checkpoints:
        pair_tensors(checkpoint, base)
    for name, home in pair_tensors(base, base):
        if all(name in checkpoint for checkpoint in checkpoints):
            floats = [check_floats(checkpoint, base, name, home) for checkpoint in checkpoints]
            has_numbers = math.prod(base.shape(name)) > 0
            yield name, has_numbers and base.entry(name).dtype in FLOATS and all(floats)


class _TaskVectorBlocks(TensorBlocks):
    """Task vectors of one tensor as re-readable row blocks."""

    def __init__(self, base: Checkpoint, parents: Sequence[InspectedModel], name: str) -> None:
        self._base, self._parents = base, parents
        entry = base.entry(name)
        self._dtype = np.float64 if entry.dtype == "F64" else np.float32
        self._rows, self._step = entry.rows, count_block_rows(entry.shape)
        self.size = math.prod(entry.shape)
        self.context = BlockContext(name, entry.shape, (), ())

    def __len__(self) -> int:
        return -(-self._rows // self._step)

    def __getitem__(self, number: int) -> RowBlock:
        if not 0 <= number < len(self):
            raise IndexError(number)
        name, start = self.context.name, number * self._step
        stop = min(start + self._step, self._rows)
        rows = np.atleast_1d(read_rows(self._base, name, start, stop, dtype=self._dtype))
        vectors = tuple(
            np.atleast_1d(parent.rows(name, start, stop, self._dtype)) - rows
            for parent in self._parents
        )
        width = self.size // max(self._rows, 1)
        return RowBlock(rows, vectors, replace(self.context, offset=start * width))


def _measure_tensor(
    base: Checkpoint, parents: Sequence[InspectedModel], name: str, density: float
) -> TensorStats:
    blocks: TensorBlocks = _TaskVectorBlocks(base, parents, name)
    if blocks.size <= _SMALL:
        arrays = [(block.base, *block.parents) for block in blocks]
        start, *vectors = (np.concatenate(parts) for parts in zip(*arrays, strict=True))
        blocks = InMemoryBlocks(start, vectors, blocks.context, rows=count_block_rows(start.shape))
    count = len(parents)
    thresholds = find_thresholds([blocks], lambda block: block.parents, [density] * count)
    counted = np.sum(blocks.each(lambda block: _count_pairs(block, thresholds)), axis=0)
    magnitude, cancelled = exact_sum(blocks, _sum_magnitudes)
    gram = gram_matrix(
        blocks, lambda block: [*block.parents, *([] if block.base is None else [block.base])]
    )
    return TensorStats(
        blocks.size,
        float(gram[count, count]),
        gram[:count, :count],
        magnitude,
        max(0.0, cancelled),
        *counted.T,
    )


def _count_pairs(block: RowBlock, thresholds: Sequence[TrimThreshold | None]) -> Array:
    """Count per pair: both changed, opposed; trimmed: kept of both, of either, opposed."""
    trimmed = [
        trim(v, threshold, block.context)
        for v, threshold in zip(block.parents, thresholds, strict=True)
    ]
    rows = []
    for i, j in combinations(range(len(trimmed)), 2):
        both, opposed, _ = _count_overlap(block.parents[i], block.parents[j])
        rows.append([both, opposed, *_count_overlap(trimmed[i], trimmed[j])])
    # In the field order of TensorStats: trimmed_both, trimmed_either, trimmed_opposed.
    return np.array([[both, opposed, k, e, o] for both, opposed, k, o, e in rows])


def _count_overlap(first: Array, second: Array) -> tuple[int, int, int]:
    """Count elements nonzero in both, those with opposite signs, and those nonzero in either."""
    up, down, high, low = first > 0, first < 0, second > 0, second < 0
    first_nonzero, second_nonzero = up | down, high | low
    up &= low
    down &= high
    up |= down
    return (
        int(np.count_nonzero(first_nonzero & second_nonzero)),
        int(np.count_nonzero(up)),
        int(np.count_nonzero(first_nonzero | second_nonzero)),
    )


def _sum_magnitudes(block: RowBlock) -> Sequence[Array]:
    """Return the magnitude of all vectors, and the part that cancels in their sum."""
    total, magnitude = np.zeros_like(block.parents[0]), np.zeros_like(block.parents[0])
    for vector in block.parents:
        total += vector
        magnitude += np.abs(vector)
    return magnitude, magnitude - np.abs(total)


def _group(
    tensors: dict[str, TensorStats], group_of: Callable[[str], str]
) -> dict[str, TensorStats]:
    groups: dict[str, list[TensorStats]] = {}
    for name, facts in tensors.items():
        groups.setdefault(group_of(name), []).append(facts)
    return {key: TensorStats.sum_of(groups[key]) for key in sorted(groups, key=_in_order)}


def _in_order(group: str) -> tuple[bool, int, str]:
    number = group.removeprefix("layer ")
    is_number = number.isdecimal() and len(number) < 19  # a stranger's name may be of any length
    return (not is_number, int(number) if is_number else 0, group)


def _make_unique(names: Sequence[str]) -> tuple[str, ...]:
    """Return unique display names; number those of equally named folders."""
    return tuple(
        name if names.count(name) == 1 else f"{name} ({number})"
        for number, name in enumerate(names, 1)
    )


def _divide_or_null(part: Any, total: Any) -> float | None:
    return float(part) / float(total) if total else None


def _or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _format_number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
