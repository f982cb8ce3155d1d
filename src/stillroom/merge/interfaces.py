"""Base classes of merge methods, and the row blocks of a tensor that they read.

A method receives row blocks of one tensor at a time, as numpy arrays of float32 or float64. It
knows neither files nor storage types, and must not depend on block boundaries: statistics that need
the whole tensor are measured beforehand.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol, TypeAlias, TypeVar

from pydantic import GetJsonSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema
from typing_extensions import override

from stillroom.errors import RecipeError
from stillroom.registry import Method, Registry

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "METHODS",
    "Array",
    "BlockContext",
    "InMemoryBlocks",
    "MergeMethod",
    "PerModel",
    "RowBlock",
    "TensorBlocks",
    "merge_arrays",
    "missing_base_error",
]

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
T = TypeVar("T")


class _PerModelMark:
    """Marks a setting of a method that every model of a recipe may override."""

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Return the setting's schema, marked for editors."""
        return handler(schema) | {"x-per-model": True}


PerModel = Annotated[T, _PerModelMark()]
"""A setting of a method that may differ by model: ``density: PerModel[float] = Field(...)``.

The method's own value is the default of all models; ``models`` of a recipe and ``parameters`` with
``model`` override it, within the field's bounds.
"""


@dataclass(frozen=True, slots=True)
class BlockContext:
    """Position of a block in its tensor, and the settings of each parent.

    Attributes:
        name: Name of the tensor.
        shape: Shape of the whole tensor.
        keys: Content keys of the parents, for randomness independent of their order.
        weights: Weights of the parents.
        per_model: Other settings of each parent in the recipe (``density``, ...).
        seed: Random seed of the merge.
        offset: Index of the block's first element within the flattened tensor.
        layer: Relative depth: 0 in the first layer, 1 in the last, None outside the layers.
        global_statistics: Result of the method's ``survey``.
    """

    name: str
    shape: tuple[int, ...]
    keys: tuple[str, ...]
    weights: tuple[float, ...]
    per_model: tuple[Mapping[str, float], ...] = ()
    seed: int = 0
    offset: int = 0
    layer: float | None = None
    global_statistics: Any = field(default=None, compare=False)

    def values(self, setting: str, default: float) -> list[float]:
        """Return a setting of every parent, or the default if it has none."""
        return [
            settings.get(setting, default) for settings in self.per_model or ({},) * len(self.keys)
        ]


@dataclass(frozen=True, slots=True)
class RowBlock:
    """Rows of one tensor: of the base (None if the merge has none) and of every parent."""

    base: Array | None
    parents: tuple[Array, ...]
    context: BlockContext


class TensorBlocks(Protocol):
    """One tensor as row blocks, in order; may be read repeatedly.

    Attributes:
        context: Context of the whole tensor, offset 0.
        size: Number of elements of the tensor.
    """

    context: BlockContext
    size: int

    def __len__(self) -> int:
        """Return the number of blocks."""

    def __getitem__(self, number: int) -> RowBlock:
        """Read one block."""

    def __iter__(self) -> Iterator[RowBlock]:
        """Yield the blocks from first row to last."""
        for number in range(len(self)):
            yield self[number]

    def each(self, reduce: Callable[[RowBlock], T]) -> list[T]:
        """Apply ``reduce`` to every block, possibly in parallel; return results in order."""
        return [reduce(block) for block in self]


class MergeMethod(Method):
    """Base class of a merge method (merge strategy): ``combine``, and ``measure`` if needed.

    Attributes:
        needs_base: Whether a base is required.
        is_ordered: Whether the order of parents has a meaning.
        uses_weights: Whether the parents' weights are used.
        decomposes: Whether matrices are decomposed, which the recipe's ``device`` accelerates.
        survey_ignores: Settings that, like the models' weights, do not affect ``survey``, so that
            trials of a search share it (None: any setting may affect it).
        min_models: Minimum number of models.
        max_models: Maximum number of models.
    """

    needs_base: ClassVar[bool] = False
    is_ordered: ClassVar[bool] = False
    uses_weights: ClassVar[bool] = True
    decomposes: ClassVar[bool] = False
    survey_ignores: ClassVar[tuple[str, ...] | None] = None
    min_models: ClassVar[int] = 1
    max_models: ClassVar[int] = 1000

    @classmethod
    @override
    def recipe_needs(cls) -> dict[str, int]:
        """Return the recipe entries required: enough models, and a base if needed."""
        return {"models": cls.min_models, **({"base_model": 1} if cls.needs_base else {})}

    @classmethod
    def per_model_settings(cls) -> dict[str, FieldInfo]:
        """Return the settings declared as ``PerModel``, by name."""
        return {
            name: info
            for name, info in cls.model_fields.items()
            if any(isinstance(mark, _PerModelMark) for mark in info.metadata)
        }

    def check(self, weights: Sequence[float]) -> None:
        """Raise an error for parents that the method cannot merge.

        Raises:
            RecipeError: If there are too few or too many, or their weights are invalid.
        """
        if not self.min_models <= len(weights) <= self.max_models:
            expected = f"at least {self.min_models}"
            if self.max_models < 1000:
                expected = f"{self.min_models} to {self.max_models}"
            if self.min_models == self.max_models:
                expected = f"exactly {self.min_models}"
            raise RecipeError(
                f"{self.method_name()} cannot merge {len(weights)} models",
                code="merge.parents",
                where="models",
                expected=expected,
                next="change the list 'models', or choose another method",
            )

    def survey(self, tensors: Sequence[TensorBlocks]) -> Any:
        """Reduce the whole model to JSON values before all other passes; default None.

        The result is available as ``global_statistics`` of the block context. Only methods whose
        rule spans several tensors override this.
        """
        return None

    def measure(self, blocks: TensorBlocks) -> Any:
        """Reduce one tensor to a few numbers before its blocks are combined; default None."""
        return None

    def needs_whole(self, name: str, shape: tuple[int, ...]) -> bool:
        """Return whether a tensor must be read as one block; default False."""
        return False

    @abstractmethod
    def combine(
        self, base: Array | None, parents: Sequence[Array], measured: Any, context: BlockContext
    ) -> Array:
        """Merge one block.

        Args:
            base: Rows of the base, (rows, ...), or None if the merge has none.
            parents: Rows of every parent, same shape and type; must not be modified.
            measured: Result of ``measure`` for this tensor.
            context: Position of the block, weights and settings.

        Returns:
            The merged rows, same shape and type; a new array or one of the inputs.
        """


METHODS = Registry("stillroom.merge.methods", MergeMethod)


class InMemoryBlocks(TensorBlocks):
    """One tensor of base and parents in memory, in blocks of whole rows."""

    def __init__(
        self,
        base: Array | None,
        parents: Sequence[Array],
        context: BlockContext,
        rows: int | None = None,
    ) -> None:
        """Create blocks of ``rows`` rows (default all) over arrays of one shape and type."""
        self.context = context
        self._base, self._parents = base, tuple(parents)
        shape = self._parents[0].shape
        self.size = math.prod(shape)
        self._rows = shape[0] if shape else 1
        self._step = max(1, rows or self._rows)

    def __len__(self) -> int:
        """Return the number of blocks."""
        return -(-self._rows // self._step)

    def __getitem__(self, number: int) -> RowBlock:
        """Return one block of views."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        start = number * self._step
        width = self.size // max(self._rows, 1)

        def cut(array: Array) -> Array:
            return array[start : start + self._step] if array.ndim else array

        return RowBlock(
            None if self._base is None else cut(self._base),
            tuple(cut(parent) for parent in self._parents),
            replace(self.context, offset=start * width),
        )


def merge_arrays(
    method: MergeMethod,
    base: Array | None,
    parents: Sequence[Array],
    context: BlockContext | None = None,
    *,
    rows: int | None = None,
) -> Array:
    """Merge one tensor in memory; the function behind the executor.

    Args:
        method: The method.
        base: The base's tensor, if the method needs one.
        parents: The parents' tensors, same shape and type.
        context: Name, weights and seed; default weights of 1 and seed 0.
        rows: Rows per block, default all; does not change the result.

    Returns:
        The merged tensor, same shape and type.
    """
    import numpy as np

    shape = parents[0].shape
    if context is None:
        keys = tuple(f"parent{number}" for number in range(len(parents)))
        context = BlockContext("tensor", shape, keys, (1.0,) * len(parents))
    if method.needs_whole(context.name, shape):
        rows = None
    blocks = InMemoryBlocks(base, parents, context, rows)
    blocks.context = replace(context, global_statistics=method.survey([blocks]))
    measured = method.measure(blocks)
    merged = [
        method.combine(block.base, block.parents, measured, block.context) for block in blocks
    ]
    if not merged:
        return np.zeros_like(parents[0])
    return np.concatenate(merged) if shape else merged[0]


def missing_base_error(method: str) -> RecipeError:
    """Return the error for a merge without the base that its method needs."""
    return RecipeError(
        f"{method} merges differences from a base, but the recipe has no base",
        code="merge.base",
        where="base_model",
        expected="the checkpoint that the models were fine-tuned from",
        next="add it to the recipe as 'base_model'",
    )
