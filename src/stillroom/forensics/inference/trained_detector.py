"""TrainedDetector: loading, scoring, and the metadata of a detector checkpoint.

A score is evidence of the traces a detector was trained on, nothing more. Calibration on validation
faces maps it to a probability at the requested prevalence. The probability is withheld where the
input is worse than the validated conditions or out of domain, where small re-encodings reverse the
score, where the training set leaks, or where the detector was never validated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import TypeAdapter

from stillroom.checkpoints import Checkpoint, CheckpointWriter
from stillroom.errors import CheckpointError, DataError, RecipeError
from stillroom.forensics.inference.domain import Measurements, TrainingDomain
from stillroom.forensics.inference.results import (
    UNCERTAIN_RANGE,
    Calibrator,
    DetectorFinding,
    TrainingSetInfo,
)
from stillroom.forensics.interfaces import AUDIO_DETECTORS, IMAGE_DETECTORS, Detector
from stillroom.forensics.media.face_types import Image
from stillroom.forensics.media.transforms import compress_jpeg, rescale
from stillroom.forensics.modalities.audio import AudioModality
from stillroom.forensics.modalities.image import ImageModality, is_grayscale
from stillroom.forensics.modalities.interfaces import Modality
from stillroom.forensics.networks.interfaces import DetectorNetwork, record_activations
from stillroom.models.local.causal_lm import choose_device
from stillroom.registry import Registry

__all__ = [
    "CONFIG_KEY",
    "DetectorMetadata",
    "ScoredBatch",
    "TrainedDetector",
    "explain_instability",
    "load_initial_weights",
    "select_weights",
    "write_detector",
]

CONFIG_KEY = "stillroom_detector"
_DRAWN = "drawn"  # origin of faces and voices that are drawn by program

_MODALITIES: Mapping[str, tuple[Registry[Any], type[Modality]]] = {
    "image": (IMAGE_DETECTORS, ImageModality),
    "audio": (AUDIO_DETECTORS, AudioModality),
}

_VERSION = 5  # 4 and before: domains of other measurements, which are not read
_DOMAIN_PREFIX = "domain."  # prefix of tensors that are not the network's
_DAMAGE = (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError, RecipeError)
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class DetectorMetadata:
    """Metadata of a detector besides its weights.

    ``modality`` is what it reads; ``trained_on`` names the forgeries, and ``source`` the origin of
    the faces or voices; ``is_validated`` states whether it was validated, with ``metrics`` on test
    people; ``weights`` is the digest of the weights at validation; ``training_set`` describes the
    training set, ``audit`` is the result of its audit, and ``domain`` detects inputs unlike it.
    """

    method: Detector
    modality: Modality
    calibrator: Calibrator
    trained_on: tuple[str, ...] = ()
    source: str = ""
    is_validated: bool = False
    metrics: Mapping[str, Any] = field(default_factory=dict)
    network_config: Mapping[str, Any] = field(default_factory=dict)
    weights: str = ""
    training_set: TrainingSetInfo = field(default_factory=TrainingSetInfo)
    audit: Mapping[str, Any] = field(default_factory=dict)
    domain: TrainingDomain | None = None

    @property
    def limitations(self) -> tuple[str, ...]:
        """Known limitations, one sentence each."""
        names = ", ".join(self.trained_on)
        training_note = (
            f"It was trained on {names}; a low score says nothing about other forgeries.",
        )
        return (*self.method.limitations, *(training_note if names else ()))

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        return {
            "version": _VERSION,
            "method": self.method.model_dump(mode="json"),
            "input": self.modality.to_json(),
            "calibration": asdict(self.calibrator),
            "trained_on": list(self.trained_on),
            "source": self.source,
            "is_validated": self.is_validated,
            "limitations": list(self.limitations),
            "metrics": dict(self.metrics),
            "network_config": dict(self.network_config),
            "weights": self.weights,
            "training_set": asdict(self.training_set),
            "audit": dict(self.audit),
            "domain": None if self.domain is None else self.domain.to_json(),
        }

    @classmethod
    def from_json(
        cls, data: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[np.float32]]
    ) -> DetectorMetadata:
        """Restore metadata from ``to_json`` values; ``arrays`` are those of the domain."""
        domain = data["domain"] if data["version"] == _VERSION else None
        read = dict(data["input"])
        read.pop("num_frames", None)  # 1, in the files of earlier versions
        registry, modality = _MODALITIES[read.pop("modality")]
        return cls(
            registry.build(data["method"]),
            TypeAdapter(modality).validate_python(read),
            TypeAdapter(Calibrator).validate_python(data["calibration"]),
            TypeAdapter(tuple[str, ...]).validate_python(data["trained_on"]),
            str(data["source"]),
            bool(data["is_validated"]),
            dict(data["metrics"]),
            dict(data["network_config"]),
            str(data["weights"]),
            TypeAdapter(TrainingSetInfo).validate_python(data["training_set"]),
            dict(data["audit"]),
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
        self.network, self.metadata, self.fingerprint = network.eval(), metadata, fingerprint
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
            raise _invalid_detector(path, "its config.json has no detector metadata")
        try:
            metadata = DetectorMetadata.from_json(data, _read_domain(stored))
            network = metadata.method.rebuild(metadata.modality.input_size, metadata.network_config)
        except _DAMAGE as error:
            raise _invalid_detector(path, f"its metadata is damaged ({error})") from error
        _fill(network, stored, path)
        if metadata.is_validated and _digest_weights(network) != metadata.weights:
            # Merged, fine-tuned or quantized elsewhere: the validation is of other weights.
            metadata = replace(metadata, is_validated=False)
        return cls(network.to(choose_device(device)), metadata, stored.fingerprint)

    @property
    def name(self) -> str:
        """Name of the method and its training forgeries, as used in verdicts."""
        names = "+".join(self.metadata.trained_on)
        return f"{self.metadata.method.method_name()}{f' of {names}' if names else ''}"

    @property
    def image_input(self) -> ImageModality:
        """Input of an image detector.

        Raises:
            DataError: If it is an audio detector.
        """
        if not isinstance(self.metadata.modality, ImageModality):
            raise DataError(
                f"{self.name} is not an image detector",
                code="forensics.other-detector",
                expected="a detector of images, here as teacher",
                next="name a run of kind forensics.image_detector",
            )
        return self.metadata.modality

    @property
    def audio_input(self) -> AudioModality:
        """Input of an audio detector.

        Raises:
            TypeError: If it is an image detector.
        """
        if not isinstance(self.metadata.modality, AudioModality):
            raise TypeError(f"{self.name} is not an audio detector")
        return self.metadata.modality

    def logits(self, samples: Sequence[Any]) -> Floats:
        """Return raw scores of face crops, or of waveforms, (N,); higher is forged."""
        return self._run(samples).logits

    def score(self, samples: Sequence[Any]) -> ScoredBatch:
        """Return scores with measurements for out-of-domain detection; inputs as for ``logits``."""
        batch = self._run(samples)
        looks = np.stack([self.metadata.modality.measure(sample) for sample in samples])
        return replace(batch, measures={**batch.measures, "looks": looks})

    def _run(self, samples: Sequence[Any]) -> ScoredBatch:
        logits: list[float] = []
        measures: dict[str, list[Floats]] = {}
        modality = self.metadata.modality
        for start in range(0, len(samples), modality.batch_size):
            batch = samples[start : start + modality.batch_size]
            inputs = torch.from_numpy(modality.prepare(batch)).to(self.device)
            with torch.inference_mode(), record_activations(self.network, len(batch)) as layers:
                judged = self.network.forward_features(inputs)
            logits += judged.logits.double().cpu().tolist()
            parts = {"features": judged.features}
            if layers:
                parts["layers"] = torch.cat(layers, dim=1)
            for name, value in parts.items():
                measures.setdefault(name, []).append(value.double().cpu().numpy())
        all_measures = {name: np.concatenate(rows) for name, rows in measures.items()}
        return ScoredBatch(np.array(logits), all_measures)

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
        batch = self.score(views)
        logits = batch.logits
        chances = self.metadata.calibrator.chances(logits, prevalence)
        colors = "gray" if is_grayscale(image) else "color"
        reasons = [
            *self.doubts(),
            *self.image_input.doubts(face_pixels, jpeg_quality),
            *self.find_domain_doubts(
                {name: rows[:1] for name, rows in batch.measures.items()},
                colors=colors,
                wide=face_pixels,
                coding=coding,
            ),
            *explain_instability(chances),
        ]
        return DetectorFinding(
            detector=self.name,
            fingerprint=self.fingerprint,
            box=box,
            logit=float(logits[0]),
            chance=None if reasons else float(chances[0]),
            prevalence=prevalence,
            reasons=tuple(reasons),
            training_set=self.metadata.training_set,
        )

    def find_domain_doubts(
        self,
        measures: Measurements,
        *,
        colors: str = "",
        wide: float = 0.0,
        coding: str = "",
        is_video: bool = False,
    ) -> list[str]:
        """Return reasons why an input is unlike the training set.

        Args:
            measures: Measurements of its unmodified views, (N, D) each.
            colors: ``gray`` or ``color``; empty or 0 values are not compared.
            wide: Pixels of detail around a face, or the highest frequency with energy.
            coding: Coding of the file.
            is_video: Whether the views are video frames.
        """
        domain = self.metadata.domain
        if domain is None:
            return ["its training domain was not stored, or by an earlier version: retrain it"]
        unit = self.metadata.modality.detail_unit
        return [
            *domain.known.doubts(colors=colors, wide=wide, unit=unit, coding=coding),
            *domain.doubts(measures, is_video=is_video),
        ]

    def doubts(self) -> list[str]:
        """Return reasons to withhold any probability."""
        doubts = []
        if not self.metadata.is_validated:
            doubts.append(
                "this detector, with these weights, was not validated to separate real from forged"
            )
        if leak := self.metadata.audit.get("leak"):
            doubts.append(f"its training set leaks: {leak}")
        if self.metadata.source == _DRAWN:
            subject = self.metadata.modality.subject
            doubts.append(f"it was trained on drawn {subject} only, which do not represent others")
        return doubts


def write_detector(folder: Path, network: DetectorNetwork, metadata: DetectorMetadata) -> str:
    """Write weights and config as a checkpoint to a folder; return its fingerprint.

    Tensors are float32 in safetensors, under the network's names.
    """
    tensors = {
        name: value.detach().float().cpu().contiguous()
        for name, value in select_weights(network).items()
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


def select_weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers of a network that its checkpoint stores."""
    return {
        name: value
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


def _digest_weights(network: DetectorNetwork) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(select_weights(network).items()):
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
    parameters = select_weights(network)
    names = {name for name in stored.names() if not name.startswith(_DOMAIN_PREFIX)}
    if names != set(parameters):
        missing, extra = sorted(set(parameters) - names), sorted(names - set(parameters))
        difference = f"lacks {missing[0]}" if missing else f"has {extra[0]} besides"
        raise _invalid_detector(path, f"its weights do not match its network: it {difference}")
    with torch.no_grad():
        for name, value in parameters.items():
            if stored.shape(name) != tuple(value.shape):
                raise _invalid_detector(path, f"{name} has the shape {stored.shape(name)}")
            value.copy_(stored.tensor(name))
            if not value.isfinite().all():
                raise _invalid_detector(path, f"{name} has numbers that are not finite")


def explain_instability(chances: Floats) -> list[str]:
    """Return a reason if recompression or rescaling reverses the verdict."""
    low, high = UNCERTAIN_RANGE
    if float(chances.max()) > high and float(chances.min()) < low:
        return ["recompression or rescaling reverses the verdict"]
    return []


def _invalid_detector(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a detector: {why}",
        code="forensics.no-detector",
        where=str(path),
        expected="the folder of a job of kind forensics.image_detector or forensics.audio_detector",
        next="stillroom new forensics.image_detector > detector.yaml, and train one",
    )


def load_initial_weights(path: Path, method: Detector, network: DetectorNetwork) -> None:
    """Load the weights of a trained detector into a new network of the same method.

    Raises:
        DataError: If the architecture or size differs.
    """
    start = TrainedDetector.open(path, device="cpu")
    weights, target = start.network.state_dict(), network.state_dict()
    shapes = {name: value.shape for name, value in weights.items()}
    is_alike = shapes == {name: value.shape for name, value in target.items()}
    other = start.metadata.method
    if other.method_name() != method.method_name() or not is_alike:
        raise DataError(
            f"initial_weights is a {other.method_name()}: {other.model_dump_json()}",
            code="forensics.other-detector",
            where="initial_weights",
            expected=f"a detector equal to model: {method.model_dump_json()}",
            next="name the same method with the same sizes, or use it as teacher",
        )
    network.load_state_dict(weights)
