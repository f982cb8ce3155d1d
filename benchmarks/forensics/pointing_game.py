"""Where a map of a forged face points, beside chance, the middle, and random weights."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from stillroom.forensics.inference.detector_set import (
    HEATMAP_BATCH_SIZE,
    Heatmaps,
    compute_heatmaps,
)
from stillroom.forensics.inference.trained_detector import TrainedDetector
from stillroom.forensics.media.face_types import Mask
from stillroom.forensics.modalities.image import center_window, cut_window
from stillroom.forensics.networks.interfaces import DetectorNetwork
from stillroom.forensics.training.validation import LabeledSamples

_RANDOM_NETWORKS = 5  # one random network points to the center, another to a corner
_FORGED_SHARE = 0.1  # of a mask's maximum: threshold of a forged pixel


@dataclass(frozen=True)
class PointingGame:
    """Share of forged faces whose heatmap maximum lies on the forged region.

    ``chance`` is the forged share of the images; ``random_weights`` the hit rate of the same
    network with reinitialized weights and reestimated batch statistics, the mean of five;
    ``middle`` the hit rate of always pointing to the center, where faces are; ``n`` the number of
    faces.
    """

    hits: float
    chance: float
    random_weights: float
    n: int
    middle: float = 0.0


def run_pointing_game(
    detector: TrainedDetector, trial: LabeledSamples, *, seed: int = 0
) -> PointingGame:
    """Run the pointing game on the forged faces of a validation set."""
    forged = [index for index, label in enumerate(trial.labels) if label]
    images = [trial.samples[index] for index in forged]
    read = detector.image_input
    side, pixels = read.face_size, read.image_size
    window = center_window(side, pixels, preserve_pixels=read.preserve_pixels)
    masks = [
        _threshold_mask(cut_window(_resize_mask(trial.masks[index], side), window, pixels))
        for index in forged
    ]
    shown = torch.from_numpy(read.prepare(images)).to(detector.device)
    controls = [
        TrainedDetector(
            reestimate_batch_norm(randomize_weights(detector.network, weight_seed), shown),
            detector.metadata,
        )
        for weight_seed in range(_RANDOM_NETWORKS * seed, _RANDOM_NETWORKS * (seed + 1))
    ]
    return PointingGame(
        _measure_hit_rate(compute_heatmaps(detector, images), masks),
        float(np.mean([mask.mean() for mask in masks])),
        float(
            np.mean(
                [
                    _measure_hit_rate(compute_heatmaps(control, images), masks)
                    for control in controls
                ]
            )
        ),
        len(masks),
        float(np.mean([mask[pixels // 2, pixels // 2] for mask in masks])),
    )


def randomize_weights(network: DetectorNetwork, seed: int) -> DetectorNetwork:
    """Return a copy of a network with all layers reinitialized."""
    fresh = copy.deepcopy(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part in fresh.modules():
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset()
    return fresh


def reestimate_batch_norm(network: DetectorNetwork, images: torch.Tensor) -> DetectorNetwork:
    """Reestimate the batch norm statistics of a network in place, and return it.

    Without it, reinitialized weights suppress all signals, and all images look the same.
    """
    norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
    for part in norms:
        part.reset_running_stats()
        part.momentum = None  # the mean over all images
        part.train()
    with torch.no_grad():
        for batch in torch.tensor_split(images, -(-len(images) // HEATMAP_BATCH_SIZE)):
            network.forward_features(batch)
    return network.eval()


def _resize_mask(mask: Mask, side: int) -> Mask:
    if mask.shape[0] == side:
        return mask
    return np.asarray(cv2.resize(mask, (side, side), interpolation=cv2.INTER_AREA), np.float32)


def _threshold_mask(mask: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_]:
    values = np.asarray(mask, dtype=np.float32)
    return np.asarray(values > _FORGED_SHARE * max(float(values.max()), 1e-6))


def _measure_hit_rate(maps: Heatmaps, masks: Sequence[npt.NDArray[np.bool_]]) -> float:
    """Return the share of heatmaps with their maximum on a forged pixel; ties share the hit."""
    shares = [
        float(mask[heatmap >= heatmap.max() - 1e-7].mean())
        for heatmap, mask in zip(maps, masks, strict=True)
    ]
    return float(np.mean(shares))
