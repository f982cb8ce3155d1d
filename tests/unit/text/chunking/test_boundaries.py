import time

import pytest

from stillroom.records import Document
from stillroom.text import CHUNKERS, parse_bytes
from stillroom.text.chunking.boundaries import MAX_HEADER_CHARACTERS, find_header, find_tables

ROWS = "\n".join(f"| item {at} | {at * 7} | {'north' if at % 2 else 'south'} |" for at in range(60))
TABLE = f"| name | price | side |\n|---|---:|:---|\n{ROWS}"
PAGE = f"# Stock\n\nWhat we have.\n\n{TABLE}\n\nAfter the table comes this. {'More words. ' * 80}\n"
NAMES = ["fixed", "heading", "recursive", "sentence"]


def passages_of(data, name, chunker, size=64):
    document = parse_bytes(data, name)
    return document, list(CHUNKERS.build({"name": chunker, "size": size}).chunk(document))


@pytest.mark.parametrize("chunker", NAMES)
def test_every_passage_from_the_rows_of_a_table_knows_the_header(chunker):
    document, passages = passages_of(PAGE.encode(), "stock.md", chunker)
    inside = [one for one in passages if one.text.lstrip("|- :\n").startswith("item")]
    assert len(inside) > 5
    begin = document.text.index("| name")
    for one in passages:
        rows_end = document.text.index("After the table")
        is_inside = begin + len("| name | price | side |") < one.start < rows_end
        assert one.table_header == ("| name | price | side |" if is_inside else "")
        assert document.text[one.start : one.end] == one.text
    assert all(one.table_header for one in inside)


def test_a_page_a_sheet_and_values_by_commas_have_headers_too():
    cells = "".join(f"<tr><td>item {at}</td><td>{at * 7}</td></tr>" for at in range(60))
    page = f"<html><body><table><tr><th>name</th><th>price</th></tr>{cells}</table></body></html>"
    _, passages = passages_of(page.encode(), "stock.html", "heading")
    assert {one.table_header for one in passages[1:]} == {"| name | price |"}
    values = "name;price\n" + "".join(f"item {at};{at * 7}\n" for at in range(60))
    _, passages = passages_of(values.encode(), "stock.csv", "heading")
    assert len(passages) > 3
    assert passages[0].table_header == ""
    assert {one.table_header for one in passages[1:]} == {"name;price"}


def test_tables_without_bars_at_the_ends_and_other_line_ends_are_read():
    for end in ("\n", "\r\n", "\r"):
        text = end.join(["Text.", "", "a | b", "--- | ---", "1 | 2", "3 | 4", "", "Text."])
        tables = find_tables(Document("a.md", "0", "text/markdown", text))
        assert [table.header for table in tables] == ["a | b"]
        assert find_header(tables, text.index("3 |")) == "a | b"
        assert find_header(tables, text.index("a |")) == ""
        assert find_header(tables, text.rindex("Text")) == ""


def test_two_tables_keep_their_own_headers():
    text = "| a | b |\n|---|---|\n| 1 | 2 |\n\n| c | d |\n|---|---|\n| 3 | 4 |\n"
    tables = find_tables(Document("a.md", "0", "text/markdown", text))
    assert [table.header for table in tables] == ["| a | b |", "| c | d |"]
    assert find_header(tables, text.index("| 1")) == "| a | b |"
    assert find_header(tables, text.index("| 3")) == "| c | d |"


@pytest.mark.parametrize(
    "text",
    [
        "No table | here\n\n|---|---|\n",
        "|---|---|\n| 1 | 2 |\n",
        "A line\n---\nand a rule.\n",
        "| 1 | 2 |\n|---|---|\n| 3 | 4 |\n",
        "",
        "\n|---|\n",
    ],
)
def test_what_is_no_header_is_none(text):
    tables = find_tables(Document("a.md", "0", "text/markdown", text))
    assert not any(table.header for table in tables)


def test_a_header_of_many_columns_is_not_repeated():
    names = ",".join(f"column {at}" for at in range(2_000))
    document = parse_bytes(f"{names}\n{names}\n".encode(), "wide.csv")
    assert len(names) > MAX_HEADER_CHARACTERS
    assert {one.table_header for one in CHUNKERS.build("heading").chunk(document)} == {""}


def test_hostile_lines_cost_no_time():
    texts = ["-" * 500_000 + "x", "|-" * 300_000 + "x", "a|b\n|-|-|\n" * 20_000, "|" * 500_000]
    started = time.process_time()
    for text in texts:
        find_tables(Document("a.md", "0", "text/markdown", text))
    assert time.process_time() - started < 5


def test_code_has_no_tables():
    text = "a | b\n--- | ---\n1 | 2\n"
    document = Document("a.py", "0", "text/x-python", text, metadata={"is_code": True})
    assert find_tables(document) == []


@pytest.mark.parametrize("line", [" " * 100_000, "\t " * 50_000, "-" * 100_000, "|" * 100_000])
def test_a_line_of_nothing_but_spaces_or_marks_takes_no_longer_than_it_is(line):
    begun = time.process_time()
    document = parse_bytes(f"{line}needle\n{line}".encode(), "odd.txt")
    assert find_tables(document) == []
    assert time.process_time() - begun < 5  # by the square of its length it took minutes
