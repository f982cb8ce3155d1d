"""TrainedDetector: loading, scoring, and the metadata of a detector checkpoint.

A score is evidence of the traces a detector was trained on, nothing more. Calibration on validation
faces maps it to a probability at the requested prevalence. The probability is withheld where the
input is worse than the validated conditions or out of domain, where small re-encodings reverse the
score, where the training set leaks, or where the detector was never validated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from stillroom.checkpoints import Checkpoint, CheckpointWriter
from stillroom.errors import CheckpointError, DataError, RecipeError
from stillroom.forensics.inference.calibration import Calibrator
from stillroom.forensics.inference.domain import (
    Measurements,
    TrainingDomain,
    is_grayscale,
    measure_audio,
    measure_image,
)
from stillroom.forensics.inference.results import UNCERTAIN_RANGE, DetectorFinding, TrainingSetInfo
from stillroom.forensics.interfaces import DETECTORS, Detector
from stillroom.forensics.media.audio import AudioSamples, fit_length
from stillroom.forensics.media.augmentation import center_window, cut_window, to_channels_first
from stillroom.forensics.media.face import Image
from stillroom.forensics.media.transforms import compress_jpeg, fit_size, rescale
from stillroom.forensics.networks.interfaces import DetectorNetwork, record_activations
from stillroom.forensics.networks.vision_backbone import TemporalHead
from stillroom.forensics.settings import DetectorSettings
from stillroom.models.local.causal_lm import choose_device

if TYPE_CHECKING:
    from stillroom.forensics.detectors.temporal import Temporal

__all__ = [
    "CONFIG_KEY",
    "DetectorMetadata",
    "ScoredBatch",
    "TrainedDetector",
    "build_temporal_head",
    "explain_instability",
    "load_initial_weights",
    "write_detector",
]


CONFIG_KEY = "stillroom_detector"


_DRAWN = "drawn"  # origin of faces and voices that are drawn by program


_IMAGE_BATCH_SIZE = 32


_AUDIO_BATCH_SIZE = 4  # a waveform of four seconds takes a quarter of a gigabyte in aasist


_CLIP_NDIM = 4  # dimensions of a clip, (T, H, W, 3)


_UNSAVED_BUFFER = "num_batches_tracked"


_DOMAIN_PREFIX = "domain."  # prefix of tensors that are not the network's


Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class DetectorMetadata:
    """Metadata of a detector besides its weights.

    For audio detectors, ``pixels`` is the number of samples and ``size`` the sample rate. For
    others, ``size`` is the side of the square face crop in training, ``margin`` that side relative
    to the landmarks' box; ``least_face`` (crop side in pixels) and ``least_quality`` (JPEG) bound
    the validated conditions; ``is_shown`` states whether it was validated; ``weights`` is the
    digest of the weights at validation; ``learned`` describes the training set, ``audit`` is the
    result of its audit, and ``domain`` detects inputs unlike it.
    """

    method: Detector
    pixels: int
    size: int
    margin: float
    calibrator: Calibrator
    learned_from: tuple[str, ...] = ()
    faces: str = ""
    least_face: int = 0
    least_quality: int = 0
    is_shown: bool = False
    figures: Mapping[str, Any] = field(default_factory=dict)
    kept: Mapping[str, Any] = field(default_factory=dict)
    weights: str = ""
    learned: TrainingSetInfo = field(default_factory=TrainingSetInfo)
    audit: Mapping[str, Any] = field(default_factory=dict)
    domain: TrainingDomain | None = None

    @property
    def blind(self) -> tuple[str, ...]:
        """Known limitations, one sentence each."""
        names = ", ".join(self.learned_from)
        training_note = (f"It learned from {names}; of other forgeries its silence says nothing.",)
        return (*self.method.blind, *(training_note if names else ()))

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        return {
            "version": 2,
            "method": self.method.model_dump(mode="json"),
            "pixels": self.pixels,
            "size": self.size,
            "margin": self.margin,
            "calibration": self.calibrator.to_json(),
            "learned_from": list(self.learned_from),
            "faces": self.faces,
            "least_face": self.least_face,
            "least_quality": self.least_quality,
            "is_shown": self.is_shown,
            "blind": list(self.blind),
            "figures": dict(self.figures),
            "kept": dict(self.kept),
            "weights": self.weights,
            "learned": self.learned.to_json(),
            "audit": dict(self.audit),
            "domain": None if self.domain is None else self.domain.to_json(),
        }

    @classmethod
    def from_json(
        cls, data: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[np.float32]]
    ) -> DetectorMetadata:
        """Restore metadata from ``to_json`` values; ``arrays`` are those of the domain.

        Version 1 has no training domain: ``domain`` is None.
        """
        domain = data.get("domain")
        return cls(
            DETECTORS.build(data["method"]),
            int(data["pixels"]),
            int(data["size"]),
            float(data["margin"]),
            Calibrator.from_json(data["calibration"]),
            tuple(data["learned_from"]),
            str(data["faces"]),
            int(data["least_face"]),
            int(data["least_quality"]),
            bool(data["is_shown"]),
            dict(data["figures"]),
            dict(data["kept"]),
            str(data["weights"]),
            TrainingSetInfo(**data.get("learned", {})),
            dict(data.get("audit", {})),
            None if domain is None else TrainingDomain.from_json(domain, arrays),
        )


@dataclass(frozen=True, eq=False)
class ScoredBatch:
    """Scores of N inputs: logits (N,), and measurements, (N, D) each.

    ``measures`` are ``features``, ``layers`` where recorded, and ``looks``.
    """

    logits: Floats
    measures: Measurements


class TrainedDetector:
    """A network with its metadata; use ``open``."""

    def __init__(
        self, network: DetectorNetwork, metadata: DetectorMetadata, fingerprint: str = ""
    ) -> None:
        """Wrap a network and set it to evaluation mode."""
        self.network, self.about, self.fingerprint = network.eval(), metadata, fingerprint
        self.device = next(network.parameters()).device

    @classmethod
    def open(cls, path: Path, *, device: str = "auto") -> TrainedDetector:
        """Open a detector checkpoint, or the run that wrote it.

        Raises:
            CheckpointError: If it is missing, damaged, or not a detector.
            MissingExtraError: If a required package is not installed.
        """
        stored = Checkpoint.open(path)
        data = stored.config.get(CONFIG_KEY)
        if not isinstance(data, dict):
            raise _no_detector(path, "its config.json has no detector metadata")
        try:
            metadata = DetectorMetadata.from_json(data, _read_domain(stored))
        except (KeyError, TypeError, ValueError, RecipeError) as error:
            raise _no_detector(path, f"its metadata is damaged ({error})") from error
        network = metadata.method.rebuild(metadata.pixels, metadata.kept)
        _fill(network, stored, path)
        if metadata.is_shown and _digest_weights(network) != metadata.weights:
            # Merged, fine-tuned or quantized elsewhere: the validation is of other weights.
            metadata = replace(metadata, is_shown=False)
        return cls(network.to(choose_device(device)), metadata, stored.fingerprint)

    @property
    def name(self) -> str:
        """Name of the method and its training forgeries, as used in verdicts."""
        names = "+".join(self.about.learned_from)
        return f"{self.about.method.method_name()}{f' of {names}' if names else ''}"

    def show(self, image: Image) -> Image:
        """Crop a square around a face to the network's input, (P, P, 3); clips frame by frame."""
        if image.ndim == _CLIP_NDIM:
            return np.stack([self.show(frame) for frame in image])
        side = self.about.size
        fitted = fit_size(image, (side, side))
        keeps = self.about.method.keeps_pixels
        window = center_window(side, self.about.pixels, keeps_pixels=keeps)
        return cut_window(fitted, window, self.about.pixels)

    def logits(self, images: Sequence[Image | AudioSamples]) -> Floats:
        """Return raw scores of face crops, or of audio, (N,); higher is forged."""
        return self._run(images).logits

    def see(self, images: Sequence[Image | AudioSamples]) -> ScoredBatch:
        """Return scores with measurements for out-of-domain detection; inputs as for ``logits``."""
        batch = self._run(images)
        looks = np.stack([self._measure(image) for image in images])
        return replace(batch, measures={**batch.measures, "looks": looks})

    def _run(self, images: Sequence[Image | AudioSamples]) -> ScoredBatch:
        logits: list[float] = []
        measures: dict[str, list[Floats]] = {}
        count = _AUDIO_BATCH_SIZE if self.about.method.hears else _IMAGE_BATCH_SIZE
        for start in range(0, len(images), count):
            batch = images[start : start + count]
            planes = self._prepare(batch)
            with torch.inference_mode(), record_activations(self.network, len(batch)) as layers:
                judged = self.network.judge(torch.from_numpy(planes).to(self.device))
            logits += judged.logits.double().cpu().tolist()
            parts = {"features": judged.features}
            if layers and self.about.method.looks_at == 1:
                parts["layers"] = torch.cat(layers, dim=1)
            for name, value in parts.items():
                measures.setdefault(name, []).append(value.double().cpu().numpy())
        all_measures = {name: np.concatenate(rows) for name, rows in measures.items()}
        return ScoredBatch(np.array(logits), all_measures)

    def _measure(self, image: Image | AudioSamples) -> Floats:
        """Measure ``looks`` of an input at the size that the domain was measured at."""
        if self.about.method.hears:
            return measure_audio(fit_length(np.asarray(image, np.float32), self.about.pixels))
        pixels = np.asarray(image, dtype=np.uint8)
        side = self.about.size
        frames = pixels if pixels.ndim == _CLIP_NDIM else pixels[None]
        return measure_image(np.stack([fit_size(frame, (side, side)) for frame in frames]))

    def _prepare(self, inputs: Sequence[Image | AudioSamples]) -> npt.NDArray[np.float32]:
        if self.about.method.hears:
            waves = [np.asarray(sample, dtype=np.float32) for sample in inputs]
            return np.stack([fit_length(wave, self.about.pixels) for wave in waves])
        return to_channels_first(
            [self.show(np.asarray(sample, dtype=np.uint8)) for sample in inputs]
        )

    def judge(
        self,
        image: Image,
        *,
        box: tuple[int, int, int, int],
        face_pixels: float,
        jpeg_quality: int | None,
        coding: str = "",
        prevalence: float = 0.5,
    ) -> DetectorFinding:
        """Score one face and return the finding.

        Args:
            image: The square crop around it, (S, S, 3).
            box: Box of the face in the image.
            face_pixels: Side of the crop in source pixels.
            jpeg_quality: JPEG quality of the image, None for other formats.
            coding: Coding as in ``DecodedImage.coding``; empty skips the comparison.
            prevalence: Share of forgeries among such files.
        """
        views = [image, compress_jpeg(image, 75), rescale(image, 0.75)]
        batch = self.see(views)
        logits = batch.logits
        chances = self.about.calibrator.chances(logits, prevalence)
        colours = "grey" if is_grayscale(image) else "colour"
        reasons = [
            *self.doubts(face_pixels, jpeg_quality),
            *self.find_strange(
                {name: rows[:1] for name, rows in batch.measures.items()},
                colours=colours,
                wide=min(face_pixels, self.about.size),
                coding=coding,
            ),
            *explain_instability(chances),
        ]
        return DetectorFinding(
            self.name,
            self.fingerprint,
            box,
            float(logits[0]),
            None if reasons else float(chances[0]),
            prevalence,
            tuple(reasons),
            learned=self.about.learned,
        )

    def find_strange(
        self,
        measures: Measurements,
        *,
        colours: str = "",
        wide: float = 0.0,
        coding: str = "",
        is_video: bool = False,
    ) -> list[str]:
        """Return reasons why an input is unlike the training set.

        Args:
            measures: Measurements of its unmodified views, (N, D) each.
            colours: ``grey`` or ``colour``; empty or 0 values are not compared.
            wide: Pixels of detail around a face, or the highest frequency with energy.
            coding: Coding of the file.
            is_video: Whether the views are video frames.
        """
        domain = self.about.domain
        if domain is None:
            return ["nothing was kept of what it learned from, to know strangers by: train it anew"]
        unit = "Hz" if self.about.method.hears else "px about a face"
        return [
            *domain.known.doubts(colours=colours, wide=wide, unit=unit, coding=coding),
            *domain.doubts(measures, is_video=is_video),
        ]

    def doubts(self, face_pixels: float, jpeg_quality: int | None) -> list[str]:
        """Return reasons why an input is outside of the validated conditions."""
        doubts = []
        if not self.about.is_shown:
            doubts.append(
                "this detector, with these weights, was not shown to tell forged from real"
            )
        if leak := self.about.audit.get("leak"):
            doubts.append(f"the set it learned from leaks: {leak}")
        if self.about.faces == _DRAWN:
            subject = "voices" if self.about.method.hears else "faces"
            doubts.append(f"it learned from drawn {subject} alone, and says nothing of any others")
        if face_pixels < self.about.least_face:
            doubts.append(
                f"face of {face_pixels / self.about.margin:.0f} px, below the "
                f"{self.about.least_face / self.about.margin:.0f} px it was shown to work on"
            )
        if jpeg_quality is not None and jpeg_quality < self.about.least_quality:
            doubts.append(
                f"JPEG quality {jpeg_quality}, below the {self.about.least_quality} it was shown "
                "to work on"
            )
        return doubts


def write_detector(folder: Path, network: DetectorNetwork, metadata: DetectorMetadata) -> str:
    """Write weights and config as a checkpoint to a folder; return its fingerprint.

    Tensors are float32 in safetensors, under the network's names.
    """
    tensors = {
        name: value.detach().float().cpu().contiguous()
        for name, value in network.state_dict().items()
        if not name.endswith(_UNSAVED_BUFFER)
    }
    arrays = {} if metadata.domain is None else metadata.domain.to_arrays()
    tensors |= {
        f"{_DOMAIN_PREFIX}{name}": torch.from_numpy(value) for name, value in arrays.items()
    }
    config = {
        "model_type": "stillroom-detector",
        "architectures": [type(metadata.method).__name__],
        CONFIG_KEY: replace(metadata, weights=_digest_weights(network)).to_json(),
    }
    plan = {name: ("F32", tuple(value.shape)) for name, value in tensors.items()}
    with CheckpointWriter(folder, config=config, plan=plan, in_place=True) as writer:
        for name in sorted(tensors):
            writer.add(name, tensors[name])
    return Checkpoint.open(folder).fingerprint


def _digest_weights(network: DetectorNetwork) -> str:
    """Return a digest of all weights, by name."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        if not name.endswith(_UNSAVED_BUFFER):
            digest.update(name.encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read_domain(stored: Checkpoint) -> dict[str, npt.NDArray[np.float32]]:
    """Return the arrays of the training domain; empty for older checkpoints."""
    return {
        name.removeprefix(_DOMAIN_PREFIX): stored.tensor(name).float().numpy()
        for name in stored.names()
        if name.startswith(_DOMAIN_PREFIX)
    }


def _fill(network: DetectorNetwork, stored: Checkpoint, path: Path) -> None:
    parameters = {
        name: value
        for name, value in network.state_dict().items()
        if not name.endswith(_UNSAVED_BUFFER)
    }
    names = {name for name in stored.names() if not name.startswith(_DOMAIN_PREFIX)}
    if names != set(parameters):
        missing, extra = sorted(set(parameters) - names), sorted(names - set(parameters))
        difference = f"lacks {missing[0]}" if missing else f"has {extra[0]} besides"
        raise _no_detector(path, f"its weights do not match its network: it {difference}")
    with torch.no_grad():
        for name, value in parameters.items():
            if stored.shape(name) != tuple(value.shape):
                raise _no_detector(path, f"{name} has the shape {stored.shape(name)}")
            value.copy_(stored.tensor(name))


def explain_instability(chances: Floats) -> list[str]:
    """Return a reason if recompression or rescaling reverses the verdict."""
    low, high = UNCERTAIN_RANGE
    if float(chances.max()) > high and float(chances.min()) < low:
        return ["saving the picture again turns the score round"]
    return []


def _no_detector(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a detector: {why}",
        code="forensics.no-detector",
        where=str(path),
        expected="a folder written by stillroom forensics train",
        next="stillroom new forensics/cnn > detector.yaml, and train one",
    )


def load_initial_weights(settings: DetectorSettings, network: DetectorNetwork) -> None:
    """Load the weights of ``settings.start`` into a new network, if set.

    Raises:
        DataError: If the architecture or size differs.
    """
    if settings.start is None:
        return
    start = TrainedDetector.open(Path(settings.start), device="cpu")
    weights, target = start.network.state_dict(), network.state_dict()
    shapes = {name: value.shape for name, value in weights.items()}
    is_alike = shapes == {name: value.shape for name, value in target.items()}
    if start.about.method.method_name() != settings.model.method_name() or not is_alike:
        raise _incompatible_weights(settings, start)
    network.load_state_dict(weights)


def _incompatible_weights(settings: DetectorSettings, start: TrainedDetector) -> DataError:
    return DataError(
        f"detector.start is a {start.about.method.method_name()}: "
        f"{start.about.method.model_dump_json()}",
        code="forensics.other-detector",
        where="detector.start",
        expected=f"a detector equal to detector.model: {settings.model.model_dump_json()}",
        next="name the same method with the same sizes, or use it as detector.teacher",
    )


def build_temporal_head(method: Temporal, path: Path, pixels: int) -> TemporalHead:
    """Build a new temporal head on a trained detector.

    Raises:
        CheckpointError: If ``path`` is not a detector.
        DataError: If its input size differs, or it is temporal itself.
    """
    base = TrainedDetector.open(path, device="cpu")
    if base.about.pixels != pixels or base.about.method.looks_at != 1:
        raise DataError(
            f"{path} is a detector of {base.about.method.looks_at} frame of "
            f"{base.about.pixels} pixels",
            code="forensics.other-detector",
            where="detector.model.checkpoint",
            expected=f"a detector of single images of {pixels} pixels",
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
    return TemporalHead(base.network, method, kept)
