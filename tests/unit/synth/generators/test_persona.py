import pytest
from tests.unit.synth.conftest import make_passage
from tests.unit.synth.generators.hostile import HOSTILE, draft_of, fill, reasons, survives

from stillroom.records import Message, Record
from stillroom.synth.generators.persona import Persona
from stillroom.synth.types import GeneratorContext, WorkItem
from stillroom.testing import scripted_model

TEXT = make_passage("bees", "Honey bees live in colonies.")


def script(prompt):
    if prompt.schema:
        return fill(
            prompt.schema,
            persona="A beekeeper in the mountains.",
            personas=["A baker who buys honey.", "A vet who looks after bees."],
        )
    is_task = "Persona:" in prompt.messages[-1].content
    return "How many hives can one man keep?" if is_task else "Ten, or twenty with help."


def test_text_to_persona_to_related_to_tasks():
    made, model = draft_of(Persona(hops=1, relations=2), TEXT, script)
    people = [record.fields["persona"] for record in made.records]
    assert people == [
        "A beekeeper in the mountains.",
        "A baker who buys honey.",
        "A vet who looks after bees.",
    ]
    first, second, _ = made.records
    assert second.fields["related_to"] == first.fields["persona_id"]
    assert (first.fields["hop"], second.fields["hop"]) == (0, 1)
    assert "<text>\nHoney bees" in model.asked[0].messages[-1].content
    assert made.asked == 1 + 1 + 3 * 2
    assert Persona(hops=1, relations=2).max_requests >= made.asked


def test_a_persona_of_a_record_is_taken_as_it_is():
    record = Record((Message("user", "x"),), {"persona": "A sailor."})
    made, model = draft_of(Persona(kinds=("tool", "reasoning")), record, script)
    assert [one.fields["task_kind"] for one in made.records] == ["tool", "reasoning"]
    assert made.records[0].fields["persona"] == "A sailor."
    assert not any(prompt.schema for prompt in model.asked)


def test_a_persona_like_one_before_is_dropped_whole():
    writer = Persona(kinds=("tool", "knowledge")).start(GeneratorContext("train"))
    model = scripted_model(script)
    seeds = [WorkItem(TEXT, "train"), WorkItem(TEXT, "train", 1)]
    first, second = (writer.finalize(made) for made in writer.generate(seeds, model))
    assert len(first.records) == 2
    assert not second.records
    assert reasons(second) == ["persona like one before"] * 2


@pytest.mark.parametrize(
    ("task", "answer", "reason"),
    [
        ("What is a favorite hobby of this person?", "Bees.", "words of the prompt in the task"),
        ("Request: sell my honey.", "Yes.", "words of the prompt in the task"),
        (
            "Tell me how honey is sold in town.",
            "Tell me how honey is sold in town!",
            "an answer that repeats its task",
        ),
    ],
)
def test_a_task_about_the_persona_or_said_again_is_none(task, answer, reason):
    def say(prompt):
        if prompt.schema:
            return script(prompt)
        return task if "Persona:" in prompt.messages[-1].content else answer

    made, _ = draft_of(Persona(), TEXT, say)
    assert not made.records
    assert reasons(made) == [reason]


@pytest.mark.parametrize(
    "persona", ["A/C/DJ, 1977 - 1983", "The person is likely to read, write or use this text."]
)
def test_a_persona_that_describes_nobody_gets_no_task(persona):
    def say(prompt):
        return fill(prompt.schema, persona=persona) if prompt.schema else "Why?"

    made, model = draft_of(Persona(), TEXT, say)
    assert reasons(made) == ["a persona that describes nobody"]
    assert len(model.asked) == 1


@pytest.mark.parametrize("said", HOSTILE)
def test_hostile_answers_are_counted_failures(said):
    survives(lambda model: Persona(hops=1).generate([WorkItem(TEXT, "train")], model), said)


def test_without_relations_nobody_is_asked_for_them():
    made, model = draft_of(Persona(relations=0, hops=2), TEXT, script)
    assert len(made.records) == 1
    assert len(model.asked) == Persona(relations=0, hops=2).max_requests - 1 == 3
