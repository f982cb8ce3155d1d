"""Detectors applied to the faces of an image, and heatmaps of evidence (HiResCAM, after Grad-CAM).

A convincing heatmap may also come from random weights. Heatmaps are therefore evaluated against the
lab's masks, against chance, and against the same network with reinitialized weights. They are shown
for indicated forgeries only: evidence for real has no location.

The last features of a network have few positions, 3 x 3 for 96 pixels. A network on pixels alone is
run at three input sizes, and the three maps are averaged, since their positions interleave. Front
ends on single pixels, whose traces are erased by enlarging, run at one size.

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
from stillroom.forensics.media.face_detection import FaceFinder, compute_square_side, crop_face
from stillroom.forensics.media.face_types import Image
from stillroom.forensics.media.images import DecodedImage
from stillroom.forensics.modalities.audio import AudioModality
from stillroom.forensics.modalities.image import ImageModality

__all__ = ["DetectorSet", "compute_heatmaps", "has_heatmaps", "open_detectors"]

_GRID = 16


@dataclass(frozen=True)
class DetectorSet:
    """Detectors with a shared face finder and prevalence."""

    detectors: tuple[TrainedDetector, ...]
    finder: FaceFinder
    prevalence: float = 0.5
    with_maps: bool = False

    @property
    def limitations(self) -> tuple[str, ...]:
        """Known limitations of each detector, one sentence each, prefixed by its name."""
        return tuple(
            f"{detector.name}: {line}"
            for detector in self.detectors
            for line in detector.metadata.limitations
        )

    def judge(self, picture: DecodedImage) -> tuple[DetectorFinding, ...]:
        """Score each face with each image detector; empty without a face."""
        findings: list[DetectorFinding] = []
        for face in self.finder.find(picture.image):
            landmarks = self.finder.landmarks(picture.image, face)
            for detector in self.detectors:
                read = detector.metadata.modality
                if not isinstance(read, ImageModality):
                    continue
                square, _ = crop_face(
                    picture.image, landmarks, read.face_size, margin=read.face_margin
                )
                x, y, width, height = (round(part) for part in face.box)
                finding = detector.judge(
                    square,
                    box=(x, y, width, height),
                    face_pixels=compute_square_side(landmarks, read.face_margin),
                    jpeg_quality=picture.jpeg_quality,
                    coding=picture.coding,
                    prevalence=self.prevalence,
                )
                findings.append(self._with_map(detector, square, finding))
        return tuple(findings)

    def open_clip_runner(self) -> ClipDetectorRunner:
        """Return a runner that scores the faces of one clip."""
        image_detectors = [
            detector
            for detector in self.detectors
            if isinstance(detector.metadata.modality, ImageModality)
        ]
        return ClipDetectorRunner(image_detectors, self.finder, self.prevalence)

    def score_audio(self, path: Path, sound: DecodedAudio) -> tuple[TrackFinding, ...]:
        """Score a recording or a clip's audio with each audio detector.

        Raises:
            DataError: If nothing can be decoded.
        """
        audio_detectors = [
            detector
            for detector in self.detectors
            if isinstance(detector.metadata.modality, AudioModality)
        ]
        return score_recording(audio_detectors, path, sound, self.prevalence)

    def _with_map(
        self, detector: TrainedDetector, square: Image, finding: DetectorFinding
    ) -> DetectorFinding:
        """Add the heatmap where the finding indicates a forgery, and only there."""
        if not self.with_maps or not finding.is_indicated or not has_heatmaps(detector):
            return finding
        full = compute_heatmaps(detector, [square])[0]
        edges = np.linspace(0, full.shape[0], _GRID + 1).astype(int)
        rows = tuple(
            tuple(round(float(full[y0:y1, x0:x1].mean()), 3) for x0, x1 in pairwise(edges))
            for y0, y1 in pairwise(edges)
        )
        return replace(finding, map=rows)


def open_detectors(
    paths: Sequence[Path], *, prevalence: float = 0.5, with_maps: bool = False
) -> DetectorSet:
    """Open detectors and a face finder.

    Raises:
        CheckpointError: If a path is not a detector.
        MissingExtraError: If the packages for faces or networks are not installed.
    """
    opened = tuple(TrainedDetector.open(path) for path in paths)
    return DetectorSet(opened, FaceFinder(), prevalence, with_maps)


HEATMAP_BATCH_SIZE = 32
_SIZES = (1.0, 4 / 3, 5 / 3)  # chosen on validation people; see the lab notebook
Heatmaps = npt.NDArray[np.float32]


def compute_heatmaps(detector: TrainedDetector, images: Sequence[Image]) -> Heatmaps:
    """Return heatmaps of evidence for forged, (N, P, P), each in [0, 1], at the network's size.

    Raises:
        DataError: If the detector has no spatial features.
    """
    heatmaps = []
    for start in range(0, len(images), HEATMAP_BATCH_SIZE):
        planes = detector.image_input.prepare(images[start : start + HEATMAP_BATCH_SIZE])
        images_batch = torch.from_numpy(planes).to(detector.device)
        sizes = _SIZES if detector.network.reads_any_size else _SIZES[:1]
        maps = [_upsample_heatmap(detector, images_batch, size) for size in sizes]
        heatmaps += [
            _to_unit(np.mean(image_maps, axis=0)) for image_maps in zip(*maps, strict=True)
        ]
    return np.stack(heatmaps)


def has_heatmaps(detector: TrainedDetector) -> bool:
    """Return whether a detector has spatial features, from which a heatmap can be computed."""
    shape = (1, *detector.image_input.input_shape)
    with torch.inference_mode():
        judged = detector.network.forward_features(torch.zeros(shape, device=detector.device))
    return judged.map is not None or judged.grid is not None


def _upsample_heatmap(detector: TrainedDetector, images: torch.Tensor, size: float) -> Heatmaps:
    """Return heatmaps of images enlarged by ``size``, each in [0, 1], (B, P, P)."""
    side = detector.image_input.image_size
    if size != 1:
        wide = round(side * size)
        images = functional.interpolate(images, (wide, wide), mode="bicubic").clamp(0, 1)
    evidence = _compute_evidence(detector, images)
    resized = [
        cv2.resize(heatmap, (side, side), interpolation=cv2.INTER_LINEAR) for heatmap in evidence
    ]
    return np.stack([_to_unit(np.asarray(heatmap, dtype=np.float32)) for heatmap in resized])


def _compute_evidence(detector: TrainedDetector, images: torch.Tensor) -> Heatmaps:
    """Return unscaled heatmaps at the resolution of the network's features, (B, h, w)."""
    with torch.enable_grad():
        # The features of a frozen network need a gradient, too: it starts at the images.
        judged = detector.network.forward_features(images.requires_grad_())
        if judged.map is not None:
            return np.asarray(torch.sigmoid(judged.map).detach().float().cpu().numpy())
        if judged.grid is None:
            raise DataError(
                f"a detector {detector.name} has no spatial features",
                code="forensics.no-map",
                expected="a detector with features on a grid, such as cnn, srm or face_xray",
                next="turn heatmaps off, or use another detector",
            )
        (slope,) = torch.autograd.grad(judged.logits.sum(), judged.grid)
    weighed = (slope * judged.grid).sum(1).clamp(min=0)
    return np.asarray(weighed.detach().float().cpu().numpy())


def _to_unit(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else np.zeros_like(values)
