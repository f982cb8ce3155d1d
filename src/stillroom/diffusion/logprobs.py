"""Log-probabilities of asked tokens, without a gradient, as many texts at once as fit.

What an objective makes of them is a loss and its slope by each: the slope becomes the weight of the
token's cross-entropy, and one pass with a gradient follows, a micro-batch at a time. So a loss that
is no sum over texts (a sigmoid of two bounds of eight samples each) needs no more memory than one
that is.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.diffusion.loss import masked_loss
from stillroom.diffusion.model import DiffusionModel, body_and_head
from stillroom.diffusion.source import NoisyText, lay_out
from stillroom.train.source import group_by_length

__all__ = ["Reference", "read_logprobs", "resting"]


@contextlib.contextmanager
def resting(network: nn.Module) -> Iterator[None]:
    """Take dropout off within the body, and gradients with it."""
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(was_training)


def read_logprobs(
    model: DiffusionModel, texts: Sequence[NoisyText], *, micro_tokens: int, network: Any = None
) -> list[Tensor]:
    """Return the log-probabilities of each text's asked tokens, in order, (k,) float64 each.

    Args:
        model: Says how texts are read.
        texts: Noisy texts.
        micro_tokens: Most tokens, padding included, that are read at once.
        network: Whose they are, if not the model's own.
    """
    found: dict[int, Tensor] = {}
    network = model.network if network is None else network
    size = model.metadata.block_size
    lengths = [len(text.ids) * (1 if size is None else 2) for text in texts]
    with resting(network):
        head = body_and_head(network)[1]
        for group in group_by_length(range(len(texts)), lengths, micro_tokens):
            chosen = [texts[number] for number in group]
            batch = lay_out(chosen, model.metadata, block_size=size)
            states = model.states(batch.ids, batch.positions, batch.seen, network=network)
            device = states.device
            _, losses = masked_loss(
                states.flatten(0, 1)[batch.flat.to(device)],
                head,
                batch.labels.to(device),
                batch.scale.to(device),
                model.metadata.mask_token_id,
            )
            counts = [int(text.is_learned.sum()) for text in chosen]
            parts = torch.split((-losses).double().cpu(), counts)
            found.update(zip(group, parts, strict=True))
    return [found[number] for number in range(len(texts))]


class Reference:
    """The network as it is now, kept while the model itself is trained.

    Where low-rank additions are trained it is the network without them, else a copy.
    """

    def __init__(self, model: DiffusionModel) -> None:
        """Keep a model's network."""
        self._model = model
        self._copy: Any = None
        if not hasattr(model.network, "disable_adapter"):
            self._copy = copy.deepcopy(model.network).requires_grad_(False)

    def read(self, texts: Sequence[NoisyText], *, micro_tokens: int) -> list[Tensor]:
        """Return the log-probabilities of each text's asked tokens, (k,) float64 each."""
        if self._copy is not None:
            return read_logprobs(self._model, texts, micro_tokens=micro_tokens, network=self._copy)
        with self._model.network.disable_adapter():
            return read_logprobs(self._model, texts, micro_tokens=micro_tokens)
