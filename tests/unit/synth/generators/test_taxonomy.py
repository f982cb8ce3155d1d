import pytest
from tests.unit.synth.generators.hostile import HOSTILE, TOPIC, draft_of, fill, reasons, survives

from stillroom.synth.generators.taxonomy import Taxonomy
from stillroom.synth.types import Topic, WorkItem

GROUNDED = Topic(
    ("animals", "bees"),
    examples=({"question": "What do bees make?", "answer": "Wax.", "context": "Bees make wax."},),
)


def script(prompt):
    if prompt.schema:
        return fill(prompt.schema, title="Balance", concepts=["equal sides", "terms"])
    return "It is four."


def test_a_leaf_without_examples_gets_a_syllabus_first():
    made, model = draft_of(Taxonomy(questions=3), TOPIC, script)
    assert "mathematics > algebra" in model.asked[0].messages[-1].content
    assert "linear equations" in model.asked[0].messages[-1].content
    assert len(made.records) == 3
    assert made.asked == 1 + 2 * 3
    record = made.records[0]
    assert record.fields["sessions"] == ["Balance"]
    assert set(record.fields["concepts"]) <= {"equal sides", "terms"}
    assert record.fields["seed"]["path"] == ["mathematics", "algebra"]
    assert record.origin.chain[-1].parents == (TOPIC.id,)


def test_a_leaf_with_examples_is_asked_after_them_on_its_context():
    made, model = draft_of(Taxonomy(questions=1), GROUNDED, script)
    first = model.asked[0].messages[-1].content
    assert "What do bees make?" in first
    assert "<text>\nBees make wax." in first
    assert made.records[0].messages[0].content.startswith("<text>\nBees make wax.")
    assert made.records[0].fields["context"] == "Bees make wax."
    made, model = draft_of(Taxonomy(questions=1, by="syllabus"), GROUNDED, script)
    assert "syllabus" in model.asked[0].messages[-1].content


def test_examples_are_needed_where_they_are_asked_for():
    made, model = draft_of(Taxonomy(by="examples"), TOPIC, script)
    assert reasons(made) == ["a leaf without examples"]
    assert not model.asked


@pytest.mark.parametrize("said", HOSTILE)
def test_hostile_answers_are_counted_failures(said):
    survives(lambda model: Taxonomy().generate([WorkItem(TOPIC, "train")], model), said)
