"""Video probing, frame sampling, and in-memory H.264 compression.

Frames are sought by time, never by count, which files often state wrongly. The clip is cut into
equal parts (``frame_num``), and the frame at the middle of each is sampled; where a part holds
keyframes, the nearest of them replaces it, since any other frame has to be decoded from a keyframe.
The time of a frame is its timestamp in the file. Keyframe times come from the file's index, or from
its packets where the index is incomplete, without decoding. Frames are rotated and their colors
converted as the file states. One frame is in memory at a time. Damage is noted, and the readable
part is read.

Encoding uses x264 on one thread, so that the same frames give the same pixels.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stillroom.errors import DataError
from stillroom.forensics.extras import require_packages
from stillroom.forensics.media.face_types import Image

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.stream import VideoStream

__all__ = [
    "VIDEO_SUFFIXES",
    "Clip",
    "Frame",
    "apply_video_codec",
    "describe_error",
    "make_clip_error",
    "open_clip",
    "require_decoder",
    "sample_frames",
]

MAX_FRAME_PIXELS = 60_000_000

VIDEO_SUFFIXES = frozenset(
    [".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".3gp", ".flv", ".wmv"]
)
"""Suffixes of files that are read as clips."""

_DEFAULT_FRAME_RATE = 25.0  # frames per second, where a file states none
_FAR = 1.5  # seconds ahead beyond which to seek, where the file has no index


@dataclass(frozen=True, eq=False)
class Frame:
    """A decoded upright frame: RGB (H, W, 3), and its time in seconds from the start."""

    image: Image
    time: float


@dataclass
class Clip:
    """Properties of a clip as stated by its file.

    ``duration`` is in seconds, 0 if not stated; ``rate`` is the mean number of frames per second.
    ``notes`` collect damage, rotation and missing frames while reading. ``decoded`` counts the
    frames that were decoded.
    """

    path: Path
    has_video: bool
    has_audio: bool
    duration: float = 0.0
    rate: float = 0.0
    width: int = 0
    height: int = 0
    codec: str = ""
    notes: list[str] = field(default_factory=list)
    decoded: int = 0


def open_clip(path: Path) -> Clip:
    """Read the properties of a clip.

    Raises:
        DataError: If it is missing, not media, or too large.
    """
    require_packages("av")
    with _open(path) as container:
        video = _video(container)
        clip = Clip(path, video is not None, bool(container.streams.audio))
        if container.duration:
            clip.duration = container.duration / 1_000_000
        if video is None:
            return clip
        require_decoder(path, video, "video")
        clip.width, clip.height = video.codec_context.width, video.codec_context.height
        clip.codec = video.codec_context.name
        if clip.width * clip.height > MAX_FRAME_PIXELS:
            raise make_clip_error(
                path, f"has frames of {clip.width}x{clip.height} pixels", "smaller frames"
            )
        if video.duration and video.time_base:
            clip.duration = float(video.duration * video.time_base)
        clip.rate = float(video.average_rate or 0)
        return clip


def sample_frames(clip: Clip, count: int = 32, *, exact: bool = False) -> Iterator[Frame]:
    """Yield frames evenly spaced in time, each at most once; fewer where the clip has fewer.

    Args:
        clip: As returned by ``open_clip``; its ``notes`` and ``decoded`` are updated.
        count: Maximum number of frames.
        exact: Decode to the frame shown at each time, rather than take a keyframe nearby.

    Raises:
        DataError: If no frame can be decoded.
    """
    if not clip.has_video:
        raise make_clip_error(clip.path, "has no video", "a clip with a video track")
    num_frames = 0
    with _open(clip.path) as container:
        video = _video(container)
        if video is not None:
            video.thread_type = "AUTO"
            if not clip.duration:
                clip.duration = _measure(clip, count)
            for frame in _FrameSeeker(container, video, clip, exact).at(count):
                num_frames += 1
                yield frame
    if not num_frames:
        raise make_clip_error(clip.path, "has no frame that can be decoded", "a complete clip")
    if num_frames < count and clip.rate * clip.duration > 2 * count:
        clip.notes.append(f"only {num_frames} of {count} frames could be read")


class _FrameSeeker:
    """Iterates over a video from one sample time to the next."""

    def __init__(
        self, container: InputContainer, video: VideoStream, clip: Clip, exact: bool
    ) -> None:
        self.container, self.video, self.clip, self.exact = container, video, clip, exact
        base = video.time_base or Fraction(1, 1000)
        self.base = float(base)
        self.start = float((video.start_time or 0) * base)
        self.lead = 0.0  # seconds by which a seek lands too early
        self.decoding: dict[float, float] = {}  # of keyframes shown at a time: when to decode
        self.is_stream = container.format.name == "mpegts"
        self.keys, self.end = self._read_index()
        if not exact and not self._is_whole():
            self._seek(0.0)  # Matroska loads its index at the first seek
            self.keys, self.end = self._read_index()
            if not self._is_whole():
                self.decoding, self.end = _list_keys(clip.path, self.start)
                self.keys = list(self.decoding)
        self.position = -1.0
        self.shown: av.VideoFrame | None = None
        self.held: av.VideoFrame | None = None  # the next frame, already decoded
        self.frames: Iterator[av.VideoFrame] | None = None

    def _read_index(self) -> tuple[list[float], float]:
        """Return the keyframe times in the file's index, and the time of the last frame."""
        entries = list(self.video.index_entries)
        stamps = {entry.timestamp for entry in entries if entry.is_keyframe}
        first = _read_first(self.clip.path, stamps)
        delay = (first[0] - first[1]) * self.base if first else 0.0
        self.lead = max(self.start - first[0] * self.base, 0.0) if first else 0.0
        begin = self.start - delay
        end = max((entry.timestamp for entry in entries), default=0) * self.base - begin
        return sorted(float(stamp * self.base) - begin for stamp in stamps), max(end, 0.0)

    def _is_whole(self) -> bool:
        """Return whether the index reaches to the end, within the largest gap of keyframes.

        An MPEG transport stream has none: listed are packets near its beginning and its end.
        """
        if self.is_stream:
            return False
        gaps = [later - earlier for earlier, later in pairwise(self.keys)]
        return bool(self.keys) and self.end >= self.clip.duration - max([*gaps, _FAR])

    def at(self, count: int) -> Iterator[Frame]:
        import av

        spacing = self.clip.duration / count
        last = -1.0
        for number in range(count):
            frame = self._find(self._aim((number + 0.5) * spacing, spacing))
            if frame is None:
                continue
            time = self._time(frame)
            if time <= last:
                continue
            last = time
            try:
                image = frame.to_ndarray(format="rgb24")
            except av.FFmpegError as error:
                self._note(f"damaged about {time:.1f} s: {describe_error(error)}")
                continue
            turns = round(float(frame.rotation) / 90) % 4
            if turns:
                self._note("rotated as the file states")
            yield Frame(np.ascontiguousarray(np.rot90(image, turns), dtype=np.uint8), time)
        # The index lists frames up to the end, even of a truncated file.
        if last >= 0 and min(self.end, self.clip.duration) - last > 2.5 * spacing:
            self._note(f"nothing could be read after {last:.1f} s of {self.clip.duration:.1f} s")

    def _aim(self, time: float, spacing: float) -> float:
        """Return the time to decode to: of a keyframe nearby, else the requested one."""
        if self.exact or not self.keys:
            return time
        index = bisect_right(self.keys, time)
        near = min(self.keys[max(index - 1, 0) : index + 1], key=lambda key: abs(key - time))
        # In short clips, a keyframe at the end of its part is still shown at the next middle.
        ahead = spacing / 2 - 1 / (self.clip.rate or _DEFAULT_FRAME_RATE)
        return near if -spacing / 2 <= near - time <= ahead else time

    def _find(self, time: float) -> av.VideoFrame | None:
        """Return the frame shown at a time: the last one that does not start after it."""
        import av

        if self._is_far(time):
            self._seek(time)
        shown = self.held or self.shown
        if self.held is not None and self._time(self.held) > time + self.base:
            return self.shown  # the frame shown until then is already decoded
        try:
            for frame in self._decode():
                self.clip.decoded += 1
                if frame.pts is None:
                    continue
                self.position = self._time(frame)
                if self.position > time + self.base:
                    self.shown, self.held = shown or frame, frame
                    return self.shown
                shown = frame
                # A keyframe at the target: nothing after it needs decoding.
                if bool(frame.key_frame) and abs(self._time(frame) - time) <= self.base:
                    break
        except (av.FFmpegError, EOFError, IndexError) as error:
            self._note(f"damaged about {max(self.position, 0):.1f} s: {describe_error(error)}")
            self.frames = None
            self.position = -1.0
        self.shown, self.held = shown, None
        return shown

    def _decode(self) -> Iterator[av.VideoFrame]:
        if self.frames is None:
            self.frames = iter(self.container.decode(self.video))
        return self.frames

    def _is_far(self, time: float) -> bool:
        """Whether seeking saves decoding: a keyframe lies between the position and the time."""
        if self.position < 0:
            return time > 0
        if self.keys:
            index = bisect_right(self.keys, time + self.base)
            return index > 0 and self.keys[index - 1] > self.position + self.base
        return time - self.position > _FAR

    def _seek(self, time: float) -> None:
        import av

        if self.is_stream and self.decoding:  # any packet is entered, by its time of decoding
            time = self.decoding[self.keys[max(bisect_right(self.keys, time + self.base) - 1, 0)]]
        stamp = int((time + self.start + self.lead) / self.base) + 1
        try:
            self.container.seek(stamp, stream=self.video, backward=True)
        except av.FFmpegError as error:
            self._note(f"cannot be searched: {describe_error(error)}")
            return
        self.frames, self.shown, self.held = None, None, None

    def _time(self, frame: av.VideoFrame) -> float:
        return float((frame.pts or 0) * self.base) - self.start

    def _note(self, line: str) -> None:
        if line not in self.clip.notes:
            self.clip.notes.append(line)


def _iter_packets(path: Path) -> Iterator[Packet[VideoStream]]:
    """Yield the packets of a video, in the order of the file, up to the first damage."""
    import av

    with _open(path) as container:
        video = _video(container)
        # damage is reported where frames are decoded
        with suppress(av.FFmpegError, IndexError):  # PyAV's, where a track begins later
            yield from container.demux(video) if video is not None else ()


def _read_first(path: Path, stamps: Set[int]) -> tuple[int, int] | None:
    """Return presentation and decoding time of the first keyframe, if the index lists the latter.

    An MP4 index lists decoding times. With reordered frames these precede the presentation times,
    for keyframes by a constant. In a clip cut without re-encoding, the first keyframe lies before
    the start, and a seek counts from there. ``stamps`` are the keyframes in the index.
    """
    for packet in _iter_packets(path) if stamps else ():
        if packet.is_keyframe and packet.pts is not None and packet.dts is not None:
            return (packet.pts, packet.dts) if packet.dts in stamps else None
    return None


def _list_keys(path: Path, start: float) -> tuple[dict[float, float], float]:
    """Return when each keyframe is shown and decoded, and the time of the last frame.

    They are read from packets, without decoding.
    """
    keys: dict[float, float] = {}
    last = 0.0
    for packet in _iter_packets(path):
        if packet.pts is not None and packet.time_base is not None:
            last = float(packet.pts * packet.time_base) - start
            if packet.is_keyframe:
                decoded = packet.pts if packet.dts is None else packet.dts
                keys[last] = float(decoded * packet.time_base) - start
    return dict(sorted(keys.items())), last


def _measure(clip: Clip, count: int) -> float:
    """Return the duration of a file that states none from its packets, without decoding."""
    import av

    last = 0.0
    with _open(clip.path) as container:
        video = _video(container)
        if video is None or video.time_base is None:
            return 0.0
        start = video.start_time or 0
        try:
            for packet in container.demux(video):
                if packet.pts is not None:
                    end = packet.pts + (packet.duration or 0) - start
                    last = max(last, float(end * video.time_base))
        except (av.FFmpegError, IndexError) as error:
            clip.notes.append(f"damaged about {last:.1f} s: {describe_error(error)}")
    clip.notes.append("the file does not say how long it is; its packets were counted")
    return last or count / _DEFAULT_FRAME_RATE


def require_decoder(path: Path, stream: Stream, track_type: str) -> None:
    """Raise for a track without an available decoder.

    Raises:
        DataError: If no decoder is available.
    """
    if getattr(stream, "codec_context", None) is None:  # despite PyAV's annotations
        raise make_clip_error(path, f"has {track_type} of an unsupported codec", "a common codec")


def _video(container: InputContainer) -> VideoStream | None:
    """Return the first video stream that is not an attached picture."""
    from av.stream import Disposition

    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    return None


def _open(path: Path) -> InputContainer:
    import av

    if not path.is_file():
        raise make_clip_error(path, "does not exist", "a clip")
    try:
        return av.open(str(path), metadata_errors="ignore")
    except (av.FFmpegError, ValueError) as error:
        raise make_clip_error(
            path, f"is damaged or not a clip: {describe_error(error)}", "a complete file"
        ) from error


def describe_error(error: Exception) -> str:
    """Return PyAV's error message without its number and path."""
    message = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(message).split(":")[0].strip().lower()


def make_clip_error(path: Path, problem: str, expected: str) -> DataError:
    """Return the error for a clip or recording that cannot be used."""
    return DataError(
        f"{path.name} {problem}",
        code="forensics.clip",
        where=str(path),
        expected=expected,
        next="convert or remove it",
    )


_CODEC = "libx264"


def apply_video_codec(frames: Sequence[Image], crf: int) -> list[Image]:
    """Compress frames with H.264 at a constant rate factor; count and size are preserved.

    Args:
        frames: RGB (H, W, 3), all of one size.
        crf: x264's rate factor; 18 is high quality, 28 typical of social networks, 40 poor.

    Raises:
        DataError: If this build of PyAV lacks x264.
    """
    require_packages("av")
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream

    height, width = frames[0].shape[:2]
    out = io.BytesIO()
    try:
        with av.open(out, "w", format="mp4") as container:
            stream = container.add_stream(
                _CODEC, rate=25, options={"crf": str(crf), "preset": "veryfast", "threads": "1"}
            )
            if not isinstance(stream, VideoStream):
                raise ValueError(f"{_CODEC} is not a video codec")
            stream.width, stream.height = width + width % 2, height + height % 2
            stream.pix_fmt = "yuv420p"
            for image in frames:
                even = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    except (av.FFmpegError, ValueError) as error:
        raise DataError(
            f"frames cannot be encoded as H.264: {error}",
            code="forensics.video-coding",
            expected=f"a build of PyAV with {_CODEC}",
            next="pip install --force-reinstall av",
        ) from error
    out.seek(0)
    with av.open(out, "r") as coded:
        if not isinstance(coded, InputContainer):
            raise TypeError("PyAV did not open the file for reading")
        return [
            np.ascontiguousarray(frame.to_ndarray(format="rgb24")[:height, :width], np.uint8)
            for frame in coded.decode(video=0)
        ]
