"""What every chunker promises, for any text."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.records import Document
from stillroom.records import Heading as Section
from stillroom.text import CHUNKERS, estimate_tokens
from stillroom.text.unicode import is_grapheme_boundary

BLOCKS = st.sampled_from(
    [
        "The cat sat on the mat. It was warm there, e.g. near the stove; nobody minded.\n\n",
        "# A heading\n\n",
        "```python\nfor x in range(3):\n    print(x)\n\nprint('done')\n```\n\n",
        "| a | b |\n| --- | --- |\n| one | two |\n| three | four |\n\n",
        "- first item of a list\n- second item of a list\n",
        "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。",
        "👩‍👩‍👧‍👦 family 🇩🇪🇫🇷 flags 👍🏽 ",
        "e\u0301\u0302\u0303a\u0308 combining ",
        "x" * 700 + " ",
        "word " * 90,
        "\r\n\r\n  \t",
        "नमस्ते दुनिया। یہ ایک جملہ ہے۔ ",
        '{"a":[1,2,3],"b":{"c":null}}',
    ]
)
TEXTS = st.one_of(
    st.lists(BLOCKS, max_size=12).map("".join),
    st.text(max_size=400),
    st.lists(st.one_of(BLOCKS, st.text(max_size=30)), max_size=8).map("".join),
)
METHODS = st.sampled_from(CHUNKERS.names())


def make_document(text: str, headings: tuple[Section, ...] = ()) -> Document:
    return Document("a.txt", "0" * 64, "text/plain", text, headings=headings)


def build(name: str, **wanted: int):
    """Make a chunker with those of the settings that it has."""
    known = CHUNKERS.get(name).model_fields
    return CHUNKERS.build(
        {"name": name, **{key: value for key, value in wanted.items() if key in known}}
    )


def headings_of(text: str) -> tuple[Section, ...]:
    found, start = [], text.find("# A heading")
    while start >= 0:
        found.append(Section(start, 1, "A heading"))
        start = text.find("# A heading", start + 1)
    return tuple(found)


@pytest.mark.parametrize("count", [None, lambda text: len(text.split()) + 2], ids=["own", "given"])
@settings(max_examples=150, deadline=None)
@given(text=TEXTS, name=METHODS, size=st.integers(8, 60), overlap=st.integers(0, 30))
def test_passages_cover_the_text_in_order_and_within_the_size(count, text, name, size, overlap):
    document = make_document(text, headings_of(text))
    chunker = build(name, size=size, overlap=min(overlap, size // 2))
    passages = list(chunker.chunk(document, count=count))
    assert passages == list(chunker.chunk(document, count=count))
    covered, last = 0, -1
    measure = count or estimate_tokens
    for passage in passages:
        assert document.text[passage.start : passage.end] == passage.text
        assert passage.text.strip() == passage.text != ""
        assert passage.start > last
        assert passage.end > covered
        assert not text[covered : passage.start].strip()
        last, covered = passage.start, passage.end
        assert is_grapheme_boundary(text, passage.start) or _is_monster(text, passage.start)
        unsplittable = (
            sum(is_grapheme_boundary(passage.text, i) for i in range(1, len(passage.text))) == 0
        )
        assert measure(passage.text) <= size or unsplittable or _has_cluster(passage.text)
    assert not text[covered:].strip()


def _is_monster(text: str, position: int) -> bool:
    """Whether the cluster at a position is longer than any writing has."""
    return not any(is_grapheme_boundary(text, at) for at in range(max(position - 60, 1), position))


def _has_cluster(text: str) -> bool:
    return any(unicodedata.category(one)[0] == "M" or ord(one) > 0x1F000 for one in text)


@settings(max_examples=60, deadline=None)
@given(blocks=st.lists(BLOCKS, min_size=1, max_size=10), name=METHODS)
def test_without_overlap_the_passages_and_white_space_rebuild_the_text(blocks, name):
    text = "".join(blocks)
    passages = list(build(name, size=40).chunk(make_document(text)))
    rebuilt, end = "", 0
    for passage in passages:
        rebuilt += text[end : passage.start] + passage.text
        assert text[end : passage.start].strip() == ""
        end = passage.end
    assert rebuilt + text[end:] == text


@settings(max_examples=60, deadline=None)
@given(
    before=st.lists(BLOCKS, max_size=5).map("\n".join),
    after=st.lists(BLOCKS, max_size=5).map("\n".join),
    name=st.sampled_from([one for one in CHUNKERS.names() if one != "fixed"]),
)
def test_a_fence_that_fits_is_never_cut(before, after, name):
    fence = "```sql\nSELECT one, two\nFROM things\n\nWHERE three = 4;\n```"
    text = before + "\n\n" + fence + "\n\n" + after
    passages = build(name, size=48).chunk(make_document(text))
    assert any(fence in passage.text for passage in passages)
