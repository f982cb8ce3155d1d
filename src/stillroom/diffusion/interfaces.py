"""Base classes and registries of the interchangeable methods of diffusion models.

What each method is given and must give back is said in the module that its base class is in.
Imports no torch, so that a recipe can name methods.

A layout looks at config.json, says which stock architecture computes the same, and renames (or
folds) the tensors. No code from the checkpoint's folder is ever run.

An objective says what one text, one pair or one group of answers counts for; the room draws the
masks, reads the log-probabilities and makes micro-batches of them. Imports no torch, so that a
recipe can name one.

Imports no torch. A schedule says which share is masked at a time from 0 to 1 and how a masked token
weighs; any schedule has the same expected loss, they differ in its spread. A noising makes noisy
copies of one text.

A diffusion model has no likelihood that one pass could read off. It has a bound, an average over
masks; every estimator of it says how large its error is and what it cost. The bound is that of the
model's own factorization: where attention is by blocks, the sum over blocks of each one's bound
given the clean ones before, which one pass over a noisy and a clean copy gives.

A step reads the model, lets the order rank the open places of a block, lets the commit rule take
some of the first, and lets remasking take others back or change them. Any of each goes with any
other; what does not go together is refused when the settings are read. Imports no torch.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from stillroom.errors import DataError
from stillroom.registry import Method, Registry

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from stillroom.diffusion.evaluation.likelihood import MaskedLikelihood
    from stillroom.diffusion.model.metadata import DiffusionMetadata
    from stillroom.diffusion.model.network import DiffusionModel
    from stillroom.diffusion.recipe import DiffusionRecipe
    from stillroom.diffusion.sampling.sequence import Candidates, CommittedTokens, StepIndex
    from stillroom.diffusion.training.data import CorruptedBatch
    from stillroom.jobs import Job
    from stillroom.records import Record
    from stillroom.train.data import BatchSource

__all__ = [
    "CHECKPOINT_FORMATS",
    "CORRUPTIONS",
    "ESTIMATORS",
    "LENGTH_POLICIES",
    "NOISE_SCHEDULES",
    "OBJECTIVES",
    "REMASKINGS",
    "UNMASK_ORDERS",
    "UNMASK_RULES",
    "CheckpointFormat",
    "ConvertedCheckpoint",
    "Corruption",
    "DiffusionObjective",
    "LengthPolicy",
    "LikelihoodEstimate",
    "LikelihoodEstimator",
    "MaskedCopy",
    "NoiseSchedule",
    "ObjectiveContext",
    "Remasking",
    "StoredCheckpoint",
    "TokenizedDataset",
    "UnmaskOrder",
    "UnmaskRule",
    "compute_standard_error",
]


class StoredCheckpoint(Protocol):
    """What a layout reads: a checkpoint on disk, as ``Checkpoint`` gives it."""

    folder: Path
    config: dict[str, Any]

    def names(self) -> list[str]:
        """Return the names of all tensors, sorted."""

    def tensor(self, name: str) -> Tensor:
        """Return one tensor."""


@dataclass(frozen=True)
class ConvertedCheckpoint:
    """A foreign checkpoint in terms of a stock architecture.

    Args:
        config: config.json of the stock architecture, ``model_type`` included.
        metadata: What it is as a diffusion model.
        names: The tensors there are, by the stock names; one that has no place keeps its own.
        tensor: Returns one of them.
    """

    config: Mapping[str, Any]
    metadata: DiffusionMetadata
    names: tuple[str, ...]
    tensor: Callable[[str], Tensor]


class CheckpointFormat(Method):
    """A format of diffusion checkpoints, recognized by its config.json."""

    model_types: ClassVar[tuple[str, ...]]

    def fits(self, config: Mapping[str, Any]) -> bool:
        """Return whether a config.json is of this format."""
        return config.get("model_type") in self.model_types

    @abstractmethod
    def translate(self, stored: StoredCheckpoint) -> ConvertedCheckpoint:
        """Return a checkpoint of this format in terms of a stock architecture.

        Args:
            stored: The checkpoint; tensors are read when they are asked for.

        Raises:
            CheckpointError: If its config asks for what no stock architecture computes, or names no
                mask token.
        """


CHECKPOINT_FORMATS = Registry("stillroom.diffusion.model.formats", CheckpointFormat)


@dataclass(frozen=True, slots=True)
class TokenizedDataset:
    """Records as an objective takes them, and what was cut or left out on the way.

    Args:
        items: Texts, pairs or tasks.
        counts: By name, for the report.
    """

    items: Sequence[Any]
    counts: dict[str, int]


@dataclass(frozen=True, slots=True)
class ObjectiveContext:
    """What an objective is given when training begins.

    Args:
        recipe: The recipe.
        model: The model before its first step; low-rank additions are there already.
        lessons: What the objective itself encoded.
        steps: Optimizer steps of the run.
        job: Keeps what cannot be made again.
    """

    recipe: DiffusionRecipe
    model: DiffusionModel
    lessons: Sequence[Any]
    steps: int
    job: Job

    @property
    def metadata(self) -> DiffusionMetadata:
        """What the model's config says."""
        return self.model.metadata

    @property
    def network(self) -> nn.Module:
        """What is trained."""
        network: nn.Module = self.model.network
        return network


class DiffusionObjective(Method):
    """What a model is trained towards."""

    needs_model: ClassVar[bool] = False
    """Whether it must start from a diffusion checkpoint: it says what is better, not what is."""

    has_times: ClassVar[bool] = False
    """Whether learned tokens have a time that their losses are logged by."""

    @property
    def reads(self) -> float:
        """How often a record is read in a step, as trainings: a reading alone is a third."""
        return 1.0

    @property
    def steps_per_batch(self) -> int:
        """How many optimizer steps learn from the same records."""
        return 1

    @abstractmethod
    def encode(
        self,
        recipe: DiffusionRecipe,
        model: DiffusionModel,
        records: Sequence[Record],
        on_done: Callable[[], None] | None = None,
    ) -> TokenizedDataset:
        """Return records as lessons, as many as there are; ``on_done`` is called after each record.

        Raises:
            DataError: If a chat template hides the assistant's part.
        """

    @abstractmethod
    def begin(self, course: ObjectiveContext) -> BatchSource[CorruptedBatch]:
        """Return what gives the micro-batches of every step."""

    def miss(self, recipe: DiffusionRecipe, records: int) -> DataError:
        """Return the error that none of so many records makes a lesson."""
        return DataError(
            f"none of {records} records has a token to learn",
            code="diffusion.no-places",
            where="records",
            expected="assistant messages within max_tokens",
            next=f"raise max_tokens above {recipe.max_tokens}, or set include_prompt: true",
        )

    def measure(
        self, recipe: DiffusionRecipe, model: DiffusionModel, records: Sequence[Record]
    ) -> dict[str, float]:
        """Return what is measured of it on held-out records, before and after; here nothing."""
        return {}


OBJECTIVES = Registry("stillroom.diffusion.training.objectives", DiffusionObjective)


if TYPE_CHECKING:
    Bools = NDArray[np.bool_]
    Floats = NDArray[np.float64]


class NoiseSchedule(Method):
    """How much is masked at time t, from nothing at 0 to everything at 1."""

    @abstractmethod
    def share(self, t: Floats) -> Floats:
        """Return the chance that a token is masked at each time, (n,)."""

    @abstractmethod
    def slope(self, t: Floats) -> Floats:
        """Return the share's derivative by time, (n,); slope / share is a masked token's weight."""


@dataclass(frozen=True)
class MaskedCopy:
    """One noisy copy of a text.

    Args:
        is_masked: Which tokens the model does not see, (T,), bool.
        is_learned: Which tokens it is asked for, (T,), bool.
        weight: Of each asked token's loss, (T,), float64.
        t: The time that so much is masked at, (T,), where it is not the one that was given.
    """

    is_masked: Bools
    is_learned: Bools
    weight: Floats
    t: Floats | None = None


class Corruption(Method):
    """Makes noisy copies of a text."""

    is_causal: ClassVar[bool] = False
    """Whether the copies are for a model that sees only what stands before."""

    @abstractmethod
    def copies(
        self, is_noised: Bools, t: Floats, schedule: NoiseSchedule, rng: np.random.Generator
    ) -> list[MaskedCopy]:
        """Return the copies whose summed losses estimate the text's bound.

        Args:
            is_noised: Which tokens may be masked, (T,), bool.
            t: The time at each token, (T,): one for the text, or one a block.
            schedule: Says shares and weights.
            rng: The text's own random numbers in this step.
        """


NOISE_SCHEDULES = Registry("stillroom.diffusion.training.schedules", NoiseSchedule)


CORRUPTIONS = Registry("stillroom.diffusion.training.corruptions", Corruption)


@dataclass(frozen=True, slots=True)
class LikelihoodEstimate:
    """A text's log-likelihood, or a lower bound of it, in nats.

    Args:
        value: Nats; at most 0.
        error: Standard error of the value; 0 where nothing was drawn.
        forwards: Texts that were read.
        samples: Masks or orders that were drawn; 0 where nothing was.
        tokens: How many tokens the value is about.
        kind: ``bound`` is at most the log-likelihood; ``order`` is the log-likelihood of writing in
            one order, whose mean over all orders is the bound.
    """

    value: float
    error: float
    forwards: int
    samples: int
    tokens: int
    kind: Literal["bound", "order"] = "bound"

    @property
    def per_token(self) -> float:
        """Nats a token, as a loss: at least 0."""
        return -self.value / self.tokens if self.tokens else 0.0

    def samples_for(self, error: float) -> int:
        """Return how many samples would bring the standard error down to ``error`` nats."""
        if error <= 0:
            raise ValueError("an error of 0 takes infinitely many samples")
        return max(1, math.ceil(self.samples * (self.error / error) ** 2))


class LikelihoodEstimator(Method):
    """A way to estimate the bound."""

    @abstractmethod
    def estimate(self, scorer: MaskedLikelihood, rng: torch.Generator) -> LikelihoodEstimate:
        """Estimate one text's bound.

        Args:
            scorer: Gives log-probabilities of the text's own tokens under any masks.
            rng: Draws masks.

        Raises:
            DataError: If the text is longer than the estimator can do.
        """


def compute_standard_error(values: Sequence[float], *, is_paired: bool = False) -> float:
    """Return the standard error of the mean of draws.

    Args:
        values: Draws.
        is_paired: Whether they come from strata in order, one draw each: then neighbors are
            compared, which leaves out what differs between distant strata. It is never too small
            in expectation.
    """
    count = len(values)
    if count < 2:
        return math.inf
    if not is_paired:
        mean = math.fsum(values) / count
        return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (count - 1) / count)
    pairs = [(values[at], values[at + 1]) for at in range(0, count - 1, 2)]
    squares = math.fsum((one - other) ** 2 for one, other in pairs)
    return math.sqrt(squares * count / (2 * len(pairs))) / count


ESTIMATORS = Registry("stillroom.diffusion.evaluation.estimators", LikelihoodEstimator)


class UnmaskOrder(Method):
    """Which open place is written first."""

    @abstractmethod
    def score(self, view: Candidates) -> Tensor:
        """Return a number for each candidate, (k,); the highest comes first, ties by place."""


class UnmaskRule(Method):
    """How many of the ranked candidates are written in one step."""

    has_plan: ClassVar[bool] = False
    """Whether the number of a block's steps is known beforehand."""

    @abstractmethod
    def take(self, view: Candidates) -> Tensor:
        """Return which candidates are written, (k,), bool; the first always is.

        Args:
            view: Candidates by rank, the first one first.
        """

    def plan(self, step: StepIndex) -> int:
        """Return how many steps a block takes; 0 where that is not known beforehand."""
        return 0


class Remasking(Method):
    """What happens to tokens that were written already."""

    needs: ClassVar[Literal["nothing", "written", "shadows"]] = "nothing"
    """What it looks at: nothing new; logits at written places; or logits of masks that stand
    beside them and see all but the token in their own place."""
    needs_plan: ClassVar[bool] = False
    """Whether it needs a commit rule whose steps are known."""

    @abstractmethod
    def review(self, look: CommittedTokens) -> tuple[Tensor, Tensor]:
        """Return which written places are opened again, (m,) bool, and the tokens of all, (m,)."""

    @property
    def extra_steps(self) -> int:
        """How often a full block is looked at again, as long as something changes."""
        return 0


class LengthPolicy(Method):
    """How many places there are, where the text's length is not known."""

    needs_whole: ClassVar[bool] = False
    """Whether places are put between others, so that nothing can be cached."""

    @abstractmethod
    def start(self, max_new_tokens: int) -> int:
        """Return how many open places the text begins with."""

    def extend(self, end_confidence: float, room: int) -> int:
        """Return how many places to add behind before anything is written.

        Args:
            end_confidence: How sure the model is, over the last places, that the text has ended.
            room: How many may be added.
        """
        return 0

    def expand(self, least_confidence: float, end_confidence: float, room: int) -> int:
        """Return how many places to put before the least sure candidate of a step."""
        return 0

    @property
    def window(self) -> int:
        """How many last places say whether the text has ended; 0 asks for nothing."""
        return 0


UNMASK_ORDERS = Registry("stillroom.diffusion.sampling.unmask_orders", UnmaskOrder)


UNMASK_RULES = Registry("stillroom.diffusion.sampling.unmask_rules", UnmaskRule)


REMASKINGS = Registry("stillroom.diffusion.sampling.remaskings", Remasking)


LENGTH_POLICIES = Registry("stillroom.diffusion.sampling.length_policies", LengthPolicy)
