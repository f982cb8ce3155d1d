"""Scores of faces in a user's video and of audio segments; ``forensics.aggregation`` joins them.

The finding of a clip is that of its highest scoring face. Face crops are scored and released as
they are decoded, so that memory does not grow with the clip.

The overall score is the mean logit of the segments, and its probability is that of one segment with
this score: segments of one face or recording are not independent, so that their number adds no
certainty. The probability is withheld for doubts, and where a harmless edit reverses the score.

An audio segment is scored unchanged, after MP3, and with slight noise. Nearly silent segments are
skipped, and at most 48 segments of a long recording are scored, evenly spaced; the numbers are
noted in the finding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stillroom.forensics.aggregation import aggregate_frame_scores
from stillroom.forensics.inference.results import TrackFinding
from stillroom.forensics.inference.trained_detector import (
    ScoredBatch,
    TrainedDetector,
    explain_instability,
)
from stillroom.forensics.media.audio import (
    SAMPLE_RATE,
    AudioSamples,
    DecodedAudio,
    name_codec,
    read_blocks,
)
from stillroom.forensics.media.face_detection import (
    FaceDetection,
    FaceFinder,
    compute_square_side,
    crop_face,
)
from stillroom.forensics.media.face_types import Image
from stillroom.forensics.media.transforms import compress_jpeg, rescale
from stillroom.forensics.modalities.audio import add_noise, apply_audio_codec
from stillroom.forensics.modalities.image import is_grayscale

__all__ = ["ClipDetectorRunner", "TrackScores", "make_track_finding", "score_recording"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class TrackScores:
    """Scores of one detector for one face or recording over time.

    ``rows`` are logits, (segments, views), the unmodified view first; ``times`` in seconds;
    ``measures`` are measurements of the first view, (segments, D) each.
    """

    times: list[float] = field(default_factory=list)
    rows: list[list[float]] = field(default_factory=list)
    measures: dict[str, list[Floats]] = field(default_factory=dict)

    def add(self, times: Sequence[float], batch: ScoredBatch) -> None:
        """Add the scores of some segments, whose views follow each other.

        Args:
            times: Time of each segment, (R,).
            batch: Scores of all their views, the unmodified view first.
        """
        views = len(batch.logits) // len(times)
        self.times.extend(times)
        self.rows.extend(batch.logits.reshape(len(times), views).tolist())
        for name, rows in batch.measures.items():
            self.measures.setdefault(name, []).extend(rows[::views])


def make_track_finding(
    detector: TrainedDetector,
    face: int,
    scores: TrackScores,
    *,
    prevalence: float,
    reasons: Sequence[str],
    nothing: str,
    notes: Sequence[str] = (),
    is_video: bool = False,
) -> TrackFinding:
    """Return the finding of one face of a clip, or of audio, from its scores over time."""
    finding = TrackFinding(
        detector=detector.name,
        fingerprint=detector.fingerprint,
        logit=0.0,
        chance=None,
        prevalence=prevalence,
        reasons=(*reasons, nothing),
        training_set=detector.metadata.training_set,
        face=face,
        times=(),
        logits=(),
        chances=(),
        top=0.0,
        notes=tuple(notes),
    )
    if not len(scores.rows):
        return finding
    calibrator, views = detector.metadata.calibrator, np.array(scores.rows)
    means, plain = views.mean(axis=0), views[:, 0]
    chances = calibrator.chances(means, prevalence)
    measures = {name: np.stack(rows) for name, rows in scores.measures.items()}
    domain_doubts = detector.find_domain_doubts(measures, is_video=is_video)
    doubts = (*reasons, *domain_doubts, *explain_instability(chances))
    return replace(
        finding,
        logit=float(means[0]),
        chance=None if doubts else float(chances[0]),
        reasons=doubts,
        times=tuple(scores.times),
        logits=tuple(plain.tolist()),
        chances=tuple(calibrator.chances(plain, prevalence).tolist()),
        top=aggregate_frame_scores(plain, "top"),
    )


_IMAGE_BATCH_SIZE = 8
_CODED = "h264"


@dataclass
class _TrackRecord:
    """Accumulated data of one face and one detector: scores, crop sizes, color frames."""

    scores: TrackScores = field(default_factory=TrackScores)
    sizes: list[float] = field(default_factory=list)
    waiting: list[Image] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    seen: int = 0
    num_color: int = 0


class ClipDetectorRunner:
    """Score each face of a clip during a scan, and aggregate the scores at the end."""

    def __init__(
        self, detectors: Sequence[TrainedDetector], finder: FaceFinder, prevalence: float
    ) -> None:
        """Use these face detectors; ``finder`` provides landmarks."""
        self._detectors, self._finder, self._prevalence = tuple(detectors), finder, prevalence
        self._records: dict[tuple[int, int], _TrackRecord] = {}

    def add_face(self, track: int, time: float, image: Image, face: FaceDetection) -> None:
        """Add one face of one frame.

        Args:
            track: Number of the face's track.
            time: Time of the frame, in seconds.
            image: The frame, RGB (H, W, 3).
            face: Its detection in the frame.
        """
        landmarks = self._finder.landmarks(image, face)
        has_color = not is_grayscale(image)
        for index, detector in enumerate(self._detectors):
            read = detector.image_input
            record = self._records.setdefault((track, index), _TrackRecord())
            record.sizes.append(compute_square_side(landmarks, read.face_margin))
            record.seen += 1
            record.num_color += has_color
            square, _ = crop_face(image, landmarks, read.face_size, margin=read.face_margin)
            record.waiting.append(square)
            record.times.append(time)
            if len(record.waiting) == _IMAGE_BATCH_SIZE:
                _score_pending(detector, record)

    def findings(self, bits_per_pixel: float, codec: str = "") -> tuple[TrackFinding, ...]:
        """Return the finding of each detector for each face, in the order of faces.

        Args:
            bits_per_pixel: Of the clip's video; 0 if unknown.
            codec: Name of its decoder; empty if unknown.
        """
        findings = []
        for (track, index), record in sorted(self._records.items()):
            detector = self._detectors[index]
            _score_pending(detector, record)
            findings.append(self._conclude(track, detector, record, bits_per_pixel, codec))
        return tuple(findings)

    def _conclude(
        self,
        track: int,
        detector: TrainedDetector,
        record: _TrackRecord,
        bits_per_pixel: float,
        codec: str,
    ) -> TrackFinding:
        read, side = detector.image_input, float(np.median(record.sizes))
        reasons = [
            *detector.doubts(),
            *read.doubts(side, None),
            *_explain_codec_limit(detector, bits_per_pixel, codec),
        ]
        if (domain := detector.metadata.domain) is not None:
            colors = "color" if 2 * record.num_color > record.seen else "gray"
            reasons += domain.known.doubts(colors=colors, wide=side, unit=read.detail_unit)
        return make_track_finding(
            detector,
            track + 1,
            record.scores,
            prevalence=self._prevalence,
            reasons=reasons,
            nothing="no frame shows the face",
            is_video=True,
        )


def _score_pending(detector: TrainedDetector, record: _TrackRecord) -> None:
    """Score pending images: each unchanged, recompressed, and downscaled and upscaled."""
    if not record.waiting:
        return
    views = [
        view
        for image in record.waiting
        for view in (image, compress_jpeg(image, 75), rescale(image, 0.75))
    ]
    record.scores.add(record.times, detector.score(views))
    record.waiting, record.times = [], []


def _explain_codec_limit(detector: TrainedDetector, bits_per_pixel: float, codec: str) -> list[str]:
    """Return reasons why frames of this clip are outside of the validated conditions."""
    figure = dict(detector.metadata.metrics).get("auc", {}).get(_CODED)
    if figure is None:
        return ["it was not validated on video frames"]
    if not figure.get("low") or figure["low"] <= 0.5:
        return ["after H.264 it was not validated to separate real from forged"]
    if codec not in {"", _CODED}:
        return [f"coded as {codec}, but validated on H.264 video only"]
    if 0 < bits_per_pixel < _MIN_BITS_PER_PIXEL:
        return [f"strongly compressed video ({bits_per_pixel:.3f} bits a pixel)"]
    return []


_MIN_BITS_PER_PIXEL = 0.02  # below a talking head at a rate factor of 28
_MAX_SEGMENTS = 48
_SILENT = 10 ** (-50 / 20)
_NARROW = 4100.0
_REST = 0.05  # seconds; shorter rests are lost in resampling


def score_recording(
    detectors: Sequence[TrainedDetector], path: Path, sound: DecodedAudio, prevalence: float
) -> tuple[TrackFinding, ...]:
    """Score a recording with each audio detector.

    Raises:
        DataError: If nothing can be decoded.
    """
    return tuple(_score_segments(detector, path, sound, prevalence) for detector in detectors)


def _score_segments(
    detector: TrainedDetector, path: Path, sound: DecodedAudio, prevalence: float
) -> TrackFinding:
    length = detector.audio_input.num_samples
    every = max(-(-int(sound.duration * SAMPLE_RATE) // (length * _MAX_SEGMENTS)), 1)
    scores = TrackScores()
    num_silent, num_skipped, num_samples = 0, 0, 0
    for number, run in enumerate(_iterate_segments(path, length)):
        num_samples += len(run)
        if number % every:
            num_skipped += 1
        elif float(np.sqrt(np.mean(run**2))) < _SILENT:
            num_silent += 1
        else:
            views = [
                run,
                apply_audio_codec(run, "mp3", 64_000),
                add_noise(run, 35.0, np.random.default_rng(number)),
            ]
            scores.add([number * length / SAMPLE_RATE], detector.score(views))
    # The parts of the recording that were not scored.
    seconds = length / SAMPLE_RATE
    remainder_s = sound.duration - num_samples / SAMPLE_RATE
    notes = []
    counts = {"between scored segments": num_skipped, "nearly silent": num_silent}
    for reason, count in counts.items():
        if count:
            segments = f"{count} segment{'' if count == 1 else 's'} of {seconds:g} s"
            notes.append(f"skipped {segments}, {reason}")
    if remainder_s >= _REST:
        notes.append(f"the last {remainder_s:.1f} s, too short for a segment, not scored")
    return make_track_finding(
        detector,
        0,
        scores,
        prevalence=prevalence,
        reasons=_list_doubts(detector, sound),
        nothing="all segments are nearly silent",
        notes=notes,
    )


def _iterate_segments(path: Path, length: int) -> Iterator[AudioSamples]:
    """Yield segments of one length; a shorter last segment counts from half the length."""
    waiting: list[AudioSamples] = []
    have, num_segments = 0, 0
    for part in read_blocks(path):
        waiting.append(part)
        have += len(part)
        while have >= length:
            buffered = np.concatenate(waiting)
            yield np.ascontiguousarray(buffered[:length])
            num_segments += 1
            waiting, have = [buffered[length:]], have - length
    if have and (have >= length // 2 or not num_segments):
        yield np.concatenate(waiting)


def _list_doubts(detector: TrainedDetector, sound: DecodedAudio) -> list[str]:
    doubts = detector.doubts()
    if sound.duration < 0.5 * detector.audio_input.seconds:
        doubts.append(f"only {sound.duration:.1f} s of sound")
    figures = dict(detector.metadata.metrics).get("auc", {})
    if sound.band < _NARROW and not (figures.get("telephone", {}).get("low") or 0) > 0.5:
        doubts.append(f"no energy above {sound.band:.0f} Hz, where it was not validated")
    domain = detector.metadata.domain
    if domain is not None:
        band, coding = min(sound.band, SAMPLE_RATE / 2), name_codec(sound.codec)
        doubts += domain.known.doubts(
            wide=band, unit=detector.audio_input.detail_unit, coding=coding
        )
    return doubts
