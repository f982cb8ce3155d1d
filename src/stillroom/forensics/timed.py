"""The network of the head over time: a frozen detector of pictures, and what reads its frames."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from stillroom.errors import DataError
from stillroom.forensics.detecting import TrainedDetector
from stillroom.forensics.detectors.temporal import Temporal
from stillroom.forensics.method import DETECTORS
from stillroom.forensics.networks import Judged, Network, freeze

__all__ = ["Timed", "open_timed", "rebuild_timed"]

_HEADS = 4
_AT_ONCE = 16  # frames; of hundreds, most of the time went into fetching memory


class Timed(Network):
    """Reads clips (B, T, 3, H, W) of one face."""

    def __init__(self, base: Network, method: Temporal, kept: Mapping[str, Any]) -> None:
        """Stand on a detector of pictures, which is frozen here.

        Args:
            base: The network of pictures.
            method: What reads the frames.
            kept: What has to be known to build ``base`` again.
        """
        super().__init__()
        self._kept = dict(kept)
        self.base = base
        freeze(self.base)
        width = method.width
        self.reduce = nn.Sequential(
            nn.LayerNorm(2 * (int(kept["features"]) + 1)),
            nn.Linear(2 * (int(kept["features"]) + 1), width),
            nn.GELU(),
        )
        self.mix = _make_mixer(method)
        self.head = nn.Linear(2 * width, 1)

    @property
    @override
    def kept(self) -> Mapping[str, Any]:
        return self._kept

    @override
    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.base.eval()  # its statistics are part of what was learned before
        return self

    @override
    def judge(self, images: Tensor) -> Judged:
        count, frames = images.shape[:2]
        every = images.flatten(0, 1)
        parts = (every,) if torch.compiler.is_compiling() else torch.split(every, _AT_ONCE)
        with torch.no_grad():
            seen = [self.base.judge(some) for some in parts]
        features = torch.cat([functional.normalize(one.features, dim=1) for one in seen])
        told = torch.cat([features, torch.cat([one.logits for one in seen])[:, None]], dim=1)
        told = told.view(count, frames, -1)  # (B, T, D + 1)
        changes = torch.cat([torch.zeros_like(told[:, :1]), told[:, 1:] - told[:, :-1]], dim=1)
        given = self.reduce(torch.cat([told, changes], dim=2))  # (B, T, width)
        mixed = self.mix(given)
        whole = torch.cat([mixed.mean(1), mixed.amax(1)], dim=1)  # (B, 2 width)
        return Judged(self.head(whole)[:, 0], whole)


class _Recurrent(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.GRU(width, width // 2, batch_first=True, bidirectional=True)

    @override
    def forward(self, given: Tensor) -> Tensor:
        found: Tensor = self.body(given)[0]
        return found


class _Convolved(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(width, width, 3, padding=1),
            nn.GELU(),
            nn.Conv1d(width, width, 3, padding=2, dilation=2),
            nn.GELU(),
        )

    @override
    def forward(self, given: Tensor) -> Tensor:
        found: Tensor = self.body(given.transpose(1, 2)).transpose(1, 2)
        return given + found


class _Attending(nn.Module):
    places: Tensor

    def __init__(self, width: int, frames: int) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(frames, width) * 0.02)
        self.body = nn.TransformerEncoderLayer(
            width, _HEADS, 2 * width, dropout=0.1, batch_first=True, norm_first=True
        )

    @override
    def forward(self, given: Tensor) -> Tensor:
        found: Tensor = self.body(given + self.places[: given.shape[1]])
        return found


def _make_mixer(method: Temporal) -> nn.Module:
    if method.mixer == "gru":
        return _Recurrent(method.width // 2 * 2)
    if method.mixer == "conv":
        return _Convolved(method.width)
    return _Attending(method.width, method.frames)


def open_timed(method: Temporal, path: Path, pixels: int) -> Timed:
    """Return a new head on a trained detector.

    Raises:
        CheckpointError: If ``path`` holds no detector.
        DataError: If it looks at other sizes, or itself over time.
    """
    base = TrainedDetector.open(path, device="cpu")
    if base.about.pixels != pixels or base.about.method.looks_at != 1:
        raise DataError(
            f"{path} holds a detector that looks at {base.about.method.looks_at} frame of "
            f"{base.about.pixels} pixels",
            code="forensics.other-detector",
            where="detector.model.checkpoint",
            expected=f"a detector of single pictures of {pixels} pixels",
            next=f"set detector.pixels: {base.about.pixels}, or train one of {pixels}",
        )
    with torch.inference_mode():
        features = base.network.judge(torch.zeros(1, 3, pixels, pixels)).features
    kept = {
        "method": base.about.method.model_dump(mode="json"),
        "pixels": pixels,
        "kept": dict(base.about.kept),
        "features": features.shape[1],
        "fingerprint": base.fingerprint,
        "learned_from": list(base.about.learned_from),
    }
    return Timed(base.network, method, kept)


def rebuild_timed(method: Temporal, kept: Mapping[str, Any]) -> Timed:
    """Return the network, its weights about to be replaced."""
    base = DETECTORS.build(kept["method"]).rebuild(int(kept["pixels"]), kept["kept"])
    return Timed(base, method, kept)
