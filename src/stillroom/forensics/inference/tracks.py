"""Detector scores of faces in video and of audio segments, aggregated over time.

What is said of a face is said by ``concluding``. The clip's finding is that of its strongest face.
Squares about faces are scored as they come and let go, so memory does not grow with the clip. A
detector over time is shown no frames that lie seconds apart, but runs of frames in a row.

The whole's score is the mean of its runs' logits, and its chance what the calibration says of one
run with that score, no more: runs of one face or one recording are not independent, so that many of
them make no finding surer. It is withheld where there are reasons, or where a treatment that should
not matter turns it round.

A run is scored as it is, after MP3, and with a little noise. Runs that are nearly silent are passed
over, and of a long recording so many that at most 48 are heard, evenly over it; how many is noted
with the finding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stillroom.forensics.inference.domain import is_grayscale
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
from stillroom.forensics.media.augmentation import add_noise, apply_audio_codec
from stillroom.forensics.media.face import Image
from stillroom.forensics.media.face_detection import (
    FaceDetection,
    FaceFinder,
    compute_square_side,
    crop_square,
)
from stillroom.forensics.media.face_tracking import (
    MAX_FACES,
    FaceTrack,
    FrameSequence,
    read_frame_sequences,
    select_faces,
)
from stillroom.forensics.media.transforms import compress_jpeg, rescale
from stillroom.forensics.media.video import Clip

__all__ = [
    "ClipDetectorRunner",
    "TrackScores",
    "aggregate_scores",
    "score_recording",
]


Floats = npt.NDArray[np.float64]


_TOP_SHARE = 0.2


@dataclass(frozen=True, eq=False)
class TrackScores:
    """What a detector made of one face or sound over time.

    ``rows`` are logits, (runs, views), the first view as it came; ``times`` in seconds;
    ``measures`` are what was measured of the first view, (runs, D) each.
    """

    times: list[float] = field(default_factory=list)
    rows: list[list[float]] = field(default_factory=list)
    measures: dict[str, list[Floats]] = field(default_factory=dict)

    def add(self, times: Sequence[float], seen: ScoredBatch) -> None:
        """Add what was seen of some runs, whose views follow each other.

        Args:
            times: Of the runs, (R,).
            seen: Of all their views, the first as it came.
        """
        views = len(seen.logits) // len(times)
        self.times.extend(times)
        self.rows.extend(seen.logits.reshape(len(times), views).tolist())
        for name, rows in seen.measures.items():
            self.measures.setdefault(name, []).extend(rows[::views])


def aggregate_scores(
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
    """Return what may be said of one face of a clip, or of a sound.

    Args:
        detector: Whose scores they are.
        face: The face's number, 0 for a sound.
        scores: Over time; there may be none.
        prevalence: Share of forgeries among such files.
        reasons: Why no chance is given, if there are any.
        nothing: The reason where there is no score.
        notes: What was not looked at or heard.
        is_video: Whether the scores are of frames of video.
    """
    if not len(scores.rows):
        return TrackFinding(
            *(detector.name, detector.fingerprint, face, (), (), ()),
            *(0.0, 0.0, None, prevalence, (*reasons, nothing), tuple(notes)),
            learned=detector.about.learned,
        )
    calibrator, views = detector.about.calibrator, np.array(scores.rows)
    means, plain = views.mean(axis=0), views[:, 0]
    chances = calibrator.chances(means, prevalence)
    measures = {name: np.stack(rows) for name, rows in scores.measures.items()}
    strange = detector.find_strange(measures, is_video=is_video)
    against = (*reasons, *strange, *explain_instability(chances))
    top = np.sort(plain)[-max(round(_TOP_SHARE * len(plain)), 1) :]
    return TrackFinding(
        detector.name,
        detector.fingerprint,
        face,
        tuple(scores.times),
        tuple(float(value) for value in plain),
        tuple(float(value) for value in calibrator.chances(plain, prevalence)),
        float(means[0]),
        float(top.mean()),
        None if against else float(chances[0]),
        prevalence,
        against,
        tuple(notes),
        detector.about.learned,
    )


_IMAGE_BATCH_SIZE = 8


_CODED = "h264"


@dataclass
class _TrackRecord:
    """What is kept of one face before one detector: scores, sizes, in how many frames colour."""

    scores: TrackScores = field(default_factory=TrackScores)
    sizes: list[float] = field(default_factory=list)
    waiting: list[Image] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    seen: int = 0
    coloured: int = 0


class ClipDetectorRunner:
    """Is shown each face of a clip as a scan finds it, and says in the end what detectors make."""

    def __init__(
        self, detectors: Sequence[TrainedDetector], finder: FaceFinder, prevalence: float
    ) -> None:
        """Stand over detectors of faces; ``finder`` gives landmarks."""
        self._detectors, self._finder, self._prevalence = tuple(detectors), finder, prevalence
        self._records: dict[tuple[int, int], _TrackRecord] = {}
        self._read: set[int] = set()

    def see(self, track: int, time: float, image: Image, face: FaceDetection) -> None:
        """Take in one face of one frame.

        Args:
            track: Number of the face's track.
            time: The frame's, in seconds.
            image: The frame, RGB (H, W, 3).
            face: As it was found in it.
        """
        landmarks = self._finder.landmarks(image, face)
        is_coloured = not is_grayscale(image)
        for at, detector in enumerate(self._detectors):
            about = detector.about
            record = self._records.setdefault((track, at), _TrackRecord())
            record.sizes.append(compute_square_side(landmarks, about.margin))
            record.seen += 1
            record.coloured += is_coloured
            if about.method.looks_at > 1:
                continue  # it is shown frames in a row, by ``watch``
            square, _ = crop_square(image, landmarks, about.size, margin=about.margin)
            record.waiting.append(square)
            record.times.append(time)
            if len(record.waiting) == _IMAGE_BATCH_SIZE:
                _score_pending(detector, record)

    def watch(self, clip: Clip, tracks: Sequence[FaceTrack]) -> None:
        """Show detectors over time some runs of frames in a row of the faces that were found.

        Args:
            clip: The clip that is scanned.
            tracks: Its faces.
        """
        heads = {
            at: detector.about.method.looks_at
            for at, detector in enumerate(self._detectors)
            if detector.about.method.looks_at > 1
        }
        chosen = select_faces(tracks)
        self._read = {track.number for track in chosen}
        for frames in sorted(set(heads.values())):
            for burst in read_frame_sequences(clip, chosen, frames, self._finder):
                for at, looks_at in heads.items():
                    record = self._records.get((burst.track, at))
                    if looks_at == frames and record is not None:
                        self._judge_run(self._detectors[at], record, burst)

    def _judge_run(
        self, detector: TrainedDetector, record: _TrackRecord, burst: FrameSequence
    ) -> None:
        """Score a run of frames of one face, in the same three views as pictures."""
        about = detector.about
        squares = [
            crop_square(
                image, self._finder.landmarks(image, face), about.size, margin=about.margin
            )[0]
            for image, face in zip(burst.images, burst.faces, strict=True)
        ]
        views = [
            np.stack(squares),
            np.stack([compress_jpeg(frame, 75) for frame in squares]),
            np.stack([rescale(frame, 0.75) for frame in squares]),
        ]
        record.scores.add([burst.times[0]], detector.see(views))

    def courses(self, bits_per_pixel: float, codec: str = "") -> tuple[TrackFinding, ...]:
        """Return what each detector makes of each face, in the faces' order.

        Args:
            bits_per_pixel: Of the clip's video; 0 if it is not known.
            codec: Its decoder's name; empty if it is not known.
        """
        found = []
        for (track, at), record in sorted(self._records.items()):
            detector = self._detectors[at]
            if detector.about.method.looks_at == 1:
                _score_pending(detector, record)
            found.append(self._conclude(track, detector, record, bits_per_pixel, codec))
        return tuple(found)

    def _conclude(
        self,
        track: int,
        detector: TrainedDetector,
        record: _TrackRecord,
        bits_per_pixel: float,
        codec: str,
    ) -> TrackFinding:
        frames, side = detector.about.method.looks_at, float(np.median(record.sizes))
        reasons = [
            *detector.doubts(side, None),
            *_explain_codec_limit(detector, bits_per_pixel, codec),
        ]
        if (domain := detector.about.domain) is not None:
            colours = "colour" if 2 * record.coloured > record.seen else "grey"
            wide = min(side, detector.about.size)
            reasons += domain.known.doubts(colours=colours, wide=wide, unit="px about a face")
        few = f"seen in {record.seen} frames of one face, fewer than the {frames} it looks at"
        if record.seen >= frames:
            few = f"no {frames} frames in a row show the face"
            if track not in self._read:
                few = f"not one of the {MAX_FACES} widest faces, which are read frame by frame"
        return aggregate_scores(
            detector,
            track + 1,
            record.scores,
            prevalence=self._prevalence,
            reasons=reasons,
            nothing=few,
            is_video=True,
        )


def _score_pending(detector: TrainedDetector, record: _TrackRecord) -> None:
    """Score waiting pictures: each as it is, saved again, and reduced and enlarged."""
    if not record.waiting:
        return
    views = [
        view
        for image in record.waiting
        for view in (image, compress_jpeg(image, 75), rescale(image, 0.75))
    ]
    record.scores.add(record.times, detector.see(views))
    record.waiting, record.times = [], []


def _explain_codec_limit(detector: TrainedDetector, bits_per_pixel: float, codec: str) -> list[str]:
    """Return why frames of this clip lie outside of what the detector was shown to work on."""
    figure = dict(detector.about.figures).get("auc", {}).get(_CODED)
    if figure is None:
        return ["what it makes of frames of video was not measured"]
    if not figure.get("low") or figure["low"] <= 0.5:
        return ["after H.264 it was not shown to tell forged from real"]
    if codec not in {"", _CODED}:
        return [f"coded as {codec}, and of video it was tried on H.264 alone"]
    if 0 < bits_per_pixel < _MIN_BITS_PER_PIXEL:
        return [f"strongly compressed video ({bits_per_pixel:.3f} bits a pixel)"]
    return []


_MIN_BITS_PER_PIXEL = 0.02  # below what a rate factor of 28 takes for a talking head


_MAX_SEGMENTS = 48


_SILENT = 10 ** (-50 / 20)


_NARROW = 4100.0


_REST = 0.05  # seconds; less than that is lost in resampling


def score_recording(
    detectors: Sequence[TrainedDetector], path: Path, sound: DecodedAudio, prevalence: float
) -> tuple[TrackFinding, ...]:
    """Return what each detector of sounds makes of a recording.

    Args:
        detectors: Those that hear.
        path: The file; its first audio track is heard.
        sound: What was found of it before.
        prevalence: Share of forgeries among such files.

    Raises:
        DataError: If nothing of it can be decoded.
    """
    return tuple(_score_segments(detector, path, sound, prevalence) for detector in detectors)


def _score_segments(
    detector: TrainedDetector, path: Path, sound: DecodedAudio, prevalence: float
) -> TrackFinding:
    length = detector.about.pixels
    every = max(-(-int(sound.duration * SAMPLE_RATE) // (length * _MAX_SEGMENTS)), 1)
    scores = TrackScores()
    silent, between, heard = 0, 0, 0
    for number, run in enumerate(_iterate_segments(path, length)):
        heard += len(run)
        if number % every:
            between += 1
        elif float(np.sqrt(np.mean(run**2))) < _SILENT:
            silent += 1
        else:
            views = [
                run,
                apply_audio_codec(run, "mp3", 64_000),
                add_noise(run, 35.0, _make_rng(number)),
            ]
            scores.add([number * length / SAMPLE_RATE], detector.see(views))
    return aggregate_scores(
        detector,
        0,
        scores,
        prevalence=prevalence,
        reasons=_list_doubts(detector, sound),
        nothing="nothing but silence was heard",
        notes=_describe_unscored(
            length / SAMPLE_RATE, between, silent, sound.duration - heard / SAMPLE_RATE
        ),
    )


def _describe_unscored(seconds: float, between: int, silent: int, rest: float) -> list[str]:
    """Return what of a recording was not heard, a clause each."""
    found = []
    counts = {"between those heard": between, "nearly silent": silent}
    for which, count in counts.items():
        if count:
            runs = f"{count} run{'' if count == 1 else 's'} of {seconds:g} s"
            found.append(f"passed over {runs} {which}")
    if rest >= _REST:
        found.append(f"the last {rest:.1f} s, too short for a run, not heard")
    return found


def _iterate_segments(path: Path, length: int) -> Iterator[AudioSamples]:
    """Yield runs of one length; a last one that is shorter by less than half is yielded too."""
    waiting: list[AudioSamples] = []
    have, found = 0, 0
    for part in read_blocks(path):
        waiting.append(part)
        have += len(part)
        while have >= length:
            whole = np.concatenate(waiting)
            yield np.ascontiguousarray(whole[:length])
            found += 1
            waiting, have = [whole[length:]], have - length
    if have and (have >= length // 2 or not found):
        yield np.concatenate(waiting)


def _list_doubts(detector: TrainedDetector, sound: DecodedAudio) -> list[str]:
    found = list(detector.doubts(float("inf"), None))
    if sound.duration < 0.5 * detector.about.pixels / SAMPLE_RATE:
        found.append(f"only {sound.duration:.1f} s of sound")
    figures = dict(detector.about.figures).get("auc", {})
    if sound.band < _NARROW and not (figures.get("telephone", {}).get("low") or 0) > 0.5:
        found.append(f"no energy above {sound.band:.0f} Hz, where it was not shown to work")
    domain = detector.about.domain
    if domain is not None:
        band, coding = min(sound.band, SAMPLE_RATE / 2), name_codec(sound.codec)
        found += domain.known.doubts(wide=band, unit="Hz", coding=coding)
    return found


def _make_rng(number: int) -> np.random.Generator:
    return np.random.default_rng(number)
