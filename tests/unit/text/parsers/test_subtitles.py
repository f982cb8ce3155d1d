"""Subtitle files give what is said, with exact bytes and the moment of each line."""

import pytest

from stillroom.text import parse_bytes

VTT = (
    "WEBVTT\n\nNOTE made by hand\n\nfirst\n00:01.000 --> 00:03.500 align:start\n"
    "<v Ada>The still is made of copper.</v>\n\n01:01:05.000 --> 01:01:09.000\nÉtain, not zinc\n"
)


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_cues_lose_numbers_times_and_markup_and_keep_their_bytes(ending):
    text = "1\n00:00:01,000 --> 00:00:03,500\nThe still is made\nof <b>copper</b>.\n\n2\n" + (
        "00:01:05,000 --> 00:01:09,000\nIt holds twelve litres.\n"
    )
    data = text.replace("\n", ending).encode()
    document = parse_bytes(data, "a.srt")
    assert document.text == "The still is made\nof copper.\nIt holds twelve litres."
    assert document.metadata["cues"] == 2
    at = document.text.index("It holds")
    place = document.locate(at, len(document.text))
    assert place.label == "0:01:05"
    assert place.is_exact
    assert data[place.byte_start : place.byte_end] == b"It holds twelve litres."
    marked = document.locate(document.text.index("of copper"), document.text.index("It holds") - 1)
    assert not marked.is_exact
    assert data[marked.byte_start : marked.byte_end] == b"of <b>copper</b>."


def test_webvtt_notes_and_names_of_cues_are_no_speech():
    document = parse_bytes(VTT.encode(), "a.vtt")
    assert document.text == "The still is made of copper.\nÉtain, not zinc"
    at = document.text.index("Étain")
    place = document.locate(at, len(document.text))
    assert place.label == "1:01:05"
    assert VTT.encode()[place.byte_start : place.byte_end].decode() == "Étain, not zinc"


def test_a_cue_whose_times_are_broken_is_counted():
    text = "1\n00:00:01,000 --> 00:00:03,500\nCopper.\n\n2\n00:99:x --> 00:00:09,000\nZinc.\n"
    document = parse_bytes(text.encode(), "a.srt")
    assert document.text == "Copper."
    assert document.metadata["cues_left_out"] == 1
    assert "cues_left_out" not in parse_bytes(VTT.encode(), "a.vtt").metadata


def test_a_file_without_cues_is_read_as_it_stands():
    document = parse_bytes(b"Only a sentence.\n", "a.srt")
    assert document.text == "Only a sentence.\n"
    assert document.metadata["cues"] == 0
