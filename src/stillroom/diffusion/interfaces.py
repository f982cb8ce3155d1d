"""Base classes and registries of the interchangeable methods of diffusion models.

Imports no torch, so that recipes can name methods. The base class of KV caches is in
``sampling.kv_cache``.

- ``CheckpointFormat`` recognizes a published format by its config.json, names the stock
  architecture that computes the same function, and renames or folds the tensors. Code from the
  checkpoint's folder is never run.
- ``TrainingAttention`` says which positions are visible at each step, and ``TrainingStage`` which
  tokens of a text are learned.
- ``NoiseSchedule`` gives the masking ratio and token weight at time t in [0, 1]; all schedules have
  the same expected loss and differ in its variance. ``Corruption`` draws noisy copies of a text.
- ``LikelihoodEstimator`` estimates a lower bound of the log-likelihood, an average over masks, with
  its standard error and cost. The bound is that of the model's factorization: with block-causal
  attention, the sum over blocks of the bound given the clean blocks before, from one pass over a
  noisy and a clean copy.
- ``UnmaskOrder``, ``UnmaskRule``, ``Remasking`` and ``LengthPolicy`` make up a sampling step: a
  forward pass, a ranking of the masked positions of a block, unmasking of the first ones, and
  remasking or editing of earlier tokens. All combine freely; ``DecodeSettings`` refuses invalid
  combinations.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from stillroom.registry import Method, Registry

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from stillroom.checkpoints import Checkpoint
    from stillroom.diffusion.evaluation.likelihood import MaskedLikelihood
    from stillroom.diffusion.model.metadata import DiffusionMetadata
    from stillroom.diffusion.sampling.sequence import Candidates, CommittedTokens, StepIndex

__all__ = [
    "ATTENTIONS",
    "CHECKPOINT_FORMATS",
    "CORRUPTIONS",
    "ESTIMATORS",
    "LENGTH_POLICIES",
    "NOISE_SCHEDULES",
    "REMASKINGS",
    "STAGES",
    "UNMASK_ORDERS",
    "UNMASK_RULES",
    "CheckpointFormat",
    "ConvertedCheckpoint",
    "Corruption",
    "LengthPolicy",
    "LikelihoodEstimate",
    "LikelihoodEstimator",
    "MaskedCopy",
    "NoiseSchedule",
    "Remasking",
    "TrainingAttention",
    "TrainingStage",
    "UnmaskOrder",
    "UnmaskRule",
]


@dataclass(frozen=True)
class ConvertedCheckpoint:
    """Checkpoint of a published format in terms of a stock architecture.

    Args:
        config: config.json of the stock architecture, ``model_type`` included.
        metadata: Diffusion metadata.
        names: Tensor names of the stock architecture; tensors without an equivalent keep their
            names.
        tensor: Returns a tensor by name.
    """

    config: Mapping[str, Any]
    metadata: DiffusionMetadata
    names: tuple[str, ...]
    tensor: Callable[[str], Tensor]


class CheckpointFormat(Method):
    """A published checkpoint format, recognized by its config.json."""

    model_types: ClassVar[tuple[str, ...]]

    def fits(self, config: Mapping[str, Any]) -> bool:
        """Return whether a config.json has this format."""
        return config.get("model_type") in self.model_types

    @abstractmethod
    def translate(self, stored: Checkpoint) -> ConvertedCheckpoint:
        """Return a checkpoint of this format in terms of a stock architecture.

        Raises:
            CheckpointError: If no stock architecture computes its config, or it names no mask
                token.
        """


CHECKPOINT_FORMATS = Registry("stillroom.diffusion.model.formats", CheckpointFormat)


class TrainingAttention(Method):
    """Attention mask of a diffusion model, and its changes over training."""

    kind: ClassVar[Literal["full", "block_causal"]]
    """Kind of attention in the metadata of the checkpoint."""

    num_copies: ClassVar[int] = 1
    """Number of copies of a text per forward pass."""

    @property
    def final_block_size(self) -> int | None:
        """Block size of the trained model; None without blocks."""
        return None

    @property
    def grows(self) -> bool:
        """Whether the block size changes in training."""
        return False

    def block_size_at(self, step: int, steps: int) -> int | None:
        """Return the block size at one of ``steps`` optimizer steps; None without blocks."""
        return None

    def visible_share(self, step: int) -> float:
        """Return the share of later positions that are visible at a step, 1 without annealing."""
        return 1.0


ATTENTIONS = Registry("stillroom.diffusion.training.attentions", TrainingAttention)


if TYPE_CHECKING:
    Bools = NDArray[np.bool_]
    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]


class TrainingStage(Method):
    """Training stage: which tokens of a text are learned, as in SFT (answers) or PT (all)."""

    learns_prompts: ClassVar[bool] = False
    """Whether all tokens are learned, instead of the assistant's answers."""

    @abstractmethod
    def excerpt(
        self,
        ids: Integers,
        is_maskable: Bools,
        turns: Sequence[tuple[int, int]],
        rng: np.random.Generator,
    ) -> tuple[Integers, Bools]:
        """Return the part of a text that one step trains on, and its maskable tokens.

        Args:
            ids: Token ids of the whole text, (T,).
            is_maskable: Tokens that may be masked, (T,).
            turns: First and last + 1 token of each maskable run.
            rng: Random generator of the text and step.
        """


STAGES = Registry("stillroom.diffusion.training.stages", TrainingStage)


class NoiseSchedule(Method):
    """Masking ratio as a function of time, from 0 at t = 0 to 1 at t = 1."""

    @abstractmethod
    def share(self, t: Floats) -> Floats:
        """Return the masking probability at each time, (n,)."""

    @abstractmethod
    def slope(self, t: Floats) -> Floats:
        """Return the derivative of the share by time, (n,); slope / share is the token weight."""


@dataclass(frozen=True)
class MaskedCopy:
    """One noisy copy of a text.

    Args:
        is_masked: Masked tokens, (T,), bool.
        is_learned: Tokens with a loss, (T,), bool.
        weight: Weight of each token's loss, (T,), float64.
        t: Time of each token, (T,), where it differs from the argument of ``copies``.
    """

    is_masked: Bools
    is_learned: Bools
    weight: Floats
    t: Floats | None = None


class Corruption(Method):
    """Draws noisy copies of a text (noising, forward process), with their ELBO weight."""

    num_copies: ClassVar[int] = 1
    """Number of copies that ``copies`` returns."""

    @abstractmethod
    def copies(
        self, is_noised: Bools, t: Floats, schedule: NoiseSchedule, rng: np.random.Generator
    ) -> list[MaskedCopy]:
        """Return the copies whose summed losses estimate the text's bound.

        Args:
            is_noised: Tokens that may be masked, (T,), bool.
            t: Time of each token, (T,): one per text, or one per block.
            schedule: Noise schedule.
            rng: Random generator of the text and step.
        """


NOISE_SCHEDULES = Registry("stillroom.diffusion.training.schedules", NoiseSchedule)

CORRUPTIONS = Registry("stillroom.diffusion.training.corruptions", Corruption)


@dataclass(frozen=True, slots=True)
class LikelihoodEstimate:
    """Log-likelihood of a text, or a lower bound of it, in nats.

    Args:
        value: Nats; at most 0.
        error: Standard error of the value; 0 for exact values, infinite for one sample.
        forwards: Number of sequences in forward passes.
        samples: Number of masks or orders drawn; 0 for exact values.
        tokens: Number of tokens scored.
        kind: ``bound``: at most the log-likelihood; ``order``: log-likelihood of decoding in one
            order, whose mean over all orders is the bound.
    """

    value: float
    error: float
    forwards: int
    samples: int
    tokens: int
    kind: Literal["bound", "order"] = "bound"

    @property
    def per_token(self) -> float:
        """Negative log-likelihood in nats per token, at least 0."""
        return -self.value / self.tokens if self.tokens else 0.0

    def samples_for(self, error: float) -> int | None:
        """Return the number of samples for a standard error of ``error`` nats.

        None if the value is exact, or its error unknown (one sample).
        """
        if error <= 0:
            raise ValueError("an error of 0 needs infinitely many samples")
        if not self.samples or math.isinf(self.error):
            return None
        return max(1, math.ceil(self.samples * (self.error / error) ** 2))


class LikelihoodEstimator(Method):
    """Estimator of the lower bound on the log-likelihood."""

    @abstractmethod
    def estimate(self, scorer: MaskedLikelihood, rng: torch.Generator) -> LikelihoodEstimate:
        """Estimate the bound of one text.

        Raises:
            DataError: If the text is too long for the estimator.
        """


ESTIMATORS = Registry("stillroom.diffusion.evaluation.estimators", LikelihoodEstimator)


class UnmaskOrder(Method):
    """Unmask order (decoding strategy): which masked position is unmasked first."""

    @abstractmethod
    def score(self, view: Candidates) -> Tensor:
        """Return a score for each candidate, (k,); the highest is first, ties by position."""


class UnmaskRule(Method):
    """Number of ranked candidates that are unmasked per step."""

    has_plan: ClassVar[bool] = False
    """Whether the number of steps of a block is known in advance."""

    @abstractmethod
    def take(self, view: Candidates) -> Tensor:
        """Return which ranked candidates are unmasked, (k,), bool; the first one always is."""

    def plan(self, step: StepIndex) -> int:
        """Return the number of steps of a block; 0 if not known in advance."""
        return 0


class Remasking(Method):
    """Remasking or editing of tokens that are already unmasked."""

    needs: ClassVar[Literal["nothing", "written", "shadows"]] = "nothing"
    """Logits it needs: none; those at unmasked positions; or those of extra mask tokens at these
    positions, which see every token but the one at their own position.
    """
    needs_plan: ClassVar[bool] = False
    """Whether it needs an unmasking rule with a known number of steps."""

    @abstractmethod
    def review(self, look: CommittedTokens) -> tuple[Tensor, Tensor]:
        """Return the positions to remask, (m,) bool, and the tokens at all positions, (m,)."""

    @property
    def extra_steps(self) -> int:
        """Maximum reviews of a block without masked positions, as long as something changes."""
        return 0


class LengthPolicy(Method):
    """Number of mask tokens of a text of unknown length."""

    needs_whole: ClassVar[bool] = False
    """Whether positions are inserted, which rules out caching."""

    @abstractmethod
    def start(self, max_new_tokens: int) -> int:
        """Return the initial number of mask tokens."""

    def extend(self, end_confidence: float, room: int) -> int:
        """Return the number of mask tokens to append before decoding.

        Args:
            end_confidence: Confidence over the last positions that the text has ended, 0 to 1.
            room: Maximum number to append.
        """
        return 0

    def expand(self, least_confidence: float, end_confidence: float, room: int) -> int:
        """Return the number of mask tokens to insert before a step's least confident candidate."""
        return 0

    @property
    def window(self) -> int:
        """Number of last positions that show whether the text has ended; 0 for none."""
        return 0


UNMASK_ORDERS = Registry("stillroom.diffusion.sampling.unmask_orders", UnmaskOrder)

UNMASK_RULES = Registry("stillroom.diffusion.sampling.unmask_rules", UnmaskRule)

REMASKINGS = Registry("stillroom.diffusion.sampling.remaskings", Remasking)

LENGTH_POLICIES = Registry("stillroom.diffusion.sampling.length_policies", LengthPolicy)
