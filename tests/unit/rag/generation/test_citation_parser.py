import pytest

from stillroom.rag.generation.citation_parser import CitationMark, CitationParser, format_citations


def read(text, shown=3):
    parser = CitationParser(shown)
    pieces = [*parser.feed(text), *parser.finish()]
    joined = "".join(
        one.space + format_citations(one.numbers) if isinstance(one, CitationMark) else one.text
        for one in pieces
    )
    return joined, parser.removed


@pytest.mark.parametrize(
    ("text", "expected", "removed"),
    [
        ("It is so [1].", "It is so [1].", 0),
        ("It is so [1, 2].", "It is so [1][2].", 0),
        ("It is so [1;3].", "It is so [1][3].", 0),
        ("It is so [1-3].", "It is so [1][2][3].", 0),
        ("It is so [[2]].", "It is so [2].", 0),
        ("It is so【1】.", "It is so[1].", 0),
        ("It is so［2］.", "It is so[2].", 0),
        ("It is so [^1].", "It is so [1].", 0),
        ("It is so [9].", "It is so.", 1),
        ("It [9] is so.", "It is so.", 1),
        ("It is [0] so.", "It is so.", 1),
        ("It is so [1, 9].", "It is so [1].", 1),
        ("It is so [9]", "It is so", 1),
        ("[9] starts", " starts", 1),
        ("a list [a, b]", "a list [a, b]", 0),
        ("open [1 and [2]", "open [1 and [2]", 0),
        ("the year [2024]", "the year [2024]", 0),
        ("ends in [", "ends in [", 0),
        ("ends in [1", "ends in [1", 0),
        ("`rows[1]` is code", "`rows[1]` is code", 0),
        ("``rows[9] ` x`` is code [1]", "``rows[9] ` x`` is code [1]", 0),
        ("```\nrows[9]\n```\nand [9]", "```\nrows[9]\n```\nand", 1),
        ("````\n```\nx[9]\n````\n", "````\n```\nx[9]\n````\n", 0),
        ("a lone ` tick\nthen [9] it", "a lone ` tick\nthen it", 1),
        ("", "", 0),
    ],
)
def test_marks_are_made_uniform_and_unknown_numbers_removed(text, expected, removed):
    assert read(text) == (expected, removed)


def test_with_nothing_shown_every_number_is_unknown():
    assert read("so [1] and [2]", shown=0) == ("so and", 2)


def test_a_very_long_bracket_is_text():
    text = "[" + "1," * 100 + "1]"
    assert read(text)[0] == text
