"""Text columns of pages made of words: right-to-left script, and pages without end."""

import time

from stillroom.text.pdf.columns import find_text_columns, split_columns
from stillroom.text.pdf.layout import arrange_blocks
from stillroom.text.pdf.page import TextRun, group_rows


def make_run(words, left, top, size=10.0):
    edges = left, top, max(end for _, _, end in words), top + size
    return TextRun(words, *edges, size, size)


def test_right_to_left_columns_are_found_and_the_right_one_is_read_first():
    lines = {"ימין": 300.0, "שמאל": 50.0}
    runs = [
        make_run(
            [(word, left + 25 * place, left + 25 * place + 21) for place in range(7, -1, -1)],
            left,
            14.0 * row,
        )
        for row in range(8)
        for word, left in lines.items()
    ]
    band = find_text_columns(group_rows(runs))
    assert band is not None
    first, last, gutters = band
    assert (first, last, len(gutters)) == (0, 8, 1)
    columns = split_columns(group_rows(runs), gutters)
    assert [column[0].words[0][0] for column in columns] == ["ימין", "שמאל"]


def test_a_page_of_dots_ends():
    runs = [
        make_run([(".", 2.0 * x, 2.0 * x + 0.5)], 2.0 * x, 2.0 * y, 1.0)
        for x in range(60)
        for y in range(60)
    ]
    start = time.process_time()
    assert arrange_blocks(runs)
    assert time.process_time() - start < 5
