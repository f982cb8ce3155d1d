import pytest

from stillroom.errors import MissingExtraError
from stillroom.evaluate import symbolic
from stillroom.evaluate.method import VERIFIERS
from stillroom.evaluate.verifiers.code import Code
from stillroom.evaluate.verifiers.json_schema import JsonSchema
from stillroom.evaluate.verifiers.maths import Maths
from stillroom.evaluate.verifiers.regex import Regex


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
        (r"\boxed{9^{9^{9^{9}}}}", "3", False),
    ],
)
def test_maths_compares_numbers_formulas_and_words(said, right, same):
    assert Maths().check(said, {"answer": right}).keep is same


def test_maths_says_what_it_needs(monkeypatch):
    monkeypatch.setattr(symbolic, "find_spec", lambda name: None)
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


def test_regex_matches_what_the_task_or_the_recipe_says():
    assert Regex(pattern=r"\d{3}").check("call 911", {}).keep
    assert not Regex(pattern=r"\d{3}", whole=True).check("call 911", {}).keep
    assert Regex(pattern="x").check("yes", {"pattern": "yes"}).keep
    assert not Regex().check("yes", {}).keep
    assert not Regex().check("yes", {"pattern": "("}).keep
    with pytest.raises(ValueError, match="no regular expression"):
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
        for text in ("", "x" * 10_000, "\ud800", "{" * 5000, "```python\n"):
            assert not VERIFIERS.build(name).check(text, {"answer": "3"}).keep
