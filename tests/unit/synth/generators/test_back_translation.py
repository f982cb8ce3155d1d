import math

import pytest
from tests.unit.synth.conftest import make_passage
from tests.unit.synth.generators.hostile import HOSTILE, draft_of, fill, reasons, survives

from stillroom.models import Score
from stillroom.synth.generators.back_translation import BackTranslation
from stillroom.synth.types import WorkItem
from stillroom.testing import scripted_model

TEXT = make_passage("bees", "Honey bees live in colonies. They make wax.")


def script(score):
    return lambda prompt: fill(prompt.schema, instruction="Tell me about bees.", score=score)


@pytest.mark.parametrize(("score", "least", "kept"), [(5, 5, 1), (4, 5, 0), (3, 3, 1)])
def test_the_document_is_the_answer_where_the_pair_scores_high(score, least, kept):
    made, _ = draft_of(BackTranslation(min_score=least), TEXT, script(score))
    assert len(made.records) == kept
    if not kept:
        assert reasons(made) == ["curation score below the least"]
        return
    record = made.records[0]
    assert [message.content for message in record.messages] == ["Tell me about bees.", TEXT.text]
    assert record.fields["curation_score"] == score
    assert record.fields["evidence"]["quote"] == TEXT.text


def test_the_expected_score_is_the_mean_of_the_belief():
    class Believing:
        def __getattr__(self, name):
            return getattr(self.model, name)

        model = scripted_model(script(1))

        def score(self, prompts, completions):
            shares = {"4": 0.5, "5": 0.5}
            return [Score((math.log(shares.get(one, 1e-9)),)) for one in completions]

    method = BackTranslation(grade="expected", min_score=4)
    (made,) = method.generate([WorkItem(TEXT, "train")], Believing())
    assert made.records[0].fields["curation_score"] == pytest.approx(4.5, abs=1e-4)


@pytest.mark.parametrize("said", HOSTILE)
def test_hostile_answers_are_counted_failures(said):
    survives(lambda model: BackTranslation().generate([WorkItem(TEXT, "train")], model), said)
