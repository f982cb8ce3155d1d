"""A server answers from the index as it is, not as it was when the server began."""

import gc
import json
import shutil
import weakref
from dataclasses import replace

import pytest
from tests.unit.serve.test_app import chat, check_error, request

from stillroom.errors import CheckpointError, DataError, IntegrityError, ResourceError
from stillroom.flow.opening import open_run as open_index
from stillroom.jobs import Job
from stillroom.models import open_embedder
from stillroom.rag.index.user_cache import PerUserIndexCache
from stillroom.rag.jobs.index import IndexRecipe, run
from stillroom.rag.maintenance.update import delete_documents
from stillroom.records import Answer, Message, Sampling
from stillroom.serve import create_app
from stillroom.serve.mounts import open_run
from stillroom.testing import scripted_model

QUESTION = "Is the capital of France Paris, Rome or Oslo?"


@pytest.fixture
def place(tmp_path):
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents/paris.txt").write_text("Paris is the capital of France.\n")
    (tmp_path / "documents/rome.txt").write_text("Rome is the capital of Italy.\n")
    build(tmp_path, tmp_path / "index")
    return tmp_path / "index"


def build(place, out, **settings):
    recipe = IndexRecipe(documents=str(place / "documents"), embedder="static", **settings)
    job = Job.start(out, "recipe\n", overwrite=True)
    run(recipe, job, embedder=open_embedder("static"))


def commit_run(run, step):
    """Write the artifact of a run whose index is a step, and remove its other steps, as a flow."""
    draft = run.with_name(f"draft-{step}")
    job = Job.start(draft, "version: 1\nkind: flow\n")
    answer = {"index": "index", "model": "inputs.model", "fallback": "scripted"}
    job.finish("report", details={"steps": {"index": f"steps/{step}"}, "answer": answer})
    (draft / "artifact.json").replace(run / "artifact.json")
    for folder in (run / "steps").iterdir():
        if folder.name != step:
            shutil.rmtree(folder)


@pytest.fixture
def made_run(place, monkeypatch):
    model = scripted_model(lambda prompt: "Paris is the capital of France [1].")
    monkeypatch.setattr("stillroom.serve.mounts.open_text_model", lambda *_, **__: model)
    monkeypatch.setattr("stillroom.models.open_text_model", lambda *_, **__: model)
    run = place.with_name("run")
    build(place.parent, run / "steps/index-1")
    commit_run(run, "index-1")
    return run


def ask(app):
    """Ask from a new thread, which opens the files anew."""
    question = [{"role": "user", "content": QUESTION}]
    reply = chat(app, messages=question, answering="generate")
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]["message"]["answer"]


def read_paths(app):
    return {source["path"] for source in ask(app)["sources"]}


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


def test_a_run_that_is_made_again_is_served_as_it_is_now(made_run):
    with open_run(made_run, name="run") as served:
        app = create_app(served)
        assert read_paths(app) == {"paris.txt", "rome.txt"}
        (made_run.with_name("documents") / "oslo.txt").write_text("Oslo is in Norway.\n")
        build(made_run.parent, made_run / "steps/index-2")
        commit_run(made_run, "index-2")
        assert read_paths(app) == {"oslo.txt", "paris.txt", "rome.txt"}
        assert request(app, "GET", "/readyz").json() == {"status": "ready"}


def test_an_index_that_is_built_again_in_its_place_is_served_as_it_is_now(place, made_run):
    with open_run(place, name="run", model="scripted") as served:
        app = create_app(served)
        assert read_paths(app) == {"paris.txt", "rome.txt"}
        (place.with_name("documents") / "rome.txt").unlink()
        build(place.parent, place)
        assert read_paths(app) == {"paris.txt"}


def test_while_a_run_is_cleared_the_server_is_not_ready_and_asks_to_wait(made_run):
    with open_run(made_run, name="run") as served:
        app = create_app(served)
        shutil.move(made_run, made_run.with_name("away"))
        error = check_error(chat(app, answering="generate"), 503, "rag.index-replaced")
        assert "again" in error["message"]
        ready = request(app, "GET", "/readyz")
        assert (ready.status_code, ready.json()) == (503, {"status": "no documents"})
        shutil.move(made_run.with_name("away"), made_run)
        assert read_paths(app) == {"paris.txt", "rome.txt"}
        assert request(app, "GET", "/readyz").status_code == 200


def test_an_index_without_its_recipe_is_ready(place, made_run):
    (place / "recipe.yaml").unlink()
    with open_run(place, name="run", model="scripted") as served:
        app = create_app(served)
        assert read_paths(app) == {"paris.txt", "rome.txt"}
        assert request(app, "GET", "/readyz").status_code == 200


def test_what_is_replaced_is_closed_without_the_garbage_collector(place, made_run):
    with PerUserIndexCache(place) as cache:
        gc.collect()
        gc.disable()
        try:
            with cache.seen_by(None) as index:
                replaced = weakref.ref(index._state.opened.catalog)
            del index
            build(place.parent, place)
            with cache.seen_by(None):
                assert replaced() is None
        finally:
            gc.enable()


def test_an_index_that_is_built_again_by_its_embedder_opens_no_other(place, made_run):
    with PerUserIndexCache(place) as cache:
        embedder = cache.embedder
        build(place.parent, place)
        with cache.seen_by(None) as index:
            assert index.embedder is embedder


@pytest.mark.parametrize("kind", [CheckpointError, DataError, ResourceError, OSError])
def test_only_a_failure_while_its_index_is_replaced_says_so(place, made_run, kind):
    def fail(cache, *, meanwhile=lambda: None):
        with cache.seen_by(None):
            meanwhile()
            raise kind("a failure")

    with PerUserIndexCache(place) as cache:
        build(place.parent, place)
        with pytest.raises(kind):
            fail(cache)
        with pytest.raises(IntegrityError, match="being built again"):
            fail(cache, meanwhile=lambda: build(place.parent, place))


@pytest.mark.parametrize("path", ["/" + 300 * "x", "/\ud800"], ids=["long", "surrogate"])
def test_a_folder_of_documents_that_cannot_be_reached_stops_no_answer(place, made_run, path):
    manifest = place / "artifact.json"
    data = json.loads(manifest.read_text())
    (parent,) = (parent for parent in data["parents"] if parent["role"] == "documents")
    parent["path"] = path  # no system answers by yes or no
    manifest.write_text(json.dumps(data))
    with open_run(place, name="run", model="scripted") as served:
        assert ask(create_app(served))["notices"] == []


def test_an_index_with_tenants_does_not_take_the_place_of_an_open_one(place, made_run):
    with open_run(place, name="run", model="scripted") as served:
        app = create_app(served)
        listing = place.with_name("listing.jsonl")
        listing.write_text('{"path": "paris.txt", "tenant": "a", "labels": ["public"]}\n')
        build(place.parent, place, access="tenants", metadata=str(listing))
        check_error(chat(app, answering="generate"), 503, "rag.index-replaced")


@pytest.mark.parametrize("is_run", [True, False])
def test_an_answer_says_that_the_file_of_its_source_changed_or_is_gone(place, made_run, is_run):
    documents = place.with_name("documents")
    command = "stillroom make" if is_run else "stillroom rag update index"
    target = made_run if is_run else place
    with open_run(target, name="x", model="scripted") as served, open_index(target) as opened:

        def read_notices():
            (*_, answer) = opened.ask(QUESTION, answering="generate")
            notices = ask(create_app(replace(served, name="run")))["notices"]
            assert notices == answer.details["notices"]
            return notices

        assert read_notices() == []
        (documents / "rome.txt").write_text("Not cited.\n")
        (documents / "paris.txt").touch()
        assert read_notices() == []
        (documents / "paris.txt").write_text("Paris is the capital of Franconia.\n")
        (notice,) = read_notices()
        assert notice.startswith("paris.txt has changed since it was indexed")
        assert command in notice
        (documents / "paris.txt").unlink()
        (notice,) = read_notices()
        assert notice.startswith("paris.txt is gone")
        shutil.move(documents, documents.with_name("elsewhere"))
        assert read_notices() == []  # an index may be used where its documents are not
