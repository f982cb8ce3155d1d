"""Width pruning: search of a student's shape, selection of channels, slicing of tensors.

Source: Muralidharan et al. 2024 (Minitron), arXiv:2407.14679, section 4, and Sreenivas et al. 2024,
arXiv:2408.11796, section 3: width before depth, attention heads unchanged, only shapes near the
budget considered. Differs: where they train every candidate briefly, the shape with the most even
shrinkage is taken here.

Hidden channels are selected once for the whole model; feed-forward channels and heads per layer.
Key-value groups are removed as a whole; within a kept group, heads compete only with each other, so
that every group keeps the same number. Kept parts keep their order; ties keep the first.

Changing the hidden size has two further effects. A norm divides by a mean over fewer channels, so
its weight is scaled (``measure_norm_shrinkage``). Gemma multiplies its embeddings by the square
root of the hidden size; that factor is folded into the weights, and out of the last norm if the
head shares them. Scaled tensors are computed in float64; others are copied bit by bit.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stillroom.distill.pruning.importance import WidthStatistics
from stillroom.distill.pruning.shapes import (
    Axis,
    StudentShape,
    check_layers_exist,
    check_parameter_budget,
    get_axes,
    get_part,
    is_norm,
    map_layers,
    read_shape,
)
from stillroom.errors import RecipeError

if TYPE_CHECKING:
    from stillroom.checkpoints import Checkpoint
    from stillroom.distill.settings import PruneSettings

__all__ = [
    "LayerSelection",
    "StudentShapePlan",
    "WidthSelection",
    "WidthSlicer",
    "plan_student_shape",
    "select_width",
]

_MIN_BUDGET_SHARE = 0.95  # minimum share of the largest fitting parameter count
_KERNEL = 8  # divisor of sizes preferred by matrix kernels
_STEPS = 8  # minimum number of sizes in a search, if the teacher's size allows it


@dataclass(frozen=True, slots=True)
class _AxisCounts:
    """Numbers of a teacher's tensors by axes, and by whether they are within layers."""

    layers: int
    entries: Counter[tuple[bool, tuple[Axis, ...], int]] = field(default_factory=Counter)

    def of(self, shape: StudentShape) -> int:
        """Return the parameters of a shape; all layers are alike."""
        total = 0
        for (is_inside, axes, fixed), number in self.entries.items():
            size = fixed * math.prod(shape.size(axis) for axis in axes if axis != "whole")
            total += size * (number * shape.layers // self.layers if is_inside else number)
        return total


@dataclass(frozen=True, slots=True)
class StudentShapePlan:
    """Sizes of teacher and student, and their parameters."""

    teacher: StudentShape
    student: StudentShape
    _counts: _AxisCounts = field(repr=False)

    @property
    def is_narrower(self) -> bool:
        """Whether any size other than the number of layers changes."""
        return self.student != self.teacher.with_sizes({"layers": self.student.layers})

    @property
    def parameters(self) -> int:
        """Parameters of the student; tied weights count once."""
        return self._counts.of(self.student)

    @property
    def notes(self) -> list[str]:
        """Notes for the user on the sizes."""
        sizes = {
            "hidden_size": self.student.hidden_size,
            "intermediate_size": self.student.intermediate_size,
        }
        return [
            f"{name} {size} is not a multiple of {_KERNEL}: matrix products will be slower"
            for name, size in sizes.items()
            if size % _KERNEL and size != getattr(self.teacher, name)
        ]


def plan_student_shape(checkpoint: Checkpoint, settings: PruneSettings) -> StudentShapePlan:
    """Choose the sizes of a student that may be narrower than its teacher.

    Sizes in the settings are fixed; of the others, those selected by ``settings.prune`` shrink.
    Among all shapes that fit ``max_parameters`` and have at least 95 % of the most parameters that
    fit, the one is chosen whose ratios to the teacher's layers, hidden size and feed-forward size
    differ least. The hidden size remains a multiple of the number of heads; the feed-forward size
    fills the budget.

    Raises:
        CheckpointError: If the teacher's family or one of its tensors is not supported.
        RecipeError: If sizes are incompatible, or none fits.
    """
    names, layers = map_layers(checkpoint)
    teacher = read_shape(checkpoint, layers)
    family = str(checkpoint.config.get("model_type"))
    counts = _AxisCounts(layers)
    for name in checkpoint.names():
        shape = checkpoint.shape(name)
        axes = get_axes(name, shape, teacher, family)
        fixed = math.prod(n for n, axis in zip(shape, axes, strict=True) if axis == "whole")
        if get_part(name) == "head" and checkpoint.is_tied:
            continue
        counts.entries[name in names, tuple(axes), fixed] += 1
    if settings.keep is not None:
        check_layers_exist(settings.keep, layers)
    student = _search_shape(teacher, settings, counts, is_implied=_is_head_dim_implied(checkpoint))
    plan = StudentShapePlan(teacher, student, counts)
    check_parameter_budget(plan.parameters, counts.of(teacher), settings)
    return plan


def _search_shape(
    teacher: StudentShape,
    settings: PruneSettings,
    counts: _AxisCounts,
    *,
    is_implied: bool,
) -> StudentShape:
    fixed = _read_given_sizes(teacher, settings, is_implied=is_implied)
    budget = settings.max_parameters * counts.of(teacher)
    free = {
        "depth": ("layers",),
        "inner": ("layers", "intermediate_size"),
        "width": ("hidden_size", "intermediate_size"),
        "both": ("layers", "hidden_size", "intermediate_size"),
    }[settings.prune]
    free = tuple(name for name in free if fixed[name] is None)
    start = teacher.with_sizes(fixed)
    _check_not_larger(asdict(start), teacher)
    if not free:
        _check_sizes(start, teacher, is_implied=is_implied)
        return start
    candidates: list[tuple[int, StudentShape]] = []
    for shape in _list_shapes(start, teacher, free, is_implied=is_implied):
        filled = _fill_ffn(shape, counts, budget) if "intermediate_size" in free else shape
        if filled is not None and counts.of(filled) <= budget:
            candidates.append((counts.of(filled), filled))
    if not candidates:
        raise RecipeError(
            f"no student fits {settings.max_parameters:.1%} of the teacher's parameters",
            code="distill.too-large",
            where="student.max_parameters",
            expected="a share that fits the embeddings and one narrow layer",
            next="raise student.max_parameters, or allow more to shrink (student.prune: both)",
        )
    most = max(count for count, _ in candidates)
    close = [(count, shape) for count, shape in candidates if count >= _MIN_BUDGET_SHARE * most]
    _, best = min(close, key=lambda item: (_measure_imbalance(item[1], teacher, free), -item[0]))
    _check_sizes(best, teacher, is_implied=is_implied)
    return best


def _list_shapes(
    start: StudentShape, teacher: StudentShape, free: tuple[str, ...], *, is_implied: bool
) -> Iterator[StudentShape]:
    layers = range(1, teacher.layers + 1) if "layers" in free else (start.layers,)
    hidden: list[int] = [start.hidden_size]
    if "hidden_size" in free:
        step = (
            start.head_dim
            if is_implied
            else _search_step(teacher.hidden_size, start.attention_heads)
        )
        hidden = list(range(step, teacher.hidden_size + 1, step))
    for size in hidden:
        sizes: dict[str, int | None] = {"hidden_size": size}
        if is_implied and "hidden_size" in free:
            sizes |= {"attention_heads": size // start.head_dim, "kv_heads": size // start.head_dim}
        for count in layers:
            yield start.with_sizes({**sizes, "layers": count})


def _fill_ffn(shape: StudentShape, counts: _AxisCounts, budget: float) -> StudentShape | None:
    """Return the shape with the most feed-forward channels that fit; None if none fits."""
    most = shape.intermediate_size
    step = _search_step(most, 1)
    fixed = counts.of(shape.with_sizes({"intermediate_size": 0}))
    per_channel = (counts.of(shape) - fixed) / most
    fitting = int((budget - fixed) / per_channel) // step * step
    return shape.with_sizes({"intermediate_size": min(fitting, most)}) if fitting >= step else None


def _search_step(size: int, factor: int) -> int:
    """Return the step of a search below ``size``: a multiple of ``factor``, of 64 if fine enough.

    Halved while it leaves too few sizes.
    """
    power = math.gcd(size, 64)
    while power > 1 and size // math.lcm(power, factor) < _STEPS:
        power //= 2
    return math.lcm(power, factor)


def _measure_imbalance(shape: StudentShape, teacher: StudentShape, free: tuple[str, ...]) -> float:
    before: dict[str, int] = asdict(teacher)
    after: dict[str, int] = asdict(shape)
    shares = [after[name] / before[name] for name in free]
    return max(shares) - min(shares)


def _read_given_sizes(
    teacher: StudentShape, settings: PruneSettings, *, is_implied: bool
) -> dict[str, int | None]:
    """Return the sizes in the settings, with those implied by them."""
    sizes: dict[str, int | None] = {
        "layers": min(settings.layers, teacher.layers) if settings.layers else None,
        "hidden_size": settings.hidden_size,
        "intermediate_size": settings.intermediate_size,
        "attention_heads": settings.attention_heads,
        "kv_heads": settings.kv_heads,
    }
    if settings.keep is not None:
        sizes["layers"] = len(settings.keep)
    _check_not_larger(sizes, teacher)  # before any is implied, so that the given one is named
    group_size = teacher.attention_heads // max(teacher.kv_heads, 1)
    if is_implied:
        heads, hidden = sizes["attention_heads"] or sizes["kv_heads"], sizes["hidden_size"]
        sizes["hidden_size"] = hidden or (heads * teacher.head_dim if heads else None)
        sizes["attention_heads"] = heads or (hidden // teacher.head_dim if hidden else None)
    if sizes["kv_heads"] and not sizes["attention_heads"]:
        sizes["attention_heads"] = sizes["kv_heads"] * group_size
    if sizes["attention_heads"] and not sizes["kv_heads"] and group_size == 1:
        sizes["kv_heads"] = sizes["attention_heads"]
    return sizes


def _check_sizes(shape: StudentShape, teacher: StudentShape, *, is_implied: bool) -> None:
    """Reject sizes that are impossible, or not a subset of the teacher's.

    Raises:
        RecipeError: Naming the setting.
    """
    heads, kv_heads = shape.attention_heads, shape.kv_heads
    if heads % kv_heads:
        raise _size_error(
            "attention_heads",
            f"{heads} attention heads cannot share {kv_heads} key-value heads evenly",
            f"a multiple of {kv_heads}, as {max(heads // kv_heads, 1) * kv_heads}",
        )
    if heads // kv_heads > teacher.attention_heads // teacher.kv_heads:
        raise _size_error(
            "kv_heads",
            f"{heads} attention heads on {kv_heads} key-value heads are more per group than the "
            f"teacher's {teacher.attention_heads} on {teacher.kv_heads}",
            f"at most {kv_heads * (teacher.attention_heads // teacher.kv_heads)} attention heads",
        )
    if shape.hidden_size % heads:
        raise _size_error(
            "hidden_size",
            f"hidden_size {shape.hidden_size} is not a multiple of {heads} attention heads, as "
            "transformers requires",
            f"a multiple of {heads}, as {shape.hidden_size // heads * heads or heads}",
        )
    if is_implied and shape.hidden_size != heads * shape.head_dim:
        raise _size_error(
            "hidden_size",
            f"hidden_size {shape.hidden_size} is not {heads} heads of {shape.head_dim}, and this "
            "family's config has no head size",
            f"{heads * shape.head_dim}, or only one of hidden_size and attention_heads",
        )


def _check_not_larger(sizes: Mapping[str, int | None], teacher: StudentShape) -> None:
    for name, most in asdict(teacher).items():
        size = sizes.get(name)
        if size is not None and not 1 <= size <= most:
            raise _size_error(name, f"student.{name} is {size}", f"from 1 to the teacher's {most}")


def _is_head_dim_implied(checkpoint: Checkpoint) -> bool:
    """Return whether the head size must be hidden size / heads, by the model's code or a check."""
    config = checkpoint.config
    if config.get("model_type") == "gpt2":
        return True
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return config.get("model_type") == "phi3" and "short_factor" in rope


def _size_error(name: str, message: str, expected: str) -> RecipeError:
    return RecipeError(
        message,
        code="distill.prune-shape",
        where=f"student.{name}",
        expected=expected,
        next=f"correct student.{name}",
    )


@dataclass(frozen=True, slots=True)
class LayerSelection:
    """Kept feed-forward channels, heads and key-value heads of one layer."""

    ffn: tuple[int, ...]
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class WidthSelection:
    """Kept width of a student; ``layers`` is keyed by the teacher's layer numbers."""

    teacher: StudentShape
    hidden: tuple[int, ...]
    layers: dict[int, LayerSelection]

    def index(self, axis: Axis, layer: int | None) -> Tensor | None:
        """Return the kept indices of an axis, ascending within each part; None if all are kept.

        Args:
            axis: Axis of a tensor.
            layer: Teacher's number of its layer; None outside of layers.
        """
        if axis == "whole":
            return None
        if axis == "hidden":
            indices = torch.tensor(self.hidden)
        elif layer is None:
            return None
        else:
            indices = self._index_in(axis, self.layers[layer])
        return None if len(indices) == self.teacher.size(axis) else indices

    def _index_in(self, axis: Axis, kept: LayerSelection) -> Tensor:
        shape = self.teacher
        ffn = torch.tensor(kept.ffn)
        query = _expand_heads(kept.heads, shape.head_dim)
        key = _expand_heads(kept.kv_heads, shape.head_dim)
        parts = {
            "ffn": [ffn],
            "gate_up": [ffn, ffn + shape.intermediate_size],
            "query": [query],
            "key_value": [key],
            "qkv": [
                query,
                key + shape.size("query"),
                key + shape.size("query") + shape.size("key_value"),
            ],
        }
        return torch.cat(parts[axis])


def select_width(
    teacher: StudentShape,
    student: StudentShape,
    statistics: WidthStatistics,
    layers: Sequence[int],
) -> WidthSelection:
    """Select the channels and heads with the highest scores, by the student's sizes."""
    kept = {}
    for layer in layers:
        kv_heads, heads = _select_heads(teacher, student, statistics.attention[layer])
        ffn = _select_top(statistics.ffn[layer], student.intermediate_size)
        kept[layer] = LayerSelection(ffn, heads, kv_heads)
    return WidthSelection(teacher, _select_top(statistics.hidden, student.hidden_size), kept)


def _select_heads(
    teacher: StudentShape, student: StudentShape, scores: Tensor
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the kept key-value heads, and the kept heads."""
    group_size = teacher.attention_heads // teacher.kv_heads
    squares = (
        scores.square().view(teacher.kv_heads, group_size, teacher.head_dim).sum(-1)
    )  # (G, H/G)
    kv_heads = _select_top(squares.sum(-1), student.kv_heads)
    heads_per_group = student.attention_heads // student.kv_heads
    heads = [
        group * group_size + head
        for group in kv_heads
        for head in _select_top(squares[group], heads_per_group)
    ]
    return kv_heads, tuple(heads)


def _select_top(scores: Tensor, count: int) -> tuple[int, ...]:
    order = torch.argsort(scores, descending=True, stable=True)[:count]
    return tuple(sorted(order.tolist()))


def _expand_heads(heads: Sequence[int], head_dim: int) -> Tensor:
    return (torch.tensor(heads)[:, None] * head_dim + torch.arange(head_dim)).flatten()


_GEMMA = ("gemma", "gemma2", "gemma3_text")
_PREFIXES = ("model.", "transformer.")


@dataclass(frozen=True, slots=True)
class WidthSlicer:
    """Slicer of tensors: kept indices, and factors of norms by name."""

    kept: WidthSelection
    student: StudentShape
    family: str
    is_tied: bool
    shrinkage: Mapping[str, float] = field(default_factory=dict)

    def cut(self, name: str, tensor: Tensor, layer: int | None) -> Tensor:
        """Slice a teacher's tensor for the student.

        Args:
            name: Name in the teacher's checkpoint.
            tensor: Full tensor; returned unchanged if all of it is kept.
            layer: Teacher's number of its layer; None outside of layers.

        Raises:
            CheckpointError: If the tensor is unknown.
        """
        axes = get_axes(name, tuple(tensor.shape), self.kept.teacher, self.family)
        for dimension, axis in enumerate(axes):
            index = self.kept.index(axis, layer)
            if index is not None:
                tensor = tensor.index_select(dimension, index)
        factor = self._factor(name)
        if factor == 1.0:
            return tensor
        offset = 1.0 if is_norm(name) and self.family in _GEMMA else 0.0  # norms multiply by 1 + w
        scaled = (tensor.double() + offset) * factor - offset
        return scaled.to(tensor.dtype)

    def cut_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the config with the student's sizes; the head size is set explicitly."""
        cut = dict(config)
        shape = self.student
        if self.family == "gpt2":
            cut |= {"n_embd": shape.hidden_size, "n_head": shape.attention_heads}
            cut["n_inner"] = shape.intermediate_size
            return cut
        return cut | {
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.intermediate_size,
            "num_attention_heads": shape.attention_heads,
            "num_key_value_heads": shape.kv_heads,
            "head_dim": shape.head_dim,
        }

    def _factor(self, name: str) -> float:
        """Return the factor of a tensor's entries (of a Gemma norm's ``1 + w``)."""
        if len(self.kept.hidden) == self.kept.teacher.hidden_size:
            return 1.0
        embedding = math.sqrt(self.kept.teacher.hidden_size / self.student.hidden_size)
        is_scaled = self.family in _GEMMA
        if is_scaled and (get_part(name) == "embeddings" or (self.is_tied and "lm_head" in name)):
            return embedding
        if not is_norm(name) or not name.endswith(".weight"):
            return 1.0
        module = name.removesuffix(".weight")
        for prefix in _PREFIXES:
            module = module.removeprefix(prefix)
        factor = self.shrinkage.get(module, 1.0)
        is_last = module == "norm"
        return factor / embedding if is_last and is_scaled and self.is_tied else factor
