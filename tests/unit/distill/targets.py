"""Targets of given logits, as a capture stores them, and with replacement for comparison."""

import torch

from stillroom.distill.losses.targets import (
    SampledTargets,
    TopKTargets,
    reduce_to_top_k,
    sample_distinct,
)


def keep_top(logits, k, *, temperature=1.0):
    return TopKTargets(**reduce_to_top_k(logits / temperature, k), temperature=temperature)


def draw_distinct(logits, k, generator, *, heat=1.0):
    offsets = torch.rand(len(logits), generator=generator, dtype=logits.dtype)
    drawn = sample_distinct(logits, k, offsets, sampling_temperature=heat)
    return SampledTargets.from_scale(
        drawn.ids, drawn.logprobs, drawn.scale, sampling_temperature=heat
    )


def draw_any(logits, draws, generator, *, temperature=1.0, heat=1.0):
    """As in arXiv:2503.16870, section 4: a token may be drawn twice."""
    logprobs = torch.log_softmax(logits / temperature, -1)
    proposal = torch.log_softmax(logprobs / heat, -1)
    ids = torch.multinomial(proposal.exp(), draws, replacement=True, generator=generator)
    weights = (logprobs.gather(-1, ids) - proposal.gather(-1, ids)).exp() / draws
    return SampledTargets(ids, weights, logprobs.gather(-1, ids), temperature)
