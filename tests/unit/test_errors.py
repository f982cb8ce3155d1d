"""Words that messages share."""

import pytest

from stillroom.errors import DataError, Problem, count_noun


@pytest.mark.parametrize(
    ("count", "noun", "shown"),
    [
        (0, ("step",), "0 steps"),
        (1, ("step",), "1 step"),
        (2, ("step",), "2 steps"),
        ("1,000", ("held-out question",), "1,000 held-out questions"),
        (1, ("query", "queries"), "1 query"),
        (3, ("query", "queries"), "3 queries"),
    ],
)
def test_a_count_takes_the_form_of_its_noun(count, noun, shown):
    assert count_noun(count, *noun) == shown


def test_a_problem_has_the_words_of_the_system_and_not_its_number():
    error = FileNotFoundError(2, "No such file or directory", "q.csv")
    shown = "the questions cannot be read: No such file or directory: 'q.csv'"
    assert Problem(f"the questions cannot be read: {error}", "x").what == shown
    assert str(DataError(f"it failed: {OSError(-2, 'Name not known')}", code="x")) == (
        "it failed: Name not known  [x]"
    )
