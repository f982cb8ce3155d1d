import pytest

from stillroom.errors import MissingExtraError, ResourceError
from stillroom.evaluate import final_answer
from stillroom.evaluate.interfaces import VERIFIERS
from stillroom.evaluate.verifiers.code import Code
from stillroom.evaluate.verifiers.json_schema import JsonSchema
from stillroom.evaluate.verifiers.maths import Maths
from stillroom.evaluate.verifiers.regex import Regex

FLOODS = [part * 20_000 for part in (r"\boxed{", r"\[", "$$ $", "a is: ", "? ", "12 a, ")]


@pytest.mark.parametrize(
    ("said", "right", "same"),
    [
        ("So 3 + 4 = 7.\nThe answer is 7.", "7", True),
        (r"Thus \boxed{\frac{1}{2}}", "0.5", True),
        (r"\boxed{1/2}", r"\frac{2}{4}", True),
        (r"\boxed{2\sqrt{2}}", r"\sqrt{8}", True),
        (r"\boxed{(x+1)^2}", "x^2+2x+1", True),
        (r"\boxed{\{1,2\}}", r"\{2,1\}", True),
        ("#### 1,200", "1200", True),
        ("The answer is 8.", "7", False),
        (r"\boxed{x+1}", "x-1", False),
        ("I do not know", "7", False),
        ("", "7", False),
        ("The answer is 7.", "", False),
    ],
)
def test_maths_compares_numbers_formulas_and_words(said, right, same):
    assert Maths().check(said, {"answer": right}).keep is same


def test_a_formula_that_does_not_come_to_an_end_is_ended(monkeypatch):
    monkeypatch.setattr(final_answer, "_CPU_S", 1)
    assert not Maths().check(r"\boxed{9^{9^{9^{9}}}}", {"answer": "3"}).keep
    monkeypatch.undo()
    assert Maths().check(r"\boxed{3\sqrt{2}}", {"answer": r"\sqrt{18}"}).keep  # by a new process


def test_formulas_that_no_process_can_compare_are_not_said_to_differ(monkeypatch):
    final_answer._PROCESS.close()
    monkeypatch.setattr(final_answer, "_CODE", "raise SystemExit(1)")
    with pytest.raises(ResourceError) as caught:
        Maths().check(r"\boxed{7\sqrt{2}}", {"answer": r"\sqrt{98}"})
    assert caught.value.code == "evaluate.sandbox"
    monkeypatch.undo()
    assert Maths().check(r"\boxed{7\sqrt{2}}", {"answer": r"\sqrt{98}"}).keep


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("She sells 9 eggs a day. The answer is $18 per day.", "18"),
        ("Therefore, the perimeter of the rectangle is 36 centimeters.", "36"),
        ("So the value of $x$ is $-3$.", "-3"),
        ("The roots are $x = 2$ and $x = 5$.", "2, 5"),
        (r"The probability is thus \(\frac{5}{36}\).", "5/36"),
        ("Die Antwort ist: 3,75", "3.75"),
        ("The greatest common divisor of 48 and 36 is 12.", "12"),
        (r"The solutions are \boxed{2} and \boxed{-7}.", "-7, 2"),
        (r"\boxed{x=2}, \boxed{y=3}", "x=2, y=3"),
        ("Final Answer: There are 42 such integers. I hope it is correct.", "42"),
        (
            "The matrix is\n\\[\n\\begin{pmatrix} 2 & 0 \\\\ 0 & 2 \\end{pmatrix}\n\\]",
            r"\begin{bmatrix}2&0\\0&2\end{bmatrix}",
        ),
        (r"The number of ways is $\binom{5}{2} = 10$.", "10"),
        (r"It follows that $n \le 4$.", r"n \leq 4"),
        (r"The angle is $60^\circ$.", "60"),
        (r"The area is \boxed{10 \text{ square inches}}.", "10"),
        (r"\boxed{\frac{1}{2} \text{ square meters}}", r"\frac12"),
        (r"\boxed{5 \text{ km per hour}}", "5"),
        ("La respuesta es 0,125", r"\frac18"),
        ("Hence there are exactly 84 ways to choose the committee.", "84"),
        (r"It is $\boxed{3}$ for even $n$ and $\boxed{5}$ for odd $n$.", "3, 5"),
        (r"As a step, \boxed{255}. Final Answer: The final answer is $10,455$.", "10455"),
    ],
)
def test_maths_reads_answers_as_people_write_them(said, right):
    assert Maths().check(said, {"answer": right}).keep


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("The answer is not 12.", "12"),
        ("The answer is less than 12.", "12"),
        ("There are 12 more than needed.", "12"),
        ("The answer is 12 dozen.", "12"),
        ("Is the answer 12?", "12"),
        ("It cannot be that n is 34.", "34"),
        ("The largest n that fails is 34.", "34"),
        ("The answer is 3 and a half.", "3"),
        ("The result is 2 to the power of 5.", "2"),
        ("The area is 4 pi.", "4"),
        ("The ratio is 3:4.", "4"),
        ("The wrong answer is 5.", "5"),
        (r"The answer is either \boxed{3} or \boxed{4}.", "4"),
        (r"\boxed{1} and \boxed{2}", "2"),
        (r"The answer is \boxed{3} for even n and \boxed{5} for odd n.", "5"),
        (r"$\boxed{-1}$ if $n$ is odd; $\boxed{1}$ otherwise.", "1"),
        (r"$\boxed{3}$ (for even $n$) and $\boxed{5}$ (for odd $n$)", "5"),
        (r"\boxed{4} for $x < 0.5$, \boxed{7} for $x \ge 0.5$", "7"),
        (r"\boxed{4} when $x < 0$, \boxed{7} when $x \ge 0$", "7"),
        ("Die Antwort ist 1,125", "1.125"),
        ("There are 5 to 7 ways to do it.", "5"),
        ("The answer is $x=3$ or $x=4$.", "4"),
        ("The answer is 2.5.", "2,5"),
        ("The answer is 1,234", "1.234"),
        ("The line is $2x + 3y - 6 = 0$.", "0"),
        (r"It is $x \neq 3$.", "x=3"),
        (r"\boxed{1 + \frac{1}{\mathrm{e}}}", r"1 - \frac{1}{\mathrm{e}}"),
        (r"The answer is $\begin{pmatrix}0&0\\0&0\end{pmatrix}$.", "0"),
        ("The answer is 5 if n is odd.", "5"),
        (r"\boxed{10 \text{ or more}}", "10"),
        (r"\boxed{10 \text{ is not it}}", "10"),
        (r"\boxed{x \text{ which is even}}", "x"),
        (r"\boxed{10 \text{ million dollars}}", "10"),
        (r"\boxed{10 \text{ inches by } 4 \text{ square inches}}", "10"),
        ("The answer is negative 5.", "5"),
    ],
)
def test_maths_reads_nothing_into_an_answer(said, right):
    assert not Maths().check(said, {"answer": right}).keep


def test_maths_says_what_it_needs(monkeypatch):
    monkeypatch.setattr(final_answer, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError):
        Maths().check(r"\boxed{y+1}", {"answer": "y-1"})
    assert not Maths(formulas=False).check(r"\boxed{y+1}", {"answer": "y-1"}).keep
    assert Maths().check("The answer is 3.", {"answer": "3"}).keep


def test_code_passes_tests_or_prints_what_its_cases_say():
    good = "Here:\n```python\ndef double(n):\n    return 2 * n\n```\nThat is all."
    assert Code().check(good, {"tests": ["assert double(2) == 4"]}).keep
    assert Code().check(good, {"tests": "assert double(2) == 5"}).reason == (
        "fails its tests: AssertionError"
    )
    echo = "print(int(input()) * 2)"
    assert Code().check(echo, {"cases": [{"input": "4", "output": "8\n"}]}).keep
    assert Code().check(echo, {"cases": [{"input": "4", "output": "9"}]}).reason == (
        "prints something else"
    )
    assert Code().check(echo, {"cases": [{"input": "four", "output": "9"}]}).reason == (
        "fails a case: ValueError"
    )
    assert Code().check("```\n```", {"tests": ["1"]}).reason == "no code"
    assert Code().check(echo, {}).reason == "no tests to run"
    assert Code().lacks({})


@pytest.mark.parametrize(
    "reply",
    [
        "```bash\npip install x\n```\nThen:\n```python\n{}\n```",
        "```python3\n{}\n```",
        "```python\n{}\n```\nIt prints:\n```\n3\n```",
        "```py\n{}\n```\n```text\n3\n```",
        "So: ```python\n{}```",
        "Use ``` as fence, or ```python fences:\n```python\n{}\n```",
        "```python\n{}",
    ],
)
def test_code_is_the_block_of_python_whatever_else_is_shown(reply):
    code = "def add(a, b):\n    return a + b"
    assert Code().check(reply.format(code), {"tests": ["assert add(1, 2) == 3"]}).keep


def test_regex_matches_what_the_task_or_the_recipe_says():
    assert Regex(pattern=r"\d{3}").check("call 911", {}).keep
    assert not Regex(pattern=r"\d{3}", whole=True).check("call 911", {}).keep
    assert Regex(pattern="x").check("yes", {"pattern": "yes"}).keep
    assert not Regex().check("yes", {}).keep
    assert not Regex().check("yes", {"pattern": "("}).keep
    with pytest.raises(ValueError, match="not a regular expression"):
        Regex(pattern="(")


def test_a_pattern_without_end_is_ended():
    verdict = Regex(pattern=r"(a+)+$").check("a" * 40 + "b", {})
    assert verdict.reason == "the pattern does not come to an end"
    assert Regex(pattern=r"(a+)+$").check("aaa", {}).keep


def test_json_schema_repairs_nothing():
    schema = {"type": "object", "required": ["a"]}
    assert JsonSchema(json_schema=schema).check('{"a": 1}', {}).keep
    assert JsonSchema().check('{"a": 1}', {"schema": schema}).keep
    assert JsonSchema(json_schema=schema).check("{'a': 1,}", {}).reason == (
        "is JSON only after repair"
    )
    assert not JsonSchema(json_schema=schema).check('{"b": 1}', {}).keep
    assert not JsonSchema().check("{}", {}).keep


def test_every_verifier_is_total_on_texts():
    for name in VERIFIERS.names():
        for text in ("", "x" * 10_000, "\ud800", "{" * 5000, "```python\n", *FLOODS):
            assert not VERIFIERS.build(name).check(text, {"answer": "3"}).keep
