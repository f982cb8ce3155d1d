"""The job kinds of the room: as steps of a flow, and what their recipes cannot express."""

import json

import pytest
from tests.unit.rag.conftest import write_pages

from stillroom.errors import RecipeError
from stillroom.flow import estimate_recipe, run_recipe
from stillroom.provenance import read_artifact
from stillroom.recipes import parse_recipe

FLOW = """
version: 1
kind: flow
steps:
  index: {kind: rag.index, documents: documents, embedder: "builtin:static"}
  graph:
    kind: rag.graph
    index: {from: index}
    extractor: {name: noun_phrases, min_count: 1, prune: 0}
  retrieval:
    kind: rag.retrieval_evaluation
    index: {from: index}
    queries: queries.jsonl
    qrels: qrels.txt
    pipelines: [keyword, dense]
  answers:
    kind: rag.answer_evaluation
    index: {from: index}
    questions: questions.jsonl
    model: scripted:script.json
"""


def test_kinds_are_steps_of_a_flow(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pages(tmp_path / "documents")
    (tmp_path / "queries.jsonl").write_text('{"id": "1", "text": "how long does a cat sleep"}\n')
    (tmp_path / "qrels.txt").write_text("1 0 animals/cats.md 1\n")
    question = {"id": "cat", "question": "How long does a cat sleep?", "answer": "sixteen hours"}
    (tmp_path / "questions.jsonl").write_text(json.dumps(question) + "\n")
    (tmp_path / "script.json").write_text('{"*": "A cat sleeps sixteen hours [1]."}')
    recipe = parse_recipe(FLOW, "flow.yaml", folder=tmp_path)
    assert "searches" in estimate_recipe(recipe).basis
    run_recipe(recipe, tmp_path / "run")
    details = read_artifact(tmp_path / "run").details
    kinds = {
        name: read_artifact(tmp_path / "run" / folder).details.get("made", "report")
        for name, folder in details["steps"].items()
    }
    assert (kinds["graph"], kinds["retrieval"]) == ("graph", "report")


@pytest.mark.parametrize(
    "settings",
    [
        "embedding: {pooling: late}",
        "dense: {search: exact, least_recall: 0.9}",
        "dense: {search: approximate, from_passages: 5}",
        "keyword: {delta: 0.5}",
        "store: {name: postgres, late_interaction: {model: m}}",
        "store: {name: postgres, sparse: {model: m}}",
    ],
)
def test_settings_without_effect_cannot_be_written(settings):
    with pytest.raises(RecipeError, match="is not a setting of"):
        parse_recipe(f"kind: rag.index\ndocuments: documents\n{settings}\n", "recipe.yaml")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("dense: {search: fast}", "search is one of auto, exact, approximate"),
    ],
)
def test_an_unknown_choice_names_the_known_ones(settings, expected):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(f"kind: rag.index\ndocuments: documents\n{settings}\n", "recipe.yaml")
    assert expected in str(caught.value)


def test_an_extractor_that_needs_a_model_is_refused_without_one():
    with pytest.raises(RecipeError, match=r"set writer\.model"):
        parse_recipe("kind: rag.graph\nindex: index\nextractor: model\n", "recipe.yaml")


@pytest.mark.parametrize(
    ("judge", "expected"),
    [
        ("{mode: json}", ["judge.model is missing"]),
        ("{chekcer: overlap}", ["judge.chekcer is not a setting of 'judge'"]),
        ("{checker: overlap, model: m}", ["judge.checker is not a setting of 'judge'"]),
        ("words", ["judge cannot be 'words'"]),
    ],
)
def test_a_judge_is_words_or_a_model(judge, expected):
    text = f"kind: rag.answer_evaluation\nindex: i\nquestions: q\nmodel: m\njudge: {judge}\n"
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "recipe.yaml")
    assert [problem.what for problem in caught.value.problems] == expected
