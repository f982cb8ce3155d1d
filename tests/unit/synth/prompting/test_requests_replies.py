import pytest

from stillroom.synth.prompting.requests import (
    clean_answer,
    clean_question,
    parse_qa_pair,
    strip_quotes,
)


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("  Question: What is wax?\nAnswer: no", "What is wax?"),
        ('"What is wax?"', "What is wax?"),
        ("**What is wax?** Good.", "What is wax?"),
        ("What is wax? And who cares?", "What is wax?"),
        ("蜡是什么？好的", "蜡是什么？"),
        ("<think>\nIs it wax?\n</think>\n\nWhat is wax?", "What is wax?"),
        ("\n \n", ""),
        ("", ""),
    ],
)
def test_question_is_the_first_line_up_to_its_mark(text, question):
    assert clean_question(text) == question


def test_answer_is_one_line_without_label():
    assert clean_answer("Answer: Wax\n is   soft.") == "Wax is soft."
    assert clean_answer("A. Lincoln said so.") == "A. Lincoln said so."
    assert clean_answer('"open" and "closed"') == '"open" and "closed"'


def test_one_pair_of_quotes_around_all_is_taken_off_and_no_other():
    assert strip_quotes(' "Say it." ') == "Say it."
    assert strip_quotes('Name it "Spring"') == 'Name it "Spring"'
    assert strip_quotes('"a" or "b"') == '"a" or "b"'


def test_pair_is_read_from_json_in_any_wrapping():
    text = 'Sure! {"question": "What is wax?", "answer": "Soft."} Done.'
    assert parse_qa_pair(text) == ("What is wax?", "Soft.")


@pytest.mark.parametrize(
    "text",
    ["", "{", "}{", "[1]", '{"question": 1, "answer": "x"}', '{"question": "", "answer": ""}'],
)
def test_anything_else_is_nothing(text):
    assert parse_qa_pair(text) is None
    assert parse_qa_pair('{"a":' * 5000 + text) is None
