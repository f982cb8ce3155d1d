"""The student's sizes: what the user gave, and the rest so that ``max_parameters`` holds.

Source of the rule: Muralidharan et al. 2024 (Minitron), arXiv:2407.14679, section 4, and Sreenivas
et al. 2024, arXiv:2408.11796, section 3: width before depth, attention heads left alone, only
shapes near the budget considered. Differs: where they train every candidate for a while, we take
the one that shrinks its sizes most evenly.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stillroom.distill.depth_layers import check_share, layer_names, refuse_missing
from stillroom.distill.width_axes import Axis, StudentShape, axes_of, part_of, read_shape
from stillroom.errors import RecipeError

if TYPE_CHECKING:
    from stillroom.checkpoints import Checkpoint
    from stillroom.distill.prune_settings import PruneSettings

__all__ = ["WidthPlan", "plan_width"]

_NEAR = 0.95  # of the largest count that fits: what is less is not considered
_KERNEL = 8  # matrix kernels want sizes that this divides
_STEPS = 8  # sizes that a search has to choose from at least, where the teacher's allow it


@dataclass(frozen=True, slots=True)
class _Counts:
    """How many tensors of a teacher have which axes, by part and by whether layers hold them."""

    layers: int
    entries: Counter[tuple[bool, tuple[Axis, ...], int, str]] = field(default_factory=Counter)

    def of(self, shape: StudentShape, part: str | None = None) -> int:
        """Return the parameters of a shape, whole or of one part; all layers are alike."""
        total = 0
        for (is_inside, axes, fixed, home), number in self.entries.items():
            if part is not None and home != part:
                continue
            each = fixed * math.prod(shape.size(axis) for axis in axes if axis != "whole")
            total += each * (number * shape.layers // self.layers if is_inside else number)
        return total


@dataclass(frozen=True, slots=True)
class WidthPlan:
    """A teacher's sizes, the student's, and what each part of both counts."""

    teacher: StudentShape
    student: StudentShape
    _counts: _Counts = field(repr=False)

    @property
    def is_narrower(self) -> bool:
        """Whether anything but the number of layers changes."""
        return self.student != self.teacher.with_sizes({"layers": self.student.layers})

    @property
    def parameters(self) -> int:
        """The student's parameters, tied weights once."""
        return self._counts.of(self.student)

    def count_parts(self, shape: StudentShape) -> dict[str, int]:
        """Return the parameters of each part of a model of that shape."""
        parts = sorted({home for *_, home in self._counts.entries})
        return {part: self._counts.of(shape, part) for part in parts}

    @property
    def notes(self) -> list[str]:
        """What a user should know of the sizes."""
        sizes = {
            "hidden_size": self.student.hidden_size,
            "intermediate_size": self.student.intermediate_size,
        }
        return [
            f"{name} {size} is not a multiple of {_KERNEL}: matrix products will be slower"
            for name, size in sizes.items()
            if size % _KERNEL and size != getattr(self.teacher, name)
        ]


def plan_width(checkpoint: Checkpoint, settings: PruneSettings) -> WidthPlan:
    """Return the sizes of a student that may be narrower than its teacher.

    Sizes that are given stand. Of the others those that ``settings.prune`` names shrink: of all
    shapes that fit ``max_parameters`` and have at least 95 % of the most parameters that fit, the
    one whose shares of the teacher's layers, hidden size and feed-forward size differ least. The
    hidden size stays a multiple of the number of heads, the feed-forward size fills the budget.

    Raises:
        CheckpointError: If the teacher's family or one of its tensors is not understood.
        RecipeError: If sizes do not go together, or none fits.
    """
    names, layers = layer_names(checkpoint)
    teacher = read_shape(checkpoint, layers)
    family = str(checkpoint.config.get("model_type"))
    counts = _Counts(layers)
    for name in checkpoint.names():
        shape = checkpoint.shape(name)
        axes = axes_of(name, shape, teacher, family)
        fixed = math.prod(n for n, axis in zip(shape, axes, strict=True) if axis == "whole")
        if part_of(name) == "head" and checkpoint.is_tied:
            continue
        counts.entries[name in names, tuple(axes), fixed, part_of(name)] += 1
    if settings.keep is not None:
        refuse_missing(settings.keep, layers)
    student = _choose(teacher, settings, counts, is_implied=_is_head_dim_implied(checkpoint))
    plan = WidthPlan(teacher, student, counts)
    check_share(plan.parameters, counts.of(teacher), settings)
    return plan


def _choose(
    teacher: StudentShape,
    settings: PruneSettings,
    counts: _Counts,
    *,
    is_implied: bool,
) -> StudentShape:
    given = _given_sizes(teacher, settings, is_implied=is_implied)
    budget = settings.max_parameters * counts.of(teacher)
    free = {
        "depth": ("layers",),
        "inner": ("layers", "intermediate_size"),
        "width": ("hidden_size", "intermediate_size"),
        "both": ("layers", "hidden_size", "intermediate_size"),
    }[settings.prune]
    free = tuple(name for name in free if given[name] is None)
    start = teacher.with_sizes(given)
    _refuse_larger(start, teacher)
    if not free:
        _check(start, teacher, is_implied=is_implied)
        return start
    found: list[tuple[int, StudentShape]] = []
    for shape in _candidates(start, teacher, free, is_implied=is_implied):
        filled = _fill(shape, counts, budget) if "intermediate_size" in free else shape
        if filled is not None and counts.of(filled) <= budget:
            found.append((counts.of(filled), filled))
    if not found:
        raise _too_large(settings)
    most = max(count for count, _ in found)
    near = [(count, shape) for count, shape in found if count >= _NEAR * most]
    _, chosen = min(near, key=lambda item: (_unevenness(item[1], teacher, free), -item[0]))
    _check(chosen, teacher, is_implied=is_implied)
    return chosen


def _candidates(
    start: StudentShape, teacher: StudentShape, free: tuple[str, ...], *, is_implied: bool
) -> Iterator[StudentShape]:
    layers = range(1, teacher.layers + 1) if "layers" in free else (start.layers,)
    hidden: list[int] = [start.hidden_size]
    if "hidden_size" in free:
        step = start.head_dim if is_implied else _step(teacher.hidden_size, start.attention_heads)
        hidden = list(range(step, teacher.hidden_size + 1, step))
    for size in hidden:
        sizes: dict[str, int | None] = {"hidden_size": size}
        if is_implied and "hidden_size" in free:
            sizes |= {"attention_heads": size // start.head_dim, "kv_heads": size // start.head_dim}
        for count in layers:
            yield start.with_sizes({**sizes, "layers": count})


def _fill(shape: StudentShape, counts: _Counts, budget: float) -> StudentShape | None:
    """Return the shape with the most feed-forward channels that fit; None where none does."""
    most = shape.intermediate_size
    step = _step(most, 1)
    none = counts.of(shape.with_sizes({"intermediate_size": 0}))
    each = (counts.of(shape) - none) / most
    fitting = int((budget - none) / each) // step * step
    return shape.with_sizes({"intermediate_size": min(fitting, most)}) if fitting >= step else None


def _step(size: int, factor: int) -> int:
    """Return the step of a search below ``size``: a multiple of ``factor``, of 64 if fine enough.

    Halved as long as it leaves fewer than a few sizes to choose from.
    """
    power = math.gcd(size, 64)
    while power > 1 and size // math.lcm(power, factor) < _STEPS:
        power //= 2
    return math.lcm(power, factor)


def _unevenness(shape: StudentShape, teacher: StudentShape, free: tuple[str, ...]) -> float:
    before, after = teacher.to_json(), shape.to_json()
    shares = [after[name] / before[name] for name in free]
    return max(shares) - min(shares)


def _given_sizes(
    teacher: StudentShape, settings: PruneSettings, *, is_implied: bool
) -> dict[str, int | None]:
    """Return the sizes that the user gave, with those that follow from them."""
    given: dict[str, int | None] = {
        "layers": min(settings.layers, teacher.layers) if settings.layers else None,
        "hidden_size": settings.hidden_size,
        "intermediate_size": settings.intermediate_size,
        "attention_heads": settings.attention_heads,
        "kv_heads": settings.kv_heads,
    }
    if settings.keep is not None:
        given["layers"] = len(settings.keep)
    a_group = teacher.attention_heads // max(teacher.kv_heads, 1)
    if is_implied:
        heads, hidden = given["attention_heads"] or given["kv_heads"], given["hidden_size"]
        given["hidden_size"] = hidden or (heads * teacher.head_dim if heads else None)
        given["attention_heads"] = heads or (hidden // teacher.head_dim if hidden else None)
    if given["kv_heads"] and not given["attention_heads"]:
        given["attention_heads"] = given["kv_heads"] * a_group
    if given["attention_heads"] and not given["kv_heads"] and a_group == 1:
        given["kv_heads"] = given["attention_heads"]
    return given


def _check(shape: StudentShape, teacher: StudentShape, *, is_implied: bool) -> None:
    """Refuse sizes that no model can have, or that are not a part of the teacher's.

    Raises:
        RecipeError: Naming the setting.
    """
    _refuse_larger(shape, teacher)
    heads, kv_heads = shape.attention_heads, shape.kv_heads
    if heads % kv_heads:
        raise _bad(
            "attention_heads",
            f"{heads} attention heads cannot share {kv_heads} key-value heads evenly",
            f"a multiple of {kv_heads}, as {max(heads // kv_heads, 1) * kv_heads}",
        )
    if heads // kv_heads > teacher.attention_heads // teacher.kv_heads:
        raise _bad(
            "kv_heads",
            f"{heads} attention heads on {kv_heads} key-value heads are more a group than the "
            f"teacher's {teacher.attention_heads} on {teacher.kv_heads}",
            f"at most {kv_heads * (teacher.attention_heads // teacher.kv_heads)} attention heads",
        )
    if shape.hidden_size % heads:
        raise _bad(
            "hidden_size",
            f"hidden_size {shape.hidden_size} is no multiple of {heads} attention heads, which "
            "transformers requires",
            f"a multiple of {heads}, as {shape.hidden_size // heads * heads or heads}",
        )
    if is_implied and shape.hidden_size != heads * shape.head_dim:
        raise _bad(
            "hidden_size",
            f"hidden_size {shape.hidden_size} is not {heads} heads of {shape.head_dim}, and this "
            "family's config cannot say the size of a head",
            f"{heads * shape.head_dim}, or give one of hidden_size and attention_heads only",
        )


def _refuse_larger(shape: StudentShape, teacher: StudentShape) -> None:
    sizes = shape.to_json()
    for name, most in teacher.to_json().items():
        if not 1 <= sizes[name] <= most:
            raise _bad(name, f"student.{name} is {sizes[name]}", f"from 1 to the teacher's {most}")


def _is_head_dim_implied(checkpoint: Checkpoint) -> bool:
    """Return whether a head's size is the hidden size over the heads, by code or by a check."""
    config = checkpoint.config
    if config.get("model_type") == "gpt2":
        return True
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return config.get("model_type") == "phi3" and "short_factor" in rope


def _bad(name: str, what: str, expected: str) -> RecipeError:
    return RecipeError(
        what,
        code="distill.prune-shape",
        where=f"student.{name}",
        expected=expected,
        next=f"correct student.{name}",
    )


def _too_large(settings: PruneSettings) -> RecipeError:
    return RecipeError(
        f"no student fits {settings.max_parameters:.1%} of the teacher's parameters",
        code="distill.too-large",
        where="student.max_parameters",
        expected="a share that the embeddings and one narrow layer fit in",
        next="raise student.max_parameters, or let more shrink (student.prune: both)",
    )
