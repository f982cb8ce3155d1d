"""What a cache would cost and miss, told from a few positions before anything is captured.

The mass that top-k leaves outside, and the noise of drawn tokens, are computed from the teacher's
whole distributions at the probed positions; sizes are exact.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.distill.cache_header import CacheHeader, row_bytes
from stillroom.distill.capture import Scorer
from stillroom.distill.condense import draw_distinct, top_and_tail
from stillroom.distill.encode import Lesson

__all__ = ["CacheCost", "probe_cache"]

_PROBED_RECORDS = 4
_PROBED_POSITIONS = 128


@dataclass(frozen=True, slots=True)
class CacheCost:
    """Size and fidelity of a cache that is not there yet.

    Args:
        mode: Of the cache.
        bytes_per_position: All bytes over all positions, token ids included.
        size_bytes: Of what is still to be captured.
        positions: How many those are.
        probed: How many positions the rest was measured on.
        outside: Mean mass outside the k likeliest tokens; mode top_k only.
        noise: Root of the mean squared distance between a drawn row and the teacher's distribution,
            as vectors of probabilities; mode sampled only. It is the noise of the gradient of a
            position's forward KL by the logits.
        noise_replaced: The same of as many draws with replacement.
    """

    mode: str
    bytes_per_position: float
    size_bytes: int
    positions: int
    probed: int
    outside: float | None = None
    noise: float | None = None
    noise_replaced: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the figures by name."""
        return asdict(self)

    def __str__(self) -> str:
        """Return it as one sentence."""
        line = (
            f"the teacher's words take {self.bytes_per_position:.1f} bytes a position, "
            f"{_size(self.size_bytes)} for {self.positions} positions"
        )
        if self.outside is not None:
            return (
                f"{line}; {self.outside:.2%} of its mass lies outside what is kept (on "
                f"{self.probed} positions), which counts as one outcome"
            )
        if self.noise is not None:
            return (
                f"{line}; no bias, and noise of {self.noise:.3f} in a position's gradient (on "
                f"{self.probed} positions; draws with replacement: {self.noise_replaced:.3f})"
            )
        return line


def probe_cache(teacher: nn.Module, header: CacheHeader, missing: Sequence[Lesson]) -> CacheCost:
    """Return what capturing these lessons costs, and how far what is kept is from the teacher.

    Args:
        teacher: In evaluation mode.
        header: Of the cache.
        missing: What would be captured; the first few records are probed.

    Raises:
        DataError: If the teacher gives a number that is not finite.
    """
    row, token = row_bytes(header)
    positions = sum(len(lesson.positions) for lesson in missing)
    size = row * positions + token * sum(len(lesson.ids) for lesson in missing)
    sums, probed = dict.fromkeys(("outside", "noise", "replaced"), 0.0), 0
    if header.mode in ("top_k", "sampled"):
        scorer = Scorer(teacher, header)
        for lesson in itertools.islice(missing, _PROBED_RECORDS):
            short = Lesson(lesson.record_id, lesson.ids, lesson.positions[:_PROBED_POSITIONS])
            for _, logits in scorer.chunks(short):
                probed += len(logits)
                for name, value in _measure(header, logits).items():
                    sums[name] += value
    means = {name: total / probed if probed else 0.0 for name, total in sums.items()}
    is_drawn = header.mode == "sampled"
    return CacheCost(
        header.mode,
        size / positions if positions else float(row),
        size,
        positions,
        probed,
        outside=means["outside"] if header.mode == "top_k" else None,
        noise=math.sqrt(means["noise"]) if is_drawn else None,
        noise_replaced=math.sqrt(means["replaced"]) if is_drawn else None,
    )


def _measure(header: CacheHeader, logits: Tensor) -> dict[str, float]:
    """Return sums over rows: mass outside top-k; squared noise of draws, distinct or replaced."""
    if header.mode == "top_k":
        return {"outside": float(top_and_tail(logits, header.width)["tail"].exp().sum())}
    heat = header.sampling_temperature
    offsets = torch.full((len(logits),), 0.5, device=logits.device)
    drawn = draw_distinct(logits, header.width, offsets, sampling_temperature=heat)
    own = torch.log_softmax(logits, -1)
    chance = (own / heat + drawn.scale.unsqueeze(-1)).clamp_max(0)
    replaced = (2 * own - torch.log_softmax(own / heat, -1)).exp().sum() - own.mul(2).exp().sum()
    return {
        "noise": float(((2 * own - chance).exp() - own.mul(2).exp()).sum()),
        "replaced": float(replaced) / header.width,
    }


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
