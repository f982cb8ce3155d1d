"""Base classes of merge methods, and the row blocks of a tensor that they read.

A method sees row blocks of one tensor at a time, as numpy arrays of float32 or float64. It knows
neither files nor storage types, and must not depend on where a block begins: what needs the whole
tensor is measured beforehand.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias, TypeVar

from typing_extensions import override

from stillroom.errors import RecipeError
from stillroom.registry import Method, Registry

if TYPE_CHECKING:
    import numpy as np
    import torch

    from stillroom.checkpoints import Checkpoint
    from stillroom.merge.mergekit.numpy_arithmetic import CastBlocks, TorchGenerator
    from stillroom.merge.planning.inputs import MergeSource, TensorRules
    from stillroom.merge.planning.plan import MergePlan

__all__ = [
    "METHODS",
    "ArchitectureMerge",
    "Array",
    "BlockContext",
    "InMemoryBlocks",
    "MergeMethod",
    "RowBlock",
    "TensorBlocks",
    "merge_arrays",
    "mergekit_unsupported_error",
    "missing_base_error",
]


Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class BlockContext:
    """Where a block lies, and what holds for each parent.

    ``offset`` is the index, within the flattened tensor, of the block's first element. ``keys``
    name the parents by content, for randomness that does not depend on their order. ``weights``
    are the parents', ``own`` what else the recipe says of each (``density``, ...). ``layer`` is the
    tensor's depth: 0 in the first layer, 1 in the last, None outside the layers.
    """

    name: str
    shape: tuple[int, ...]
    keys: tuple[str, ...]
    weights: tuple[float, ...]
    own: tuple[Mapping[str, float], ...] = ()
    seed: int = 0
    offset: int = 0
    layer: float | None = None
    overall: Any = field(default=None, compare=False)

    def values(self, setting: str, default: float) -> list[float]:
        """Return a setting of every parent: its own, or the default."""
        return [own.get(setting, default) for own in self.own or ({},) * len(self.keys)]


@dataclass(frozen=True, slots=True)
class RowBlock:
    """Some rows of one tensor: of the base (absent where the merge has none) and every parent."""

    base: Array | None
    parents: tuple[Array, ...]
    at: BlockContext


class TensorBlocks(Protocol):
    """One tensor as row blocks, in order; may be read as often as a method needs."""

    @property
    def at(self) -> BlockContext:
        """The place of the whole tensor, offset 0."""

    @property
    def size(self) -> int:
        """How many elements the tensor has."""

    def __len__(self) -> int:
        """Return how many blocks there are."""

    def __getitem__(self, number: int) -> RowBlock:
        """Read one block."""

    def __iter__(self) -> Iterator[RowBlock]:
        """Yield the blocks from first row to last."""

    def each(self, reduce: Callable[[RowBlock], T]) -> list[T]:
        """Return ``reduce`` of every block, in order; several blocks may be reduced at once."""


class MergeMethod(Method):
    """Makes one tensor of several; subclasses hold one ``combine``, and ``measure`` if needed.

    Class variables: ``needs_base``; ``is_ordered``, the parents' order means something;
    ``uses_weights``; ``per_model``, settings that a model may have of its own; ``replicates``,
    there is a ``replicate`` for ``compat: mergekit``; ``decomposes``, matrices are decomposed,
    which a recipe's ``device`` may do; ``survey_ignores``, settings that, as the models' weights,
    do not change what ``survey`` finds, so that trials of a search share it (None: any may).
    """

    needs_base: ClassVar[bool] = False
    is_ordered: ClassVar[bool] = False
    uses_weights: ClassVar[bool] = True
    per_model: ClassVar[tuple[str, ...]] = ()
    replicates: ClassVar[bool] = False
    decomposes: ClassVar[bool] = False
    survey_ignores: ClassVar[tuple[str, ...] | None] = None
    least_parents: ClassVar[int] = 1
    most_parents: ClassVar[int] = 1000

    @classmethod
    @override
    def recipe_needs(cls) -> dict[str, int]:
        """Return that the recipe must name a base, where one is needed, and enough models."""
        return {"models": cls.least_parents, **({"base": 1} if cls.needs_base else {})}

    def check(self, weights: Sequence[float]) -> None:
        """Refuse parents that the method cannot merge.

        Raises:
            RecipeError: If there are too few or too many, or their weights make no sense.
        """
        if not self.least_parents <= len(weights) <= self.most_parents:
            wanted = f"at least {self.least_parents}"
            if self.most_parents < 1000:
                wanted = f"{self.least_parents} to {self.most_parents}"
            if self.least_parents == self.most_parents:
                wanted = f"exactly {self.least_parents}"
            raise RecipeError(
                f"{self.method_name()} cannot merge {len(weights)} models",
                code="merge.parents",
                where="models",
                expected=wanted,
                next="change the list 'models', or choose another method",
            )

    def check_replica(self, weights: Sequence[float]) -> str:
        """Refuse parents that mergekit cannot merge either; default as ``check`` does.

        Returns:
            What its arithmetic makes of weights that the paper's cannot take; else nothing.

        Raises:
            RecipeError: As ``check`` raises it.
        """
        self.check(weights)
        return ""

    def survey(self, tensors: Sequence[TensorBlocks]) -> Any:
        """Reduce the whole model to JSON values, before anything else; default nothing.

        What is returned comes back as ``at.overall``. Only methods whose rule spans tensors
        override this.
        """
        return None

    def measure(self, blocks: TensorBlocks) -> Any:
        """Reduce one tensor to a few numbers, before its blocks are combined; default nothing."""
        return None

    def needs_whole(self, name: str, shape: tuple[int, ...]) -> bool:
        """Return whether a tensor must come as one block; default never."""
        return False

    @abstractmethod
    def combine(
        self, base: Array | None, parents: Sequence[Array], measured: Any, at: BlockContext
    ) -> Array:
        """Make one block of several.

        Args:
            base: The base's rows, (rows, ...), or None where the merge has none.
            parents: Every parent's rows, same shape and type; none may be changed.
            measured: What ``measure`` returned for this tensor.
            at: Where the block lies.

        Returns:
            The merged rows, same shape and type; freshly made or one of the inputs.
        """

    def replicate(
        self, base: torch.Tensor | None, parents: Sequence[torch.Tensor], at: BlockContext
    ) -> torch.Tensor:
        """Make one whole tensor as mergekit 0.1.5 would, operation by operation, in their type.

        Random draws come from torch's global generator, which is seeded once a merge.
        """
        raise mergekit_unsupported_error(self.method_name())

    def retraces(self, kind: str, shape: tuple[int, ...], parents: int) -> bool:
        """Return whether ``retrace`` gives ``replicate``'s bits for a tensor of a shape.

        Args:
            kind: The storage type that is computed in: BF16, F16 or F32.
            shape: The tensor's.
            parents: How many are merged.
        """
        return False

    def retrace(self, blocks: CastBlocks, draws: TorchGenerator) -> Callable[[int], Array]:
        """Return what makes a numbered block of a tensor as ``replicate`` does, in numpy.

        Args:
            blocks: The tensor.
            draws: torch's generator, where the tensors before left it.
        """
        raise mergekit_unsupported_error(self.method_name())


class ArchitectureMerge(MergeMethod):
    """A method that puts whole tensors of its parents in new places, and makes others.

    Its verb is ``arrange``, not ``combine``: the result has another architecture or vocabulary, so
    that no tensor is a function of the same tensor of every parent.
    """

    needs_base: ClassVar[bool] = True
    is_ordered: ClassVar[bool] = True
    uses_weights: ClassVar[bool] = False

    @abstractmethod
    def arrange(
        self, base: MergeSource | None, parents: Sequence[MergeSource], rules: TensorRules
    ) -> MergePlan:
        """Return what becomes of every tensor, having read headers only.

        Raises:
            RecipeError: If the settings cannot be met.
            CheckpointError: If these models cannot be put together so.
            ShapeError: If a tensor does not fit.
        """

    def review(self, written: Checkpoint) -> tuple[str, ...]:
        """Return what a user should know of the written result; default nothing."""
        return ()

    @override
    def combine(
        self, base: Array | None, parents: Sequence[Array], measured: Any, at: BlockContext
    ) -> Array:
        """Refuse: an assembly combines no blocks, and no engine asks it to."""
        raise TypeError(f"{self.method_name()} combines no blocks; see arrange")


def mergekit_unsupported_error(name: str) -> RecipeError:
    """Return the error for a method that mergekit lacks, asked to be compatible with it."""
    return RecipeError(
        f"mergekit 0.1.5 has no {name}",
        code="merge.compat",
        where="compat",
        expected="a method that both have",
        next="leave compat out",
    )


METHODS = Registry("stillroom.merge.methods", MergeMethod)


Reduced = TypeVar("Reduced")


class InMemoryBlocks:
    """One tensor of a base and parents in memory, cut into blocks of whole rows."""

    def __init__(
        self,
        base: Array | None,
        parents: Sequence[Array],
        at: BlockContext,
        rows: int | None = None,
    ) -> None:
        """Stand over arrays of one shape and type; ``rows`` a block, default all."""
        self.at = at
        self._base, self._parents = base, tuple(parents)
        shape = self._parents[0].shape
        self.size = math.prod(shape)
        self._rows = shape[0] if shape else 1
        self._step = max(1, rows or self._rows)

    def __len__(self) -> int:
        """Return how many blocks there are."""
        return -(-self._rows // self._step)

    def __getitem__(self, number: int) -> RowBlock:
        """Return one block; its arrays are views."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        start = number * self._step
        width = self.size // max(self._rows, 1)

        def cut(array: Array) -> Array:
            return array[start : start + self._step] if array.ndim else array

        return RowBlock(
            None if self._base is None else cut(self._base),
            tuple(cut(parent) for parent in self._parents),
            replace(self.at, offset=start * width),
        )

    def __iter__(self) -> Iterator[RowBlock]:
        """Yield the blocks from first row to last."""
        for number in range(len(self)):
            yield self[number]

    def each(self, reduce: Callable[[RowBlock], Reduced]) -> list[Reduced]:
        """Return ``reduce`` of every block, in order."""
        return [reduce(block) for block in self]


def merge_arrays(
    method: MergeMethod,
    base: Array | None,
    parents: Sequence[Array],
    at: BlockContext | None = None,
    *,
    rows: int | None = None,
) -> Array:
    """Merge one tensor that is in memory; the plain function behind the engine.

    Args:
        method: The method.
        base: The base's tensor, where the method needs one.
        parents: The parents' tensors, same shape and type.
        at: Name, weights and seed; default weights of 1 and seed 0.
        rows: Rows of a block; default all at once. It changes no bit.

    Returns:
        The merged tensor, same shape and type.
    """
    import numpy as np

    shape = parents[0].shape
    if at is None:
        keys = tuple(f"parent{number}" for number in range(len(parents)))
        at = BlockContext("tensor", shape, keys, (1.0,) * len(parents))
    if method.needs_whole(at.name, shape):
        rows = None
    blocks = InMemoryBlocks(base, parents, at, rows)
    blocks.at = replace(at, overall=method.survey([blocks]))
    measured = method.measure(blocks)
    merged = [method.combine(block.base, block.parents, measured, block.at) for block in blocks]
    if not merged:
        return np.zeros_like(parents[0])
    return np.concatenate(merged) if shape else merged[0]


def missing_base_error(method: str) -> RecipeError:
    """Return the error of a merge that lacks the base that its method needs."""
    return RecipeError(
        f"{method} merges differences from a base, and there is none",
        code="merge.base",
        where="base",
        expected="the checkpoint that the models were fine-tuned from",
        next="add it to the recipe as 'base'",
    )
