"""Comparison of fine-tuned models: task vector agreement, and loss along interpolations.

Source: task vectors and their cosines (arXiv:2212.04089); sign conflict and the overlap of what
trimming keeps (TIES, arXiv:2306.01708); the loss along the segment between two models (linear mode
connectivity, arXiv:1912.05671). Every number of a tensor is a sum over its elements, so that those
of a layer or of the whole model are sums of them. Streams block by block; only the path of losses
loads models. A cosine near 0 and little overlap say that models changed different things; they do
not say that the sum of both is good: only a loss on records does.

Source: Frankle et al. 2019, arXiv:1912.05671; 11 points, as there most often. A barrier is how far
the worst point lies above the line between the losses of the ends: near zero, averages of the two
models can be expected to work. The models are interpolated in memory, in float32; nothing is
written.
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
from stillroom.merge.interfaces import Array, BlockContext, InMemoryBlocks, RowBlock
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
    "inspect_models",
    "load_model",
    "measure_loss_path",
    "open_model",
]


POINTS = 11


@dataclass(frozen=True, slots=True)
class LossPath:
    """Losses (nats a token) from the first model, share 0, to the second, share 1."""

    names: tuple[str, str]
    shares: tuple[float, ...]
    losses: tuple[Metric, ...]

    @property
    def barrier(self) -> float:
        """How far the worst point lies above the line between the ends; 0 if none does."""
        first, last = self.losses[0].value, self.losses[-1].value
        return max(
            loss.value - (1 - share) * first - share * last
            for share, loss in zip(self.shares, self.losses, strict=True)
        )

    @property
    def best(self) -> int:
        """The number of the point with the least loss."""
        return min(range(len(self.losses)), key=lambda at: self.losses[at].value)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "parents": list(self.names),
            "barrier": self.barrier,
            "points": [
                {"share": share, **loss.to_json()}
                for share, loss in zip(self.shares, self.losses, strict=True)
            ],
        }

    def __str__(self) -> str:
        """Return the lines a user reads."""
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
        names: What the models are called.
        ends: The models; of one architecture and tokenizer. Two are held in memory, in float32.
        records: What the loss is measured on; neither model should have been trained on them.
        max_tokens: Tokens of a record that are read.
        points: How many, both ends counted.
        device: Where the models run.
        on_point: Called after each point.

    Raises:
        DataError: If no record has a token of an assistant.
        CheckpointError: If a model cannot be loaded.
    """
    import torch

    from stillroom.evaluate.lm.loss import held_out_loss
    from stillroom.evaluate.metrics.bootstrap import bootstrap

    model, tokenizer = load_model(ends[0], device)
    other, _ = load_model(ends[1], device)
    pairs = [
        (parameter, parameter.detach().clone(), end.detach())
        for (_, parameter), (_, end) in zip(
            model.named_parameters(), other.named_parameters(), strict=True
        )
    ]
    shares = tuple(at / (points - 1) for at in range(points))
    losses = []
    for share in shares:
        with torch.no_grad():
            for parameter, start, end in pairs:
                parameter.copy_(torch.lerp(start, end, share))
        found = held_out_loss(model, tokenizer, records, max_tokens=max_tokens)
        counted = [(nats, tokens) for nats, tokens in found if tokens]
        if not counted:
            raise DataError(
                "no record has a token to be judged by",
                code="merge.no-records",
                expected="records with an assistant's turn",
                next="give other records",
            )
        losses.append(
            bootstrap(
                [nats / tokens for nats, tokens in counted],
                weights=[tokens for _, tokens in counted],
                name=f"loss/{share:.2f}",
                unit="nats/token",
            )
        )
        if on_point:
            on_point()
    return LossPath(names, shares, tuple(losses))


def load_model(weights: Checkpoint | AdaptedCheckpoint, device: str = "auto") -> tuple[Any, Any]:
    """Load a model and its tokenizer in float32; an adapter is put on its base first.

    Raises:
        CheckpointError: If it cannot be loaded, or an adapted tensor is no parameter of the model.
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
                f"the adapter changes '{name:.120}', which the loaded model has not",
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
    """One model that is looked at: a checkpoint, or an adapter over the base."""

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

    ``gram`` holds the products of the parents' task vectors, (n, n). ``cancelled`` over
    ``magnitude`` is the share of the vectors' magnitude that vanishes when they are added. Per
    pair of parents: how many elements both changed, how many of those apart in sign, and the same
    for those that trimming keeps; ``either`` counts what it keeps of one or both.
    """

    size: int = 0
    base_square: float = 0.0
    gram: Array = field(default_factory=lambda: np.zeros((0, 0)))
    magnitude: float = 0.0
    cancelled: float = 0.0
    both: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    opposed: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    kept_both: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    kept_either: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    kept_opposed: Array = field(default_factory=lambda: np.zeros(0, np.int64))

    @classmethod
    def sum_of(cls, facts: Iterable[TensorStats]) -> TensorStats:
        """Return the sums over several tensors."""
        listed = list(facts)
        if not listed:
            return cls()
        names = cls.__dataclass_fields__
        return cls(*(sum(getattr(each, name) for each in listed) for name in names))

    def norm(self, parent: int) -> float:
        """Return the length of a task vector."""
        return math.sqrt(max(0.0, float(self.gram[parent, parent])))

    def relative(self, parent: int) -> float:
        """Return the length of a task vector over that of the base."""
        return self.norm(parent) / math.sqrt(self.base_square) if self.base_square > 0 else 0.0

    def cosine(self, i: int, j: int) -> float:
        """Return the cosine of two task vectors; not-a-number where one is zero."""
        lengths = self.norm(i) * self.norm(j)
        return min(1.0, max(-1.0, float(self.gram[i, j]) / lengths)) if lengths > 0 else math.nan

    @property
    def cancelling(self) -> float:
        """The share of all magnitude that vanishes in the sum of the task vectors."""
        return self.cancelled / self.magnitude if self.magnitude > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
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
                    "sign_conflict": _divide_or_null(self.opposed[at], self.both[at]),
                    "kept_overlap": _divide_or_null(self.kept_both[at], self.kept_either[at]),
                    "kept_conflict": _divide_or_null(self.kept_opposed[at], self.kept_both[at]),
                }
                for at, (i, j) in enumerate(combinations(range(count), 2))
            ],
        }


@dataclass(frozen=True)
class Inspection:
    """What was found: by tensor, and paths of losses between pairs of parents."""

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
        """Return the sums by layer, in order; tensors outside the layers go by their own names."""
        return _group(self.tensors, lambda name: locate_tensor(name)[0])

    def by_module(self) -> dict[str, TensorStats]:
        """Return the sums by kind of module, as ``q_proj``, over all layers."""
        return _group(self.tensors, lambda name: locate_tensor(name)[1])

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
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
        """Return the lines a user reads."""
        whole = self.whole
        lines = [f"task vectors over {self.base}, {whole.size / 1e6:.1f} M numbers"]
        lines += [
            f"  {name}: length {whole.norm(n):.4g}, {whole.relative(n):.2%} of the base"
            for n, name in enumerate(self.parents)
        ]
        for pair in whole.to_json()["pairs"]:
            i, j = pair["parents"]
            lines.append(
                f"  {self.parents[i]} and {self.parents[j]}: cosine "
                f"{_format_number(pair['cosine'])}, "
                f"signs apart {_format_number(pair['sign_conflict'])}, of the largest "
                f"{self.density:.0%}: {_format_number(pair['kept_overlap'])} in common, "
                f"{_format_number(pair['kept_conflict'])} of those apart"
            )
        lines.append(f"  cancels in the sum: {whole.cancelling:.1%} of all magnitude")
        lines.append("layer                       cosine   cancels")
        for name, facts in self.by_layer().items():
            cosines = [facts.cosine(i, j) for i, j in combinations(range(len(self.parents)), 2)]
            mean = sum(cosines) / len(cosines) if cosines else math.nan
            lines.append(f"  {name:<24} {mean:>7.3f} {facts.cancelling:>8.1%}")
        lines += [str(path) for path in self.paths]
        lines += [f"not looked at, no floats: {name}" for name in self.skipped]
        return "\n".join(lines)


def open_model(reference: str, base: Checkpoint) -> InspectedModel:
    """Open a model to look at: a checkpoint, or the folder of an adapter over ``base``."""
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
        base: What all were fine-tuned from.
        parents: Two models or more, of the base's shapes.
        density: Share of each tensor's elements that trimming would keep, by magnitude.
        on_tensor: Called after each tensor.

    Raises:
        RecipeError: If there are fewer than two parents, or the density is no share.
        CheckpointError: If they do not belong together.
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
    """Yield every tensor that all have, and whether all hold floats.

    A head that the base ties is left out: it is the embedding, or has nothing to be compared with.
    """
    own = [p.weights for p in parents if not isinstance(p.weights, AdaptedCheckpoint)]
    for checkpoint in own:
        pair_tensors(checkpoint, base)
    for name, home in pair_tensors(base, base):
        if all(name in checkpoint for checkpoint in own):
            floats = [check_floats(checkpoint, base, name, home) for checkpoint in own]
            has_numbers = math.prod(base.shape(name)) > 0
            yield name, has_numbers and base.entry(name).dtype in FLOATS and all(floats)


class _TaskVectorBlocks:
    """One tensor's task vectors as row blocks, read as often as they are asked for."""

    def __init__(self, base: Checkpoint, parents: Sequence[InspectedModel], name: str) -> None:
        self._base, self._parents = base, parents
        entry = base.entry(name)
        self._dtype = np.float64 if entry.dtype == "F64" else np.float32
        self._rows, self._step = entry.rows, count_block_rows(entry.shape)
        self.size = math.prod(entry.shape)
        self.at = BlockContext(name, entry.shape, (), ())

    def __len__(self) -> int:
        return -(-self._rows // self._step)

    def __getitem__(self, number: int) -> RowBlock:
        if not 0 <= number < len(self):
            raise IndexError(number)
        name, start = self.at.name, number * self._step
        stop = min(start + self._step, self._rows)
        rows = np.atleast_1d(read_rows(self._base, name, start, stop, dtype=self._dtype))
        vectors = tuple(
            np.atleast_1d(parent.rows(name, start, stop, self._dtype)) - rows
            for parent in self._parents
        )
        width = self.size // max(self._rows, 1)
        return RowBlock(rows, vectors, replace(self.at, offset=start * width))

    def __iter__(self) -> Iterator[RowBlock]:
        for number in range(len(self)):
            yield self[number]

    def each(self, reduce: Callable[[RowBlock], T]) -> list[T]:
        return [reduce(block) for block in self]


def _measure_tensor(
    base: Checkpoint, parents: Sequence[InspectedModel], name: str, density: float
) -> TensorStats:
    blocks: _TaskVectorBlocks | InMemoryBlocks = _TaskVectorBlocks(base, parents, name)
    if blocks.size <= _SMALL:
        whole = [(block.base, *block.parents) for block in blocks]
        start, *vectors = (np.concatenate(parts) for parts in zip(*whole, strict=True))
        blocks = InMemoryBlocks(start, vectors, blocks.at, rows=count_block_rows(start.shape))
    count = len(parents)
    cuts = find_thresholds([blocks], lambda block: block.parents, [density] * count)
    counted = np.sum(blocks.each(lambda block: _count_pairs(block, cuts)), axis=0)
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


def _count_pairs(block: RowBlock, cuts: Sequence[TrimThreshold | None]) -> Array:
    """Count per pair: changed by both, of those apart; kept of both, of either, of those apart."""
    kept = [trim(v, cut, block.at) for v, cut in zip(block.parents, cuts, strict=True)]
    rows = []
    for i, j in combinations(range(len(kept)), 2):
        both, opposed, _ = _count_overlap(block.parents[i], block.parents[j])
        rows.append([both, opposed, *_count_overlap(kept[i], kept[j])])
    # In the order of the fields of Facts: kept of both, of either, apart.
    return np.array([[both, opposed, k, e, o] for both, opposed, k, o, e in rows])


def _count_overlap(one: Array, two: Array) -> tuple[int, int, int]:
    """Return how many elements are nonzero in both, of those of opposed sign, and in either."""
    up, down, high, low = one > 0, one < 0, two > 0, two < 0
    left, right = up | down, high | low
    up &= low
    down &= high
    up |= down
    return (
        int(np.count_nonzero(left & right)),
        int(np.count_nonzero(up)),
        int(np.count_nonzero(left | right)),
    )


def _sum_magnitudes(block: RowBlock) -> Sequence[Array]:
    """Return the magnitudes of all vectors together, and what of them cancels in their sum."""
    total, whole = np.zeros_like(block.parents[0]), np.zeros_like(block.parents[0])
    for vector in block.parents:
        total += vector
        whole += np.abs(vector)
    return whole, whole - np.abs(total)


def _group(tensors: dict[str, TensorStats], place: Callable[[str], str]) -> dict[str, TensorStats]:
    groups: dict[str, list[TensorStats]] = {}
    for name, facts in tensors.items():
        groups.setdefault(place(name), []).append(facts)
    return {key: TensorStats.sum_of(groups[key]) for key in sorted(groups, key=_in_order)}


def _in_order(place: str) -> tuple[bool, int, str]:
    number = place.removeprefix("layer ")
    return (not number.isdigit(), int(number) if number.isdigit() else 0, place)


def _make_unique(names: Sequence[str]) -> tuple[str, ...]:
    """Return names that tell the parents apart, also where folders are called alike."""
    return tuple(
        name if names.count(name) == 1 else f"{name} ({at})" for at, name in enumerate(names, 1)
    )


def _divide_or_null(part: Any, whole: Any) -> float | None:
    return float(part) / float(whole) if whole else None


def _or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _format_number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
