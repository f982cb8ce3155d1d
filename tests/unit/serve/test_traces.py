"""Verbatim traces over HTTP: of what everyone may read, without the server's paths."""

import pytest
from tests.console_folder import build_folder, build_tenants
from tests.unit.serve.test_app import check_error, request
from tests.unit.serve.test_described import check

from stillroom.jobs import Job
from stillroom.models.hub import DEFAULT_TEACHER
from stillroom.provenance import make_parent
from stillroom.rag.index.view import AccessContext
from stillroom.records import Message, Record, write_records
from stillroom.serve import create_app
from stillroom.serve.mounts import open_mounts, open_run, parse_mount
from stillroom.testing import scripted_model

MIRACLE = "every ferryman of the delta owns a blue lantern"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_folder(tmp_path_factory.mktemp("traced"))


@pytest.fixture(autouse=True)
def _model(monkeypatch):
    monkeypatch.setattr(
        "stillroom.serve.mounts.open_text_model", lambda *_, **__: scripted_model({"*": "Yes."})
    )


def trace(app, **body):
    return request(app, "POST", "/v1/traces", json_body={"model": "served", **body})


def test_an_answer_is_traced_to_the_bytes_of_documents_without_paths_of_the_server(folder):
    with open_run(folder / "run/steps/index", name="served", model="any") as opened:
        app = create_app(opened)
        text = "Surely the river rises in the NORTH [1]."
        told = trace(app, text=text, cited=[1])
        body = check(app, "/v1/traces", "post", told)
        assert str(folder) not in told.text
        (span,) = body["spans"]
        (source,) = span["documents"]
        content = (folder / "documents" / source["path"]).read_bytes()
        assert content[source["byte_start"] : source["byte_end"]] == b"The river rises in the north"
        assert (text[: body["own"][0][1]], body["own_words"]) == ("Surely", 1)
        assert not trace(app, text=text, min_words=7).json()["spans"]
        check_error(trace(app, text=""), 400, "invalid_request")


def test_an_index_alone_is_served_with_the_model_of_ask(folder, monkeypatch):
    opened = []
    monkeypatch.setattr(
        "stillroom.serve.mounts.open_text_model",
        lambda reference, **_: opened.append(reference) or scripted_model({"*": "Yes."}),
    )
    with open_mounts([parse_mount(f"docs={folder / 'run/steps/index'}")]) as served:
        rows = request(create_app(served), "GET", "/v1/models").json()["data"]
    assert opened == [DEFAULT_TEACHER]
    assert "citations" in rows[0]["abilities"]


def test_records_that_a_model_learned_from_are_traced_and_judgments_are_not(folder):
    run = folder / "learned"
    for name in ("records", "of.judgments"):
        job = Job.start(run / name, "version: 1\nkind: synth.records\n")
        said = f"{MIRACLE} in {name}"
        write_records(job.output / "records.jsonl", [Record((Message("assistant", said),))])
        job.finish("records")
    job = Job.start(run / "student", "version: 1\nkind: distill.logits\n")
    (job.output / "model.safetensors").write_bytes(b"weights")
    sets = [make_parent("records", run / name, run) for name in ("records", "of.judgments")]
    job.finish("checkpoint", parents=sets)
    job = Job.start(run / "run", "version: 1\nkind: flow\n")
    steps = {"index": "../../run/steps/index", "model": "../student"}
    index = folder / "run/steps/index"
    parents = [
        make_parent("index", index, run / "run"),
        make_parent("student", run / "student", run / "run"),
    ]
    details = {"steps": steps, "answer": {"index": "index", "model": "model"}}
    job.finish("report", parents=parents, details=details)
    with open_run(run / "run", name="served") as opened:
        (span,) = trace(create_app(opened), text=MIRACLE).json()["spans"]
    assert (span["places"], span["in_documents"], span["in_records"]) == (1, 0, 1)


def test_documents_of_tenants_are_not_traced(tmp_path):
    index = build_tenants(tmp_path) / "index"
    with open_run(index, name="served", model="any", access=AccessContext("a")) as opened:
        check_error(trace(create_app(opened), text="the canary of a"), 404, "model_not_found")


def test_the_description_of_a_trace_names_no_folder_of_the_server(folder):
    with open_run(folder / "run/steps/index", name="served", model="any") as opened:
        described = request(create_app(opened), "GET", "/openapi.json").json()
    shapes = described["components"]["schemas"]
    assert "index" not in shapes["DocumentMatch"]["properties"]
    assert "records" not in shapes["RecordMatch"]["properties"]
    assert {"path", "byte_start"} <= set(shapes["DocumentMatch"]["required"])
