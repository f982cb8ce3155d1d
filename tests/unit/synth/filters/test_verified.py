"""The filter over the verifiers: right, wrong, and nothing to check by."""

import pytest

from stillroom.records import Message, Record
from stillroom.synth.interfaces import FILTERS


def judge(said, fields, **settings):
    record = Record((Message("user", "What is 6 times 7?"), Message("assistant", said)), fields)
    return FILTERS.build({"name": "verified", **settings}).judge(record)


@pytest.mark.parametrize(
    ("said", "keep"), [("So the answer is 42.", True), ("The answer is 41.", False)]
)
def test_answers_are_held_to_the_right_one(said, keep):
    numbers = {"name": "maths", "formulas": False}
    verdict = judge(said, {"answer": "42"}, verifier=numbers)
    assert verdict.keep == keep
    assert keep or verdict.details["verifier"] == "maths"


def test_what_cannot_be_checked_is_dropped_unless_told():
    assert judge("42", {}).reason == "nothing to check by"
    assert judge("42", {}, unverifiable="keep").keep
