"""Looking at clips and sounds for a check: what they are, whose faces, which frames are marked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError, MissingExtraError
from stillroom.forensics.clips import Clip, open_clip, space_frames
from stillroom.forensics.findings import Course
from stillroom.forensics.lab import Lab
from stillroom.forensics.pulse import Pulse, feel_pulses
from stillroom.forensics.scanning import Scan, scan_clip
from stillroom.forensics.sounds import Sound, hear_sound
from stillroom.forensics.tracing import FrameMarks, Trace, trace_sound

if TYPE_CHECKING:
    from stillroom.forensics.clip_judging import Witness
    from stillroom.forensics.judging import Judges

__all__ = ["ClipLook", "find_mark", "look_at_clip", "look_at_sound"]

_FRAMES = 32


@dataclass(frozen=True)
class ClipLook:
    """What was seen and heard of a clip.

    ``sound`` is None where there is no audio track; ``trace`` is the lab's mark of the first frame
    that carries one, ``marked`` how many of the frames looked at do; ``scan`` is None where no face
    detector is here or the file has no video.
    """

    clip: Clip
    scan: Scan | None = None
    sound: Sound | None = None
    trace: Trace | None = None
    marked: int = 0
    limits: tuple[str, ...] = ()
    courses: tuple[Course, ...] = ()
    pulses: tuple[Pulse, ...] = ()

    def lines(self) -> list[str]:
        """Return what it is, and the faces over time."""
        clip, lines = self.clip, []
        if clip.has_video:
            lines.append(
                f"video: {clip.duration:.1f} s, {clip.width}x{clip.height}, {clip.codec}, "
                f"{clip.rate:.4g} frames a second on average"
            )
        lines.append(f"sound: {self.sound.line()}" if self.sound else "sound: no audio track")
        if self.scan is not None:
            scan = self.scan
            lines.append(
                f"looked at: {len(scan.times)} frames, {clip.decoded} decoded, {scan.shots} shot"
                f"{'' if scan.shots == 1 else 's'}"
            )
            lines += [
                f"face {number}: {track.line()}"
                for number, track in enumerate(scan.tracks, start=1)
            ]
            if not scan.tracks:
                lines.append("faces: none found")
        lines += [f"pulse: {pulse.line()}" for pulse in self.pulses]
        if self.marked:
            lines.append(f"marked frames: {self.marked} of those looked at")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        clip = self.clip
        return {
            "duration": clip.duration,
            "width": clip.width,
            "height": clip.height,
            "codec": clip.codec or None,
            "rate": clip.rate,
            "sound": self.sound.to_json() if self.sound else None,
            "scan": self.scan.to_json() if self.scan else None,
            "marked_frames": self.marked,
            "pulses": [pulse.to_json() for pulse in self.pulses],
        }


def look_at_clip(
    path: Path,
    lab: Lab | None = None,
    *,
    count: int = _FRAMES,
    judges: Judges | None = None,
    with_pulse: bool = False,
) -> ClipLook:
    """Look at evenly spaced frames of a clip, and listen to its first audio track.

    Args:
        path: The file.
        lab: Whose watermark is looked for in the frames, as they stand.
        count: How many frames.
        judges: The detectors that are shown the faces; None shows them to none.
        with_pulse: Look for a pulse in faces, which decodes up to 20 seconds of frames.

    Raises:
        DataError: If the file is no clip, or nothing of it can be decoded.
    """
    clip = open_clip(path)
    if not (clip.has_video or clip.has_audio):
        raise DataError(
            f"{path.name} holds neither video nor sound",
            code="forensics.clip",
            where=str(path),
            expected="a clip or a recording",
            next="leave it out",
        )
    limits = [] if clip.has_video else ["the file holds no video"]
    marks = FrameMarks(lab) if lab is not None else None
    witness = judges.witness() if judges is not None and clip.has_video else None
    scan = _watch(clip, count, marks, limits, witness) if clip.has_video else None
    sound = _listen(path, limits) if clip.has_audio else None
    pulses = _feel(clip, limits) if with_pulse and scan is not None and scan.tracks else ()
    if witness is not None and scan is not None:
        witness.watch(clip, scan.tracks)
    courses = witness.courses(_bits_per_pixel(clip), clip.codec) if witness is not None else ()
    courses += _hear(judges, path, sound, limits)
    notes = (*clip.notes, *limits)
    look = ClipLook(clip, scan, sound, None, 0, notes, courses, pulses)
    return look if marks is None else _with_marks(look, path, marks)


def look_at_sound(path: Path, lab: Lab | None = None, *, judges: Judges | None = None) -> ClipLook:
    """Listen to a recording.

    Args:
        path: The file.
        lab: Whose watermark is looked for.
        judges: The detectors, of which those that hear are asked.

    Raises:
        DataError: If it holds no sound that can be decoded.
    """
    sound = hear_sound(path)
    limits = list(sound.limits())
    return ClipLook(
        Clip(path, False, True, sound.duration),
        sound=sound,
        trace=trace_sound(path, lab) if lab is not None else None,
        courses=_hear(judges, path, sound, limits),
        limits=tuple(limits),
    )


def find_mark(look: ClipLook, path: Path, lab: Lab) -> ClipLook:
    """Return what was seen and heard without a lab, with what its key finds in the same frames.

    Args:
        look: Made of the same file.
        path: The file.
        lab: Whose watermark is looked for.

    Raises:
        DataError: If it can no longer be decoded.
    """
    marks = FrameMarks(lab)
    if look.clip.has_video:
        for frame in space_frames(open_clip(path), _FRAMES):
            marks.look(frame.image)
    return _with_marks(look, path, marks)


def _with_marks(look: ClipLook, path: Path, marks: FrameMarks) -> ClipLook:
    """Return a look with the mark of the first frame that has one, else of the sound."""
    trace = marks.trace(path if look.sound is not None else None)
    return replace(look, trace=trace, marked=len(marks.payloads))


def _hear(
    judges: Judges | None, path: Path, sound: Sound | None, limits: list[str]
) -> tuple[Course, ...]:
    """Return what detectors of sounds make of it; where it cannot be coded, the rest counts."""
    if judges is None or sound is None:
        return ()
    try:
        return judges.listen(path, sound)
    except DataError as error:
        limits.append(f"no detector heard it: {error.problems[0].what}")
        return ()


def _watch(
    clip: Clip,
    count: int,
    marks: FrameMarks | None,
    limits: list[str],
    witness: Witness | None,
) -> Scan | None:
    """Scan a clip for faces, and its frames for the lab's mark; what limits that is added."""
    look = marks.look if marks is not None else None
    try:
        see = witness.see if witness is not None else None
        scan = scan_clip(clip, count=count, look=look, see=see)
    except (MissingExtraError, DataError) as error:
        if isinstance(error, DataError) and error.code != "forensics.model":
            raise
        limits.append(f"faces were not looked for: {error.problems[0].what}")
        for frame in space_frames(clip, count):
            if look is not None:
                look(frame.image)
        return None
    limits += scan.limits()
    return scan


def _feel(clip: Clip, limits: list[str]) -> tuple[Pulse, ...]:
    """Look for a pulse in the faces; where frames cannot be read, the rest still counts."""
    try:
        return feel_pulses(clip, bits_per_pixel=_bits_per_pixel(clip))
    except DataError as error:
        limits.append(f"no pulse was looked for: {error.problems[0].what}")
        return ()


def _bits_per_pixel(clip: Clip) -> float:
    """Return the bits of a file a pixel and frame, 0 where the file does not say enough."""
    pixels = clip.width * clip.height * clip.rate * clip.duration
    return 8 * clip.path.stat().st_size / pixels if pixels else 0.0


def _listen(path: Path, limits: list[str]) -> Sound | None:
    """Hear a clip's sound; where it cannot be decoded, the rest of the clip still counts."""
    try:
        sound = hear_sound(path)
    except DataError as error:
        limits.append(error.problems[0].what)
        return None
    limits += sound.limits()
    return sound
