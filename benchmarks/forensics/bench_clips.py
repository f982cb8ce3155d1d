"""Clips: a face scan beside dlib on every frame, and 32 frames of a long clip beside reading all.

Faces of the shared data where they are there, else drawn ones. dlib is looked for in
build/peers/dlib (package dlib-bin); without it only our figures are printed. dlib's time is of the
frames that were scanned, times the number of frames: on all it takes minutes.
"""

import json
import os
import platform
import resource
import sys
import tempfile
import time
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path

import av
import cv2
import numpy as np

from stillroom.forensics.media.face_detection import FaceFinder
from stillroom.forensics.media.face_tracking import scan_clip
from stillroom.forensics.media.face_types import Image
from stillroom.forensics.media.video import open_clip, sample_frames
from stillroom.forensics.synthesis.faces import draw_face

ROOT = Path(__file__).resolve().parents[2]
FACES = Path(os.environ.get("FACES", "../shared/data/media/faces-synthetic"))
PEER = Path(os.environ.get("PEER", ROOT / "build/peers/dlib"))
RATE, SECONDS, MINUTES = 25, 10, int(os.environ.get("MINUTES", "10"))
REPEATS = int(os.environ.get("REPEATS", "3"))


def load(size: int) -> tuple[list[Image], str]:
    paths = sorted(FACES.glob("*.jpg"))[:3]
    if not paths:
        return [draw_face(0, number, size).image for number in range(3)], "drawn"
    read = [cv2.resize(cv2.imread(str(path)), (size, size)) for path in paths]
    return [np.ascontiguousarray(image[..., ::-1]) for image in read], "synthetic"


def write_clip(path: Path, width: int, height: int, faces: list[Image]) -> None:
    """Write ten seconds in which faces move over a coloured ground."""
    y, x = np.mgrid[0:height, 0:width]
    ground = np.stack([x * 90 / width + 60, y * 90 / height + 60, x * 0 + 110], axis=2)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = 250
        for number in range(RATE * SECONDS):
            image = ground.astype(np.uint8)
            for at, face in enumerate(faces):
                side = face.shape[0]
                left = round((width - side) * (at + 0.5 + 0.4 * np.sin(number / 40)) / len(faces))
                top = (height - side) // 2
                image[top : top + side, left : left + side] = face
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def repeat_clip(source: Path, out: Path, times: int) -> None:
    """Write a clip many times after itself, packets as they are."""
    with av.open(str(out), "w") as target:
        stream, shift = None, 0
        for _ in range(times):
            with av.open(str(source)) as container:
                video = container.streams.video[0]
                stream = stream or target.add_stream_from_template(video)
                for packet in container.demux(video):
                    if packet.dts is None:
                        continue
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = stream
                    target.mux(packet)
                shift += round(Fraction(SECONDS) / video.time_base)


def tell(what: str, value: float, **more: object) -> None:
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(json.dumps({"what": what, "value": value, **more, "machine": machine}), flush=True)


def take(path: str) -> tuple[float, float, int]:
    """Return CPU seconds, peak memory in MB and decoded frames of taking 32 frames."""
    start = time.process_time()
    clip = open_clip(Path(path))
    count = sum(1 for _ in sample_frames(clip, 32))
    assert count == 32
    spent = time.process_time() - start
    return spent, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, clip.decoded


def read_all(path: str) -> tuple[float, float]:
    """Return the same of reading every frame and keeping every so many."""
    start = time.process_time()
    kept = 0
    with av.open(path) as container:
        video = container.streams.video[0]
        video.thread_type = "AUTO"
        step = max(MINUTES * 60 * RATE // 32, 1)
        for number, frame in enumerate(container.decode(video)):
            if number % step == 0 and kept < 32:
                frame.to_ndarray(format="rgb24")
                kept += 1
    return time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_long(folder: Path) -> None:
    faces, kind = load(160)
    write_clip(folder / "short.mp4", 640, 360, faces[:2])
    repeat_clip(folder / "short.mp4", folder / "long.mp4", MINUTES * 6)
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        ours = [pool.apply(take, (str(folder / "long.mp4"),)) for _ in range(REPEATS)]
        short = pool.apply(take, (str(folder / "short.mp4"),))
        peer = pool.apply(read_all, (str(folder / "long.mp4"),))
    spent = sorted(one[0] for one in ours)[REPEATS // 2]
    tell(
        "forensics/sample/long_clip_vs_read_all",
        round(peer[0] / spent, 1),
        ours_cpu_s=round(spent, 3),
        peer_cpu_s=round(peer[0], 3),
        decoded=ours[0][2],
        frames=MINUTES * 60 * RATE,
        memory_mb=round(ours[0][1], 1),
        memory_mb_of_10_s=round(short[1], 1),
        peer_memory_mb=round(peer[1], 1),
        faces=kind,
        n=REPEATS,
    )


def overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    left, top = max(one[0], other[0]), max(one[1], other[1])
    right = min(one[0] + one[2], other[0] + other[2])
    bottom = min(one[1] + one[3], other[1] + other[3])
    both = max(right - left, 0) * max(bottom - top, 0)
    return both / (one[2] * one[3] + other[2] * other[3] - both)


def measure_scan(folder: Path) -> None:
    faces, kind = load(280)
    write_clip(folder / "hd.mp4", 1280, 720, faces)
    finder, spent = FaceFinder(), []
    for _ in range(REPEATS):
        start = time.process_time()
        scan = scan_clip(open_clip(folder / "hd.mp4"), finder=finder)
        spent.append(time.process_time() - start)
    ours = sorted(spent)[REPEATS // 2]
    if not PEER.is_dir():
        tell("forensics/scan/720p_cpu_s", round(ours, 3), faces=kind)
        return
    sys.path.insert(0, str(PEER))
    import dlib

    find, total, same, seen = dlib.get_frontal_face_detector(), 0.0, 0, 0
    boxes = {
        round(sight.time, 3): [s.box for t in scan.tracks for s in t.sights if s.time == sight.time]
        for track in scan.tracks
        for sight in track.sights
    }
    frames = list(sample_frames(open_clip(folder / "hd.mp4"), 32))
    for frame in frames:
        start = time.process_time()
        found = find(frame.image, 0)
        total += time.process_time() - start
        for face in found:
            box = (face.left(), face.top(), face.width(), face.height())
            seen += 1
            same += any(overlap(box, own) >= 0.4 for own in boxes.get(round(frame.time, 3), []))
    start = time.process_time()
    with av.open(str(folder / "hd.mp4")) as container:
        count = sum(
            1 for frame in container.decode(video=0) if frame.to_ndarray(format="rgb24").any()
        )
    peer = time.process_time() - start + total / len(frames) * count
    tell(
        "forensics/scan/720p_vs_dlib",
        round(peer / ours, 1),
        ours_cpu_s=round(ours, 3),
        peer_cpu_s=round(peer, 2),
        peer_frames_measured=len(frames),
        frames=count,
        faces_of_peer=seen,
        found_by_both=same,
        faces_of_ours=sum(len(track.sights) for track in scan.tracks),
        tracks=len(scan.tracks),
        faces=kind,
        n=REPEATS,
    )


def main() -> None:
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        measure_scan(Path(name))
        measure_long(Path(name))


if __name__ == "__main__":
    main()
