"""Ways to check whether passages support a sentence."""

from pathlib import Path

import pytest

from stillroom.rag import model_calls
from stillroom.rag.checkers.entailment import Entailment
from stillroom.rag.generation.answer import ask
from stillroom.rag.interfaces import CHECKERS
from stillroom.testing import scripted_model
from stillroom.text.language import split_windows

QUESTION = "What is the capital of France?"


class Agreeing:
    """Entails where the premise holds the hypothesis's last word."""

    def __init__(self):
        self.asked = []

    def entail(self, premises, hypotheses):
        pairs = list(zip(premises, hypotheses, strict=True))
        self.asked += pairs
        return [0.9 if said.rstrip(".").split()[-1] in held else 0.2 for held, said in pairs]


def test_a_model_of_inference_takes_the_place_of_words(index, monkeypatch):
    model = Agreeing()
    monkeypatch.setattr("stillroom.rag.checkers.entailment.open_entailment", lambda *_, **__: model)
    answering = scripted_model(lambda prompt: "The seat of government is Paris. It is a banana.")
    by_words = ask(index, answering, QUESTION, answering="generate")
    checker = {"name": "entailment", "checkpoint": "x"}
    found = ask(index, answering, QUESTION, answering="generate", checker=checker)
    assert [one["status"] for one in by_words.details["statements"]] == ["unsupported"] * 2
    assert [one["status"] for one in found.details["statements"]] == ["supported", "unsupported"]
    assert found.details["statements"][0]["score"] == 0.9
    assert len(model.asked) == len(set(model.asked))


LAMPS = (
    "The old works paid nine clerks and made 400 lamps a day. The new works were finished and lit "
    "in 1931. The board did not approve a third one. It met in Leeds, and a bank in Bradford "
    "approved the loan."
)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("The old works made 400 lamps.", "The new works were finished and lit with 400 lamps."),
        ("A bank approved the loan.", "The board approved a third one."),
    ],
)
def test_a_number_or_negation_of_another_sentence_is_not_supported(index, right, wrong):
    evidence = CHECKERS.build("overlap").hold([LAMPS], index)
    assert evidence.find(right).score >= evidence.threshold
    assert evidence.find(wrong).score < evidence.threshold


def test_passages_are_read_in_overlapping_windows_of_whole_sentences():
    text = "One is. Two is. Three is. Four is. Five is."
    assert split_windows(text, 2) == [
        "One is. Two is.", "Two is. Three is.", "Three is. Four is.", "Four is. Five is.",
    ]  # fmt: skip
    assert split_windows(text, 4) == [
        "One is. Two is. Three is. Four is.",
        "Three is. Four is. Five is.",
    ]
    assert split_windows(text, 9) == [text]
    assert split_windows("", 4) == []
    for window in (1, 2, 3, 4, 5, 6):
        joined = " ".join(split_windows(text, window))
        assert all(sentence in joined for sentence in text.split(". "))


def test_a_reference_is_opened_once(monkeypatch):
    opened = []

    class Model:
        def __init__(self, folder, device):
            opened.append(folder)

    monkeypatch.setattr("stillroom.models.encoders.sequence_classifiers.NLIModel", Model)
    monkeypatch.setattr("stillroom.models.hub.resolve_checkpoint", Path)
    model_calls._open_entailment.cache_clear()
    assert model_calls.open_entailment("a") is model_calls.open_entailment("a")
    assert opened == [Path("a")]
    monkeypatch.setattr(model_calls, "read_fingerprint", lambda name: "other weights")
    model_calls.open_entailment("a")
    assert opened == [Path("a")] * 2
    model_calls._open_entailment.cache_clear()


def test_a_checkpoint_must_be_named():
    with pytest.raises(ValueError, match="checkpoint"):
        Entailment()
    assert CHECKERS.names() == ["entailment", "overlap", "trained"]
