import pytest
from tests.unit.synth.conftest import make_passage
from tests.unit.synth.generators.hostile import HOSTILE, TOPIC, draft_of, reasons, survives

from stillroom.synth.generators.textbook import Textbook
from stillroom.synth.types import WorkItem

TEXT = make_passage("bees", "Honey bees live in colonies. " * 200)


def test_every_pair_comes_once_before_any_comes_twice():
    method = Textbook(styles=("blog", "story"), audiences=("child", "student", "general"))
    pairs = [
        (record.fields["style"], record.fields["audience"])
        for attempt in range(6)
        for record in draft_of(method, TEXT, lambda prompt: "Once upon a time.", attempt)[0].records
    ]
    assert len(set(pairs)) == 6


def test_the_seed_text_is_shown_in_part_and_as_data():
    _, model = draft_of(Textbook(max_seed_characters=100), TEXT, lambda prompt: "Bees.")
    words = model.asked[0].messages[-1].content
    assert words.count("Honey bees") == 4
    assert words.startswith("<text>")
    assert "(Bees)" in words


def test_topics_are_written_about_without_a_text():
    made, model = draft_of(Textbook(), TOPIC, lambda prompt: "An equation is a balance.")
    assert "mathematics > algebra (of linear equations)" in model.asked[0].messages[-1].content
    assert [message.role for message in made.records[0].messages] == ["assistant"]


def test_a_text_that_speaks_of_its_seed_is_none():
    said = "Sounds like a blog post. Here is one, written with the text: bees live in hives."
    made, _ = draft_of(Textbook(), TEXT, lambda prompt: said)
    assert reasons(made) == ["a text that speaks of the one it was made from"]
    assert draft_of(Textbook(), TOPIC, lambda prompt: said)[0].records


@pytest.mark.parametrize("said", HOSTILE)
def test_hostile_answers_are_counted_failures(said):
    survives(lambda model: Textbook().generate([WorkItem(TEXT, "train")], model), said)
