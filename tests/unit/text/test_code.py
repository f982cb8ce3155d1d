"""The shape of code outlives other names, comments and layout, and prose has none."""

import pytest

from stillroom.text.code import extract_token_trigrams, find_code

CODE = '''def total(rows, least=3):
    """Add what is large."""
    found = 0
    for row in rows:
        if len(row) > least:  # long ones only
            found = found + row.weight
    return found
'''
RENAMED = """def f(table, m = 3):
    s = 0
    for line in table:
        if len(line) > m:
            s += line.weight
    return s
"""


def test_names_comments_and_turned_comparisons_leave_the_shape():
    assert extract_token_trigrams(CODE) != []
    assert extract_token_trigrams(
        CODE.replace("found = found + ", "found += ")
    ) == extract_token_trigrams(RENAMED)
    assert extract_token_trigrams(
        f"Look:\n\n```python\n{RENAMED}```\nDone."
    ) == extract_token_trigrams(RENAMED)


SCRIPT = """function clamp(value, low) {
  const least = low || 0; // at least this
  if (value < least) {
    return least;
  }
  return value.map(function (one) { return one * 2; });
}
"""


@pytest.mark.parametrize(
    "text",
    [
        SCRIPT.replace("function clamp(value, low) {", "export const f = async (x, y) => {"),
        SCRIPT.replace("function clamp(value, low) {", "let f = function (x, y) {"),
        SCRIPT.replace("function (one) { return one * 2; }", "n => n * 2"),
        SCRIPT.replace("{\n    return least;\n  }", "return least").replace("const", "let"),
    ],
)
def test_an_arrow_function_and_left_out_braces_leave_the_shape(text):
    assert extract_token_trigrams(text) == extract_token_trigrams(SCRIPT)


def test_a_floor_division_of_python_is_no_comment():
    halved = "def half(n):\n    low = n // 2 + 1\n    return low\n"
    assert extract_token_trigrams(halved) != extract_token_trigrams(halved.replace(" + 1", ""))


def test_what_the_code_does_is_in_the_shape():
    assert extract_token_trigrams(CODE) != extract_token_trigrams(
        CODE.replace("row.weight", "row.height")
    )
    assert extract_token_trigrams(CODE) != extract_token_trigrams(
        CODE.replace("for row in rows:", "while rows:")
    )


@pytest.mark.parametrize(
    "text",
    ["", "Who built the mill?\nAda Berg did.\nIn 1831.", "# Heading\n\nProse; and more of it.\n"],
)
def test_prose_has_no_code(text):
    assert find_code(text) == ""
    assert extract_token_trigrams(text) == []
