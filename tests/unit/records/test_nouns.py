import time

import pytest

from stillroom.errors import DataError
from stillroom.records import (
    Anchor,
    Document,
    Heading,
    Link,
    Message,
    Origin,
    Passage,
    Record,
    combine_origins,
    make_content_id,
)

TEXT = "Héllo wörld. Next."
DOCUMENT = Document(
    "a/b.md",
    "d" * 64,
    "text/markdown",
    TEXT,
    (Anchor(0, 12, 10, 24, 1, "", True), Anchor(13, 18, 30, 99, 2, "part", False)),
    (Heading(0, 1, "Top"), Heading(6, 2, "In"), Heading(13, 1, "Next")),
    origin=Origin("human", (Link("read"),), "MIT"),
    metadata={"k": [1]},
)


def test_nouns_come_back_from_json():
    assert Document.from_json(DOCUMENT.to_json()) == DOCUMENT
    passage = Passage(DOCUMENT.id, 0, 5, TEXT[:5], DOCUMENT.locate(0, 5), ("Top",), "t", "fr")
    assert Passage.from_json(passage.to_json()) == passage
    record = Record((Message("user", "x"),), {"a": 1}, DOCUMENT.origin)
    assert Record.from_json(record.to_json()) == record


def test_an_exact_anchor_is_narrowed_to_the_bytes_of_the_text():
    place = DOCUMENT.locate(1, 5)
    source = b" " * 10 + TEXT[:12].encode()
    assert source[place.byte_start : place.byte_end].decode() == TEXT[1:5]
    assert place.is_exact
    wide = DOCUMENT.locate(3, 18)
    assert (wide.byte_end, wide.pages, wide.label, wide.is_exact) == (99, (1, 2), "part", False)


def test_headings_enclose_what_follows():
    assert DOCUMENT.heading_path(0) == ("Top",)
    assert DOCUMENT.heading_path(7) == ("Top", "In")
    assert DOCUMENT.heading_path(15) == ("Next",)


def test_ids_follow_from_contents():
    one = Record((Message("user", "x"),), {"a": 1, "b": 2})
    assert one.id == Record((Message("user", "x"),), {"b": 2, "a": 1}).id
    assert one.id != Record((Message("user", "y"),), {"a": 1, "b": 2}).id
    assert make_content_id("rec", "\ud800").startswith("rec-")


def test_a_mixture_is_never_called_purer_than_its_parts():
    human, synthetic = Origin("human", license="MIT"), Origin("synthetic", license="CC0-1.0")
    assert combine_origins([human, human]).kind == "human"
    assert combine_origins([human, Origin()]).kind == "unknown"
    mixed = combine_origins([human, synthetic, Origin()])
    assert (mixed.kind, mixed.license) == ("synthetic", "CC0-1.0 AND MIT")
    assert combine_origins([]).kind == "unknown"


def test_what_is_no_turn_and_no_origin_is_refused():
    for bad in [{"role": "king", "content": "x"}, {"role": "user", "content": None}, {}]:
        with pytest.raises(DataError) as caught:
            Message.from_json(bad)
        assert caught.value.code == "data.message"
    with pytest.raises(DataError) as caught:
        Origin.from_json({"kind": "alien"})
    assert caught.value.code == "data.origin"


@pytest.mark.parametrize(
    ("licenses", "joined"),
    [
        (["MIT", "MIT"], "MIT"),
        (["PSF-2.0 AND MIT", "MIT", ""], "MIT AND PSF-2.0"),
        (["MIT OR Apache-2.0"], "MIT OR Apache-2.0"),
        (["MIT OR Apache-2.0", "PSF-2.0"], "(MIT OR Apache-2.0) AND PSF-2.0"),
        (
            ["(MIT OR Apache-2.0)", "MIT OR Apache-2.0", "CC0-1.0"],
            "(MIT OR Apache-2.0) AND CC0-1.0",
        ),
        ([], ""),
    ],
)
def test_licenses_are_joined_once_each(licenses, joined):
    assert combine_origins(Origin("human", license=one) for one in licenses).license == joined


def test_a_place_beyond_the_texts_end_has_the_bytes_up_to_the_anchors_end():
    document = Document("a.txt", "d" * 64, "text/plain", "abc", (Anchor(0, 9, 0, 9, 0, "", True),))
    assert (document.locate(1, 7).byte_start, document.locate(1, 7).byte_end) == (1, 9)


def test_a_place_far_into_a_long_text_is_found_without_copying_the_text():
    size = 50_000_000
    anchors = (Anchor(0, size, 0, size, 0, "", True),)
    document = Document("a.txt", "d" * 64, "text/plain", "a" * size, anchors)
    start = time.process_time()
    for position in range(0, size, 25_000):
        place = document.locate(position, position + 100)
        assert (place.byte_start, place.byte_end) == (position, position + 100)
    assert time.process_time() - start < 2  # copies of the text on both sides: ten times as long
