import pytest
from tests.unit.synth.generators.hostile import (
    HOSTILE,
    SUM,
    TASK,
    draft_of,
    fill,
    reasons,
    survives,
)

from stillroom.synth.generators.revision import Revision
from stillroom.synth.types import WorkItem


def script(*verdicts, again="By yeast, which makes gas."):
    said = iter(verdicts)

    def say(prompt):
        if prompt.schema:
            good = next(said, "yes")
            return fill(prompt.schema, good_enough=good, problems=["it is too short"])
        return again

    return say


def test_a_criticized_answer_is_rewritten_until_it_is_good_enough():
    made, model = draft_of(Revision(rounds=3), TASK, script("no", "yes"))
    record = made.records[0]
    assert record.messages[1].content == "By yeast, which makes gas."
    assert record.fields["before"] == "By yeast."
    assert record.fields["critiques"] == [["it is too short"]]
    assert "- it is too short" in model.asked[1].messages[-1].content
    assert made.asked == 3


def test_what_is_good_at_once_is_dropped_or_kept():
    made, _ = draft_of(Revision(), TASK, script("yes"))
    assert reasons(made) == ["nothing was revised"]
    made, _ = draft_of(Revision(keep_unchanged=True), TASK, script("yes"))
    assert made.records[0].messages[1].content == "By yeast."


def test_rewriting_the_same_ends_it():
    made, _ = draft_of(Revision(rounds=5), TASK, script("no", "no", again="By  yeast."))
    assert reasons(made) == ["nothing was revised"]
    assert made.asked == 2


def test_a_record_without_an_answer_gets_one_first():
    made, model = draft_of(Revision(rounds=1), SUM, script("no", again="Seven."))
    assert model.asked[0].messages[-1].content == SUM.messages[0].content
    assert made.asked == 3


@pytest.mark.parametrize("said", HOSTILE)
def test_hostile_answers_are_counted_failures(said):
    survives(lambda model: Revision().generate([WorkItem(TASK, "train")], model), said)
