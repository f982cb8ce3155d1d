"""``MergeMethod``: what a way of merging is given, and what it must give back.

A method sees row blocks of one tensor at a time, as numpy arrays of float32 or float64. It knows
neither files nor storage types, and must not depend on where a block begins: what needs the whole
tensor is measured beforehand.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias, TypeVar

from typing_extensions import override

from stillroom.errors import RecipeError
from stillroom.registry import Method, Seam

if TYPE_CHECKING:
    import numpy as np
    import torch

    from stillroom.checkpoints import Checkpoint
    from stillroom.merge.plan import MergePlan
    from stillroom.merge.retracing import CastBlocks, Draws
    from stillroom.merge.rules import Rules
    from stillroom.merge.sources import Source

__all__ = [
    "METHODS",
    "Array",
    "Assembly",
    "Block",
    "Blocks",
    "MergeMethod",
    "Place",
    "no_counterpart",
]

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Place:
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
class Block:
    """Some rows of one tensor: of the base (absent where the merge has none) and every parent."""

    base: Array | None
    parents: tuple[Array, ...]
    at: Place


class Blocks(Protocol):
    """One tensor as row blocks, in order; may be read as often as a method needs."""

    @property
    def at(self) -> Place:
        """The place of the whole tensor, offset 0."""

    @property
    def size(self) -> int:
        """How many elements the tensor has."""

    def __len__(self) -> int:
        """Return how many blocks there are."""

    def __getitem__(self, number: int) -> Block:
        """Read one block."""

    def __iter__(self) -> Iterator[Block]:
        """Yield the blocks from first row to last."""

    def each(self, reduce: Callable[[Block], T]) -> list[T]:
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

    def survey(self, tensors: Sequence[Blocks]) -> Any:
        """Reduce the whole model to JSON values, before anything else; default nothing.

        What is returned comes back as ``at.overall``. Only methods whose rule spans tensors
        override this.
        """
        return None

    def measure(self, blocks: Blocks) -> Any:
        """Reduce one tensor to a few numbers, before its blocks are combined; default nothing."""
        return None

    def needs_whole(self, name: str, shape: tuple[int, ...]) -> bool:
        """Return whether a tensor must come as one block; default never."""
        return False

    @abstractmethod
    def combine(
        self, base: Array | None, parents: Sequence[Array], measured: Any, at: Place
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
        self, base: torch.Tensor | None, parents: Sequence[torch.Tensor], at: Place
    ) -> torch.Tensor:
        """Make one whole tensor as mergekit 0.1.5 would, operation by operation, in their type.

        Random draws come from torch's global generator, which is seeded once a merge.
        """
        raise no_counterpart(self.method_name())

    def retraces(self, kind: str, shape: tuple[int, ...], parents: int) -> bool:
        """Return whether ``retrace`` gives ``replicate``'s bits for a tensor of a shape.

        Args:
            kind: The storage type that is computed in: BF16, F16 or F32.
            shape: The tensor's.
            parents: How many are merged.
        """
        return False

    def retrace(self, blocks: CastBlocks, draws: Draws) -> Callable[[int], Array]:
        """Return what makes a numbered block of a tensor as ``replicate`` does, in numpy.

        Args:
            blocks: The tensor.
            draws: torch's generator, where the tensors before left it.
        """
        raise no_counterpart(self.method_name())


class Assembly(MergeMethod):
    """A method that puts whole tensors of its parents in new places, and makes others.

    Its verb is ``arrange``, not ``combine``: the result has another architecture or vocabulary, so
    that no tensor is a function of the same tensor of every parent.
    """

    needs_base: ClassVar[bool] = True
    is_ordered: ClassVar[bool] = True
    uses_weights: ClassVar[bool] = False

    @abstractmethod
    def arrange(self, base: Source | None, parents: Sequence[Source], rules: Rules) -> MergePlan:
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
        self, base: Array | None, parents: Sequence[Array], measured: Any, at: Place
    ) -> Array:
        """Refuse: an assembly combines no blocks, and no engine asks it to."""
        raise TypeError(f"{self.method_name()} combines no blocks; see arrange")


def no_counterpart(name: str) -> RecipeError:
    """Return the error for a method that mergekit lacks, asked to be compatible with it."""
    return RecipeError(
        f"mergekit 0.1.5 has no {name}",
        code="merge.compat",
        where="compat",
        expected="a method that both have",
        next="leave compat out",
    )


METHODS = Seam("stillroom.merge.methods", MergeMethod)
