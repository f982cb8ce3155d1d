"""TrainedDetector: loading, scoring, and the metadata of a detector checkpoint.

A score is evidence of the traces a detector learned, nothing more. It becomes a chance through the
calibration on validation faces, at the prevalence that is asked for; and it is withheld where the
picture is worse than what the detector was shown to work on or unlike what it learned from, where
small re-encodings turn it round, where the set it learned from leaks, or where it never was shown
to work at all.
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


_DRAWN = "drawn"  # as bases and voices name what a program drew


_IMAGE_BATCH_SIZE = 32


_AUDIO_BATCH_SIZE = 4  # a raw wave of four seconds takes a quarter of a gigabyte in aasist


_CLIP_NDIM = 4  # dimensions of a clip, (T, H, W, 3)


_UNSAVED_BUFFER = "num_batches_tracked"


_DOMAIN_PREFIX = "domain."  # the tensors beside the network's


Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class DetectorMetadata:
    """What is kept of a detector beside its weights.

    Of a detector that hears, ``pixels`` are samples and ``size`` samples a second. Else
    ``size`` is the side of the square about a face that it learned from, ``margin`` that side in
    sizes of the landmarks' box; ``least_face`` (pixels of such a square) and ``least_quality`` (of
    JPEG) bound what it was shown to work on; ``is_shown`` says whether it was at all; ``weights``
    is the digest of the weights that all this was measured with; ``learned`` names the set,
    ``audit`` is what its audit found, and ``domain`` tells strangers from what it learned.
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
        """What it cannot see, a sentence each."""
        names = ", ".join(self.learned_from)
        own = (f"It learned from {names}; of other forgeries its silence says nothing.",)
        return (*self.method.blind, *(own if names else ()))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
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
        """Read what ``to_json`` wrote; ``arrays`` are the domain's.

        Of version 1, nothing says what was learned from: its domain is None.
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
    """What a detector makes of N things: logits (N,), and what was measured of them, (N, D) each.

    ``measures`` are its ``features``, what its ``layers`` carry if it has such, and ``looks``.
    """

    logits: Floats
    measures: Measurements


class TrainedDetector:
    """A network with what is known of it; use ``open``."""

    def __init__(
        self, network: DetectorNetwork, about: DetectorMetadata, fingerprint: str = ""
    ) -> None:
        """Judge with a network, in evaluation mode."""
        self.network, self.about, self.fingerprint = network.eval(), about, fingerprint
        self.device = next(network.parameters()).device

    @classmethod
    def open(cls, path: Path, *, device: str = "auto") -> TrainedDetector:
        """Open a detector's checkpoint or the run that left it.

        Raises:
            CheckpointError: If it is missing, damaged, or no detector of this program.
            MissingExtraError: If a package it needs is not here.
        """
        stored = Checkpoint.open(path)
        data = stored.config.get(CONFIG_KEY)
        if not isinstance(data, dict):
            raise _no_detector(path, "config.json does not say so")
        try:
            about = DetectorMetadata.from_json(data, _read_domain(stored))
        except (KeyError, TypeError, ValueError, RecipeError) as error:
            raise _no_detector(path, f"what it says of itself is damaged ({error})") from error
        network = about.method.rebuild(about.pixels, about.kept)
        _fill(network, stored, path)
        if about.is_shown and _digest_weights(network) != about.weights:
            # Merged, tuned or quantized elsewhere: what was measured is of other weights.
            about = replace(about, is_shown=False)
        return cls(network.to(choose_device(device)), about, stored.fingerprint)

    @property
    def name(self) -> str:
        """The method's name and what it learned from, as verdicts say it."""
        names = "+".join(self.about.learned_from)
        return f"{self.about.method.method_name()}{f' of {names}' if names else ''}"

    def show(self, image: Image) -> Image:
        """Return what the network is given of a square about a face, (P, P, 3); of clips alike."""
        if image.ndim == _CLIP_NDIM:
            return np.stack([self.show(frame) for frame in image])
        side = self.about.size
        fitted = fit_size(image, (side, side))
        keeps = self.about.method.keeps_pixels
        window = center_window(side, self.about.pixels, keeps_pixels=keeps)
        return cut_window(fitted, window, self.about.pixels)

    def logits(self, images: Sequence[Image | AudioSamples]) -> Floats:
        """Return raw scores of squares about faces, or of sounds, (N,); higher is forged."""
        return self._run(images).logits

    def see(self, images: Sequence[Image | AudioSamples]) -> ScoredBatch:
        """Return scores with what tells strangers from what was learned; images as ``logits``."""
        seen = self._run(images)
        looks = np.stack([self._measure(image) for image in images])
        return replace(seen, measures={**seen.measures, "looks": looks})

    def _run(self, images: Sequence[Image | AudioSamples]) -> ScoredBatch:
        logits: list[float] = []
        measures: dict[str, list[Floats]] = {}
        count = _AUDIO_BATCH_SIZE if self.about.method.hears else _IMAGE_BATCH_SIZE
        for start in range(0, len(images), count):
            some = images[start : start + count]
            planes = self._prepare(some)
            with torch.inference_mode(), record_activations(self.network, len(some)) as layers:
                judged = self.network.judge(torch.from_numpy(planes).to(self.device))
            logits += judged.logits.double().cpu().tolist()
            parts = {"features": judged.features}
            if layers and self.about.method.looks_at == 1:
                parts["layers"] = torch.cat(layers, dim=1)
            for name, value in parts.items():
                measures.setdefault(name, []).append(value.double().cpu().numpy())
        whole = {name: np.concatenate(rows) for name, rows in measures.items()}
        return ScoredBatch(np.array(logits), whole)

    def _measure(self, image: Image | AudioSamples) -> Floats:
        """Return the looks of a thing at the size that the domain was measured at."""
        if self.about.method.hears:
            return measure_audio(fit_length(np.asarray(image, np.float32), self.about.pixels))
        pixels = np.asarray(image, dtype=np.uint8)
        side = self.about.size
        frames = pixels if pixels.ndim == _CLIP_NDIM else pixels[None]
        return measure_image(np.stack([fit_size(frame, (side, side)) for frame in frames]))

    def _prepare(self, some: Sequence[Image | AudioSamples]) -> npt.NDArray[np.float32]:
        if self.about.method.hears:
            waves = [np.asarray(one, dtype=np.float32) for one in some]
            return np.stack([fit_length(wave, self.about.pixels) for wave in waves])
        return to_channels_first([self.show(np.asarray(one, dtype=np.uint8)) for one in some])

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
        """Return what may be said of one face.

        Args:
            image: The square about it, (S, S, 3).
            box: The face's place in the picture.
            face_pixels: The square's side in the picture's own pixels.
            jpeg_quality: The picture's, None where it is no JPEG.
            coding: The picture's, as ``Picture.coding`` names it; empty is not compared.
            prevalence: Share of forgeries among such files.
        """
        views = [image, compress_jpeg(image, 75), rescale(image, 0.75)]
        seen = self.see(views)
        logits = seen.logits
        chances = self.about.calibrator.chances(logits, prevalence)
        colours = "grey" if is_grayscale(image) else "colour"
        reasons = [
            *self.doubts(face_pixels, jpeg_quality),
            *self.find_strange(
                {name: rows[:1] for name, rows in seen.measures.items()},
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
        """Return why what was seen is unlike what the detector learned from.

        Args:
            measures: Of its views as they came, (N, D) each.
            colours: ``grey`` or ``colour``; what is empty or 0 is not compared.
            wide: Pixels about a face that carry detail, or the highest frequency with energy.
            coding: How the file is coded.
            is_video: Whether views are frames of video.
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
        """Return why a picture lies outside of what the detector was shown to work on."""
        found = []
        if not self.about.is_shown:
            found.append(
                "this detector, with these weights, was not shown to tell forged from real"
            )
        if leak := self.about.audit.get("leak"):
            found.append(f"the set it learned from leaks: {leak}")
        if self.about.faces == _DRAWN:
            what = "voices" if self.about.method.hears else "faces"
            found.append(f"it learned from drawn {what} alone, and says nothing of any others")
        if face_pixels < self.about.least_face:
            found.append(
                f"face of {face_pixels / self.about.margin:.0f} px, below the "
                f"{self.about.least_face / self.about.margin:.0f} px it was shown to work on"
            )
        if jpeg_quality is not None and jpeg_quality < self.about.least_quality:
            found.append(
                f"JPEG quality {jpeg_quality}, below the {self.about.least_quality} it was shown "
                "to work on"
            )
        return found


def write_detector(folder: Path, network: DetectorNetwork, about: DetectorMetadata) -> str:
    """Write weights and config as a checkpoint into a folder; return its fingerprint.

    Tensors are float32 in safetensors, under the network's own names.
    """
    tensors = {
        name: value.detach().float().cpu().contiguous()
        for name, value in network.state_dict().items()
        if not name.endswith(_UNSAVED_BUFFER)
    }
    arrays = {} if about.domain is None else about.domain.to_arrays()
    tensors |= {
        f"{_DOMAIN_PREFIX}{name}": torch.from_numpy(value) for name, value in arrays.items()
    }
    config = {
        "model_type": "stillroom-detector",
        "architectures": [type(about.method).__name__],
        CONFIG_KEY: replace(about, weights=_digest_weights(network)).to_json(),
    }
    plan = {name: ("F32", tuple(value.shape)) for name, value in tensors.items()}
    with CheckpointWriter(folder, config=config, plan=plan, in_place=True) as writer:
        for name in sorted(tensors):
            writer.add(name, tensors[name])
    return Checkpoint.open(folder).fingerprint


def _digest_weights(network: DetectorNetwork) -> str:
    """Return a digest of all weights, by name."""
    found = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        if not name.endswith(_UNSAVED_BUFFER):
            found.update(name.encode())
            found.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _read_domain(stored: Checkpoint) -> dict[str, npt.NDArray[np.float32]]:
    """Return the arrays that tell strangers from what was learned; none in older checkpoints."""
    return {
        name.removeprefix(_DOMAIN_PREFIX): stored.tensor(name).float().numpy()
        for name in stored.names()
        if name.startswith(_DOMAIN_PREFIX)
    }


def _fill(network: DetectorNetwork, stored: Checkpoint, path: Path) -> None:
    own = {
        name: value
        for name, value in network.state_dict().items()
        if not name.endswith(_UNSAVED_BUFFER)
    }
    names = {name for name in stored.names() if not name.startswith(_DOMAIN_PREFIX)}
    if names != set(own):
        missing, extra = sorted(set(own) - names), sorted(names - set(own))
        what = f"lacks {missing[0]}" if missing else f"has {extra[0]} besides"
        raise _no_detector(path, f"its weights are another network's: it {what}")
    with torch.no_grad():
        for name, value in own.items():
            if stored.shape(name) != tuple(value.shape):
                raise _no_detector(path, f"{name} has the shape {stored.shape(name)}")
            value.copy_(stored.tensor(name))


def explain_instability(chances: Floats) -> list[str]:
    """Return why a chance is not to be relied on: saving the picture again turns it round."""
    low, high = UNCERTAIN_RANGE
    if float(chances.max()) > high and float(chances.min()) < low:
        return ["saving the picture again turns the score round"]
    return []


def _no_detector(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is no detector: {why}",
        code="forensics.no-detector",
        where=str(path),
        expected="a folder that stillroom forensics train left",
        next="stillroom new forensics/cnn > detector.yaml, and train one",
    )


def load_initial_weights(settings: DetectorSettings, network: DetectorNetwork) -> None:
    """Fill a new network with the weights of ``settings.start``, where one is named.

    Raises:
        DataError: If that is of another make or size.
    """
    if settings.start is None:
        return
    start = TrainedDetector.open(Path(settings.start), device="cpu")
    given, own = start.network.state_dict(), network.state_dict()
    shapes = {name: value.shape for name, value in given.items()}
    is_alike = shapes == {name: value.shape for name, value in own.items()}
    if start.about.method.method_name() != settings.model.method_name() or not is_alike:
        raise _incompatible_weights(settings, start)
    network.load_state_dict(given)


def _incompatible_weights(settings: DetectorSettings, start: TrainedDetector) -> DataError:
    return DataError(
        f"detector.start is a {start.about.method.method_name()}: "
        f"{start.about.method.model_dump_json()}",
        code="forensics.other-detector",
        where="detector.start",
        expected=f"a detector as detector.model: {settings.model.model_dump_json()}",
        next="name the same method with the same sizes, or use it as detector.teacher",
    )


def build_temporal_head(method: Temporal, path: Path, pixels: int) -> TemporalHead:
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
    return TemporalHead(base.network, method, kept)
