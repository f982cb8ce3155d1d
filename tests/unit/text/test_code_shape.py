"""The shape of code outlives other names, comments and layout, and prose has none."""

import pytest

from stillroom.text.code_shape import code_shape, find_code

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
    assert code_shape(CODE) != []
    assert code_shape(CODE.replace("found = found + ", "found += ")) == code_shape(RENAMED)
    assert code_shape(f"Look:\n\n```python\n{RENAMED}```\nDone.") == code_shape(RENAMED)


def test_what_the_code_does_is_in_the_shape():
    assert code_shape(CODE) != code_shape(CODE.replace("row.weight", "row.height"))
    assert code_shape(CODE) != code_shape(CODE.replace("for row in rows:", "while rows:"))


@pytest.mark.parametrize(
    "text",
    ["", "Who built the mill?\nAda Berg did.\nIn 1831.", "# Heading\n\nProse; and more of it.\n"],
)
def test_prose_has_no_code(text):
    assert find_code(text) == ""
    assert code_shape(text) == []
