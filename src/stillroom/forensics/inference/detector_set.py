"""Detectors applied to the faces of an image, and heatmaps of their evidence.

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

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from stillroom.errors import DataError
from stillroom.forensics.inference.results import DetectorFinding, TrackFinding
from stillroom.forensics.inference.tracks import ClipDetectorRunner, score_recording
from stillroom.forensics.inference.trained_detector import TrainedDetector
from stillroom.forensics.media.audio import DecodedAudio
from stillroom.forensics.media.augmentation import to_channels_first
from stillroom.forensics.media.face import Image
from stillroom.forensics.media.face_detection import (
    FaceDetection,
    FaceFinder,
    compute_square_side,
    crop_square,
)
from stillroom.forensics.media.images import DecodedImage

__all__ = [
    "DetectorSet",
    "compute_heatmaps",
    "has_heatmaps",
    "open_detectors",
]


_GRID = 16


@dataclass(frozen=True)
class DetectorSet:
    """Detectors with what they share: who finds faces, at which prevalence chances are told."""

    detectors: tuple[TrainedDetector, ...]
    finder: FaceFinder
    prevalence: float = 0.5
    with_maps: bool = False

    @property
    def blind(self) -> tuple[str, ...]:
        """What each detector cannot see, a sentence each, under its name."""
        return tuple(
            f"{detector.name}: {line}"
            for detector in self.detectors
            for line in detector.about.blind
        )

    def judge(self, picture: DecodedImage) -> tuple[DetectorFinding, ...]:
        """Return what each detector makes of each face; empty where there is no face."""
        found: list[DetectorFinding] = []
        for face in self.finder.find(picture.image):
            landmarks = self.finder.landmarks(picture.image, face)
            for detector in self.detectors:
                if detector.about.method.looks_at > 1 or detector.about.method.hears:
                    continue  # nothing to say of one picture
                about = detector.about
                square, _ = crop_square(picture.image, landmarks, about.size, margin=about.margin)
                said = detector.judge(
                    square,
                    box=_box_of(face),
                    face_pixels=compute_square_side(landmarks, about.margin),
                    jpeg_quality=picture.jpeg_quality,
                    coding=picture.coding,
                    prevalence=self.prevalence,
                )
                found.append(self._with_map(detector, square, said))
        return tuple(found)

    def witness(self) -> ClipDetectorRunner:
        """Return who is shown the faces of one clip."""
        eyes = [one for one in self.detectors if not one.about.method.hears]
        return ClipDetectorRunner(eyes, self.finder, self.prevalence)

    def listen(self, path: Path, sound: DecodedAudio) -> tuple[TrackFinding, ...]:
        """Return what each detector that hears makes of a recording or a clip's sound.

        Raises:
            DataError: If nothing of it can be decoded.
        """
        ears = [one for one in self.detectors if one.about.method.hears]
        return score_recording(ears, path, sound, self.prevalence)

    def _with_map(
        self, detector: TrainedDetector, square: Image, said: DetectorFinding
    ) -> DetectorFinding:
        """Add the map where the finding indicates a forgery; of anything else none is shown."""
        if not self.with_maps or not said.is_indicated or not has_heatmaps(detector):
            return said
        full = compute_heatmaps(detector, [square])[0]
        edges = np.linspace(0, full.shape[0], _GRID + 1).astype(int)
        rows = tuple(
            tuple(round(float(full[y0:y1, x0:x1].mean()), 3) for x0, x1 in pairwise(edges))
            for y0, y1 in pairwise(edges)
        )
        return replace(said, map=rows)


def open_detectors(
    paths: Sequence[Path], *, prevalence: float = 0.5, with_maps: bool = False
) -> DetectorSet:
    """Open detectors and the finder of faces.

    Raises:
        CheckpointError: If one is no detector.
        MissingExtraError: If the packages for faces or networks are not here.
    """
    opened = tuple(TrainedDetector.open(path) for path in paths)
    return DetectorSet(opened, FaceFinder(), prevalence, with_maps)


def _box_of(face: FaceDetection) -> tuple[int, int, int, int]:
    x, y, width, height = (round(part) for part in face.box)
    return x, y, width, height


HEATMAP_BATCH_SIZE = 32


_SIZES = (1.0, 4 / 3, 5 / 3)  # chosen on validation people, see the lab notebook


Heatmaps = npt.NDArray[np.float32]


def compute_heatmaps(detector: TrainedDetector, images: Sequence[Image]) -> Heatmaps:
    """Return a map of evidence for forged, (N, P, P), each in [0, 1], at the network's own size.

    Raises:
        DataError: If the detector's features have no places.
    """
    found = []
    for start in range(0, len(images), HEATMAP_BATCH_SIZE):
        planes = to_channels_first(
            [detector.show(image) for image in images[start : start + HEATMAP_BATCH_SIZE]]
        )
        given = torch.from_numpy(planes).to(detector.device)
        sizes = _SIZES if detector.network.reads_any_size else _SIZES[:1]
        maps = [_upsample_heatmap(detector, given, size) for size in sizes]
        found += [_to_unit(np.mean(of_one, axis=0)) for of_one in zip(*maps, strict=True)]
    return np.stack(found)


def has_heatmaps(detector: TrainedDetector) -> bool:
    """Return whether a detector's features have places, so that a map can be drawn."""
    pixels = detector.about.pixels
    with torch.inference_mode():
        frames = detector.about.method.looks_at
        shape = (1, *([frames] if frames > 1 else []), 3, pixels, pixels)
        judged = detector.network.judge(torch.zeros(shape, device=detector.device))
    return judged.map is not None or judged.grid is not None


def _upsample_heatmap(detector: TrainedDetector, given: torch.Tensor, size: float) -> Heatmaps:
    """Return maps of pictures shown ``size`` times as large, each in [0, 1], (B, P, P)."""
    side = detector.about.pixels
    if size != 1:
        wide = round(side * size)
        given = functional.interpolate(given, (wide, wide), mode="bicubic").clamp(0, 1)
    found = _compute_evidence(detector, given)
    raised = [cv2.resize(one, (side, side), interpolation=cv2.INTER_LINEAR) for one in found]
    return np.stack([_to_unit(np.asarray(one, dtype=np.float32)) for one in raised])


def _compute_evidence(detector: TrainedDetector, given: torch.Tensor) -> Heatmaps:
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
