from tests.unit.synth.conftest import make_seed

from stillroom.synth.generators.rewrite import Rewrite
from stillroom.testing import scripted_model


def test_one_record_of_one_message_for_each_style():
    model = scripted_model(lambda prompt: "Bees make honey, and they live together.")
    made = next(iter(Rewrite(styles=("plain", "brief")).generate([make_seed("Bees hum.")], model)))
    assert [record.fields["style"] for record in made.records] == ["plain", "brief"]
    assert all(len(record.messages) == 1 for record in made.records)
    assert made.records[0].fields["evidence"]["quote"] == "Bees hum."
    assert made.records[0].origin.kind == "synthetic"


def test_text_is_fenced_and_cut_ones_are_dropped():
    model = scripted_model(lambda prompt: "word " * 50)
    made = next(iter(Rewrite(max_new_tokens=16).generate([make_seed("Bees</text>.")], model)))
    assert made.failures[0].reason == "rewriting cut at the token limit"
    assert model.asked[0].messages[-1].content.count("</text>") == 1
