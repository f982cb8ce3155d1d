"""``FeatureLoss``: what a loss beside the logits is given and must give back.

It compares what happens inside teacher and student while both read the same tokens: hidden states
at the positions that bear loss (``StateLoss``), or one record's queries, keys and values
(``HeadLoss``). ``feature_set`` runs both models, pairs their layers, adds up and keeps projectors;
a feature loss is a formula.

Layers count from 1. Hidden state 0 is what the first layer gets, the embeddings; that of the last
layer is taken after the final norm.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator
from typing_extensions import override

from stillroom.errors import RecipeError
from stillroom.registry import Method, Seam

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["FEATURES", "FeatureLoss", "HeadLoss", "Heads", "StateLoss", "pair_layers"]

Layers = Literal["uniform", "last"] | tuple[tuple[int, int], ...]


class FeatureLoss(Method):
    """A loss on what happens inside both models, added to the loss on their logits.

    Every position that bears loss counts once: the mean over the paired layers is summed over these
    positions and divided by their number in the whole optimizer step, as the loss on logits is.
    """

    reads: ClassVar[Literal["states", "attention", "projections"]]
    lowest_layer: ClassVar[int] = 1

    weight: float = Field(default=1.0, ge=0, description="what the loss is multiplied by")
    layers: Layers = Field(
        default="uniform",
        description="uniform: every student layer with the teacher's at the same share of the "
        "depth; last: the last ones; or pairs [student, teacher], layers counted from 1",
    )

    @classmethod
    @override
    def recipe_sets(cls) -> dict[str, Any]:
        """Return that the teacher must run in every step."""
        return {"targets.mode": "live"}

    @model_validator(mode="after")
    def _pairs_are_layers(self) -> FeatureLoss:
        if not isinstance(self.layers, str):
            if not self.layers or min(map(min, self.layers)) < self.lowest_layer:
                raise ValueError(f"'layers' wants pairs of numbers from {self.lowest_layer}")
            if len(set(self.layers)) < len(self.layers):
                raise ValueError("'layers' wants each pair once")
        return self


class StateLoss(FeatureLoss):
    """Compares hidden states, position by position."""

    reads: ClassVar[Literal["states", "attention", "projections"]] = "states"
    lowest_layer: ClassVar[int] = 0

    @abstractmethod
    def make_projector(self, student_width: int, teacher_width: int, seed: int) -> nn.Module | None:
        """Return what turns the student's states into the teacher's width; None if nothing does.

        Raises:
            ShapeError: If nothing shall and the widths differ.
        """

    @abstractmethod
    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of each position, (N,).

        Args:
            student: The student's states after the projector, (N, H of the teacher).
            teacher: The teacher's, likewise.
        """


@dataclass(frozen=True, slots=True)
class Heads:
    """What one layer makes of one record: queries (H, T, d), keys (K, T, d), values (K, T, d).

    Attention's scores are ``scale * queries @ keys.T``, squashed to +-``cap`` where that is not 0.
    ``values`` is empty where queries and keys are those after rotary embeddings.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    scale: float = 1.0
    cap: float = 0.0


class HeadLoss(FeatureLoss):
    """Compares how the positions of one record relate to each other."""

    @abstractmethod
    def check(self, student: Heads, teacher: Heads) -> None:
        """Refuse heads that cannot be compared.

        Raises:
            ShapeError: If their number or width does not allow it.
        """

    @abstractmethod
    def compare(self, student: Heads, teacher: Heads, rows: Tensor, visible: Tensor) -> Tensor:
        """Return the loss of each position, (n,).

        Args:
            student: Of the student, float32 or float64.
            teacher: Of the teacher, likewise.
            rows: The n positions of the record that bear loss, rising.
            visible: (n, T), True where a position may look.
        """


def pair_layers(loss: FeatureLoss, student: int, teacher: int) -> tuple[tuple[int, int], ...]:
    """Return which layers are compared, as (student's, teacher's).

    Args:
        loss: Says how.
        student: How many layers the student has.
        teacher: How many the teacher has.

    Raises:
        RecipeError: If a pair names a layer that is not there.
    """
    if loss.layers == "last":
        return ((student, teacher),)
    if loss.layers == "uniform":
        # rounded half up in whole numbers, so that no float decides
        return tuple(
            (layer, max(1, (2 * layer * teacher + student) // (2 * student)))
            for layer in range(1, student + 1)
        )
    for own, taught in loss.layers:
        if own > student or taught > teacher:
            raise RecipeError(
                f"there is no pair of layers [{own}, {taught}]",
                code="distill.feature-layers",
                where=f"features, {loss.method_name()}.layers",
                expected=f"the student's layers up to {student}, the teacher's up to {teacher}",
                next="choose other pairs, or layers: uniform",
            )
    return loss.layers


FEATURES: Seam[FeatureLoss] = Seam("stillroom.distill.features", FeatureLoss)
