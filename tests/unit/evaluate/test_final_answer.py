from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillroom.evaluate.final_answer import (
    extract_answer,
    extract_answers,
    is_same_answer,
    is_same_formula,
)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("First 2 and 3. The answer is 5.", "5"),
        ("The answer is 4.\nNo: the answer is **5**.", "5"),
        ("6 * 7 = 42\n#### 42", "42"),
        (r"So \boxed{\frac{1}{2}} it is", r"\frac{1}{2}"),
        ("Answer: the copper still\nand more", "the copper still"),
        ("A bare line", "A bare line"),
        ("#### 5\n\nThe answer is verified. I hope that this helps.", "5"),
        ("The answer is 5.\nSo the answer is indeed correct.", "5"),
        ("Die Antwort ist 5.\nDie Antwort ist richtig.", "5"),
        ("The answer is correct.", "correct"),
        ("#### 5\nThe answer is not correct.", "not correct"),
        ("#### 5\nThe answer is correct only if it is not odd.", "correct only if it is not odd"),
        ("", ""),
        (r"\boxed{never closed", r"\boxed{never closed"),
        (r"so \boxed 18. Done", "18"),
        (r"\fbox{18}", "18"),
        (r"\boxed{1} and $\boxed{2}$", "1, 2"),
        ("\\boxed{5}\n\nSo it is\n\n\\boxed{5}", "5"),
        ("\\boxed{4}. No: \\boxed{5}", "5"),
        ("Therefore\n$$\nx = 5\n$$", "x = 5"),
        (r"We get $a = \boxed{2}$, and therefore the final result is $\boxed{5}$.", "5"),
        (r"First, $n = \boxed{3}$, so then the total is $\boxed{12}$", "12"),
        (r"$x_1=\boxed{1}$, $x_2=\boxed{2}$", "1, 2"),
        (r"$\boxed{3}$ \text{ or } $\boxed{4}$", "3, 4"),
        ("So $x=\\boxed{42}$.\n\n#### Check 1\nIt holds.", "42"),
        ("Thus \\boxed{42}\n\n#### Step 4: check $x=42$\nFine.", "42"),
        ("As a step \\boxed{3}\n#### 1,200", "1,200"),
    ],
)
def test_finds_what_is_marked_or_the_last_line(text, wanted):
    assert extract_answer(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The answer is 12 apples.", ["12 apples", "12"]),
        ("The largest n is 34.", ["The largest n is 34", "34"]),
        ("The answer is 5. I hope it is correct.", ["5. I hope it is correct", "5"]),
        ("The answer is 12 hundred.", ["12 hundred"]),
        (r"so \boxed{3}, which is 4", ["3"]),
        ("", []),
    ],
)
def test_reads_a_statement_in_words(text, wanted):
    assert extract_answers(text) == wanted


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("There are 5 apples and 7 pears, so Anna has 12 fruits in total.", "12"),
        ("So, each of them pays \\$3.50.", "3.5"),
        ("Therefore she needs 14 eggs.", "14"),
        ("Thus Tom earned $1,200 in that year.", "1200"),
        ("Die Lösung ist 3,5.", "3.5"),
        ("Die Antwort ist 12.", "12"),
        ("La réponse est 7.", "7"),
        ("La respuesta es 40.", "40"),
        ("Der Abstand beträgt 2,5 km.", "2.5"),
        ("答案是 12。", "12"),
        ("Hence the trip takes 5 hours.", "5"),
        ("The price is \\$3.50.", "3.5"),
        ("The smallest one is therefore 17.", "17"),
        ("Thus, in total they have 12 fruits.", "12"),
        ("Therefore the shop sold 12 apples that day, so in total Tom earned 24 dollars.", "24"),
    ],
)
def test_a_conclusion_in_words_and_in_other_languages_is_read(text, right):
    assert any(is_same_answer(found, right) for found in extract_answers(text))


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("So Anna has 12 fruits, but she eats 3.", "12"),
        ("So he needs 12 more than Tom.", "12"),
        ("So Anna has twice 12.", "12"),
        ("So Anna has half of 12 fruits.", "12"),
        ("So if she has 12 fruits she can eat.", "12"),
        ("So each of 4 friends has 12 fruits.", "4"),
        ("So Anna has 12 fruits before eating.", "12"),
        ("So Anna does not have 12 fruits.", "12"),
        ("So she has at least 12 fruits.", "12"),
        ("Die Antwort ist nicht 12.", "12"),
        ("Die Lösung ist 3,5.", "35"),
        ("So would she have 12 fruits?", "12"),
        ("Die Lösung ist 3 oder 5.", "5"),
        ("La réponse n'est pas 7.", "7"),
        ("La respuesta no es 40.", "40"),
        ("So Anna has 12 fruits and Ben has 3 fruits.", "12"),
        ("So he had 12 at first.", "12"),
        ("So she would have 12 fruits.", "12"),
        ("答案不是 12。", "12"),
        ("So one needs 12 to get 40.", "12"),
        ("So nobody has 12 fruits.", "12"),
        ("So hardly anyone has 12 fruits.", "12"),
        ("So Anna believes Ben has 12 fruits.", "12"),
        ("So Anna wants to have 12 fruits.", "12"),
        ("So Anna has 12 fruits, Ben has eight, which makes twenty.", "12"),
        ("So Anna has 12 fruits too few.", "12"),
        ("So Anna needs 12 additional fruits.", "12"),
        ("So Anna has 12 fruits without the pears.", "12"),
        ("So Anna has 12% of the fruits.", "12"),
        ("Die Antwort ist 12 Dutzend.", "12"),
        ("Die Antwort ist 12 ab.", "12"),
        ("The answer is 12 more.", "12"),
        ("The answer is 12ab.", "12"),
        ("Die Antwort ist höchstens 12.", "12"),
        ("Die Antwort ist zwölfmal 12.", "12"),
        ("Die falsche Antwort ist 12.", "12"),
        ("Die Antwort ist 3.500.", "3.5"),
        ("Die Antwort ist 3,500.", "3500"),
        ("La réponse est fausse: 12.", "12"),
        ("La réponse est 12 mille.", "12"),
        ("La respuesta es 12 mil.", "12"),
        ("La respuesta es más de 12.", "12"),
        ("La respuesta está mal: 12", "12"),
        ("答案为 $12$ 万。", "12"),
    ],
)
def test_a_number_that_is_not_concluded_is_no_answer(text, wrong):
    found = extract_answers(text)
    assert not any(is_same_answer(one, wrong) or is_same_formula(one, wrong) for one in found)


@pytest.mark.parametrize(
    "text",
    [
        "negative 5",
        "twice 5",
        "double 5.",
        "the square of 5",
        "the negative of 5.",
        "a loss of 5",
        "that she lost 5",
        "the inverse of 5",
        "5 doubled",
        "5 tens",
        "5 gross",
    ],
)
def test_reads_no_number_that_words_change(text):
    assert "5" not in extract_answers(f"The answer is {text}")


@pytest.mark.parametrize("text", ["exactly 5", "a total of 5 apples", "only 5 km", "about 5."])
def test_reads_a_number_that_words_leave_as_it_is(text):
    assert "5" in extract_answers(f"The answer is {text}")


@pytest.mark.parametrize("end", ["#", "#### ", " final answer is", " final answer is x"])
def test_the_time_to_find_an_answer_grows_with_the_text(end):
    begun = process_time()
    assert extract_answer(r"\boxed{5}" + end * (200_000 // len(end)))[:1] == "5"
    assert process_time() - begun < 5


def test_finds_the_last_number_and_the_whole():
    assert extract_answer("from 3 to 1,204.5 kg", "number") == "1,204.5"
    assert extract_answer("none here", "number") == ""
    assert extract_answer("  all of it \n", "whole") == "all of it"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("42", "42.0", True),
        ("1,000", "1000", True),
        ("1/2", "0.5", True),
        ("−3", "-3", True),
        ("42", "43", False),
        ("The still", "still", True),
        ("still", "stills", False),
        ("", "", False),
        ("5/0", "5/0", True),
        ("12", "twelve", True),
        (".5", "0.5", True),
        (".5", "5", False),
        ("2,5", "2.5", True),  # a decimal comma
        ("2.5", "2,5", False),  # two numbers, where that is the right answer
        ("1,000", "1.000", False),
        ("3 1/2", "7/2", True),
        ("3 1/2", "31/2", False),
        ("1{,}000", r"1\,000", True),
        ("1,2", "12", False),
        ("(1,2)", "12", False),
        ("(1,2)", "[1,2]", False),
        ("(1, 2)", "(1,2)", True),
        ("12:30", "1230", False),
        ("12:30", "12:30.", True),
        ("Room 12", "the room 12.", True),
        (r"\text{east}", "East", True),
        ("1e999999999", "5", False),  # no number that anybody waits for
    ],
)
def test_compares_as_numbers_or_in_words(one, other, same):
    assert is_same_answer(one, other) is same


@given(st.integers(-(10**9), 10**9))
def test_a_number_is_found_however_it_is_set(number):
    assert is_same_answer(extract_answer(f"Thus the answer is ${number:,}$."), str(number))
