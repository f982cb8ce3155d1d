import time
from itertools import pairwise

import pytest

from stillroom.errors import RecipeError
from stillroom.records import Document, Origin
from stillroom.text import CHUNKERS, estimate_tokens, parse_bytes
from stillroom.text.chunking.boundaries import find_split_points
from stillroom.text.chunking.tokens import TokenRuler

GUIDE = """# Guide

Short intro.

## Setup

{setup}

## Usage

### Command

{usage}

```sh
stillroom make docs --out run

stillroom ask run "why?"
```

| name | what |
| --- | --- |
| one | the first |
| two | the second |

## End

Bye.
""".format(
    setup=" ".join(
        f"Setup sentence number {number} is here for those who read the whole of it."
        for number in range(40)
    ),
    usage=" ".join(f"Usage sentence number {number} is here." for number in range(12)),
)


LONG_LINES = {
    "letters": "x" * 500_000,
    "words": "word " * 100_000,
    "chinese": "春眠不觉晓处处闻啼鸟" * 17_000,
    "emoji": "👩\u200d👩\u200d👧👍🏽🇩🇪" * 30_000,
    "sentences": "The cat sat on the mat, as cats do. " * 14_000,
}


@pytest.mark.parametrize("gap", ["\n", "\n ", " \r\n\t"])
@pytest.mark.parametrize("name", CHUNKERS.names())
def test_many_empty_lines_cost_no_more_than_its_length(name, gap):
    empty = gap * (200_000 // len(gap))
    text = f"The first line.{empty}- an item{empty}The last line.{empty}"
    document = Document("a.txt", "0" * 64, "text/plain", text)
    started = time.process_time()
    passages = list(CHUNKERS.build(name).chunk(document))
    assert time.process_time() - started < 20
    assert "".join("".join(passage.text.split()) for passage in passages) == "".join(text.split())


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_as_their_system_ends_them(end):
    text = end.join(["First line,", "second line.", "", "Next paragraph.", "- item", "end"])
    document = Document("a.txt", "0" * 64, "text/plain", text)
    found = find_split_points(document, TokenRuler(text), 5)
    starts = [text.index(word) for word in ("second", "Next", "- item", "end")]
    assert list(found.lines) == starts
    assert list(found.paragraphs) == starts[1:2]
    assert starts[2] in found.items


@pytest.mark.parametrize("kind", LONG_LINES)
@pytest.mark.parametrize("name", CHUNKERS.names())
def test_a_line_of_half_a_megabyte_is_cut_in_seconds_and_loses_nothing(name, kind):
    text = LONG_LINES[kind]
    document = Document("a.txt", "0" * 64, "text/plain", text)
    started = time.process_time()
    passages = list(CHUNKERS.build(name).chunk(document))
    assert time.process_time() - started < 8
    assert len(passages) > 20
    end = 0
    for passage in passages:
        assert not text[end : passage.start].strip()
        assert passage.text == text[passage.start : passage.end]
        assert estimate_tokens(passage.text) <= 200
        end = passage.end
    assert not text[end:].strip()


@pytest.fixture
def guide() -> Document:
    return parse_bytes(GUIDE.encode(), "guide.md", origin=Origin("human", license="MIT"))


def test_passages_carry_place_headings_title_language_and_origin(guide):
    passages = list(CHUNKERS.build("heading").chunk(guide))
    for passage in passages:
        place = passage.location
        assert GUIDE.encode()[place.byte_start : place.byte_end].decode() == passage.text
        assert place.is_exact
        assert passage.title == "Guide"
        assert passage.language == guide.language == "en"
        assert passage.document_id == guide.id
        assert passage.origin.kind == "human"
        assert passage.origin.license == "MIT"
        assert passage.origin.chain[-1].method == "text.chunkers.heading"
        assert passage.origin.chain[-1].parents == (guide.id,)
    assert passages[-1].headings[:2] == ("Guide", "Usage")
    assert len({passage.id for passage in passages}) == len(passages)


def test_the_heading_chunker_keeps_sections_apart_and_joins_small_ones(guide):
    passages = list(CHUNKERS.build({"name": "heading", "size": 120}).chunk(guide))
    assert passages[0].text == "# Guide\n\nShort intro."
    setups = [passage for passage in passages if "Setup sentence" in passage.text]
    assert len(setups) > 1
    assert not any("Usage" in passage.text for passage in setups)
    assert all(passage.headings == ("Guide", "Setup") for passage in setups)
    assert passages[-1].text.endswith("Bye.")
    assert passages[-1].text != "## End\n\nBye."


def test_fences_and_tables_rows_stay_whole(guide):
    for name in ("heading", "recursive", "sentence"):
        passages = list(CHUNKERS.build({"name": name, "size": 60}).chunk(guide))
        fences = [passage for passage in passages if "```sh" in passage.text]
        assert fences[0].text.count("```") == 2
        for row in ("| one | the first |", "| two | the second |"):
            assert any(row in passage.text for passage in passages)


def test_fixed_fills_its_size_and_sentence_ends_at_sentences(guide):
    fixed = list(CHUNKERS.build({"name": "fixed", "size": 50}).chunk(guide))
    assert all(estimate_tokens(passage.text) > 40 for passage in fixed[:6])
    sentence = list(CHUNKERS.build({"name": "sentence", "size": 50}).chunk(guide))
    inside = [passage for passage in sentence if passage.text.startswith("Setup sentence")]
    assert inside
    assert all(passage.text.endswith((" it.", " here.")) for passage in inside)


def test_overlap_repeats_whole_sentences(guide):
    plain = list(CHUNKERS.build({"name": "recursive", "size": 80}).chunk(guide))
    lapped = list(CHUNKERS.build({"name": "recursive", "size": 80, "overlap": 20}).chunk(guide))
    assert len(lapped) > len(plain)
    pairs = [(one, other) for one, other in pairwise(lapped) if other.start < one.end]
    assert len(pairs) >= 3
    for one, other in pairs:
        shared = guide.text[other.start : one.end]
        assert estimate_tokens(shared) <= 20
        assert shared.startswith(("Setup", "Usage", "##"))


def test_a_callers_counter_is_never_exceeded(guide):
    def count(text: str) -> int:
        return len(text) // 3 + 2

    for name in CHUNKERS.names():
        chunker = CHUNKERS.build({"name": name, "size": 64})
        for passage in chunker.chunk(guide, count=count):
            assert count(passage.text) <= 64


def test_rows_of_a_table_are_not_cut():
    rows = "".join(f"{number};value, with comma. And a stop;{number * 7}\n" for number in range(99))
    document = parse_bytes(f"id;text;sum\n{rows}".encode(), "a.csv")
    for passage in CHUNKERS.build({"name": "recursive", "size": 64}).chunk(document):
        assert document.text[passage.end : passage.end + 1] in {"\n", ""}
        assert passage.text[0].isdigit() or passage.text.startswith("id")


def test_rows_of_a_table_in_an_item_are_not_cut():
    rows = "".join(f"   | item {number} | {number * 7} | north |\n" for number in range(60))
    table = f"   | name | price | side |\n   | --- | --- | --- |\n{rows}"
    document = parse_bytes(f"1. First:\n\n{table}\n2. Second.\n".encode(), "a.md")
    passages = list(CHUNKERS.build({"name": "recursive", "size": 64}).chunk(document))
    assert len(passages) > 8
    assert all(passage.text.endswith((" |", "Second.")) for passage in passages)
    assert all(passage.text.startswith("| item") for passage in passages[1:])


def test_a_document_without_text_has_no_passages():
    document = Document("a", "0", "text/plain", " \n ")
    for name in CHUNKERS.names():
        assert list(CHUNKERS.build(name).chunk(document)) == []


def test_a_typo_in_the_name_suggests_the_right_one():
    with pytest.raises(RecipeError, match="did you mean 'heading'"):
        CHUNKERS.build("headings")


def cut(text, size):
    document = Document("manual.txt", "0" * 64, "text/plain", text)
    chunker = CHUNKERS.build({"name": "heading", "size": size})
    return [passage.text for passage in chunker.chunk(document)]


def test_a_term_stays_with_the_definition_that_follows_it():
    filler = "The shell reads a line and runs the command that it names, then waits. " * 3
    names = ["KEYTIMEOUT", "LISTMAX <S>", "RPROMPT2", "HISTFILE", "SAVEHIST"]
    text = "\n\n".join(f"{name}\n\n{name} says {filler}" for name in names)
    for size in range(40, 120, 7):
        passages = cut(text, size)
        for name in names:
            assert any(f"{name}\n\n{name} says" in passage for passage in passages), (size, name)


def test_terms_that_share_a_definition_stay_together():
    text = "An opening paragraph that fills most of a passage, as it may. " * 4
    passages = cut(f"{text}\n\n-l\n\n--long\n\nPrints one entry a line. {text}", 70)
    assert any("-l\n\n--long\n\nPrints" in passage for passage in passages)


def test_a_term_does_not_break_the_code_that_it_explains_but_cannot_fit_with():
    code = "```\n" + "\n".join(f"run --step {n}" for n in range(14)) + "\n```"
    size = int(TokenRuler(code, None).measure(0, len(code))) + 2
    passages = cut(f"A caption of this listing\n\n{code}\n\nAnd an end.", size)
    assert any(code in passage for passage in passages)


ANNOUNCED = {
    "items": ("\n\n", "\n".join(f"- item {n} names a file" for n in range(40))),
    "items below": ("\n", "\n".join(f"{n}. step {n} of all these" for n in range(1, 40))),
    "code": ("\n\n", "```\npump --fast\npump --stop\n```"),
    "paragraph": ("\n\n", "Stop the pump before anything else is done to it. Then wait."),
    "table": ("\n\n", "| part | bar |\n| --- | --- |\n| valve | 7 |"),
}


@pytest.mark.parametrize("name", [name for name in CHUNKERS.names() if name != "fixed"])
@pytest.mark.parametrize("kind", ANNOUNCED)
@pytest.mark.parametrize("mark", [":", ":**", "："])
def test_what_a_sentence_with_a_colon_announces_begins_in_its_passage(name, kind, mark):
    gap, block = ANNOUNCED[kind]
    announcement = f"The manual names these{mark}"
    for count in range(3, 30):
        text = f"{'The valve is old. ' * count}{announcement}{gap}{block}\n\nAn end. And more."
        document = Document("manual.md", "0" * 64, "text/markdown", text)
        passages = list(CHUNKERS.build({"name": name, "size": 64}).chunk(document))
        holding = next(p for p in passages if p.text.count(announcement))
        below = holding.text.split(announcement)[1].strip()
        assert below.startswith(block[:13]), (count, holding.text)
        assert max(estimate_tokens(passage.text) for passage in passages) <= 64


def test_an_announcement_does_not_break_the_code_that_cannot_fit_with_it():
    code = "```\n" + "\n".join(f"run --step {n}" for n in range(14)) + "\n```"
    size = int(TokenRuler(code, None).measure(0, len(code))) + 2
    passages = cut(f"Run these commands:\n\n{code}\n\nAnd an end.", size)
    assert any(code in passage for passage in passages)


def test_an_announcement_of_a_term_does_not_break_the_code_below_the_term():
    code = "```\n" + "\n".join(f"run --step {n}" for n in range(14)) + "\n```"
    size = int(TokenRuler(code, None).measure(0, len(code))) + 8
    opening = f"{'The pump and the valve beside it, ' * 3}run each of these in turn:"
    for term in ("The steps", "The steps are:", "- The steps are:"):
        passages = cut(f"{opening}\n\n{term}\n\n{code}\n\nAn end.", size)
        assert any(f"{term}\n\n{code}" in passage for passage in passages), term


def test_an_announcement_may_end_a_passage_if_its_first_item_does_not_fit_beside_it():
    item = "- " + "a long item whose words go on and on without an end " * 4
    opening = (
        "The manual lists the parts of this pump and of its valve, and says of each what it does:"
    )
    assert cut(f"{opening}\n\n{item}", 56) == [opening, item.strip()]


def test_many_lines_with_colons_are_cut_between_them():
    lines = [f"The speaker of number {n} in this long meeting of ours said:" for n in range(300)]
    passages = cut("\n\n".join(lines), 40)
    assert len(passages) < 200
    assert all(passage.startswith("The speaker") for passage in passages)
