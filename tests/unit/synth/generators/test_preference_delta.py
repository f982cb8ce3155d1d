import gc

import pytest
from tests.unit.synth.generators.hostile import HOSTILE, TASK, draft_of, reasons, survives

from stillroom.errors import BackendError
from stillroom.synth.generators.preference_delta import PreferenceDelta
from stillroom.synth.types import GeneratorContext, WorkItem
from stillroom.testing import scripted_model


@pytest.fixture
def weaker(monkeypatch):
    model = scripted_model(lambda prompt: "No idea at all.", fingerprint="scripted:weak")
    monkeypatch.setattr("stillroom.models.factory.open_text_model", lambda *a, **k: model)
    return model


def test_the_teacher_is_chosen_and_the_weaker_rejected(weaker):
    made, _ = draft_of(PreferenceDelta(), TASK, lambda prompt: "By yeast and warmth.")
    record = made.records[0]
    assert record.fields["chosen"] == record.messages[-1].content == "By yeast and warmth."
    assert record.fields["rejected"] == "No idea at all."
    assert [link.model for link in record.origin.chain][-2] == "scripted:weak"
    assert made.counts == {"asks of the weaker model": 1}
    gc.collect()
    assert weaker.is_closed


def test_answers_that_are_the_same_are_no_pair(weaker):
    made, _ = draft_of(PreferenceDelta(), TASK, lambda prompt: "No idea at all.")
    assert reasons(made) == ["two answers that are the same"]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("backend.context", "longer than the teacher's context"),
        ("backend.timeout", "no answer from the teacher's server"),
    ],
)
def test_what_the_weaker_model_cannot_take_costs_its_row(monkeypatch, fault, reason):
    def fail(prompt):
        raise BackendError("it is too long", code=fault)

    model = scripted_model(fail, fingerprint="scripted:weak")
    monkeypatch.setattr("stillroom.models.factory.open_text_model", lambda *a, **k: model)
    made, _ = draft_of(PreferenceDelta(), TASK, lambda prompt: "By yeast and warmth.")
    assert reasons(made) == [reason]
    assert made.asked == 2


def test_an_answer_of_the_weaker_model_that_was_cut_is_none(monkeypatch):
    model = scripted_model(lambda prompt: "word " * 900, fingerprint="scripted:weak")
    monkeypatch.setattr("stillroom.models.factory.open_text_model", lambda *a, **k: model)
    made, _ = draft_of(PreferenceDelta(), TASK, lambda prompt: "By yeast and warmth.")
    assert reasons(made) == ["answer of the weaker model cut at the token limit"]
    assert made.completion_tokens > 384  # what the weaker one wrote is paid for too


@pytest.mark.parametrize("said", HOSTILE)
def test_hostile_answers_are_counted_failures(weaker, said):
    writer = PreferenceDelta().start(GeneratorContext("train"))
    survives(lambda model: writer.generate([WorkItem(TASK, "train")], model), said)
