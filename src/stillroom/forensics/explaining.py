"""Heatmaps: which places a detector's verdict came from, and whether those are the forged ones.

A map that looks convincing may come from random weights as well; so maps are held against the
lab's masks, against chance, and against the same network with its weights drawn anew. A map is
shown for what is called forged alone: what made a face look real is no place.

The last features of a network have few places, 3 x 3 of 96 pixels. Where it reads pixels alone, the
picture is shown to it in three sizes, and the mean of the three maps is taken: its places lie
between each other's. Front ends on single pixels, whose traces enlarging erases, see one size.

Source: Draelos et al. 2020, "HiResCAM", arXiv:2011.08891 (features times their gradients, summed
over channels); Zhang et al. 2016, "Top-down Neural Attention by Excitation Backprop",
arXiv:1608.00507, section 4.1 (pointing game); Adebayo et al. 2018, "Sanity Checks for Saliency
Maps", arXiv:1810.03292 (random weights).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from stillroom.errors import DataError
from stillroom.forensics.detecting import TrainedDetector
from stillroom.forensics.face import Image, Mask
from stillroom.forensics.networks import Network
from stillroom.forensics.proving import Trial
from stillroom.forensics.views import cut_window, middle_window, to_planes

__all__ = ["PointingGame", "draw_maps", "has_maps", "pointing_game", "randomize", "settle"]

_AT_ONCE = 32
_DRAWS = 5  # one random network points to the middle, another to a corner
_SIZES = (1.0, 4 / 3, 5 / 3)  # chosen on validation people, see the lab notebook
_FORGED = 0.1  # of a mask's maximum: from here on a place counts as forged

Maps = npt.NDArray[np.float32]


@dataclass(frozen=True)
class PointingGame:
    """Share of forged faces whose highest place lies on what is forged.

    ``chance`` is the forged share of the pictures; ``random_weights`` the same network's hits with
    its weights drawn anew, the statistics of its normalizations taken anew, the mean of five such;
    ``middle`` those of always pointing to the middle, where faces are; ``n`` how many faces.
    """

    hits: float
    chance: float
    random_weights: float
    n: int
    middle: float = 0.0


def draw_maps(detector: TrainedDetector, images: Sequence[Image]) -> Maps:
    """Return a map of evidence for forged, (N, P, P), each in [0, 1], at the network's own size.

    Raises:
        DataError: If the detector's features have no places.
    """
    found = []
    for start in range(0, len(images), _AT_ONCE):
        planes = to_planes([detector.show(image) for image in images[start : start + _AT_ONCE]])
        given = torch.from_numpy(planes).to(detector.device)
        sizes = _SIZES if detector.network.reads_any_size else _SIZES[:1]
        maps = [_raise_map(detector, given, size) for size in sizes]
        found += [_to_unit(np.mean(of_one, axis=0)) for of_one in zip(*maps, strict=True)]
    return np.stack(found)


def has_maps(detector: TrainedDetector) -> bool:
    """Return whether a detector's features have places, so that a map can be drawn."""
    pixels = detector.about.pixels
    with torch.inference_mode():
        frames = detector.about.method.looks_at
        shape = (1, *([frames] if frames > 1 else []), 3, pixels, pixels)
        judged = detector.network.judge(torch.zeros(shape, device=detector.device))
    return judged.map is not None or judged.grid is not None


def pointing_game(detector: TrainedDetector, trial: Trial, *, seed: int = 0) -> PointingGame:
    """Play the pointing game on the forged faces of a trial.

    Args:
        detector: Whose maps.
        trial: Pictures with masks.
        seed: Of the control's weights.
    """
    chosen = [at for at, label in enumerate(trial.labels) if label]
    images = [trial.images[at] for at in chosen]
    side, pixels = detector.about.size, detector.about.pixels
    window = middle_window(side, pixels, keeps_pixels=detector.about.method.keeps_pixels)
    masks = [_as_forged(cut_window(_fit(trial.masks[at], side), window, pixels)) for at in chosen]
    planes = to_planes([detector.show(image) for image in images])
    shown = torch.from_numpy(planes).to(detector.device)
    controls = [
        TrainedDetector(settle(randomize(detector.network, lot), shown), detector.about)
        for lot in range(_DRAWS * seed, _DRAWS * (seed + 1))
    ]
    return PointingGame(
        _hits(draw_maps(detector, images), masks),
        float(np.mean([mask.mean() for mask in masks])),
        float(np.mean([_hits(draw_maps(control, images), masks) for control in controls])),
        len(masks),
        float(np.mean([mask[pixels // 2, pixels // 2] for mask in masks])),
    )


def randomize(network: Network, seed: int) -> Network:
    """Return a copy of a network whose weights are drawn anew, layer by layer as they were."""
    fresh = copy.deepcopy(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part in fresh.modules():
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset()
    return fresh


def settle(network: Network, given: torch.Tensor) -> Network:
    """Take the statistics of a network's normalizations anew from planes, and return the network.

    Without, weights that were drawn anew let nothing through, and all pictures look the same.
    """
    norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
    for part in norms:
        part.reset_running_stats()
        part.momentum = None  # the mean over all pictures
        part.train()
    with torch.no_grad():
        for some in torch.tensor_split(given, -(-len(given) // _AT_ONCE)):
            network.judge(some)
    return network.eval()


def _raise_map(detector: TrainedDetector, given: torch.Tensor, size: float) -> Maps:
    """Return maps of pictures shown ``size`` times as large, each in [0, 1], (B, P, P)."""
    side = detector.about.pixels
    if size != 1:
        wide = round(side * size)
        given = functional.interpolate(given, (wide, wide), mode="bicubic").clamp(0, 1)
    found = _evidence(detector, given)
    raised = [cv2.resize(one, (side, side), interpolation=cv2.INTER_LINEAR) for one in found]
    return np.stack([_to_unit(np.asarray(one, dtype=np.float32)) for one in raised])


def _evidence(detector: TrainedDetector, given: torch.Tensor) -> Maps:
    """Return unscaled maps at whatever size the network's places have, (B, h, w)."""
    with torch.enable_grad():
        # A frozen network's features need a gradient, too: it begins at the pictures.
        judged = detector.network.judge(given.requires_grad_())
        if judged.map is not None:
            return np.asarray(torch.sigmoid(judged.map).detach().float().cpu().numpy())
        if judged.grid is None:
            raise DataError(
                f"a detector {detector.name} has no places to show",
                code="forensics.no-map",
                expected="a detector whose features lie on a grid, as cnn, srm or face_xray",
                next="leave maps out, or use another detector",
            )
        (slope,) = torch.autograd.grad(judged.logits.sum(), judged.grid)
    weighed = (slope * judged.grid).sum(1).clamp(min=0)
    return np.asarray(weighed.detach().float().cpu().numpy())


def _to_unit(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def _fit(mask: Mask, side: int) -> Mask:
    if mask.shape[0] == side:
        return mask
    return np.asarray(cv2.resize(mask, (side, side), interpolation=cv2.INTER_AREA), np.float32)


def _as_forged(mask: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_]:
    values = np.asarray(mask, dtype=np.float32)
    return np.asarray(values > _FORGED * max(float(values.max()), 1e-6))


def _hits(maps: Maps, masks: Sequence[npt.NDArray[np.bool_]]) -> float:
    """Return the share of maps whose highest place is forged; places that tie share the hit."""
    shares = [
        float(mask[one >= one.max() - 1e-7].mean()) for one, mask in zip(maps, masks, strict=True)
    ]
    return float(np.mean(shares))
