import json
import math

import pytest
from tests.unit.diffusion.conftest import say_diffusion
from tests.unit.models.endpoint_server import Server, completion
from tests.unit.models.tiny_encoders import config_of, write_json, write_tokenizer
from tests.unit.serve.test_app import chat, check_error, events, request

from stillroom.errors import CheckpointError, RecipeError, StillroomError
from stillroom.models.interfaces import ConcurrentModel
from stillroom.serve import ServedModel, create_app, mounts
from stillroom.serve.mounts import Mount, open_mounts, parse_mount
from stillroom.testing import scripted_model, tiny_checkpoint

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
USER = [{"role": "user", "content": "What is 1 + 2?"}]


def tiny_embedder(folder):
    """Write a folder as sentence-transformers has it."""
    from transformers import BertModel

    BertModel(config_of(write_tokenizer(folder)), add_pooling_layer=False).save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    write_json(folder / "1_Pooling" / "config.json", pooling)
    listed = [("", "Transformer"), ("1_Pooling", "Pooling")]
    write_json(
        folder / "modules.json",
        [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in listed],
    )


def test_a_mount_is_read_as_it_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "a=b+c").mkdir()
    assert parse_mount("run") == Mount("run", "run")
    assert parse_mount("a=b+c") == Mount("a=b+c", "a=b+c")
    assert parse_mount("x=run", "other") == Mount("x", "run", "other")
    assert parse_mount("docs=index+./m", "other") == Mount("docs", "index", "./m")
    assert parse_mount("docs=index+hub:org/name") == Mount("docs", "index", "hub:org/name")
    assert parse_mount("./models/small.gguf").name == "small"
    assert parse_mount("http://host:8000/v1#big") == Mount("big", "http://host:8000/v1#big")
    assert parse_mount("hub:org/name").name == "name"
    with pytest.raises(RecipeError) as caught:
        parse_mount("http://host:8000/v1#")
    assert caught.value.code == "serve.mount"


def test_checkpoints_of_several_kinds_are_served_at_once(tmp_path):
    tiny_checkpoint(tmp_path / "causal", layers=1, hidden=16)
    say_diffusion(tiny_checkpoint(tmp_path / "canvas", layers=1, hidden=16))
    tiny_embedder(tmp_path / "vectors")
    mounts = [Mount(name, str(tmp_path / name)) for name in ("causal", "canvas", "vectors")]
    with open_mounts(mounts) as served:
        app = create_app(served)
        rows = request(app, "GET", "/v1/models").json()["data"]
        assert {row["id"]: row["abilities"] for row in rows} == {
            "causal": ["chat.completions", "responses", "completions"],
            "canvas": ["chat.completions", "responses", "completions", "canvas"],
            "vectors": ["embeddings", "rerank"],
        }
        for name in ("causal", "canvas"):
            body = chat(app, model=name, max_tokens=4).json()
            assert body["model"] == name
            assert body["usage"]["completion_tokens"] <= 4
        body = {"model": "vectors", "input": ["the river", "the sea"]}
        assert len(request(app, "POST", "/v1/embeddings", json_body=body).json()["data"]) == 2
        wrong = {"model": "causal", "input": "x"}
        check_error(request(app, "POST", "/v1/embeddings", json_body=wrong), 404, "model_not_found")
        check_error(chat(app, model="vectors"), 404, "model_not_found")


@pytest.mark.parametrize(
    "mounts",
    [[Mount("x", "a"), Mount("x", "b")], [Mount("x", "a", model="b")]],
)
def test_mounts_that_cannot_be_are_refused(tmp_path, monkeypatch, mounts):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        tiny_checkpoint(tmp_path / name, layers=1, hidden=16)
    with pytest.raises(RecipeError) as caught, open_mounts(mounts):
        pass
    assert caught.value.code == "serve.mount"


def test_a_folder_that_is_no_model_is_named_with_the_next_step(tmp_path):
    (tmp_path / "docs/more").mkdir(parents=True)
    (tmp_path / "docs/more/a.html").write_text("<p>Some text.</p>")
    (tmp_path / "run/steps").mkdir(parents=True)
    (tmp_path / "run/recipe.yaml").write_text("version: 1\n")
    (tmp_path / ".index.partial").mkdir()
    for name, code, what, advice in [
        ("docs", "serve.mount", "is a folder of documents", "stillroom make"),
        ("run", "data.unfinished", "an unfinished run lies in", "--resume"),
        ("index", "data.unfinished", "is unfinished: its work is in", "--resume"),
    ]:
        with (
            pytest.raises(StillroomError) as caught,
            open_mounts([Mount("x", str(tmp_path / name))]),
        ):
            pass
        (problem,) = caught.value.problems
        assert (problem.code, what in problem.what, advice in problem.next) == (code, True, True)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError), open_mounts([Mount("x", str(tmp_path / "weights"))]):
        pass


class Judge:
    fingerprint = "judge"

    def score(self, query, texts):
        return [float(text.count(query)) * 2 - 1 for text in texts]

    def close(self):
        pass


def rerank(app, **body):
    body = {"model": "judge", "query": "a", "documents": ["b", {"text": "aa"}, "a"], **body}
    return request(app, "POST", "/v1/rerank", json_body=body)


def test_documents_are_reranked_in_the_usual_shape():
    app = create_app(ServedModel("judge", reranker=Judge()))
    reply = rerank(app, return_documents=True, top_n=2).json()
    assert reply["model"] == "judge"
    assert [row["index"] for row in reply["results"]] == [1, 2]
    assert reply["results"][0]["document"] == {"text": "aa"}
    assert reply["results"][0]["relevance_score"] == pytest.approx(1 / (1 + math.exp(-3)))
    assert "document" not in rerank(app).json()["results"][0]
    body = {"model": "judge", "query": "a", "documents": ["a \ud800"], "return_documents": True}
    headers = {"Content-Type": "application/json"}
    halved = request(app, "POST", "/v1/rerank", content=json.dumps(body), headers=headers)
    assert halved.json()["results"][0]["document"] == {"text": "a \ud800"}
    check_error(rerank(app, documents=[]), 400, "invalid_request")
    check_error(rerank(app, documents=["x"] * 257), 400, "invalid_input")
    check_error(rerank(app, query=" "), 400, "invalid_input")
    check_error(rerank(app, top_n=0), 400, "invalid_request")
    check_error(rerank(app, model="none"), 404, "model_not_found")


def test_a_runs_embedder_reranks_by_likeness(tmp_path):
    tiny_embedder(tmp_path / "vectors")
    with open_mounts([Mount("vectors", str(tmp_path / "vectors"))]) as served:
        results = rerank(
            create_app(served), model="vectors", query="cat", documents=["dogs", "cat"]
        )
        results = results.json()["results"]
    assert results[0]["index"] == 1
    assert 0 <= results[-1]["relevance_score"] <= results[0]["relevance_score"] <= 1.000001


def test_tools_are_passed_on_where_the_backend_knows_them():
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    chunk = {
        "id": "x",
        "model": "theirs",
        "choices": [{"index": 0, "delta": {"tool_calls": [call]}}],
    }

    def answer(path, body, headers):
        if path == "/models":
            return {"data": [{"id": "theirs"}]}
        if body["stream"]:
            return [chunk, "[DONE]"]
        whole = completion(None, finish_reason="tool_calls")
        whole["choices"][0]["message"]["tool_calls"] = [call]
        return {**whole, "id": "x", "model": "theirs", "object": "chat.completion"}

    turns = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "3"},
    ]
    with Server(answer) as server, open_mounts([Mount("far", server.address)]) as served:
        assert isinstance(served[0].model, ConcurrentModel)
        assert served[0].concurrency == 16
        app = create_app(served)
        reply = chat(app, model="far", tools=[TOOL], messages=turns, user="me").json()
        assert reply["model"] == "far"
        assert reply["choices"][0]["message"]["tool_calls"] == [call]
        (sent,) = [body for _, body, _, _ in server.requests if body]
        assert sent["messages"] == turns
        assert (sent["model"], sent["tools"], sent["max_tokens"]) == ("theirs", [TOOL], 256)
        assert "user" not in sent
        (got,) = events(chat(app, model="far", tools=[TOOL], stream=True))
        assert got == {**chunk, "model": "far"}
        check_error(chat(app, model="far", tools=[TOOL], k=3), 400, "no_tools")
        check_error(chat(app, model="far", tools=[TOOL], max_tokens=9999), 400, "max_tokens")


def test_tools_are_refused_where_the_engine_knows_none():
    app = create_app(ServedModel("run", scripted_model({"*": "x"})))
    for body in ({"tools": [TOOL]}, {"messages": [{"role": "tool", "content": "3"}, *USER]}):
        assert check_error(chat(app, **body), 400, "no_tools")["param"] == "tools"
    check_error(chat(app, messages=[{"role": "user"}]), 400, "invalid_request")


def test_the_server_says_whether_it_is_ready():
    app = create_app(ServedModel("run", scripted_model({"*": "x"})))
    assert request(app, "GET", "/readyz").json() == {"status": "ready"}
    app.state.is_stopping = True
    reply = request(app, "GET", "/readyz")
    assert (reply.status_code, json.loads(reply.text)) == (503, {"status": "stopping"})


@pytest.mark.parametrize("settings", [{}, {"answering": "generate"}])
def test_a_model_that_quotes_do_not_need_is_said_to_be_that(settings):
    told = []
    mounts._tell_use(told.append, settings)("hub:a/b: taken from a package")
    assert told[0].startswith("hub:a/b: taken from a package")
    assert told[0].endswith("quotes need no model: it is used only on request") is (not settings)
