import json

import pytest
from tests.unit.synth.generators.hostile import HOSTILE, TASK, draft_of, reasons, survives

from stillroom.records import Message, Record
from stillroom.synth.generators.preference_judge import PreferenceJudge
from stillroom.synth.types import WorkItem


def script(verdicts, answers=("By yeast and warmth.", "No idea.")):
    said, given = iter(answers), iter(verdicts)

    def say(prompt):
        if prompt.schema:
            first, second = next(given)
            return json.dumps({"first": first, "second": second})
        return next(said)

    return say


def test_a_clear_verdict_in_both_orders_makes_a_pair():
    made, model = draft_of(PreferenceJudge(), TASK, script([(8, 3), (2, 9)]))
    record = made.records[0]
    assert record.fields["chosen"] == record.messages[-1].content == "By yeast and warmth."
    assert record.fields["rejected"] == "No idea."
    assert record.fields["margin"] == 6
    one, other = (prompt.messages[-1].content for prompt in model.asked[2:])
    assert one.index("By yeast") < one.index("No idea")
    assert other.index("By yeast") > other.index("No idea")


@pytest.mark.parametrize(
    ("verdicts", "reason"),
    [
        ([(8, 3), (8, 3)], "a verdict that changes with the order"),
        ([(5, 5), (5, 5)], "a margin below the least"),
        ([(9, 4), (5, 5)], "a verdict that changes with the order"),
        ([(5, 5), (2, 9)], "a verdict that changes with the order"),
    ],
)
def test_position_bias_and_ties_are_dropped(verdicts, reason):
    made, _ = draft_of(PreferenceJudge(), TASK, script(verdicts))
    assert reasons(made) == [reason]


def test_the_second_may_win_and_equal_answers_are_no_pair():
    made, _ = draft_of(PreferenceJudge(), TASK, script([(2, 9), (9, 1)]))
    assert made.records[0].fields["chosen"] == "No idea."
    made, _ = draft_of(PreferenceJudge(), TASK, script([], ("Yes.", "Yes. ")))
    assert reasons(made) == ["two answers that are the same"]
    empty = Record((Message("assistant", ""),))
    assert reasons(draft_of(PreferenceJudge(), empty, script([]))[0]) == [
        "a record that asks nothing"
    ]


@pytest.mark.parametrize("said", HOSTILE)
def test_hostile_answers_are_counted_failures(said):
    survives(lambda model: PreferenceJudge().generate([WorkItem(TASK, "train")], model), said)
