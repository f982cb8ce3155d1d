"""A verdict is stored with the sentences of the documents that it is about."""

from dataclasses import replace

import pytest

from stillroom.errors import DataError
from stillroom.evaluate.qa.judgments import AskedAnswer, JudgmentStore
from stillroom.evaluate.qa.questions import read_question_set
from stillroom.rag.answer_strategies.quote import Quote
from stillroom.rag.evaluation.judging import (
    describe_asked,
    find_gone,
    judge_answer,
    record_judgment,
)
from stillroom.rag.evaluation.retrieval import EvidenceMap
from stillroom.rag.generation.answer import ask
from stillroom.rag.index.searcher import Index
from stillroom.rag.index.view import AccessContext
from stillroom.rag.retrieval.pipeline import retrieve
from stillroom.testing import scripted_model

SLEEP = "A cat sleeps sixteen hours a day."


def answer(index, question, **settings):
    model = scripted_model({"*": "A cat is asleep for most of the day. [1]"})
    return describe_asked(question, ask(index, model, question, **settings), None)


def quoted(index, question="How long does a cat sleep?"):
    method = Quote(reader="builtin:overlap", min_probability=0, max_quotes=1)
    return answer(index, question, answering=method)


def check_stands(index, judgment):
    """Hold the evidence to the documents, byte by byte of their text."""
    for part in judgment.evidence:
        text = index.document(part["document_id"]).text
        assert text[part["start"] : part["end"]] == part["quote"]


def test_a_right_quote_is_its_own_evidence(index):
    asked = quoted(index)
    judgment = judge_answer(index, asked, "right")
    assert judgment.answers[0] == SLEEP
    assert judgment.evidence[0]["quote"] == SLEEP
    assert judgment.evidence[0]["file"] == "animals/cats.md"
    check_stands(index, judgment)
    assert judgment.asked.index == index.digest
    assert judgment.asked.reader == "overlap"
    assert judge_answer(index, asked, "wrong").answers == ()


def test_a_right_text_of_a_model_is_accepted_without_evidence(index):
    asked = answer(index, "How long does a cat sleep?", answering="generate")
    judgment = judge_answer(index, asked, "right")
    assert judgment.answers == ("A cat is asleep for most of the day.",)
    assert judgment.evidence == ()


def with_quotes(question, *texts, short="", **more):
    """Return an answer that quotes sentences, with a short answer in the one that holds it."""
    quotes, text = [], ""
    for one in texts:
        quote = {"text": one, "answer_start": len(text) + bool(text), "start": 7}
        if short in one and short:
            quote |= {"short": short, "short_start": 7 + one.index(short)}
        quotes.append(quote)
        text += f"{' ' * bool(text)}{one} [1]"
    return AskedAnswer(question, text, quotes=tuple(quotes), **more)


def test_the_sentence_with_the_short_answer_is_learned_from_and_no_other(index):
    joined = "A dog barks at strangers. Dogs guard the house at night."
    asked = with_quotes("When do they guard it?", SLEEP, joined, short="at night")
    judgment = judge_answer(index, asked, "right")
    assert judgment.answers == ("Dogs guard the house at night.",)  # nobody judged "at night"
    assert [part["quote"] for part in judgment.evidence] == ["Dogs guard the house at night."]
    check_stands(index, judgment)
    more = judge_answer(index, with_quotes("Do dogs guard a house?", joined, short="dog"), "right")
    assert more.answers == ("Dogs guard the house at night.",)
    sequel = with_quotes("Do dogs bark?", joined, short="the house at night")
    assert judge_answer(index, sequel, "right").answers == ("A dog barks at strangers.",)
    sequel = with_quotes("Who barks at strangers?", joined, short="the house at night")
    assert judge_answer(index, sequel, "right").answers == ("Dogs guard the house at night.",)
    plain = judge_answer(index, with_quotes("Who barks at strangers?", SLEEP, joined), "right")
    assert plain.answers == ("A dog barks at strangers.",)


def test_the_answer_carries_quotes_and_short_answers(index):
    found = ask(index, scripted_model({"*": "x"}), "How long does a cat sleep?")
    quote = found.details["quotes"][0]
    (kept, *_) = describe_asked("How long does a cat sleep?", found, None).quotes
    assert kept == {name: quote[name] for name in kept}
    assert {"text", "answer_start", "start"} <= kept.keys()


def test_a_mark_within_a_quote_is_no_citation(build, folder, tmp_path):
    (folder / "cells.md").write_text("# Cells\n\nA cell has one nucleus [1] in most animals.\n")
    build()
    text = "A cell has one nucleus [1] in most animals."
    with Index.open(tmp_path / "index") as index:
        judgment = judge_answer(index, with_quotes("What has a cell?", text), "right")
    assert judgment.answers == (text,)
    assert judgment.evidence[0]["quote"] == text


def test_a_quote_of_a_neighbour_or_a_new_passage_is_found(index):
    asked = with_quotes("How long?", SLEEP, citations={1: "pas-of-an-older-state"})
    assert judge_answer(index, asked, "right").evidence[0]["quote"] == SLEEP
    gone = judge_answer(index, with_quotes("How long?", "A cat sleeps a year."), "right")
    assert (gone.answers, gone.evidence) == (("A cat sleeps a year.",), ())


def test_a_judgment_names_the_state_that_it_was_judged_by(index):
    judgment = judge_answer(index, AskedAnswer("Who barks?", "None. [1]"), "quote", "strangers")
    assert (judgment.state, judgment.asked.index) == (index.digest, "")


def test_a_right_refusal_says_that_the_documents_hold_no_answer(index):
    asked = answer(index, "qwertz", answering=Quote(reader="builtin:overlap", min_probability=1))
    judgment = judge_answer(index, asked, "right")
    assert (judgment.verdict, judgment.answers, judgment.evidence) == ("absent", (), ())


@pytest.mark.parametrize(
    ("text", "answer", "sentence"),
    [
        ("sixteen HOURS", "sixteen hours", SLEEP),
        ("barks at strangers.", "barks at strangers.", "A dog barks at strangers."),
        ("2.1 million", "2.1 million", "It has 2.1 million inhabitants."),
        ("“Use foo_bar”", "Use `foo_bar", "Use `foo_bar` in C++ 17."),
        ("東京は日本の首都です", "東京は日本の首都です", "東京は日本の首都です。"),
        ("日本の首都", "日本の首都", "東京は日本の首都です。"),
        (
            "strangers. Dogs guard", "strangers. Dogs guard",
            "A dog barks at strangers. Dogs guard the house at night.",
        ),
    ],
)  # fmt: skip
def test_a_quote_is_found_in_any_document_with_its_sentence(index, text, answer, sentence):
    judgment = judge_answer(index, quoted(index), "quote", text)
    assert judgment.answers == (answer,)
    assert judgment.evidence[0]["quote"] == sentence
    check_stands(index, judgment)


def test_a_text_that_stands_in_no_passage_is_refused_with_the_nearest_sentences(index):
    for text in ("A cat sleeps fifteen hours a day.", "sixteen days a cat", "...", "at"):
        with pytest.raises(DataError) as caught:
            judge_answer(index, quoted(index), "quote", f"{text} zebra" if text == "at" else text)
        assert caught.value.code == "judge.no-such-quote"
        if "cat" in text:
            assert f"nearest: {SLEEP}" in str(caught.value)


def test_quotes_that_the_answer_does_not_hold_are_refused(index):
    asked = with_quotes("How long does a cat sleep?", SLEEP, short="sixteen")
    (quote,) = asked.quotes
    for other in (quote | {"text": "A dog barks at strangers."}, quote | {"short": "all day"}):
        for verdict in ("right", "wrong"):
            with pytest.raises(DataError) as caught:
                judge_answer(index, replace(asked, quotes=(other,)), verdict)
            assert caught.value.code == "judge.other-answer"
    assert judge_answer(index, asked, "right").evidence


@pytest.mark.parametrize(("verdict", "text"), [("quote", " "), ("right", "x"), ("absent", "x")])
def test_a_text_belongs_to_the_verdict_that_names_one(index, verdict, text):
    with pytest.raises(DataError) as caught:
        judge_answer(index, quoted(index), verdict, text)
    assert caught.value.code == "judge.verdict"


def test_what_the_documents_no_longer_hold_is_counted(build, folder, tmp_path):
    build()
    with Index.open(tmp_path / "index") as index:
        judgments = [
            judge_answer(index, quoted(index), "right"),
            judge_answer(index, quoted(index), "quote", "barks at strangers"),
            judge_answer(index, quoted(index), "absent"),
        ]
        assert find_gone(index, judgments) == set()
    (folder / "animals/cats.md").write_text("# Cats\n\nA cat sleeps all day.\n")
    (folder / "animals/dogs.md").rename(folder / "animals/hounds.md")
    build()
    with Index.open(tmp_path / "index") as index:
        assert find_gone(index, judgments) == {judgments[0].id}


def test_stored_judgments_are_questions_whose_evidence_an_evaluation_finds(index, tmp_path):
    store = JudgmentStore(tmp_path / "index.judgments")
    asked = [quoted(index, question) for question in ("How long does a cat sleep?", "Dogs?")]
    record_judgment(store, index, asked[0], "right")
    record_judgment(store, index, asked[1], "quote", "barks at strangers")
    found = [
        location
        for side in ("train", "test")
        if store.path_of(side).exists()
        for question in read_question_set(store.path_of(side))
        for location in EvidenceMap(index).locate(question)
    ]
    assert len(found) >= 2
    assert all(location.passages for location in found)


def test_a_tenant_judges_what_he_may_read(build, folder, tmp_path):
    metadata = tmp_path / "told.jsonl"
    metadata.write_text(
        '{"path": "animals/cats.md", "tenant": "acme", "labels": ["public"]}\n'
        '{"path": "animals/dogs.md", "tenant": "bolt", "labels": ["public"]}\n'
    )
    build(access="tenants", metadata=str(metadata))
    bolt, acme = AccessContext("bolt"), AccessContext("acme")
    store = JudgmentStore(tmp_path / "x.judgments")
    with Index.open(tmp_path / "index", access=bolt) as index:
        foreign = retrieve(index, "dogs", 1)[0].passage.id
    with Index.open(tmp_path / "index", access=acme) as index:
        asked = AskedAnswer("Who barks?", "A dog barks at strangers. [1]", {1: foreign})
        judgment = record_judgment(store, index, asked, "right", access=acme)
        assert judgment.evidence == ()
        assert judgment.asked.scope == ("acme",)
        with pytest.raises(DataError) as caught:
            judge_answer(index, asked, "quote", "barks at strangers")
        assert caught.value.code == "judge.no-such-quote"
        assert "strangers" not in str(caught.value).replace("'barks at strangers'", "")
