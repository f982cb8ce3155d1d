import pytest

from stillroom.records import Document, Heading
from stillroom.text import CHUNKERS, estimate_tokens, parse_bytes

SECTION = " ".join(f"Sentence number {at} of this section stands here." for at in range(30))
GUIDE = f"# Guide\n\n{SECTION}\n\n## Next\n\n{SECTION}\n\n## Last\n\nA short end.\n"


@pytest.fixture
def guide() -> Document:
    return parse_bytes(GUIDE.encode(), "guide.md")


def test_parts_are_those_of_the_heading_chunker_and_hold_their_passages(guide):
    chunker = CHUNKERS.build(
        {"name": "parent_child", "size": 40, "parent_size": 120, "min_size": 4}
    )
    heading = CHUNKERS.build({"name": "heading", "size": 120, "min_size": 4})
    parts = [(one.start, one.end) for one in heading.chunk(guide)]
    passages = list(chunker.chunk(guide))
    assert len(passages) > 2 * len(parts)
    assert {one.parent or (one.start, one.end) for one in passages} == set(parts)
    for one in passages:
        start, end = one.parent or (one.start, one.end)
        assert start <= one.start < one.end <= end
        assert estimate_tokens(one.text) <= 40
        assert estimate_tokens(guide.text[start:end]) <= 120
    assert passages[-1].parent is None  # the short end is its own part


def test_a_part_is_never_smaller_than_a_passage(guide):
    chunker = CHUNKERS.build({"name": "parent_child", "size": 80, "parent_size": 8})
    for one in chunker.chunk(guide):
        assert one.parent is None
        assert estimate_tokens(one.text) <= 80


def test_a_window_is_the_sentences_around_within_the_section(guide):
    chunker = CHUNKERS.build({"name": "sentence_window", "window": 2})
    passages = list(chunker.chunk(guide))
    assert all(one.text.count("Sentence number") <= 1 for one in passages)
    middle = next(one for one in passages if "number 10" in one.text)
    shown = guide.text[slice(*middle.parent)]
    assert [f"number {at} " in shown for at in range(7, 14)] == [False, *[True] * 5, False]
    first = next(one for one in passages if "number 0" in one.text)
    assert first.text.startswith("# Guide")
    assert guide.text[slice(*first.parent)].endswith("number 2 of this section stands here.")
    last = next(one for one in passages if "number 29" in one.text)
    assert guide.text[slice(*last.parent)].endswith("number 29 of this section stands here.")
    assert passages[-1].text == "## Last\n\nA short end."
    assert passages[-1].parent is None


def test_without_a_window_a_sentence_stands_alone(guide):
    chunker = CHUNKERS.build({"name": "sentence_window", "window": 0})
    assert all(one.parent is None for one in chunker.chunk(guide))


def test_short_sentences_are_joined_and_headings_go_with_what_follows():
    text = "# A\n\n## B\n\nYes. Never. Perhaps. " + SECTION
    headings = (Heading(0, 1, "A"), Heading(5, 2, "B"))
    document = Document("a.md", "0" * 64, "text/markdown", text, headings=headings)
    passages = list(CHUNKERS.build("sentence_window").chunk(document))
    assert passages[0].text == "# A\n\n## B\n\nYes. Never."
    assert passages[1].text.startswith("Perhaps. Sentence number 0")
