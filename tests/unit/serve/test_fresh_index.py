"""A server answers from the index as it is, not as it was when the server began."""

import pytest

from stillroom.jobs import Job
from stillroom.models import open_embedder
from stillroom.rag.jobs.index import IndexRecipe, run
from stillroom.rag.maintenance.update import delete_documents
from stillroom.records import Answer, Message, Sampling
from stillroom.serve.mounts import open_run
from stillroom.testing import scripted_model


@pytest.fixture
def place(tmp_path):
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents/paris.txt").write_text("Paris is the capital of France.\n")
    (tmp_path / "documents/rome.txt").write_text("Rome is the capital of Italy.\n")
    recipe = IndexRecipe(documents=str(tmp_path / "documents"), embedder="static")
    run(recipe, Job.start(tmp_path / "index", "recipe\n"), embedder=open_embedder("static"))
    return tmp_path / "index"


def test_a_deleted_document_is_in_no_answer_of_a_running_server(place, monkeypatch):
    model = scripted_model(lambda prompt: "Paris is the capital of France [1].")
    monkeypatch.setattr("stillroom.serve.mounts.open_text_model", lambda *_, **__: model)

    def sources(served):
        pieces = served.ask(
            [Message("user", "What is the capital of France?")],
            Sampling(max_new_tokens=20),
            3,
            settings={},
            is_cancelled=lambda: False,
        )
        (answer,) = (piece for piece in pieces if isinstance(piece, Answer))
        return {hit.passage.location.path for hit in answer.hits}

    with open_run(place, model="scripted") as served:
        assert sources(served) == {"paris.txt", "rome.txt"}
        delete_documents(place, ["paris.txt"])
        assert sources(served) == {"rome.txt"}
