import json

import pytest
from tests.unit.rag.graphs import THEMES, TOPICS, make_graph, make_index

from stillroom.rag.answer_strategies.map_reduce import MapReduce
from stillroom.rag.generation.answer import ask, ask_stream
from stillroom.rag.graph.knowledge_graph import KnowledgeGraph
from stillroom.rag.index.searcher import Index
from stillroom.records import Answer
from stillroom.testing import scripted_model

QUESTION = "What are the main themes of the collection?"


@pytest.fixture(scope="module")
def themes(tmp_path_factory):
    place = tmp_path_factory.mktemp("themes")
    make_graph(make_index(place, THEMES), place / "graph")
    return place


def weigher(keep, said="The guilds of Dams and Eels meet."):
    """Give 90 to statements that name one of the words, 0 to others; then an answer."""

    def script(prompt):
        if not prompt.schema:
            return said
        request = prompt.messages[-1].content
        lines = [line for line in request.splitlines() if line.startswith("(")]
        return json.dumps({"scores": [90 * any(word in line for word in keep) for line in lines]})

    return scripted_model(script)


def answered(place, model, **settings):
    with Index.open(place / "index") as index:
        method = MapReduce(graph=str(place / "graph"), **settings)
        return ask(index, model, QUESTION, answering=method)


def test_the_sentences_under_what_helps_are_read_and_cited(themes):
    model = weigher(["Dams", "Eels"], "Damsson praised the guild of Dams.")
    found = answered(themes, model)
    read = model.asked[-1].messages[-1].content
    assert "guild of Dams" in read
    assert "guild of Eels" in read
    assert "Flutes" not in read
    assert "cover what the passages say" in read
    assert found.citations
    for citation in found.citations:
        path = themes / "documents" / citation.location.path
        place = slice(citation.location.byte_start, citation.location.byte_end)
        assert path.read_bytes()[place].decode() == citation.text


def test_every_topic_is_covered_where_all_help(themes):
    model = weigher(TOPICS)
    answered(themes, model, points=40)
    read = model.asked[-1].messages[-1].content
    assert all(topic in read for topic in TOPICS)


def test_streamed_and_whole_answers_are_equal(themes):
    with Index.open(themes / "index") as index:
        method = MapReduce(graph=str(themes / "graph"))
        whole = ask(index, weigher(["Inks"]), QUESTION, answering=method)
        *pieces, last = ask_stream(index, weigher(["Inks"]), QUESTION, answering=method)
    assert isinstance(last, Answer)
    assert "".join(pieces) == whole.completion.text
    told = [{**one.details, "stage_ms": {}} for one in (last, whole)]  # times differ
    assert told[0] == told[1]


def test_where_nothing_helps_it_abstains(themes):
    found = answered(themes, weigher(["Zeppelins"]))
    assert found.details["abstained"]


def test_answers_that_cannot_be_read_are_told_and_never_used(themes):
    found = answered(themes, scripted_model({"*": "I do not know."}))
    assert found.details["abstained"]
    reports = sum(one.level == 0 for one in KnowledgeGraph.open(themes / "graph").communities)
    assert f"{min(reports, 16)} reports were weighed unreadably" in found.details["notices"][0]


def test_the_bound_on_calls_holds(themes):
    model = weigher(TOPICS)
    answered(themes, model, max_calls=4)
    assert len(model.asked) <= 4


def test_what_is_gone_from_the_index_is_not_read(tmp_path):
    make_graph(make_index(tmp_path, THEMES), tmp_path / "graph")
    make_index(tmp_path, {name: text for name, text in THEMES.items() if "dams" not in name})
    model = weigher(TOPICS)
    answered(tmp_path, model, points=40)
    assert all("Damsson" not in one.messages[-1].content for one in model.asked)
