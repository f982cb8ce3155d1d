import pytest
from tests.unit.synth.generators.hostile import HOSTILE, SUM, draft_of, reasons, survives

from stillroom.records import Message, Record
from stillroom.synth.generators.rationale import Rationale
from stillroom.synth.types import WorkItem


def script(*answers):
    said = iter(answers)
    return lambda prompt: next(said)


def test_the_first_rationale_that_ends_right_is_kept():
    made, _ = draft_of(Rationale(), SUM, script("The answer is 8.", "3 + 4 = 7. The answer is 7."))
    record = made.records[0]
    assert record.fields["way"] == "sampled"
    assert record.messages[1].content == "3 + 4 = 7. The answer is 7."
    assert reasons(made) == ["another answer"]
    assert made.counts == {"rationales sampled": 1}


def test_a_hint_rationalizes_and_does_not_stand_in_the_record():
    wrong = ["The answer is 8."] * 2
    made, model = draft_of(Rationale(), SUM, script(*wrong, "He adds. The answer is 7."))
    record = made.records[0]
    assert record.fields["way"] == "rationalized"
    assert record.messages[0].content == SUM.messages[0].content
    assert "(The answer is 7.)" in model.asked[-1].messages[-1].content
    assert "hint" not in record.messages[1].content


def test_reasoning_that_tells_of_its_hint_is_dropped():
    told = "As the given answer says, the answer is 7."
    made, _ = draft_of(Rationale(tries=1), SUM, script("The answer is 1.", told))
    assert reasons(made)[-1] == "rationale that tells of its hint"
    made, model = draft_of(Rationale(tries=1, rationalize=False), SUM, script("The answer is 1."))
    assert not made.records
    assert len(model.asked) == 1


def test_a_record_without_an_answer_is_refused():
    made, model = draft_of(Rationale(), Record((Message("user", "Why?"),)), script())
    assert reasons(made) == ["a record without a question or what its answer is checked by"]
    assert not model.asked


def test_the_hint_is_the_final_answer_and_not_the_whole_solution():
    solved = Record(SUM.messages, {"answer": "He has 3 + 4 = <<3+4=7>>7 apples.\n#### 7"})
    made, model = draft_of(
        Rationale(tries=1), solved, script("The answer is 8.", "The answer is 7.")
    )
    assert "(The answer is 7.)" in model.asked[-1].messages[-1].content
    assert "<<3+4=7>>" not in model.asked[-1].messages[-1].content
    assert made.records[0].fields["final_answer"] == "7"


@pytest.mark.parametrize("said", HOSTILE)
def test_hostile_answers_are_counted_failures(said):
    survives(lambda model: Rationale().generate([WorkItem(SUM, "train")], model), said)
