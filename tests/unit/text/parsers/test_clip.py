"""Films and recordings are read by what they carry in words, and labelled with moments."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest

from stillroom.errors import DataError
from stillroom.text import parse_bytes

SRT = (
    "1\n00:00:01,000 --> 00:00:03,500\nThe still is made of copper.\n\n"
    "2\n00:01:05,000 --> 00:01:09,000\n<i>It holds</i> twelve litres,\nand no more.\n"
)


def write_clip(*, srt="", title="", chapters=(), form="matroska", others=()):
    """Return a film of two grey frames, with subtitle tracks, a title and chapters."""
    out = io.BytesIO()
    with av.open(out, "w", format=form) as container:
        if title:
            container.metadata["title"] = title
        if chapters:
            container.set_chapters(
                [
                    {
                        "id": number,
                        "start": start,
                        "end": start + 10,
                        "time_base": Fraction(1, 1),
                        "metadata": {"title": name},
                    }
                    for number, (start, name) in enumerate(chapters)
                ]
            )
        video = container.add_stream("mpeg4", rate=1)
        video.width = video.height = 32
        video.pix_fmt = "yuv420p"
        tracks = []
        for text, language in [(srt, "eng"), *others]:
            if text:
                given = av.open(io.BytesIO(text.encode()), format="srt")
                track = container.add_stream_from_template(given.streams[0])
                track.metadata["language"] = language
                tracks.append((given, track))
        for _ in range(2):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 90, np.uint8), format="rgb24")
            container.mux(video.encode(frame))
        container.mux(video.encode())
        for given, track in tracks:
            for packet in given.demux(given.streams[0]):
                if packet.dts is not None:
                    packet.stream = track
                    container.mux(packet)
    return out.getvalue()


def test_subtitles_chapters_and_title_are_read_and_lead_to_the_moment():
    data = write_clip(
        srt=SRT,
        title="How a still works",
        chapters=[(0, "The pot"), (60, "The measure")],
        others=[("1\n00:00:01,000 --> 00:00:02,000\nDie Blase ist aus Kupfer.\n", "ger")],
    )
    document = parse_bytes(data, "talks/still.mkv")
    assert document.title == "How a still works"
    assert document.text.split("\n\n") == [
        "Title: How a still works",
        "## The pot",
        "The still is made of copper.",
        "## The measure",
        "It holds twelve litres,\nand no more.",
    ]
    assert [heading.title for heading in document.headings] == ["The pot", "The measure"]
    assert document.metadata["subtitles"] == "eng"
    assert document.metadata["subtitles_left_out"] == ["ger"]
    at = document.text.index("twelve litres")
    place = document.locate(at, at + 6)
    assert place.label == "0:01:05"
    assert (place.byte_start, place.byte_end, place.is_exact) == (0, len(data), False)


def test_a_film_without_words_is_refused_and_says_that_speech_is_not_transcribed():
    with pytest.raises(DataError) as told:
        parse_bytes(write_clip(), "silent.mkv")
    assert told.value.code == "document.no-text"
    assert "not transcribed" in told.value.problems[0].expected


@pytest.mark.parametrize("name", ["cut.mkv", "cut.mp4", "cut.mp3"])
def test_a_broken_film_is_a_clear_error(name):
    with pytest.raises(DataError) as told:
        parse_bytes(write_clip(srt=SRT)[:200] if name == "cut.mkv" else b"\0\1" * 400, name)
    assert told.value.code in {"document.unreadable", "document.no-text"}
