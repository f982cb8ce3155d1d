"""What is measured on held-out texts: the bound, and masked tokens predicted at fixed times.

The same texts, times and masks every time, so that what moves is the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from stillroom.diffusion.lessons import Lesson
from stillroom.diffusion.likelihood import rows_for, score_text
from stillroom.diffusion.loss import masked_loss
from stillroom.diffusion.model import DiffusionModel
from stillroom.diffusion.recipe import ValidationSettings
from stillroom.diffusion.scoring import ESTIMATORS, Bound
from stillroom.diffusion.source import NoisyText, lay_out

__all__ = ["Validation"]

_BATCH = 8


class Validation:
    """Held-out texts and how they are measured."""

    def __init__(
        self,
        model: DiffusionModel,
        lessons: Sequence[Lesson],
        settings: ValidationSettings,
        *,
        is_causal: bool,
        seed: int,
    ) -> None:
        """Stand over held-out texts, the first ones.

        Args:
            model: Is measured whenever it is asked for, in whatever state it is then.
            lessons: Held-out texts.
            settings: How many, which times, how many masks.
            is_causal: Whether the model is autoregressive: then there is one exact number.
            seed: Draws masks.
        """
        self.model, self.settings, self.is_causal, self.seed = model, settings, is_causal, seed
        self.lessons = list(lessons[: settings.records])

    @torch.no_grad()
    def fixed_times(self) -> dict[str, float]:
        """Return the mean cross-entropy of masked tokens at each fixed time, in nats."""
        was_training = self.model.network.training
        self.model.network.eval()
        found = {}
        for t in () if self.is_causal else self.settings.times:
            texts = [self._masked(lesson, at, t) for at, lesson in enumerate(self.lessons)]
            found[f"validation/masked_ce/t={t:g}"] = self._mean(texts)
        if self.is_causal:
            texts = [self._clean(lesson) for lesson in self.lessons]
            found["validation/loss"] = self._mean(texts)
        self.model.network.train(was_training)
        return found

    def bound(self, on_done: Callable[[], None]) -> dict[str, Any]:
        """Return the bound of all texts in nats a token, its error, and what it cost.

        An autoregressive model's number is exact.
        """
        estimator = ESTIMATORS.build({"name": "low_variance", "samples": self.settings.samples})
        was_training = self.model.network.training
        self.model.network.eval()
        bounds: list[Bound] = []
        for at, lesson in enumerate(self.lessons):
            places = np.flatnonzero(lesson.noised).tolist()
            if self.is_causal:
                nats = self._mean([self._clean(lesson)]) * len(places)
                bounds.append(Bound(-nats, 0.0, 1, 0, len(places)))
            else:
                bounds.append(
                    score_text(
                        self.model,
                        lesson.ids.tolist(),
                        places,
                        estimator,
                        seed=self.seed + at,
                        rows=rows_for(len(lesson.ids)),
                    )
                )
            on_done()
        self.model.network.train(was_training)
        tokens = sum(bound.tokens for bound in bounds)
        return {
            "nats_per_token": -sum(bound.value for bound in bounds) / max(tokens, 1),
            "error": math.sqrt(sum(bound.error**2 for bound in bounds)) / max(tokens, 1),
            "is_bound": not self.is_causal,
            "records": len(bounds),
            "tokens": tokens,
            "forwards": sum(bound.forwards for bound in bounds),
        }

    def _masked(self, lesson: Lesson, number: int, t: float) -> NoisyText:
        rng = np.random.default_rng([self.seed, number, round(t * 1e6)])
        noised = lesson.noised
        is_masked = (rng.random(len(noised)) < t) & noised
        if not is_masked.any():  # a short text at a small time: one token is masked at least
            is_masked[rng.choice(np.flatnonzero(noised))] = True
        return self._text(lesson, is_masked, is_masked, t)

    def _clean(self, lesson: Lesson) -> NoisyText:
        return self._text(lesson, lesson.noised & False, lesson.noised, 1.0)

    def _text(self, lesson: Lesson, is_masked: Any, is_learned: Any, t: float) -> NoisyText:
        ones = np.ones(len(lesson.ids))
        return NoisyText(lesson.record_id, lesson.ids, is_masked, is_learned, ones, ones * t, 1)

    @torch.no_grad()
    def _mean(self, texts: Sequence[NoisyText]) -> float:
        total, count, metadata = 0.0, 0, self.model.metadata
        for start in range(0, len(texts), _BATCH):
            part = texts[start : start + _BATCH]
            batch = lay_out(part, metadata, block_size=metadata.block_size)
            states = self.model.states(batch.ids, batch.positions, batch.seen)
            device = states.device
            _, losses = masked_loss(
                states.flatten(0, 1)[batch.flat.to(device)],
                self.model.head,
                batch.labels.to(device),
                batch.scale.to(device),
                metadata.mask_token_id,
            )
            total += float(losses.double().sum())
            count += len(losses)
        return total / max(count, 1)
