import pytest
from tests.unit.synth.generators.hostile import HOSTILE, SUM, draft_of, fill, reasons, survives

from stillroom.records import Message, Record
from stillroom.synth.generators.metamath import Metamath
from stillroom.synth.types import WorkItem


def script(problem="Tom owns 3 apples, then gets 4. What is the sum?", statement="", solved=None):
    def say(prompt):
        text = prompt.messages[-1].content
        if prompt.schema:
            said = statement or "Tom has x apples and buys 4. He has 7."
            return fill(prompt.schema, problem=problem, statement=said)
        if solved:
            return solved
        if "unknown variable x" not in text:
            return "The answer is 7."
        return "The answer is 3." if "buys 4" in text else "The answer is 4."

    return say


def made_by(way, **more):
    return draft_of(Metamath(ways=(way,)), SUM, script(**more))


def test_rephrasing_keeps_the_answer():
    made, _ = made_by("rephrase")
    record = made.records[0]
    assert record.messages[0].content.startswith("Tom owns 3")
    assert record.fields["final_answer"] == "7"
    made, _ = made_by("rephrase", problem="tom has 3 apples and  buys 4. How many has he?")
    assert reasons(made) == ["rephrasing that is the same"]
    made, _ = made_by("rephrase", solved="The answer is 8.")
    assert reasons(made) == ["solution with another answer"] * 2


def test_fobar_masks_a_number_and_asks_for_it():
    seen = set()
    for attempt in range(12):
        made, model = draft_of(Metamath(ways=("fobar",)), SUM, script(), attempt)
        record = made.records[0]
        question = record.messages[0].content
        assert question.endswith(
            "If we know the answer to the above question is 7, what is the value of the unknown "
            "variable x?"
        )
        assert record.fields["final_answer"] == ("3" if "has x apples" in question else "4")
        assert len(model.asked) == 1
        seen.add(record.fields["final_answer"])
    assert seen == {"3", "4"}


def test_self_verification_states_and_asks_backward():
    for attempt in range(6):
        made, _ = draft_of(Metamath(ways=("self_verification",)), SUM, script(), attempt)
        if made.records:
            asked = made.records[0].messages[0].content
            assert asked == (
                "Tom has x apples and buys 4. He has 7. "
                "What is the value of the unknown variable x?"
            )
            assert made.records[0].fields["final_answer"] == "3"
            break
    else:
        raise AssertionError("the 3 was never masked")
    made, _ = made_by("self_verification", statement="Tom has some apples. He has 7.")
    assert reasons(made) == ["statement without x or the answer, or that asks"]


def test_a_problem_without_numbers_has_nothing_to_mask():
    record = Record((Message("user", "What is two plus five?"),), {"answer": "7"})
    made, _ = draft_of(Metamath(ways=("fobar",)), record, script())
    assert reasons(made) == ["no number that x could stand for"]


@pytest.mark.parametrize("said", HOSTILE)
def test_hostile_answers_are_counted_failures(said):
    survives(lambda model: Metamath().generate([WorkItem(SUM, "train")], model), said)
