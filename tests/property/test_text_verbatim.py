"""Spans found verbatim are the longest there are, and every byte range leads back to its span."""

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stillroom.text import normalize_text, parse_bytes
from stillroom.text.unicode import locate_words
from stillroom.text.verbatim.suffix_index import IndexedText, SuffixIndex, build_suffix_index

HARD = "½ﬁﷺ①é\u0301\u200b\u200d\u00ad’'ßΣςİ今天ไทยกำ각ᄀ\u1161\u11a8नमस्ते\u05d0\ufe0f👩Ａ１ \t\n.-_"
WORDS = st.text(st.sampled_from("abAB1 " + HARD), max_size=60)
ANY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=60)
TEXT = WORDS | ANY
NOTHING = np.zeros(0, np.int64)


def said(text):
    return [word for word, _, _ in locate_words(text)]


def open_index(texts, folder):
    build_suffix_index(
        Path(folder), [IndexedText(text, str(i), i % 2, {"n": i}) for i, text in enumerate(texts)]
    )
    return SuffixIndex(Path(folder))


@settings(max_examples=300, deadline=None)
@example("e\u200b\u0301x ½")
@example("a\u0301'b’c")
@example("\ufe0f\u200d\u01301")
@given(TEXT)
def test_words_are_those_of_normalization_and_ranges_hold_exactly_theirs(text):
    words = locate_words(text)
    assert " ".join(word for word, _, _ in words) == normalize_text(text).replace("’", "'")
    for first in range(len(words)):
        for last in range(first, min(first + 4, len(words))):
            between = text[words[first][1] : words[last][2]]
            assert said(between) == [word for word, _, _ in words[first : last + 1]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("ab今½ ", max_size=30), max_size=4), st.text("abc今½ ", max_size=25))
def test_spans_and_places_are_those_of_a_plain_search(texts, query):
    words = said(query)
    stored = [said(text) for text in texts]

    def count(span):
        ends = [(text, i + len(span)) for text in stored for i in range(len(text))]
        return sum(text[end - len(span) : end] == span for text, end in ends)

    expected, reached = [], 0
    for start in range(len(words)):
        end = start
        while end < len(words) and count(words[start : end + 1]):
            end += 1
        if end > reached and end > start:
            expected.append((start, end))
            reached = end
    with tempfile.TemporaryDirectory() as folder:
        index = open_index(texts, folder)
        found = index.find_spans(words, without=NOTHING)
        assert [(span.start, span.end) for span in found] == expected
        for span in found:
            places = index.find_occurrences(words[span.start : span.end], without=NOTHING)
            assert places.total == places.counts.sum() == count(words[span.start : span.end])


@settings(max_examples=60, deadline=None)
@given(
    WORDS,
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    st.sampled_from(["md", "txt"]),
    st.data(),
)
def test_reported_bytes_decode_to_the_span(text, encoding, suffix, data):
    content = ("Kiln " + text + "\r\n\r\n a  CD " + text).encode(encoding)
    document = parse_bytes(content, f"a.{suffix}")
    words = locate_words(document.text)
    start = data.draw(st.integers(0, len(words) - 1))
    query = [word for word, _, _ in words[start : start + 8]]
    with tempfile.TemporaryDirectory() as folder:
        index = open_index([document.text], folder)
        for span in index.find_spans(query, without=NOTHING):
            spanned = query[span.start : span.end]
            places = index.find_occurrences(spanned, without=NOTHING)
            place = document.locate(int(places.starts[0]), int(places.ends[0]))
            decoder = "utf-16-le" if encoding == "utf-16" else "utf-8"
            decoded = content[place.byte_start : place.byte_end].decode(decoder)
            assert said(decoded) == spanned
            assert place.is_exact or encoding != "utf-8"
