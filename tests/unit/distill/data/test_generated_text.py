from dataclasses import replace

import pytest
from pydantic import ValidationError
from tests.unit.distill.data.test_generated_text_sequence import ask

from stillroom.distill.data.generated_text import (
    generate_rationales,
    generate_sequences,
    make_rationale_tasks,
)
from stillroom.distill.settings import (
    RationaleFirstSettings,
    RationaleTaskSettings,
    SequenceSettings,
)
from stillroom.records import Message, Record
from stillroom.testing import scripted_model


def explained(question, answer, rationale):
    record = ask(question, answer)
    return Record(record.messages, {"split": "train", "rationale": rationale}, record.origin)


def talk(record):
    return [message.content for message in record.messages]


def test_a_record_becomes_two_tasks_told_apart_by_their_prefix():
    settings = RationaleTaskSettings(answer_prefix="[label] ", rationale_prefix="[rationale] ")
    records = [explained("2 + 3?", "5", "Two and three."), ask("why?", "so")]
    tasks = make_rationale_tasks(settings, records)
    assert [talk(one) for one in tasks.answers] == [["[label] 2 + 3?", "5"], ["[label] why?", "so"]]
    assert [talk(one) for one in tasks.rationales] == [["[rationale] 2 + 3?", "Two and three."]]
    assert tasks.to_json() == {"with a rationale": 1, "without a rationale": 1}


def test_the_rationale_may_stand_before_the_answer():
    settings = RationaleFirstSettings(form="before_answer", between=" So: ")
    tasks = make_rationale_tasks(settings, [explained("2 + 3?", "5", "Two and three.")])
    assert talk(tasks.answers[0]) == ["2 + 3?", "Two and three. So: 5"]
    assert not tasks.rationales


def test_plain_texts_are_left_alone():
    plain = Record((Message("assistant", "A text."),), {"rationale": "none"})
    tasks = make_rationale_tasks(RationaleTaskSettings(answer_prefix="[label] "), [plain])
    assert tasks.answers == [plain]


def test_missing_rationales_are_written_by_one_who_knows_the_answer(job):
    def explain(prompt):
        return "" if "empty" in prompt.messages[-1].content else "Because."

    writer = scripted_model(explain)
    settings = RationaleTaskSettings.model_validate({"generate": {}})
    records = [ask("why?", "so"), explained("how?", "thus", "Known."), ask("empty?", "nothing")]
    found = generate_rationales(settings, settings.generate, records, writer, job, seed=0)
    assert [one.fields.get("rationale") for one in found] == ["Because.", "Known.", None]
    assert "The correct answer is:\nso" in writer.asked[0].messages[-1].content
    assert found[0].origin.kind == "synthetic"
    assert found[0].origin.chain[-1].parents == (records[0].id,)
    assert found[1] == records[1]


def test_tools_that_the_writer_is_not_shown_are_counted(job):
    records = [replace(ask("why?", "so"), fields={"tools": [{"name": "add"}]}), ask("how?", "thus")]
    writer, said = scripted_model(lambda prompt: "Because."), []
    job.warn = said.append
    settings = RationaleTaskSettings.model_validate({"generate": {}})
    generate_rationales(settings, settings.generate, records, writer, job, seed=0)
    generate_sequences(SequenceSettings(), records, writer, job, seed=0)
    assert len(said) == 2
    assert all(line.startswith("1 of 2 records have tools, which") for line in said)


@pytest.mark.parametrize(
    "bad",
    [
        {"answer_prefix": "x", "rationale_prefix": "x"},
        {"form": "before_answer", "weight": 0.5},
        {"generate": {"instruction": "Explain."}},
    ],
)
def test_refuses_what_makes_no_sense(bad):
    with pytest.raises(ValidationError):
        RationaleTaskSettings.model_validate(bad)
