"""Scorer: the log-probabilities of a text's own tokens under any masks, and scoring with them.

Where attention is by blocks, a pass reads a noisy and a clean copy of the text, so that the noise
of every block is seen with clean text before it; elsewhere it reads the noisy text alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stillroom.diffusion.attention import training_mask
from stillroom.diffusion.canvas import Canvas, Request
from stillroom.diffusion.choosing import suppress
from stillroom.diffusion.model import DiffusionModel, Reading
from stillroom.diffusion.scoring import Bound, Estimator
from stillroom.errors import DataError

__all__ = ["Scorer", "Verdict", "choose_answer", "rows_for", "score_text"]

_MOST_ROWS, _MOST_TOKENS = 16, 4096  # of one call


class Scorer:
    """One text and a model.

    ``groups`` are the runs of answer places that are masked independently of each other: one where
    attention is full, one a block where it is by blocks, one a place where it is causal.
    """

    def __init__(
        self,
        model: DiffusionModel,
        ids: Sequence[int],
        places: Sequence[int],
        *,
        cfg_scale: float = 0.0,
        rows: int = 1,
    ) -> None:
        """Stand over a text.

        Args:
            model: A diffusion model.
            ids: The whole text, (T,).
            places: Which of its tokens are scored, rising; the others are given.
            cfg_scale: Guidance, as in sampling; 0 is none.
            rows: Texts read in one call; 1 gives the same bits always.

        Raises:
            DataError: If nothing is scored, a token is none of the model's, there are more tokens
                than the model knows positions, or the first place is scored and the model's logits
                are shifted.
        """
        metadata = model.metadata
        if len(ids) > model.context_length:
            raise DataError(
                f"the text has {len(ids)} tokens, and the model knows {model.context_length} "
                "positions",
                code="diffusion.too-long",
                expected=f"at most {model.context_length} tokens",
                next="score a shorter text",
            )
        Canvas.of(Request(tuple(ids), 1), metadata.mask_token_id, model.vocabulary, room=1)
        self.model, self.cfg_scale, self.rows = model, cfg_scale, rows
        self.ids = torch.tensor(list(ids), dtype=torch.long)
        self.places = torch.tensor(list(places), dtype=torch.long)
        self.forwards = 0
        if len(self.places) == 0:
            raise DataError(
                "there is no token to score",
                code="diffusion.nothing-open",
                expected="an answer of at least one token",
                next="check the text behind the prompt",
            )
        if metadata.logit_shift and int(self.places[0]) == 0:
            raise DataError(
                "this model tells a place by the state before it, and the first has none before it",
                code="diffusion.first-place",
                expected="a text that begins with a given token",
                next="begin the text with the model's beginning-of-text token",
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
            masks: Which answer places are masked, (n, L), bool.
        """
        self.forwards += len(masks) * (2 if self.cfg_scale else 1)
        found = torch.zeros(masks.shape, dtype=torch.float64)
        with torch.inference_mode():
            for start in range(0, len(masks), self.rows):
                chunk = masks[start : start + self.rows]
                for row, own in enumerate(self._read(chunk)):
                    found[start + row][chunk[row]] = own
        return found

    def _read(self, masks: Tensor) -> list[Tensor]:
        """Return the log-probabilities of each row's masked tokens, (k,) each."""
        model, never = self.model, self.model.metadata.mask_token_id
        sides = [self._states(masks, self.ids)]
        if self.cfg_scale:
            given = torch.ones_like(self.ids, dtype=torch.bool)
            given[self.places] = False
            sides.append(self._states(masks, torch.where(given, never, self.ids)))
        found = []
        for row, mask in enumerate(masks):  # the logits of one row at a time: (k, V) is large
            logits = model.logits(sides[0][row])
            if self.cfg_scale:
                bare = model.logits(sides[1][row])
                logits = bare + (self.cfg_scale + 1) * (logits - bare)
            own = self.ids[self.places[mask]].to(logits.device)
            chances = suppress(logits, [never]).log_softmax(-1)
            found.append(chances.gather(-1, own[:, None])[:, 0].double().cpu())
        return found

    def _states(self, masks: Tensor, ids: Tensor) -> list[Tensor]:
        """Return the states behind each row's masked places, (k, D)."""
        return self.model.read([self._reading(mask, ids) for mask in masks])

    def _reading(self, mask: Tensor, ids: Tensor) -> Reading:
        metadata, length = self.model.metadata, len(ids)
        masked = self.places[mask]
        noisy = ids.clone()
        noisy[masked] = metadata.mask_token_id
        at, shift = torch.arange(length), int(metadata.logit_shift)
        if metadata.attention == "full":
            return Reading(noisy, at, self.model.sees(at, at), masked - shift)
        size = metadata.block_size or 1
        want = masked - shift
        # the state before a block's first place is a clean one
        want = torch.where((masked % size == 0) & bool(shift), want + length, want)
        seen = training_mask(length, size)
        return Reading(torch.cat([noisy, ids]), torch.cat([at, at]), seen, want)


def rows_for(length: int) -> int:
    """Return how many masks of a text of so many tokens are read in one call.

    They are as long as each other, so that nothing is padded; small models read twice as fast.
    """
    return max(1, min(_MOST_ROWS, _MOST_TOKENS // max(length, 1)))


def score_text(
    model: DiffusionModel,
    ids: Sequence[int],
    places: Sequence[int],
    estimator: Estimator,
    *,
    seed: int = 0,
    cfg_scale: float = 0.0,
    rows: int = 1,
) -> Bound:
    """Return the bound of a text's log-likelihood with its error; arguments as ``Scorer`` has."""
    scorer = Scorer(model, ids, places, cfg_scale=cfg_scale, rows=rows)
    return estimator.estimate(scorer, torch.Generator().manual_seed(seed))


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which of several answers a model finds likeliest.

    Args:
        best: Its number.
        bounds: Of each answer.
        lead: By how many standard errors it is ahead of the second; infinite where nothing was
            drawn, 0 where there is no second.
    """

    best: int
    bounds: tuple[Bound, ...]
    lead: float


def choose_answer(
    model: DiffusionModel,
    prompt: Sequence[int],
    answers: Sequence[Sequence[int]],
    estimator: Estimator,
    *,
    per_token: bool = False,
    seed: int = 0,
    cfg_scale: float = 0.0,
) -> Verdict:
    """Score each answer behind the prompt and say which is likeliest, and how surely.

    Args:
        model: A diffusion model.
        prompt: Token ids.
        answers: Token ids of each.
        estimator: How to score; all answers are given the same seed.
        per_token: Compare nats a token instead of nats.
        seed: Draws masks.
        cfg_scale: Guidance.
    """
    bounds = tuple(
        score_text(
            model,
            [*prompt, *answer],
            range(len(prompt), len(prompt) + len(answer)),
            estimator,
            seed=seed,
            cfg_scale=cfg_scale,
            rows=rows_for(len(prompt) + len(answer)),
        )
        for answer in answers
    )
    scores = [(-b.per_token if per_token else b.value, b) for b in bounds]
    order = sorted(range(len(scores)), key=lambda at: -scores[at][0])
    if len(order) < 2:
        return Verdict(order[0], bounds, 0.0)
    (first, one), (second, other) = scores[order[0]], scores[order[1]]
    parts = [b.error / (b.tokens if per_token else 1) for b in (one, other)]
    error = (parts[0] ** 2 + parts[1] ** 2) ** 0.5
    return Verdict(order[0], bounds, (first - second) / error if error else float("inf"))
