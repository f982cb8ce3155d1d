"""A temporal head over frame features of a trained image detector.

Source: Sabir et al. 2019, "Recurrent Convolutional Strategies for Face Manipulation Detection in
Videos", arXiv:1905.00582 (a recurrent network over a face detector's features); Zheng et al. 2021,
"Exploring Temporal Coherence for More General Video Face Forgery Detection", arXiv:2108.06693
(a transformer over time). Differs: the frame detector is frozen, and frame-to-frame differences are
added to its features.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field
from typing_extensions import override

from stillroom.errors import DataError
from stillroom.forensics.interfaces import IMAGE_DETECTORS, ImageDetector
from stillroom.recipes import Reference

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stillroom.forensics.networks.interfaces import DetectorNetwork

__all__ = ["Temporal"]

_HEADS = 4
_FRAME_BATCH_SIZE = 16  # frames; with hundreds, memory access took most of the time


class Temporal(ImageDetector):
    """A temporal network over the frame features of a trained image detector."""

    paper: ClassVar[str] = "arXiv:1905.00582"
    limitations: ClassVar[tuple[str, ...]] = (
        "It learned from pictures set in motion, whose forged twins flicker: a forgery that is "
        "steady over time, or a real face that moves otherwise, it does not know.",
    )
    checkpoint: Reference = Field(description="a trained image detector, which stays frozen")
    frames: int = Field(default=8, ge=2, le=64, description="frames of a face per input")
    mixer: Literal["gru", "conv", "transformer"] = Field(
        default="gru", description="temporal network: recurrent, convolutional, or attention"
    )
    width: int = Field(default=48, ge=8, le=512, description="features per frame")

    @property
    @override
    def num_frames(self) -> int:
        return self.frames

    @override
    def build(self, input_size: int) -> DetectorNetwork:
        import torch

        from stillroom.forensics.inference.trained_detector import TrainedDetector

        base = TrainedDetector.open(Path(self.checkpoint), device="cpu")
        read = base.image_input
        if read.image_size != input_size or read.num_frames != 1:
            raise DataError(
                f"{self.checkpoint} is a detector of {read.num_frames} frame of "
                f"{read.image_size} pixels",
                code="forensics.other-detector",
                where="model.checkpoint",
                expected=f"a detector of single images of {input_size} pixels",
                next=f"set image_size: {read.image_size}, or train one of {input_size}",
            )
        with torch.inference_mode():
            features = base.network.forward_features(torch.zeros(1, *read.input_shape)).features
        config = {
            "method": base.metadata.method.model_dump(mode="json"),
            "image_size": input_size,
            "network_config": dict(base.metadata.network_config),
            "features": features.shape[1],
            "fingerprint": base.fingerprint,
            "trained_on": list(base.metadata.trained_on),
        }
        return _make_temporal_head(base.network, self, config)

    @override
    def rebuild(self, input_size: int, config: Mapping[str, Any]) -> DetectorNetwork:
        base = IMAGE_DETECTORS.build(config["method"])
        network = base.rebuild(int(config["image_size"]), config["network_config"])
        return _make_temporal_head(network, self, config)


def _make_temporal_head(
    base: DetectorNetwork, method: Temporal, config: Mapping[str, Any]
) -> DetectorNetwork:
    """Return a network of clips (B, T, 3, H, W) of one face, on a frozen image detector."""
    import torch
    from torch import nn
    from torch.nn import functional

    from stillroom.forensics.networks.interfaces import DetectorNetwork, DetectorOutput, freeze

    class TemporalHead(DetectorNetwork):
        def __init__(
            self, base: DetectorNetwork, method: Temporal, config: Mapping[str, Any]
        ) -> None:
            super().__init__()
            self._config = dict(config)
            self.base = base
            freeze(self.base)
            width = method.width
            self.reduce = nn.Sequential(
                nn.LayerNorm(2 * (int(config["features"]) + 1)),
                nn.Linear(2 * (int(config["features"]) + 1), width),
                nn.GELU(),
            )
            self.mix = _make_mixer(method)
            self.head = nn.Linear(2 * width, 1)

        @property
        def config(self) -> Mapping[str, Any]:
            return self._config

        def train(self, mode: bool = True) -> Self:
            super().train(mode)
            self.base.eval()  # its batch statistics belong to the trained base
            return self

        def forward_features(self, images: Tensor) -> DetectorOutput:
            count, frames = images.shape[:2]
            every = images.flatten(0, 1)
            parts = (
                (every,) if torch.compiler.is_compiling() else torch.split(every, _FRAME_BATCH_SIZE)
            )
            with torch.no_grad():
                outputs = [self.base.forward_features(frames_part) for frames_part in parts]
            features = torch.cat(
                [functional.normalize(output.features, dim=1) for output in outputs]
            )
            states = torch.cat(
                [features, torch.cat([output.logits for output in outputs])[:, None]], dim=1
            )
            states = states.view(count, frames, -1)  # (B, T, D + 1)
            changes = torch.cat(
                [torch.zeros_like(states[:, :1]), states[:, 1:] - states[:, :-1]], dim=1
            )
            inputs = self.reduce(torch.cat([states, changes], dim=2))  # (B, T, width)
            mixed = self.mix(inputs)
            pooled = torch.cat([mixed.mean(1), mixed.amax(1)], dim=1)  # (B, 2 width)
            return DetectorOutput(self.head(pooled)[:, 0], pooled)

    return TemporalHead(base, method, config)


def _make_mixer(method: Temporal) -> nn.Module:
    """Return the network over frames, (B, T, width) to the same."""
    import torch
    from torch import nn

    class RecurrentMixer(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.body = nn.GRU(width, width // 2, batch_first=True, bidirectional=True)

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = self.body(inputs)[0]
            return outputs

    class ConvolutionMixer(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv1d(width, width, 3, padding=1),
                nn.GELU(),
                nn.Conv1d(width, width, 3, padding=2, dilation=2),
                nn.GELU(),
            )

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = self.body(inputs.transpose(1, 2)).transpose(1, 2)
            return inputs + outputs

    class AttentionMixer(nn.Module):
        places: Tensor

        def __init__(self, width: int, frames: int) -> None:
            super().__init__()
            self.places = nn.Parameter(torch.randn(frames, width) * 0.02)
            self.body = nn.TransformerEncoderLayer(
                width, _HEADS, 2 * width, dropout=0.1, batch_first=True, norm_first=True
            )

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = self.body(inputs + self.places[: inputs.shape[1]])
            return outputs

    if method.mixer == "gru":
        return RecurrentMixer(method.width // 2 * 2)
    if method.mixer == "conv":
        return ConvolutionMixer(method.width)
    return AttentionMixer(method.width, method.frames)
