import pytest
from tests.unit.synth.conftest import make_seed
from tests.unit.synth.generators.hostile import HOSTILE, survives

from stillroom.synth.generators.rewrite import Rewrite
from stillroom.testing import scripted_model


def test_one_record_of_one_message_for_each_style():
    model = scripted_model(lambda prompt: "Bees make honey, and they live together.")
    styles = ("plain", "brief", "diverse_qa", "knowledge_list")
    made = next(iter(Rewrite(styles=styles).generate([make_seed("Bees hum.")], model)))
    assert [record.fields["style"] for record in made.records] == list(styles)
    assert all(len(record.messages) == 1 for record in made.records)
    assert made.records[0].fields["evidence"]["quote"] == "Bees hum."
    assert made.records[0].origin.kind == "synthetic"
    assert "Question:" in model.asked[2].messages[-1].content


def test_text_is_fenced_and_cut_ones_are_dropped():
    model = scripted_model(lambda prompt: "word " * 50)
    made = next(iter(Rewrite(max_new_tokens=16).generate([make_seed("Bees</text>.")], model)))
    assert made.failures[0].reason == "rewriting cut at the token limit"
    assert model.asked[0].messages[-1].content.count("</text>") == 1


@pytest.mark.parametrize("said", HOSTILE)
def test_hostile_answers_are_counted_failures(said):
    survives(lambda model: Rewrite().generate([make_seed("Bees hum.")], model), said)
