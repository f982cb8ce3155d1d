"""The same question answered by a model in this process and by the same one behind an endpoint."""

import contextlib
import json
import socket
import threading

import pytest
import uvicorn

from stillroom.errors import BackendError
from stillroom.jobs import Job
from stillroom.models import open_embedder, open_text_model
from stillroom.models.backends.scripted import ScriptedModel
from stillroom.rag.generation.answer import ask, ask_stream
from stillroom.rag.index.searcher import Index
from stillroom.rag.jobs.index import IndexRecipe, run
from stillroom.serve import ServedModel, create_app
from stillroom.testing import scripted_model

QUESTION = "What is the capital of France?"


def say(prompt):
    """Answer with text, with queries, or with a verdict, as is asked."""
    properties = (prompt.schema or {}).get("properties", {})
    if "verdict" in properties:
        return json.dumps({"verdict": "yes"})
    if "queries" in properties:
        return json.dumps({"queries": ["capital of France"]})
    return "The capital of France is Paris. It lies on the moon."


class WithoutScores(ScriptedModel):
    """As an endpoint is: no log-probabilities of a given text."""

    def score(self, prompts, completions):
        raise BackendError("none", code="backend.no-score", expected="", next="")


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    place = tmp_path_factory.mktemp("endpoint")
    (place / "documents").mkdir()
    (place / "documents/france.txt").write_text("Paris is the capital of France. It is large.\n")
    (place / "documents/dogs.txt").write_text("Dogs guard the house at night.\n")
    recipe = IndexRecipe(documents=str(place / "documents"), embedder="static")
    run(recipe, Job.start(place / "index", "recipe\n"), embedder=open_embedder("static"))
    with Index.open(place / "index") as opened:
        yield opened


@contextlib.contextmanager
def behind_endpoint(model):
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(create_app(ServedModel("smol", model)), log_level="error")
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        reference = f"http://127.0.0.1:{listening.getsockname()[1]}/v1#smol"
        with contextlib.closing(open_text_model(reference)) as opened:
            yield opened
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()


@pytest.mark.parametrize(
    "answering",
    [
        "generate",
        "corrective",
    ],
    ids=str,
)
def test_an_endpoint_answers_as_the_model_behind_it(index, answering):
    """Endpoints give no log-probabilities: verdicts are then one of two words, held to a schema."""
    with behind_endpoint(scripted_model(say)) as remote:
        far = ask(index, remote, QUESTION, answering=answering)
        *pieces, streamed = ask_stream(index, remote, QUESTION, answering=answering)
    near = ask(index, WithoutScores(say), QUESTION, answering=answering)
    assert far.completion.text == near.completion.text == streamed.completion.text
    assert "".join(pieces) == streamed.completion.text
    assert far.citations == near.citations == streamed.citations
    assert far.details["statements"] == near.details["statements"]
