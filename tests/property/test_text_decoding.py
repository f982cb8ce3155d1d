"""Decoded text leads back to its bytes, whatever they are."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stillroom.errors import DataError
from stillroom.text.documents.markup import tokenize
from stillroom.text.encoding import ByteMap, build_anchors, decode_text
from stillroom.text.language import split_sentences
from stillroom.text.unicode import split_words, strip_invisible, token_f1

TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\x00\ufeff"), max_size=300
)


@settings(max_examples=200, deadline=None)
@given(text=TEXT, encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]))
def test_every_character_of_a_marked_encoding_maps_to_its_bytes(text, encoding):
    data = text.encode(encoding)
    decoded = decode_text(data, "x")
    if encoding == "utf-8" and decoded.encoding != "utf-8":
        return
    assert decoded.text == text
    where = ByteMap(decoded)
    for position in range(0, len(text), 7):
        start, end = where.at(position), where.at(position + 1)
        assert data[start:end].decode(decoded.encoding) == text[position]


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=400))
def test_any_bytes_are_text_or_refused_and_anchors_tile_them(data):
    try:
        decoded = decode_text(data, "x")
    except DataError:
        return
    anchors = build_anchors(decoded)
    position = 0
    for anchor in anchors:
        assert anchor.start == position < anchor.end
        assert 0 <= anchor.byte_start <= anchor.byte_end <= len(data)
        position = anchor.end
    assert position == len(decoded.text)
    decoded.text.encode("utf-8")


@settings(max_examples=200, deadline=None)
@given(
    parts=st.lists(
        st.sampled_from(
            [
                "<p>",
                "</p>",
                "<a href='",
                '"',
                ">",
                "<",
                "<!--",
                "-->",
                "text ",
                "&amp;",
                "<script>",
                "</script>",
                "<table><tr><td>",
                "</table>",
                "<li>",
                "<![CDATA[",
                "]]>",
                "</",
                "<b/>",
                "='",
                "é中",
            ]
        ),
        max_size=40,
    )
)
def test_tokens_of_any_markup_are_in_order_and_apart(parts):
    text = "".join(parts)
    position = 0
    for token in tokenize(text):
        assert position <= token.start < token.end <= len(text)
        position = token.end


@given(text=TEXT)
def test_sentences_cover_all_but_white_space(text):
    position = 0
    for start, end in split_sentences(text):
        assert start < end
        assert not text[position:start].strip()
        assert text[start:end].strip() == text[start:end]
        position = end
    assert not text[position:].strip()


@given(text=TEXT, other=TEXT)
def test_normalizing_is_stable_and_scores_are_shares(text, other):
    assert strip_invisible(strip_invisible(text)) == strip_invisible(text)
    assert split_words(" ".join(split_words(text))) == split_words(text)
    assert token_f1(text, text) == 1.0
    assert 0.0 <= token_f1(text, other) <= 1.0
    assert token_f1(text, other) == token_f1(other, text)


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(st.sampled_from("ab é中\n"), min_size=1, max_size=60),
    encoding=st.sampled_from(["utf-8-sig", "utf-16", "utf-32"]),
    cut=st.integers(0, 200),
    byte=st.binary(max_size=2),
)
def test_a_damaged_text_with_a_mark_leads_to_bytes_of_the_file(text, encoding, cut, byte):
    data = text.encode(encoding)
    data = data[:4] + data[4:][:cut] + byte + data[4:][cut + 1 :]
    decoded = decode_text(data, "x")
    anchors = build_anchors(decoded)
    assert [one.byte_end for one in anchors[:-1]] == [one.byte_start for one in anchors[1:]]
    assert (anchors[-1].byte_end if anchors else len(data)) == len(data)


@pytest.mark.parametrize(
    ("text", "encoding", "declared"),
    [
        ("こんにちは、世界。", "iso2022_jp", ""),
        ("こんにちは、世界。", "iso2022_jp", "ISO-2022-JP"),
        ("안녕하세요 세계", "iso2022_kr", ""),
        ("你好，世界", "hz", "hz-gb-2312"),
        ("Grüße, Öl", "utf-7", "UTF-7"),
    ],
)
def test_text_of_seven_bits_is_read_and_leads_to_all_of_its_bytes(text, encoding, declared):
    spare = b"\x1b(B" if encoding == "iso2022_jp" else b""
    data = text.encode(encoding) + spare
    decoded = decode_text(data, "x", declared=declared)
    assert decoded.text == text
    (anchor,) = build_anchors(decoded)
    assert (anchor.byte_start, anchor.byte_end, anchor.is_exact) == (0, len(data), False)


def read_whole(data, encoding):
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return None


@settings(max_examples=200, deadline=None)
@example(text="a\x00b", encoding="utf-8", tail=b"")
@given(
    text=st.text(st.sampled_from("ab é中\x00\n"), max_size=60),
    encoding=st.sampled_from(["utf-8", "utf-16", "utf-32"]),
    tail=st.sampled_from([b"", b"\x00\xd8", b"\xff"]),
)
def test_what_is_called_exact_is_the_bytes_own_text(text, encoding, tail):
    data = text.encode(encoding) + tail
    try:
        decoded = decode_text(data, "x")
    except DataError:
        return
    where = ByteMap(decoded)
    for anchor in build_anchors(decoded):
        own = read_whole(data[anchor.byte_start : anchor.byte_end], decoded.encoding)
        assert anchor.is_exact == (own == decoded.text[anchor.start : anchor.end])
        assert where.at(anchor.start) == anchor.byte_start
        assert where.is_exact(anchor.start, anchor.end) == anchor.is_exact
