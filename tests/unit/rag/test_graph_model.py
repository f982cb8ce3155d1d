import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.unit.rag.graphs import bytes_of, make_graph, make_index

from stillroom.errors import Cancelled, DataError
from stillroom.rag.extractors.model import Model
from stillroom.rag.graph.knowledge_graph import KnowledgeGraph, check_graph
from stillroom.rag.index.searcher import Index
from stillroom.records import Location, Passage
from stillroom.testing import scripted_model

PAGES = {
    f"page{at}.md": f"Station {at} belongs to Harbour Trust. Harbour Trust hired Ann Lee{at}.\n"
    for at in range(6)
}


def passage(text):
    return Passage("doc-1", 0, len(text), text, Location("a.md", "d", 0, len(text)))


def answer(entities, relations=()):
    return json.dumps(
        {
            "entities": [
                {"name": name, "type": "Thing", "description": f"about {name}"} for name in entities
            ],
            "relations": [
                {
                    "source": one,
                    "target": two,
                    "keywords": "owns, holds",
                    "description": f"{one} and {two}",
                    "strength": 7,
                }
                for one, two in relations
            ],
        }
    )


def reader(prompt):
    """Answer as a faithful model would, with something made up beside it."""
    request = prompt.messages[1].content
    if "Write the report" in request:
        return json.dumps(
            {
                "title": "A trust",
                "summary": "It owns.",
                "findings": [{"text": "It owns stations.", "sentences": [1]}],
            }
        )
    if "Write one or two sentences" in request:
        return "A trust that owns stations."
    number = request.split("Station ")[1][0]
    return answer(
        ["Harbour Trust", f"Station {number}", f"Ann Lee{number}", "Atlantis"],
        [("Harbour Trust", f"Station {number}"), ("Harbour Trust", "Atlantis")],
    )


FREE = Model(names="free")


def test_what_the_passage_does_not_say_is_dropped_and_counted():
    text = "The harbour  trust owns Pier 9. HARBOUR\nTRUST is old."
    model = scripted_model(
        [
            answer(
                ["Harbour Trust", "Pier 9", "Atlantis"],
                [("Pier 9", "Harbour Trust"), ("Pier 9", "Atlantis"), ("Pier 9", "Pier 9")],
            )
        ]
    )
    found = FREE.extract([passage(text)], model)[0]
    assert [text[one.start : one.end] for one in found.mentions] == [
        "harbour  trust",
        "Pier 9",
        "HARBOUR\nTRUST",
    ]
    assert [one.sentence for one in found.mentions] == [0, 0, 1]
    assert found.dropped == {"ungrounded": 3}
    (relation,) = found.relations
    assert text[relation.start : relation.end] == "harbour  trust owns Pier 9"
    assert (relation.keywords, relation.strength) == (("owns", "holds"), 7.0)


@pytest.mark.parametrize(
    "told", ["", "no JSON", "[1]", '{"entities": 3}', '{"entities": [{"name": 1}]}']
)
def test_answers_of_any_form_are_survived(told):
    found = FREE.extract([passage("Pier 9 is old.")], scripted_model([told]))[0]
    assert not found.mentions
    assert sum(found.dropped.values()) <= 1


def test_a_model_chooses_among_the_phrases_of_the_passage():
    model = scripted_model([answer(["Harbour Trust"])])
    Model().extract([passage("The Harbour Trust is here.")], model)
    schema = model.asked[0].schema
    assert schema["properties"]["entities"]["items"]["properties"]["name"]["enum"] == [
        "Harbour Trust"
    ]
    assert Model().extract([passage("it is so")], scripted_model([]))[0].mentions == ()


def test_gleanings_add_what_was_missed():
    model = scripted_model([answer(["Pier 9"]), answer(["Harbour Trust"])])
    found = Model(names="free", gleanings=1).extract(
        [passage("Harbour Trust owns Pier 9.")], model
    )[0]
    assert {one.name for one in found.mentions} == {"Harbour Trust", "Pier 9"}
    assert "missed" in model.asked[1].messages[-1].content


def test_the_end_of_a_relation_that_stands_in_the_passage_is_an_entity():
    told = scripted_model([answer(["Pier 9"], [("Pier 9", "Harbour Trust")])])
    found = FREE.extract([passage("Harbour Trust owns Pier 9.")], told)[0]
    assert {one.name: one.type for one in found.mentions} == {
        "Harbour Trust": "",
        "Pier 9": "thing",
    }
    assert len(found.relations) == 1
    assert not found.dropped


def test_without_a_model_it_says_so():
    with pytest.raises(DataError) as caught:
        Model().extract([passage("x")])
    assert caught.value.code == "rag.no-model"


def test_a_models_graph_is_grounded_described_and_reported(tmp_path):
    index = make_index(tmp_path, PAGES)
    model = scripted_model(reader, fingerprint="reader")
    artifact, description = make_graph(index, tmp_path / "graph", model=model, extractor=FREE)
    graph = KnowledgeGraph.open(tmp_path / "graph")
    with Index.open(index) as opened:
        assert not check_graph(graph, opened)
    trust = graph.entities[graph.find("harbour trusts")]
    assert len(trust.rows) == 6
    assert trust.description == "about Harbour Trust"
    assert graph.find("Atlantis") is None
    assert description.counts["dropped_ungrounded"] == 12
    assert artifact.origin == {"kind": "synthetic"}
    report = graph.communities[0].report
    assert (report.origin, report.title) == ("synthetic", "A trust")
    assert report.findings[0].spans


def test_bringing_up_to_date_asks_only_for_what_is_new(tmp_path):
    index = make_index(tmp_path, PAGES)
    make_graph(
        index, tmp_path / "graph", model=scripted_model(reader, fingerprint="r"), extractor=FREE
    )
    again = scripted_model(reader, fingerprint="r")
    make_graph(index, tmp_path / "graph", model=again, extractor=FREE)
    assert not again.asked
    pages = {**PAGES, "page6.md": "Station 6 belongs to Harbour Trust. It hired Ann Lee6.\n"}
    index = make_index(tmp_path, pages)
    changed = scripted_model(reader, fingerprint="r")
    artifact, _ = make_graph(index, tmp_path / "graph", model=changed, extractor=FREE)
    assert artifact.details["extracted"] == 1
    assert sum("<passage>" in one.messages[1].content for one in changed.asked) == 1
    make_graph(
        index, tmp_path / "fresh", model=scripted_model(reader, fingerprint="r"), extractor=FREE
    )
    assert bytes_of(tmp_path / "graph") == bytes_of(tmp_path / "fresh")


def test_many_descriptions_are_summarized(tmp_path):
    def talkative(prompt):
        request = prompt.messages[1].content
        if "<passage>" not in request:
            return reader(prompt)
        number = request.split("Station ")[1].split()[0]
        return answer(["Harbour Trust"]).replace("about", f"{number}: about")

    pages = {f"p{at}.md": f"Station {at} is of Harbour Trust.\n" for at in range(9)}
    model = scripted_model(talkative, fingerprint="t")
    make_graph(make_index(tmp_path, pages), tmp_path / "graph", model=model, extractor=FREE)
    graph = KnowledgeGraph.open(tmp_path / "graph")
    assert graph.entities[0].description == "A trust that owns stations."


def test_a_model_that_finds_nothing_is_a_failure(tmp_path):
    index = make_index(tmp_path, PAGES)
    with pytest.raises(DataError) as caught:
        make_graph(
            index, tmp_path / "graph", model=scripted_model({"*": "I cannot."}), extractor=FREE
        )
    assert caught.value.code == "rag.no-entities"
    assert "unreadable 6" in str(caught.value)


_RUN = """
import os, signal, sys
sys.path[:0] = {path!r}
from pathlib import Path
from stillroom.testing import scripted_model
from tests.unit.rag import test_graph_model as t
from tests.unit.rag.graphs import make_graph
left = int(sys.argv[1])
def dying(prompt):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return t.reader(prompt)
place = Path(sys.argv[2])
make_graph(place / "index", place / "graph", model=scripted_model(dying, fingerprint="r"),
           extractor=t.FREE, overwrite=False, resume=True)
"""


@pytest.mark.slow
def test_killed_after_any_call_it_goes_on_to_the_same_bytes(tmp_path):
    index = make_index(tmp_path, PAGES)
    make_graph(
        index, tmp_path / "whole", model=scripted_model(reader, fingerprint="r"), extractor=FREE
    )
    code = _RUN.format(path=[str(Path(__file__).parents[3]), *sys.path])
    for calls in (2, 3, 1, 100):
        done = subprocess.run([sys.executable, "-c", code, str(calls), str(tmp_path)], check=False)
        assert done.returncode == (-signal.SIGKILL if calls < 100 else 0)
    assert bytes_of(tmp_path / "graph") == bytes_of(tmp_path / "whole")


def test_a_stopped_job_goes_on_without_asking_again(tmp_path):
    index = make_index(tmp_path, PAGES)
    make_graph(
        index, tmp_path / "whole", model=scripted_model(reader, fingerprint="r"), extractor=FREE
    )
    asked = []

    def stopping(prompt):
        asked.append(prompt)
        if len(asked) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return reader(prompt)

    with pytest.raises(Cancelled):
        make_graph(
            index,
            tmp_path / "graph",
            model=scripted_model(stopping, fingerprint="r"),
            extractor=FREE,
            overwrite=False,
        )
    rest = scripted_model(reader, fingerprint="r")
    make_graph(index, tmp_path / "graph", model=rest, extractor=FREE, overwrite=False, resume=True)
    assert sum("<passage>" in one.messages[1].content for one in rest.asked) == 3
    assert bytes_of(tmp_path / "graph") == bytes_of(tmp_path / "whole")


@pytest.mark.slow
def test_the_embedded_model_gives_what_can_be_read(tmp_path):
    from stillroom.models import open_text_model

    texts = [
        "Marie Curie was born in Warsaw and discovered polonium together with Pierre Curie.",
        "The Aurora was built at Fairhaven Yard. Fairhaven Yard belongs to Matilda Brook.",
    ]
    model = open_text_model("hub:HuggingFaceTB/SmolLM2-135M-Instruct")
    try:
        found = Model(entities=4, relations=2).extract([passage(text) for text in texts], model)
    finally:
        model.close()
    for text, one in zip(texts, found, strict=True):
        assert "unreadable" not in one.dropped
        assert one.mentions
        assert all(text[m.start : m.end].casefold() == m.name.casefold() for m in one.mentions)
