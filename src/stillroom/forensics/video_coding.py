"""What H.264 leaves of frames: encoded and decoded in memory, nothing is written.

Encoding is by x264 on one thread, so that the same frames come out as the same pixels.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from stillroom.errors import DataError
from stillroom.forensics.extras import need
from stillroom.forensics.face import Image

__all__ = ["code_frames"]

_CODEC = "libx264"


def code_frames(frames: Sequence[Image], crf: int, *, fps: int = 25) -> list[Image]:
    """Return frames after H.264 at a constant rate factor; as many, of the same size.

    Args:
        frames: RGB (H, W, 3), all of one size.
        crf: x264's rate factor; 18 is fine, 28 is what networks send, 40 is poor.
        fps: Frames a second, which sets how long a keyframe lasts.

    Raises:
        DataError: If this build of PyAV has no x264.
    """
    need("av")
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream

    height, width = frames[0].shape[:2]
    out = io.BytesIO()
    try:
        with av.open(out, "w", format="mp4") as container:
            stream = container.add_stream(
                _CODEC, rate=fps, options={"crf": str(crf), "preset": "veryfast", "threads": "1"}
            )
            if not isinstance(stream, VideoStream):
                raise ValueError(f"{_CODEC} is no video codec")
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
            raise TypeError("a file that was opened for reading is read")
        return [
            np.ascontiguousarray(frame.to_ndarray(format="rgb24")[:height, :width], np.uint8)
            for frame in coded.decode(video=0)
        ]
