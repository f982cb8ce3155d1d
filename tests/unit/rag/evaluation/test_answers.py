from importlib.metadata import entry_points

from stillroom.evaluate import RagSystem
from stillroom.rag.evaluation.answers import open_answerer


def test_the_index_is_an_answerer(built):
    answerer = open_answerer(built)
    assert isinstance(answerer, RagSystem)
    hits = answerer.retrieve("capital of France", 2)
    assert hits[0].passage.location.path == "places/paris.txt"
    prompt = answerer.prompt("capital of France", hits)
    assert "Paris is the capital" in prompt.messages[-1].content
    answerer.index.close()


def test_evaluation_finds_it_by_its_entry_point():
    (entry,) = entry_points(group="stillroom.answerers", name="rag")
    assert entry.load() is open_answerer
