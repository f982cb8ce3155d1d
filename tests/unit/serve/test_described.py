"""What is sent is what the published description tells, and what OpenAI's own client expects."""

import json
from types import SimpleNamespace

import jsonschema
import openai.types
import openai.types.chat
import openai.types.responses
import pytest
from tests.unit.serve.test_app import Embedder, ask_documents, chat, events, request, served
from tests.unit.serve.test_jobs import MERGE, fill

from stillroom.evaluate.qa.judgments import Judgment
from stillroom.jobs import Job
from stillroom.provenance import Parent
from stillroom.serve import create_app
from stillroom.serve.jobs.runner import JobRunner
from stillroom.serve.media_check import MediaCheckService
from stillroom.serve.workspace import Workspace
from stillroom.testing import tiny_checkpoint


def judge(asked, verdict, quote, access):
    place = {"document_id": "doc-1", "passage": "pas-1", "start": 0, "end": 1}
    return Judgment(verdict, asked, ("a",), ({**place, "quote": "a", "file": "a.md"},))


@pytest.fixture
def app(tmp_path):
    fill(tmp_path)
    both = served(ask=ask_documents, embedder=Embedder(), judgments=SimpleNamespace(judge=judge))
    with Workspace(tmp_path).open() as workspace:
        yield create_app(both, jobs=JobRunner(workspace), media_check=MediaCheckService())


def check(app, route, method, reply, status=200):
    """Hold an answer to what the description says of the route."""
    description = app.openapi()
    assert reply.status_code == status, reply.text
    told = description["paths"][route][method]["responses"]
    found = told.get(str(status)) or told[f"{status // 100}XX"]
    pointer = found["content"]["application/json"]["schema"]["$ref"]
    schema = {"$ref": pointer, "components": description["components"]}
    jsonschema.Draft202012Validator(schema).validate(reply.json())
    return reply.json()


def post(app, path, **body):
    return request(app, "POST", path, json_body=body)


def test_answers_are_as_described_and_as_openai_has_them(app):
    whole = check(app, "/v1/chat/completions", "post", chat(app))
    openai.types.chat.ChatCompletion.model_validate(whole, strict=True)
    for chunk in events(chat(app, stream=True)):
        openai.types.chat.ChatCompletionChunk.model_validate(chunk, strict=True)
    text = post(app, "/v1/completions", model="run", prompt="Once")
    openai.types.Completion.model_validate(check(app, "/v1/completions", "post", text), strict=True)
    for name in ("run", "run-bare"):
        for more in ({}, {"max_output_tokens": 1}):
            items = post(app, "/v1/responses", model=name, input="What is it?", **more)
            items = check(app, "/v1/responses", "post", items)
            openai.types.responses.Response.model_validate(items, strict=True)
    rows = post(app, "/v1/embeddings", model="embedder", input=["a b", "c"])
    rows = check(app, "/v1/embeddings", "post", rows)
    openai.types.CreateEmbeddingResponse.model_validate(rows, strict=True)
    fits = post(app, "/v1/rerank", model="embedder", query="a", documents=["b"])
    check(app, "/v1/rerank", "post", fits)
    told = post(app, "/v1/judgments", model="run", question="a?", answer="b", verdict="right")
    check(app, "/v1/judgments", "post", told)
    models = check(app, "/v1/models", "get", request(app, "GET", "/v1/models"))
    for row in models["data"]:
        openai.types.Model.model_validate(row, strict=True)
        check(app, "/v1/models/{name}", "get", request(app, "GET", f"/v1/models/{row['id']}"))
    for route in ("/healthz", "/readyz"):
        check(app, route, "get", request(app, "GET", route))


def test_refusals_are_as_described(app):
    check(app, "/v1/chat/completions", "post", chat(app, k=0), 400)
    kept = post(app, "/v1/responses", model="run", input="x", previous_response_id="resp_1")
    check(app, "/v1/responses", "post", kept, 400)
    check(app, "/v1/models/{name}", "get", request(app, "GET", "/v1/models/x"), 404)
    check(app, "/v1/forensics/check", "post", post(app, "/v1/forensics/check"), 415)
    check(app, "/v1/jobs", "post", post(app, "/v1/jobs", recipe="kind: x"), 400)
    check(app, "/v1/jobs/{job_id}", "get", request(app, "GET", "/v1/jobs/x"), 404)


def test_what_jobs_are_told_by_is_as_described(app, tmp_path):
    check(app, "/v1/recipes", "get", request(app, "GET", "/v1/recipes"))
    check(app, "/v1/recipes/{kind}", "get", request(app, "GET", "/v1/recipes/merge.weights"))
    check(app, "/v1/workspace", "get", request(app, "GET", "/v1/workspace"))
    job = Job.start(tmp_path / "made", "kind: merge\n")
    tiny_checkpoint(job.output, layers=1, hidden=16)
    job.finish("checkpoint", parents=[Parent("teacher", "hub:org/teacher", "")])
    proof = check(app, "/v1/proof", "get", request(app, "GET", "/v1/proof?path=made"))
    assert proof["inputs"]
    assert proof["folders"]
    check(app, "/v1/proof", "get", request(app, "GET", "/v1/proof?path=../made"), 404)
    check(app, "/v1/jobs", "get", request(app, "GET", "/v1/jobs"))
    wrong = post(app, "/v1/recipes/check", recipe=MERGE + "more: 1")
    check(app, "/v1/recipes/check", "post", wrong)


def test_the_description_is_whole(app):
    found = request(app, "GET", "/openapi.json").json()
    assert found == json.loads(json.dumps(app.openapi()))
    assert found["components"]["schemas"]["ChatRequest"]["properties"]["model"]["enum"] == [
        "run",
        "run-bare",
        "embedder",
    ]
    for route, verbs in found["paths"].items():
        for verb, told in verbs.items():
            assert told["summary"], (route, verb)
            assert told.get("description"), (route, verb)
            assert "422" not in told["responses"] or route == "/v1/forensics/check"
