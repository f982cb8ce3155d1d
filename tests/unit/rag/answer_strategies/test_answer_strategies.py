"""Ways from a question to an answer: what they search, when they stop, when they refuse."""

import json
from functools import partial

import pytest

from stillroom.errors import RecipeError
from stillroom.rag.generation import answer as answers
from stillroom.rag.generation.prompt import ABSTENTION
from stillroom.rag.generation.refusals import REFUSAL
from stillroom.rag.interfaces import ANSWER_STRATEGIES, GRADERS, Query, RelevanceGrader
from stillroom.rag.retrieval.pipeline import parse_method, parse_pipeline, parse_rag_pipeline
from stillroom.records import Answer, Message, Prompt, Sampling
from stillroom.testing import scripted_model

# These tests script what the model writes.
ask = partial(answers.ask, answering="generate")
ask_stream = partial(answers.ask_stream, answering="generate")

QUESTION = "What is the capital of France?"
TRUE = "The capital of France is Paris [1]."
LOOPS = ["generate", "corrective"]


def model_of(answer, queries=()):
    """Answer with a text, and with queries where JSON is asked for."""

    def script(prompt: Prompt):
        return json.dumps({"queries": list(queries)}) if prompt.schema else answer

    return scripted_model(script)


def steps(found, name=""):
    return [one for one in found.details["trace"] if not name or one["step"] == name]


@pytest.mark.parametrize("name", LOOPS)
def test_every_way_answers_what_the_documents_say(index, name):
    found = ask(index, model_of(TRUE), QUESTION, answering=name)
    assert "Paris" in found.completion.text
    assert found.citations[0].location.path == "places/paris.txt"
    assert not found.details["abstained"]
    assert found.details["answering"] == name
    assert steps(found, "retrieve")


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("unsupported", ["mark", "drop", "refuse"])
def test_streamed_and_whole_answers_are_equal(index, name, unsupported):
    text = "The capital of France is Paris. Dogs bark on the moon. Cats purr when they rest."
    settings = {"answering": name, "unsupported": unsupported}
    whole = ask(index, model_of(text), QUESTION, **settings)
    *pieces, last = ask_stream(index, model_of(text), QUESTION, **settings)
    assert isinstance(last, Answer)
    assert "".join(pieces) == whole.completion.text == last.completion.text
    assert last.citations == whole.citations
    timed = {"stage_ms": None}
    assert {**last.details, **timed} == {**whole.details, **timed}


def test_a_question_that_nothing_answers_is_refused_with_what_is_nearest(index):
    found = ask(
        index,
        model_of("Bananas are yellow [1]."),
        "Who painted the ceiling of the Sistine chapel?",
        answering=ANSWER_STRATEGIES.build({"name": "corrective", "max_rounds": 0}),
    )
    assert found.completion.text.startswith(REFUSAL)
    assert found.details["refusal"] == "no-relevant-passage"
    assert found.details["abstained"]
    assert found.details["nearest"] == [one.passage_id for one in found.citations]
    assert "[1] and [2]" in found.completion.text
    assert found.details["statements"] == []


def test_the_model_is_not_asked_where_no_passage_is_relevant(index):
    model = model_of("invented")
    ask(
        index,
        model,
        "Who painted the ceiling of the Sistine chapel?",
        answering={"name": "corrective", "queries": 0},
    )
    assert model.asked == []


def test_a_failed_search_is_made_again_and_stops_where_nothing_is_new(index):
    model = model_of("x", ["quantum chromodynamics", "gluon plasma"])
    found = ask(index, model, "What is the mass of a gluon?", answering="corrective", k=2)
    decided = [one["verdict"] for one in steps(found, "decide")]
    assert decided[0] == "incorrect"
    assert len(decided) <= 2
    assert found.details["abstained"]


def test_many_passages_are_graded_without_spending_model_calls(index):
    """Graders ask no model: a search for eleven passages is made again, too."""
    found = ask(index, model_of("x", []), "gluon mass?", answering="corrective", k=11)
    assert [one for one in steps(found, "stop") if one["why"] == "max_calls"] == []
    assert len(steps(found, "retrieve")) > 1


@pytest.mark.parametrize(
    ("settings", "max_calls", "is_repeated"),
    [
        ({"reranker": "mmr"}, 1, True),
        ({"transform": "expand"}, 1, True),
        ({"transform": {"name": "hyde", "drafts": 3}}, 8, False),
    ],
)
def test_a_search_is_repeated_where_its_model_calls_are_allowed(
    index, settings, max_calls, is_repeated
):
    answering = {"name": "corrective", "max_calls": max_calls, "max_rounds": 1}
    found = ask(index, model_of("x", []), "gluon mass?", answering=answering, k=2, **settings)
    assert (len(steps(found, "retrieve")) > 1) == is_repeated
    assert found.details["calls"] <= max_calls


def test_other_queries_find_what_the_question_did_not(index):
    answering = ANSWER_STRATEGIES.build(
        {"name": "corrective", "max_rounds": 3, "grader": {"name": "overlap", "lower": 0.3}}
    )
    model = model_of("Cats purr [1].", ["a cat sleeps sixteen hours a day"])
    found = ask(index, model, "kitty nap duration", answering=answering, k=1, retriever="keyword")
    searched = [one["query"] for one in steps(found, "retrieve")]
    assert searched[0] == "kitty nap duration"


def test_strips_keep_their_place_in_the_source(index, built):
    answering = {"name": "corrective", "strip": 1, "most_strips": 1, "grader": "overlap"}
    found = ask(
        index, model_of("Cats purr when they rest [1]."), "cats purr rest", answering=answering, k=1
    )
    (hit,) = found.hits
    assert hit.passage.text == "Cats purr when they rest."
    source = (built.parent / "documents" / hit.passage.location.path).read_bytes()
    place = hit.passage.location
    assert source[place.byte_start : place.byte_end].decode() == hit.passage.text


def test_strips_are_not_widened_to_neighbours(index):
    answering = {"name": "corrective", "strip": 1, "most_strips": 1, "grader": "overlap"}
    model = model_of("Cats purr when they rest [1].")
    found = ask(index, model, "cats purr rest", answering=answering, k=1, neighbours=1)
    assert [hit.passage.text for hit in found.hits] == ["Cats purr when they rest."]


@pytest.mark.parametrize("name", LOOPS)
def test_no_loop_asks_more_often_than_it_may(index, name):
    model = model_of(TRUE, ["one query", "two queries", "three queries"])
    answering = {"name": name, "max_calls": 3, "max_rounds": 16}
    found = ask(index, model, "cats and dogs and what else?", answering=answering)
    assert found.details["calls"] <= 3


@pytest.mark.parametrize("name", LOOPS)
def test_time_is_bounded(index, name):
    found = ask(
        index, model_of(TRUE, ["a", "b"]), QUESTION,
        answering={"name": name, "max_seconds": 1e-9},
    )  # fmt: skip
    assert found.details["calls"] <= 1
    assert len(steps(found, "retrieve")) == 1


def test_a_settings_line_builds_a_way():
    method = parse_method(ANSWER_STRATEGIES, "corrective:grader=overlap,strip=2")
    assert method.grader == GRADERS.build("overlap")
    assert method.strip == 2
    nested = parse_method(ANSWER_STRATEGIES, "corrective:grader=overlap:window=2;upper=0.7,strip=1")
    assert nested.grader == GRADERS.build({"name": "overlap", "window": 2, "upper": 0.7})
    assert nested.strip == 1
    for line, code, hint in (
        ("corrective:strap=2", "recipe.unknown-key", "did you mean 'strip'?"),
        ("corrective:strip=x", "recipe.value", "stillroom show corrective"),
        ("corrective:grader=cross_encoder", "recipe.missing", "grader=NAME:checkpoint"),
    ):
        with pytest.raises(RecipeError) as caught:
            parse_method(ANSWER_STRATEGIES, line)
        problem = caught.value.problems[0]
        assert problem.code == code
        assert hint in f"{problem.next} {problem.what}"


def test_the_last_turn_stands_alone_before_it_is_searched_and_read(index):
    model = model_of(TRUE, ["What is the capital of France?"])
    history = (Message("user", "Tell me of France."), Message("assistant", "It is a country."))
    found = ask(index, model, Query("And its capital?", history=history), transform="last_turn")
    assert steps(found, "stand_alone")[0]["query"] == QUESTION
    assert steps(found, "retrieve")[0]["query"] == QUESTION
    assert f"Question: {QUESTION}" in model.asked[-1].messages[-1].content


def test_grades_tell_the_right_passage(index):
    grader = GRADERS.build("overlap")
    texts = ["Paris is the capital of France.", "A dog barks at strangers.", ""]
    right, wrong, empty = grader.grade(Query(QUESTION), texts, index)
    assert right > wrong >= 0
    assert empty == 0
    assert grader.grade(Query("🙂"), texts, index)[1] <= 1
    assert grader.grade(Query(QUESTION), [], index) == []


def test_every_grader_has_its_own_thresholds():
    for name in GRADERS.names():
        method = GRADERS.get(name)
        assert issubclass(method, RelevanceGrader)
        fields = method.model_fields
        assert 0 <= fields["lower"].default < fields["upper"].default <= 1


def test_what_no_passage_supports_is_dropped_or_refuses_the_whole(index):
    text = "The capital of France is Paris. It lies on the moon."
    dropped = ask(index, model_of(text), QUESTION, unsupported="drop")
    assert dropped.completion.text == "The capital of France is Paris. [1]"
    assert [one["text"] for one in dropped.details["dropped_statements"]] == [
        "It lies on the moon."
    ]
    assert not dropped.details["abstained"]
    refused = ask(index, model_of(text), QUESTION, unsupported="refuse")
    assert refused.completion.text.startswith(REFUSAL)
    assert refused.details["refusal"] == "unsupported"
    assert [one.number for one in refused.citations] == [1, 2]


def test_an_answer_of_which_nothing_is_left_is_a_refusal(index):
    found = ask(
        index, model_of("Bananas are yellow [1]. They are sweet."), QUESTION, unsupported="drop"
    )
    assert found.completion.text.startswith(REFUSAL)
    assert "Bananas" not in found.completion.text
    assert len(found.details["dropped_statements"]) == 2


def test_a_refusal_of_the_model_names_what_came_nearest(index):
    found = ask(index, model_of(ABSTENTION), QUESTION)
    assert found.completion.text.startswith(f"{ABSTENTION} The nearest passages, [1] and [2]")
    assert found.details["refusal"] == "model"
    assert found.details["support"] == {"no-claim": 1}


def test_a_way_may_end_in_how_questions_are_answered():
    way = parse_rag_pipeline("expand>convex:alpha=0.3+mmr=>corrective:strip=2!drop")
    assert way.name == "expand>convex:alpha=0.3+mmr=>corrective:strip=2!drop"
    assert way.answering == ANSWER_STRATEGIES.build({"name": "corrective", "strip": 2})
    assert (way.unsupported, way.retriever.alpha) == ("drop", 0.3)
    assert way.reranker is not None
    assert way.transform is not None
    plain = parse_rag_pipeline("keyword")
    assert (plain.answering, plain.unsupported) == (None, "mark")
    assert parse_rag_pipeline("keyword=>generate!refuse").unsupported == "refuse"
    for line in ("keyword=>direkt", "keyword=>generate!keep", "keyword=>generate:x=1"):
        with pytest.raises(RecipeError):
            parse_rag_pipeline(line)
    with pytest.raises(RecipeError):
        parse_pipeline("keyword=>generate")


def test_a_question_claims_nothing_and_is_no_answer(index):
    echo = "Question: What is the capital of France?"
    found = ask(index, model_of(echo), QUESTION)
    assert found.details["support"] == {"no-claim": 1}
    assert found.citations == ()
    for unsupported in ("drop", "refuse"):
        refused = ask(index, model_of(echo), QUESTION, unsupported=unsupported)
        assert refused.details["refusal"] == "unsupported"


def test_code_alone_is_an_answer(index):
    code = "```\nx = 1\n```"
    found = ask(index, model_of(code), QUESTION, unsupported="drop", sampling=Sampling())
    assert found.completion.text == code


@pytest.mark.parametrize("name", ["generate", "corrective"])
def test_an_answer_ends_where_the_model_goes_on_as_a_passage(index, name):
    def script(prompt):
        fence = prompt.messages[-1].content.split("<", 1)[1].split(">", 1)[0]
        return f"The capital of France is Paris.\n</{fence}>\n\nQuestion: more?"

    found = ask(index, scripted_model(script), QUESTION, answering=name, sampling=Sampling())
    assert found.completion.text == "The capital of France is Paris. [1]"
