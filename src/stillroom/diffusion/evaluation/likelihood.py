"""Log-likelihood of texts, choice of an answer (multiple choice), and validation of a model.

Guidance (CFG) is applied as in ``sampling.sampler``. With block-causal attention a forward pass
reads a noisy and a clean copy of the text, so that each noisy block sees clean text before it;
otherwise it reads the noisy text alone.

Validation uses the same texts, times and masks every time, so that only the model changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillroom.diffusion.interfaces import ESTIMATORS, LikelihoodEstimate, LikelihoodEstimator
from stillroom.diffusion.model.network import DiffusionModel, ForwardRequest, build_block_diff_mask
from stillroom.diffusion.sampling.sequence import InfillRequest, SequenceState
from stillroom.diffusion.sampling.token_sampling import suppress_tokens
from stillroom.diffusion.settings import MaskedValidationSettings, ValidationSettings
from stillroom.diffusion.training.data import CorruptedExample, MaskableExample, collate
from stillroom.diffusion.training.loss import batch_cross_entropy
from stillroom.errors import DataError

__all__ = [
    "ChoiceResult",
    "MaskedLikelihood",
    "Validation",
    "choose_answer",
    "choose_batch_rows",
    "score_text",
]

_MAX_ROWS, _MAX_TOKENS = 16, 4096  # per forward pass


class MaskedLikelihood:
    """Scorer of one text under a diffusion model.

    ``groups`` are the runs of scored positions that are masked independently of each other: a
    single one with full attention, one per block with block-causal attention, one per position with
    causal attention.
    """

    def __init__(
        self,
        model: DiffusionModel,
        ids: Sequence[int],
        positions: Sequence[int],
        *,
        cfg_scale: float = 0.0,
        rows: int = 1,
    ) -> None:
        """Set the text and the positions to score.

        Args:
            model: Diffusion model.
            ids: Token ids of the text, (T,).
            positions: Positions to score, ascending; the other tokens are given.
            cfg_scale: Classifier-free guidance scale, as in sampling; 0 is none.
            rows: Sequences per forward pass; 1 makes results independent of batching, bit for bit.

        Raises:
            DataError: If there is nothing to score, a token id is not in the vocabulary, the text
                exceeds the context length, or the first position is scored and the model's logits
                are shifted.
        """
        metadata = model.metadata
        if len(ids) > model.context_length:
            raise DataError(
                f"the text has {len(ids)} tokens; the context length is {model.context_length}",
                code="diffusion.too-long",
                expected=f"at most {model.context_length} tokens",
                next="score a shorter text",
            )
        SequenceState.from_request(
            InfillRequest(tuple(ids), 1), metadata.mask_token_id, model.vocabulary, room=1
        )
        self.model, self.cfg_scale, self.rows = model, cfg_scale, rows
        self.ids = torch.tensor(list(ids), dtype=torch.long)
        self.places = torch.tensor(list(positions), dtype=torch.long)
        self.forwards = 0
        if len(self.places) == 0:
            raise DataError(
                "there are no tokens to score",
                code="diffusion.nothing-open",
                expected="an answer of at least one token",
                next="check the text after the prompt",
            )
        if metadata.logit_shift and int(self.places[0]) == 0:
            raise DataError(
                "the model predicts a token from the state before it, and the first token has none",
                code="diffusion.first-place",
                expected="a text whose first token is given",
                next="prepend the beginning-of-text token",
            )

    @property
    def groups(self) -> list[Tensor]:
        """Indices into ``places`` of each group, (L_g,)."""
        metadata, count = self.model.metadata, len(self.places)
        if metadata.attention == "full":
            return [torch.arange(count)]
        size = metadata.block_size or 1
        blocks = self.places // size
        return [(blocks == block).nonzero()[:, 0] for block in sorted(set(blocks.tolist()))]

    def logprobs(self, masks: Tensor) -> Tensor:
        """Return the log-probability of every masked token, (n, L) float64; 0 where not masked.

        Args:
            masks: Masked positions among those scored, (n, L), bool.
        """
        self.forwards += len(masks) * (2 if self.cfg_scale else 1)
        logprobs = torch.zeros(masks.shape, dtype=torch.float64)
        with torch.inference_mode():
            for start in range(0, len(masks), self.rows):
                chunk = masks[start : start + self.rows]
                for row, values in enumerate(self._read(chunk)):
                    logprobs[start + row][chunk[row]] = values
        return logprobs

    def _read(self, masks: Tensor) -> list[Tensor]:
        """Return the log-probabilities of each row's masked tokens, (k,) each."""
        model, never = self.model, self.model.metadata.mask_token_id
        sides = [self._states(masks, self.ids)]
        if self.cfg_scale:
            is_given = torch.ones_like(self.ids, dtype=torch.bool)
            is_given[self.places] = False
            sides.append(self._states(masks, torch.where(is_given, never, self.ids)))
        logprobs = []
        for row, mask in enumerate(masks):  # one row at a time: (k, V) logits are large
            logits = model.logits(sides[0][row])
            if self.cfg_scale:
                bare = model.logits(sides[1][row])
                logits = bare + (self.cfg_scale + 1) * (logits - bare)
            targets = self.ids[self.places[mask]].to(logits.device)
            chances = suppress_tokens(logits, [never]).log_softmax(-1)
            logprobs.append(chances.gather(-1, targets[:, None])[:, 0].double().cpu())
        return logprobs

    def _states(self, masks: Tensor, ids: Tensor) -> list[Tensor]:
        """Return the states that predict each row's masked tokens, (k, D)."""
        return self.model.read([self._reading(mask, ids) for mask in masks])

    def _reading(self, mask: Tensor, ids: Tensor) -> ForwardRequest:
        metadata, length = self.model.metadata, len(ids)
        masked = self.places[mask]
        noisy = ids.clone()
        noisy[masked] = metadata.mask_token_id
        positions, shift = torch.arange(length), int(metadata.logit_shift)
        if metadata.attention == "full":
            return ForwardRequest(
                noisy, positions, self.model.attention_mask(positions, positions), masked - shift
            )
        size = metadata.block_size or 1
        want = masked - shift
        # the state before a block's first token is that of the clean copy
        want = torch.where((masked % size == 0) & bool(shift), want + length, want)
        attention_mask = build_block_diff_mask(length, size)
        return ForwardRequest(
            torch.cat([noisy, ids]), torch.cat([positions, positions]), attention_mask, want
        )


def choose_batch_rows(length: int) -> int:
    """Return the number of masks of a text of ``length`` tokens per forward pass.

    All have the same length, so nothing is padded; small models run twice as fast.
    """
    return max(1, min(_MAX_ROWS, _MAX_TOKENS // max(length, 1)))


def score_text(
    model: DiffusionModel,
    ids: Sequence[int],
    positions: Sequence[int],
    estimator: LikelihoodEstimator,
    *,
    seed: int = 0,
    cfg_scale: float = 0.0,
    rows: int = 1,
) -> LikelihoodEstimate:
    """Estimate the bound of a text's log-likelihood.

    Arguments as in ``MaskedLikelihood``.
    """
    scorer = MaskedLikelihood(model, ids, positions, cfg_scale=cfg_scale, rows=rows)
    return estimator.estimate(scorer, torch.Generator().manual_seed(seed))


@dataclass(frozen=True, slots=True)
class ChoiceResult:
    """Most likely of several answers.

    Args:
        best: Its index.
        bounds: Likelihood estimate of each answer.
        lead: Distance from the second answer in standard errors; infinite if the estimates are
            exact, 0 if there is one answer.
    """

    best: int
    bounds: tuple[LikelihoodEstimate, ...]
    lead: float


def choose_answer(
    model: DiffusionModel,
    prompt: Sequence[int],
    answers: Sequence[Sequence[int]],
    estimator: LikelihoodEstimator,
    *,
    per_token: bool = False,
    seed: int = 0,
    cfg_scale: float = 0.0,
) -> ChoiceResult:
    """Score each answer after the prompt and return the most likely, with its lead.

    Args:
        model: Diffusion model.
        prompt: Token ids.
        answers: Token ids of each answer.
        estimator: Likelihood estimator; all answers share the seed.
        per_token: Compare nats per token instead of nats.
        seed: Random seed of the masks.
        cfg_scale: Classifier-free guidance scale.
    """
    bounds = tuple(
        score_text(
            model,
            [*prompt, *answer],
            range(len(prompt), len(prompt) + len(answer)),
            estimator,
            seed=seed,
            cfg_scale=cfg_scale,
            rows=choose_batch_rows(len(prompt) + len(answer)),
        )
        for answer in answers
    )
    scores = [(-b.per_token if per_token else b.value, b) for b in bounds]
    order = sorted(range(len(scores)), key=lambda index: -scores[index][0])
    if len(order) < 2:
        return ChoiceResult(order[0], bounds, 0.0)
    (first, best), (second, runner_up) = scores[order[0]], scores[order[1]]
    parts = [b.error / (b.tokens if per_token else 1) for b in (best, runner_up)]
    error = (parts[0] ** 2 + parts[1] ** 2) ** 0.5
    return ChoiceResult(order[0], bounds, (first - second) / error if error else float("inf"))


_VALIDATION_BATCH = 8


class Validation:
    """Metrics of a model on held-out texts."""

    def __init__(
        self,
        model: DiffusionModel,
        examples: Sequence[MaskableExample],
        settings: ValidationSettings,
        *,
        seed: int,
    ) -> None:
        """Keep the first held-out texts.

        Args:
            model: Measured in its current state at each call.
            examples: Held-out texts.
            settings: Number of texts; for a diffusion model, also times, and masks per text.
            seed: Random seed of the masks.
        """
        self.model, self.seed = model, seed
        self.masks = settings if isinstance(settings, MaskedValidationSettings) else None
        self.examples = list(examples[: settings.records])

    @torch.no_grad()
    def fixed_times(self) -> dict[str, float]:
        """Return the mean cross-entropy of masked tokens at each fixed time, in nats."""
        was_training = self.model.network.training
        self.model.network.eval()
        metrics = {}
        for t in () if self.masks is None else self.masks.times:
            texts = [
                self._masked(example, number, t) for number, example in enumerate(self.examples)
            ]
            metrics[f"validation/masked_ce/t={t:g}"] = self._mean(texts)
        if self.masks is None:
            texts = [self._clean(example) for example in self.examples]
            metrics["validation/loss"] = self._mean(texts)
        self.model.network.train(was_training)
        return metrics

    def bound(self, on_done: Callable[[], None]) -> dict[str, Any]:
        """Return the mean bound in nats per token, its standard error, and the passes used.

        The value of an autoregressive model is exact.
        """
        was_training = self.model.network.training
        self.model.network.eval()
        bounds: list[LikelihoodEstimate] = []
        for index, example in enumerate(self.examples):
            positions = np.flatnonzero(example.noised).tolist()
            if self.masks is None:
                nats = self._mean([self._clean(example)]) * len(positions)
                bounds.append(LikelihoodEstimate(-nats, 0.0, 1, 0, len(positions)))
            else:
                estimator = {"name": "low_variance", "samples": self.masks.samples}
                bounds.append(
                    score_text(
                        self.model,
                        example.ids.tolist(),
                        positions,
                        ESTIMATORS.build(estimator),
                        seed=self.seed + index,
                        rows=choose_batch_rows(len(example.ids)),
                    )
                )
            on_done()
        self.model.network.train(was_training)
        tokens = sum(bound.tokens for bound in bounds)
        return {
            "nats_per_token": -sum(bound.value for bound in bounds) / max(tokens, 1),
            "error": math.sqrt(sum(bound.error**2 for bound in bounds)) / max(tokens, 1),
            "is_bound": self.masks is not None,
            "records": len(bounds),
            "tokens": tokens,
            "forwards": sum(bound.forwards for bound in bounds),
        }

    def _masked(self, example: MaskableExample, number: int, t: float) -> CorruptedExample:
        rng = np.random.default_rng([self.seed, number, round(t * 1e6)])
        noised = example.noised
        is_masked = (rng.random(len(noised)) < t) & noised
        if not is_masked.any():  # short text, small time: at least one masked token
            is_masked[rng.choice(np.flatnonzero(noised))] = True
        return self._text(example, is_masked, is_masked, t)

    def _clean(self, example: MaskableExample) -> CorruptedExample:
        return self._text(example, example.noised & False, example.noised, 1.0)

    def _text(
        self, example: MaskableExample, is_masked: Any, is_learned: Any, t: float
    ) -> CorruptedExample:
        ones = np.ones(len(example.ids))
        return CorruptedExample(
            example.record_id, example.ids, is_masked, is_learned, ones, ones * t, 1
        )

    @torch.no_grad()
    def _mean(self, texts: Sequence[CorruptedExample]) -> float:
        total, count, metadata = 0.0, 0, self.model.metadata
        for start in range(0, len(texts), _VALIDATION_BATCH):
            part = texts[start : start + _VALIDATION_BATCH]
            batch = collate(part, metadata, block_size=metadata.block_size)
            _, losses = batch_cross_entropy(self.model, batch)
            total += float(losses.double().sum())
            count += len(losses)
        return total / max(count, 1)
