import pytest

from stillroom.synth.openings import find_openings
from stillroom.synth.trimming import trim_question


def texts(statement, passage=""):
    return {opening.text for opening in find_openings(statement, passage)}


@pytest.mark.parametrize(
    ("statement", "opening"),
    [
        ("A value pattern represents a named value in Python.", "What does a value pattern"),
        ("The dough is raised by wild yeast overnight.", "How is the dough raised"),
        ("The arguments are first converted to a common type.", "What are the arguments converted"),
        (
            "If the queen dies in winter, the whole colony starves.",
            "What happens if the queen dies",
        ),
        ("Basic contracts may be ended within two weeks.", "What may basic contracts be ended"),
        ("Old bridges were inspected when the river froze.", "When were old bridges inspected"),
        ("The two towers carry the load of both cables.", "What do the two towers carry"),
        ('The "@" operator is a recent addition.', 'What is the "@" operator'),
    ],
)
def test_opening_asks_about_the_subject(statement, opening):
    assert any(text.startswith(opening) for text in texts(statement))


@pytest.mark.parametrize(
    "statement",
    [
        "Names are not deleted when the loop is finished.",
        "Users should never rely on a pattern being evaluated.",
        "Returns a copy of the string with every field replaced.",
        "That it works is a result of long experience.",
        "In other words, the indices are counted from zero.",
        "Called by the runtime to compute a representation.",
        "Die Bienen erzeugen das Wachs in Drüsen.",
        "A list, a tuple and a set are containers of objects.",
    ],
)
def test_statement_that_is_not_plain_has_no_opening(statement):
    assert texts(statement) == set()


def test_names_keep_their_capital_and_common_words_lose_it():
    assert "What is padding" in texts("Padding is a row of spaces at the end.")
    assert any("Python" in text for text in texts("Python 3.0 introduces new kinds of names."))
    known = "We met Ada there. Ada wrote the first program of all."
    assert "What does Ada" not in texts("Ada wrote the first program of all.", known)


def cut(question, statement):
    for opening in find_openings(statement):
        trimmed = trim_question(question, opening, statement)
        if trimmed:
            return trimmed
    return ""


ARGUMENTS = "The numeric arguments are first converted to a common type."


@pytest.mark.parametrize(
    ("question", "statement", "kept"),
    [
        (
            "What are the numeric arguments converted to a common type?",
            ARGUMENTS,
            "What are the numeric arguments converted to?",
        ),
        (
            "What happens when a task involves many changes, citations, or instructions?",
            "When a task involves many changes, citations, or instructions, chaining keeps Claude "
            "from dropping steps.",
            "What happens when a task involves many changes?",
        ),
        (
            "What does a value pattern represent in Python?",
            "A value pattern represents a named value of the program.",
            "What does a value pattern represent?",
        ),
        ("What are the numeric arguments cooked with?", ARGUMENTS, ""),
        ("Who are you?", ARGUMENTS, ""),
        (
            "What does the break statement terminate the loop without warning?",
            "The break statement terminates the loop without warning.",
            "What does the break statement terminate?",
        ),
    ],
)
def test_question_is_cut_to_what_the_statement_names_and_leaves_open(question, statement, kept):
    assert cut(question, statement) == kept
