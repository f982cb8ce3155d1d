"""The loss of a batch of noisy texts, and what is logged beside it.

The training loss weighs a token by 1/t and so jumps from step to step without meaning it; the mean
cross-entropy of masked tokens by their time is what to watch.
"""

from __future__ import annotations

from torch import nn

from stillroom.diffusion.loss import masked_loss
from stillroom.diffusion.model import DiffusionModel, body_and_head
from stillroom.diffusion.source import BUCKETS, NoisyBatch
from stillroom.train.loop import Loss

__all__ = ["DiffusionObjective"]


class DiffusionObjective:
    """Called by the training loop with the network as it trains it."""

    def __init__(self, model: DiffusionModel, *, has_times: bool = True) -> None:
        """Stand over a model.

        Args:
            model: Whose network is trained.
            has_times: Whether tokens have a time that their losses are logged by.
        """
        self.model, self.has_times = model, has_times

    def __call__(self, network: nn.Module, batch: NoisyBatch) -> Loss:
        """Return a batch's summed loss and the summed cross-entropy of each bucket of time."""
        states = self.model.states(batch.ids, batch.positions, batch.seen, network=network)
        device = states.device
        picked = states.flatten(0, 1)[batch.flat.to(device)]
        total, losses = masked_loss(
            picked,
            body_and_head(network)[1],
            batch.labels.to(device),
            batch.scale.to(device),
            self.model.metadata.mask_token_id,
        )
        parts: dict[str, float] = {}
        if self.has_times:
            sums = losses.new_zeros(len(BUCKETS)).index_add_(0, batch.bucket.to(device), losses)
            for (_, high), value, scale in zip(
                BUCKETS, sums.tolist(), batch.bucket_scale, strict=True
            ):
                parts[f"masked_ce/t<{high:g}"] = value * scale
        if batch.told is not None:  # the gradient is this sum's, the loss another function of it
            total = total - total.detach() + batch.told
        return Loss(total, parts)
