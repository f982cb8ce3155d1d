import asyncio
import base64
import json
import math
import threading
import time
from contextlib import closing
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from stillroom.errors import BackendError, DataError
from stillroom.records import Answer, Citation, Completion, Location
from stillroom.serve import RequestLimits, ServedModel, create_app, routes
from stillroom.serve.errors import JsonReply
from stillroom.serve.jobs.runner import JobRunner
from stillroom.serve.media_check import MediaCheckService
from stillroom.serve.middleware.metrics import ServerMetrics
from stillroom.serve.openai.service import ModelService
from stillroom.serve.routes import ROUTES
from stillroom.serve.routing import RouteTable, ServerContext
from stillroom.serve.workspace import Workspace
from stillroom.testing import scripted_model

KEY = "a-key-of-enough-length"
PLACE = Location("notes/on rivers.txt", "ab" * 32, 10, 42, (3,), "", True)
CITED = Citation(1, "pas-1", PLACE, "The river rises in the north.")


class Embedder:
    truncated = 0
    dimensions = 4
    max_tokens = 32
    fingerprint = "fake"

    def embed(self, texts, *, kind):
        rows = np.array([[len(text), 1, 2, 3] for text in texts], dtype=np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def count_tokens(self, text):
        return len(text.split())


def ask_documents(messages, sampling, k, **_):
    yield "It rises "
    yield "in the north [1]."
    completion = Completion("It rises in the north [1].", "stop", 50, 8)
    yield Answer(completion, (CITED,))


def served(answer="A still.", **more):
    return ServedModel(
        "run", scripted_model({"*": answer} if isinstance(answer, str) else answer), **more
    )


async def call(app, method, path, *, json_body=None, headers=None, content=None):
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return await client.request(method, path, json=json_body, headers=headers, content=content)


def request(app, method, path, **more):
    return asyncio.run(call(app, method, path, **more))


def chat(app, headers=None, **body):
    body = {"model": "run", "messages": [{"role": "user", "content": "What is it?"}], **body}
    return request(app, "POST", "/v1/chat/completions", json_body=body, headers=headers)


def events(reply):
    lines = [line for line in reply.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


def check_error(reply, status, code):
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert "Traceback" not in reply.text
    return error


def test_chat_answers_with_usage():
    body = chat(create_app(served())).json()
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"]["content"] == "A still."
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"] == {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7}
    assert "annotations" not in body["choices"][0]["message"]


def test_stream_says_the_same_as_the_whole():
    app = create_app(served("one two three four"))
    chunks = events(chat(app, stream=True, max_tokens=3, stream_options={"include_usage": True}))
    text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"])
    whole = chat(app, max_tokens=3).json()
    assert text == whole["choices"][0]["message"]["content"] == "one two three"
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[-2]["choices"][0]["finish_reason"] == "length"
    assert whole["choices"][0]["finish_reason"] == "length"
    assert chunks[-1]["usage"] == whole["usage"]
    assert len({chunk["id"] for chunk in chunks}) == 1


@pytest.mark.parametrize("is_stream", [False, True])
def test_documents_are_cited_in_text_and_in_list(is_stream):
    app = create_app(served(ask=ask_documents))
    reply = chat(app, stream=is_stream)
    if is_stream:
        deltas = [chunk["choices"][0]["delta"] for chunk in events(reply)]
        text = "".join(delta.get("content", "") for delta in deltas)
        message = next(delta for delta in deltas if "citations" in delta)
    else:
        message = reply.json()["choices"][0]["message"]
        text = message["content"]
    mark = message["annotations"][0]["url_citation"]
    assert text[mark["start_index"] : mark["end_index"]] == "[1]"
    assert mark["url"] == "notes/on%20rivers.txt#page=3"
    assert message["citations"] == [
        {
            "number": 1, "passage_id": "pas-1", "path": PLACE.path, "digest": PLACE.digest,
            "byte_start": 10, "byte_end": 42, "is_exact": True, "pages": [3], "label": "",
            "text": CITED.text,
        }
    ]  # fmt: skip


def test_the_model_alone_has_a_name_of_its_own():
    app = create_app(served(ask=ask_documents))
    body = chat(app, model="run-bare").json()
    assert body["choices"][0]["message"]["content"] == "A still."
    check_error(chat(app, model="run-bare", k=3), 400, "no_documents")
    names = [row["id"] for row in request(app, "GET", "/v1/models").json()["data"]]
    assert names == ["run", "run-bare"]
    assert request(app, "GET", "/v1/models/run-bare").json()["id"] == "run-bare"


def test_settings_reach_the_model():
    got = []

    class Listening(type(scripted_model({"*": ""}))):
        def generate(self, prompts, sampling, **more):
            got.append((prompts[0], sampling))
            return super().generate(prompts, sampling, **more)

    app = create_app(ServedModel("run", Listening({"*": "x"})))
    schema = {"type": "object"}
    reply = chat(
        app, temperature=0.5, top_p=0.9, seed=7, stop=["\n"], max_completion_tokens=9,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": text} for text in "ab"]},
        ],
    )  # fmt: skip
    assert reply.status_code == 200
    prompt, (sampling,) = got[0]
    assert [(m.role, m.content) for m in prompt.messages] == [
        ("system", "Be brief."),
        ("user", "a\nb"),
    ]
    assert prompt.schema == schema
    assert (sampling.temperature, sampling.top_p, sampling.seed) == (0.5, 0.9, 7)
    assert (sampling.max_new_tokens, sampling.stop) == (9, ("\n",))


def test_values_that_change_nothing_are_taken():
    """Many clients send every parameter there is, with the value that means none."""
    neutral = {
        "n": 1, "logprobs": False, "top_logprobs": None, "logit_bias": {}, "prediction": None,
        "frequency_penalty": 0, "presence_penalty": 0.0, "service_tier": "auto",
        "modalities": ["text"], "safety_identifier": "x", "prompt_cache_key": "y",
    }  # fmt: skip
    app = create_app(served())
    assert chat(app, **neutral).json()["choices"] == chat(app).json()["choices"]
    asked = {"model": "run", "prompt": ["a"], "echo": False, "best_of": 1, "logprobs": None}
    assert request(app, "POST", "/v1/completions", json_body=asked).status_code == 200


def test_any_json_object_may_be_asked_for():
    got = []

    class Listening(type(scripted_model({}))):
        def generate(self, prompts, sampling, **more):
            got.extend(prompts)
            return super().generate(prompts, sampling, **more)

    app = create_app(ServedModel("run", Listening({"*": "{}"})))
    assert chat(app, response_format={"type": "json_object"}).status_code == 200
    assert got[0].schema == {"type": "object"}


def test_a_turn_with_null_members_is_taken_back_as_a_client_dumps_it():
    app = create_app(served())
    nulls = dict.fromkeys(("refusal", "audio", "function_call", "tool_calls", "of_a_later_version"))
    turn = {"role": "assistant", "content": "a", **nulls}
    question = {"role": "user", "content": "q"}
    assert chat(app, messages=[question, turn, question]).status_code == 200
    reply = chat(app, messages=[question, {**turn, "audio": {"id": "x"}}, question])
    assert reply.json()["error"]["code"] == "unknown_parameter"


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"model": "other"}, "model_not_found", "model"),
        ({"messages": []}, "invalid_request", "messages"),
        ({"messages": [{"role": "user", "content": " "}]}, "no_question", "messages"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "no_question", "messages"),
        ({"messages": [{"role": "user", "content": "x"}] * 201}, "too_many_messages", "messages"),
        ({"messages": "x"}, "invalid_request", "messages"),
        ({"tools": [{"type": "function"}]}, "no_tools", "tools"),
        ({"logit_bias": {"5": 1}}, "invalid_request", "logit_bias"),
        ({"logprobs": True}, "invalid_request", "logprobs"),
        ({"web_search_options": {}}, "unknown_parameter", "web_search_options"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "invalid_request",
            "messages.0.content.0.type",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "invalid_request",
            "messages.0.content.0.text",
        ),
        ({"max_tokens": 2049}, "max_tokens", "max_tokens"),
        ({"max_tokens": 0}, "invalid_request", "max_tokens"),
        ({"temperature": -1}, "invalid_request", "temperature"),
        ({"stop": ["a"] * 5}, "invalid_stop", "stop"),
        (
            {"response_format": {"type": "json_schema"}},
            "invalid_response_format",
            "response_format",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": ["schema"]}},
            "invalid_response_format",
            "response_format",
        ),
    ],
)
def test_what_is_not_served_is_refused_by_name(body, code, param):
    error = check_error(chat(create_app(served()), **body), 404 if "model" in body else 400, code)
    assert error["param"] == param
    assert error["type"] == ("not_found_error" if "model" in body else "invalid_request_error")


@pytest.mark.parametrize(
    ("name", "value"), [("logprobs", True), ("logit_bias", {"5": 1}), ("top_logprobs", 2)]
)
def test_a_field_that_may_only_be_off_is_said_to_be_unsupported(name, value):
    error = check_error(chat(create_app(served()), **{name: value}), 400, "invalid_request")
    assert error["message"] == f"'{name}' is not supported here; leave it out"


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b'{"model": NaN}'])
def test_broken_bodies_are_refused(content):
    headers = {"content-type": "application/json"}
    app = create_app(served())
    reply = request(app, "POST", "/v1/chat/completions", content=content, headers=headers)
    assert reply.status_code == 400
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b'{"model": "run"}', {"content-type": "application/x-www-form-urlencoded"}),
        (b"[1]", {"content-type": "application/json"}),
    ],
)
def test_a_body_that_is_no_object_is_told_with_the_header_that_it_needs(content, headers):
    app = create_app(served())
    reply = request(app, "POST", "/v1/chat/completions", content=content, headers=headers)
    error = check_error(reply, 400, "invalid_request")
    assert error["message"] == (
        "the body must be a JSON object, sent with Content-Type: application/json"
    )


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize(
    ("body", "param"),
    [
        ('"temperature": NUMBER', "temperature"),
        ('"top_p": NUMBER', "top_p"),
        ('"tools": [{"type": "function", "limit": NUMBER}]', "tools.0.limit"),
        ('"response_format": {"schema": [NUMBER]}', "response_format.schema.0"),
    ],
)
def test_numbers_that_are_not_finite_are_refused_by_name(body, param, number):
    turns = '"model": "run", "messages": [{"role": "user", "content": "What is it?"}]'
    sent = f"{{{turns}, {body.replace('NUMBER', number)}}}".encode()
    headers = {"content-type": "application/json"}
    app = create_app(served())
    reply = request(app, "POST", "/v1/chat/completions", content=sent, headers=headers)
    error = check_error(reply, 400, "invalid_request")
    assert error["param"] == param
    assert "finite number" in error["message"]


@pytest.mark.parametrize(
    "body", [b"{", b"[" * 99_999, b'{"k": ' + b"9" * 9_999 + b"}", b"\xff", b'{"k": "\x80"}']
)
def test_a_body_that_no_reader_takes_is_said_not_to_be_json(body):
    headers = {"content-type": "application/json"}
    app = create_app(served())
    reply = request(app, "POST", "/v1/chat/completions", content=body, headers=headers)
    check_error(reply, 400, "invalid_json")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('{"model": "run", "prompt": "a", "model": "other"}', "model"),
        ('{"model": "run", "prompt": "a", "suffix": {"b": 1, "b": 2}}', "b"),
    ],
)
def test_a_body_that_names_a_member_twice_is_refused(text, name):
    headers = {"Content-Type": "application/json"}
    reply = request(create_app(served()), "POST", "/v1/completions", content=text, headers=headers)
    message = check_error(reply, 400, "invalid_json")["message"]
    assert message == f"the body is not valid JSON: it names '{name}' twice"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_body_in_another_encoding_of_unicode_is_read(encoding):
    content = '{"model": "run", "prompt": "é"}'.encode(encoding)
    headers = {"Content-Type": "application/json"}
    app = create_app(served())
    reply = request(app, "POST", "/v1/completions", content=content, headers=headers)
    assert reply.json()["choices"][0]["text"] == "A still."


def test_unknown_paths_and_verbs():
    app = create_app(served())
    check_error(request(app, "GET", "/v1/nothing"), 404, "http_error")
    check_error(request(app, "GET", "/v1/chat/completions"), 405, "http_error")
    check_error(request(app, "GET", "/docs"), 404, "http_error")


def test_completions_take_raw_text():
    model = scripted_model({"*": "and so on"})
    app = create_app(ServedModel("run", model))
    body = {"model": "run", "prompt": "Once upon", "max_tokens": 2}
    reply = request(app, "POST", "/v1/completions", json_body=body).json()
    assert (reply["object"], reply["choices"][0]["text"]) == ("text_completion", "and so")
    assert (model.asked[0].text, model.asked[0].messages) == ("Once upon", ())
    chunks = events(request(app, "POST", "/v1/completions", json_body={**body, "stream": True}))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "and so"


def test_embeddings_as_numbers_and_as_base64():
    app = create_app(served(embedder=Embedder()))
    body = {"model": "embedder", "input": ["one two", "three"]}
    plain = request(app, "POST", "/v1/embeddings", json_body=body).json()
    packed = request(
        app, "POST", "/v1/embeddings", json_body={**body, "encoding_format": "base64"}
    ).json()
    for one, two in zip(plain["data"], packed["data"], strict=True):
        row = np.frombuffer(base64.b64decode(two["embedding"]), dtype="<f4")
        assert row.tolist() == one["embedding"]
        assert np.linalg.norm(row) == pytest.approx(1)
    assert [row["index"] for row in plain["data"]] == [0, 1]
    assert plain["usage"] == {"prompt_tokens": 3, "total_tokens": 3}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"input": []}, "invalid_input"),
        ({"input": ["x", " "]}, "invalid_input"),
        ({"input": ["x"] * 257}, "invalid_input"),
        ({"input": [[1, 2]]}, "invalid_request"),
        ({"input": "x", "dimensions": 8}, "invalid_dimensions"),
    ],
)
def test_embeddings_refuse_what_they_cannot(body, code):
    app = create_app(served(embedder=Embedder()))
    reply = request(app, "POST", "/v1/embeddings", json_body={"model": "embedder", **body})
    check_error(reply, 400, code)


def test_without_an_embedder_there_are_no_embeddings():
    body = {"model": "embedder", "input": "x"}
    reply = request(create_app(served()), "POST", "/v1/embeddings", json_body=body)
    check_error(reply, 404, "model_not_found")


@pytest.mark.parametrize(
    "header", [None, "Bearer wrong", "Bearer ", KEY, f"Basic {KEY}", f"Bearer {KEY}x"]
)
def test_a_wrong_key_gets_nothing(header):
    app = create_app(served(), api_keys=[KEY])
    reply = chat(app, headers={"Authorization": header} if header else None)
    check_error(reply, 401, "invalid_api_key")
    assert reply.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("key", [KEY, "another-key-of-length"])
def test_any_of_the_keys_opens(key):
    app = create_app(served(), api_keys=[KEY, "another-key-of-length"])
    assert chat(app, headers={"Authorization": f"Bearer {key}"}).status_code == 200


def test_health_needs_no_key():
    app = create_app(served(), api_keys=[KEY])
    assert request(app, "GET", "/healthz").json() == {"status": "ok"}


def test_without_keys_other_names_of_this_machine_get_nothing():
    app = create_app(served())
    check_error(chat(app, headers={"Host": "evil.example"}), 403, "foreign_host")
    assert chat(app, headers={"Host": "127.0.0.1:8151"}).status_code == 200
    assert chat(app, headers={"Host": "[::1]:8151"}).status_code == 200


def test_pages_of_other_origins_get_nothing():
    app = create_app(served())
    check_error(chat(app, headers={"Origin": "https://evil.example"}), 403, "foreign_origin")
    check_error(chat(app, headers={"Origin": "null"}), 403, "foreign_origin")
    assert chat(app, headers={"Origin": "http://localhost:9"}).status_code == 200


def test_large_bodies_are_refused_with_and_without_a_length():
    app = create_app(served(), limits=RequestLimits(body_bytes=1000))
    check_error(chat(app, user="x" * 1000), 413, "body_too_large")

    async def drip():
        for _ in range(100):
            yield b"x" * 100

    check_error(request(app, "POST", "/v1/completions", content=drip()), 413, "body_too_large")


def test_a_body_of_two_lengths_is_refused():
    headers = {"Content-Length": "2", "Transfer-Encoding": "chunked"}
    reply = request(create_app(served()), "POST", "/v1/completions", content=b"{}", headers=headers)
    check_error(reply, 400, "two_lengths")
    assert reply.headers["connection"] == "close"


def test_every_reply_carries_the_security_headers():
    app = create_app(served())
    for reply in (chat(app), chat(app, model="x"), chat(app, headers={"Host": "x"})):
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["cache-control"] == "no-store"
        assert "default-src 'none'" in reply.headers["content-security-policy"]


def test_too_many_at_once_are_told_when_to_come_again():
    gate = threading.Event()

    def answer(prompt):
        gate.wait(10)
        return "done"

    app = create_app(served(answer), limits=RequestLimits(running=1, waiting=1, retry_after_s=7))
    body = {"model": "run", "messages": [{"role": "user", "content": "x"}]}

    async def crowd():
        tasks = []
        for _ in range(4):
            tasks.append(
                asyncio.create_task(call(app, "POST", "/v1/chat/completions", json_body=body))
            )
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.1)
        gate.set()
        return await asyncio.gather(*tasks)

    replies = asyncio.run(crowd())
    assert [reply.status_code for reply in replies] == [200, 200, 429, 429]
    check_error(replies[2], 429, "too_many_requests")
    assert replies[2].headers["retry-after"] == "7"


def test_an_answer_that_takes_too_long_is_stopped():
    class Slow(type(scripted_model({"*": ""}))):
        was_stopped = False

        def generate(self, prompts, sampling, *, on_done=None, is_cancelled=None):
            while not is_cancelled():
                time.sleep(0.01)
            self.was_stopped = True
            return [Completion("", "cancelled")]

    model = Slow({"*": ""})
    app = create_app(ServedModel("run", model), limits=RequestLimits(timeout_s=0.3))
    check_error(chat(app), 504, "timeout")
    time.sleep(0.1)
    assert model.was_stopped


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (DataError("the question is too long", code="rag.long", where="/secret/path"), 400, True),
        (BackendError("does not fit", code="backend.context"), 400, True),
        (BackendError("pattern cannot be held", code="backend.schema"), 400, True),
        (BackendError("/secret/path broke", code="backend.failed"), 503, False),
        (ZeroDivisionError("/secret/path"), 500, False),
    ],
)
@pytest.mark.parametrize("is_stream", [False, True])
def test_what_fails_within_is_not_told_without(error, status, told, is_stream, caplog):
    def fail(prompt):
        raise error

    reply = chat(create_app(served(fail)), stream=is_stream)
    assert reply.status_code == status
    assert "secret" not in reply.text
    what = error.problems[0].what if hasattr(error, "problems") else str(error)
    assert (what in reply.text) == told
    if not told:
        assert "secret" in caplog.text


def test_an_error_amid_a_stream_ends_it_with_an_error_object():
    def break_off(messages, sampling, k, **_):
        yield "half "
        raise ZeroDivisionError("secret")

    reply = chat(create_app(served(ask=break_off)), stream=True)
    lines = [line for line in reply.text.split("\n\n") if line]
    assert "half" in lines[1]
    assert json.loads(lines[-1][6:])["error"]["code"] == "internal_error"
    assert "secret" not in reply.text


def test_turns_that_are_not_read_are_counted():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    app = create_app(served(ask=ask_documents))
    reply = chat(app, messages=[*turns, {"role": "user", "content": "c"}])
    assert reply.json()["choices"][0]["message"]["turns_not_read"] == 2
    assert "turns_not_read" not in chat(app).json()["choices"][0]["message"]


@pytest.mark.parametrize("is_stream", [False, True])
def test_half_a_character_in_a_message_costs_nobody_an_answer(tmp_path, is_stream):
    from stillroom.models import open_text_model
    from stillroom.testing import tiny_checkpoint

    folder = tiny_checkpoint(tmp_path / "tiny")
    with closing(open_text_model(str(folder), backend="transformers", dtype="float32")) as model:
        app = create_app(ServedModel("run", model))
        messages = [{"role": "user", "content": "a \ud800 b"}]
        reply = request(
            app, "POST", "/v1/chat/completions",
            content=json.dumps({"model": "run", "messages": messages, "stream": is_stream,
                                "max_tokens": 2}),
            headers={"Content-Type": "application/json"},
        )  # fmt: skip
    assert reply.status_code == 200, reply.text
    assert "error" not in reply.text


def test_a_route_without_a_scope_refuses_to_start():
    app = FastAPI()
    table = RouteTable(app)
    table.add("GET", "/with", "models")(lambda: {})
    table.check()
    app.get("/without")(lambda: {})
    with pytest.raises(TypeError, match="/without states no scope"):
        table.check()
    with pytest.raises(TypeError, match="/without states no scope"):
        table.find({"type": "http", "method": "GET", "path": "/without"})


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("GET", "/healthz", "public"),
        ("HEAD", "/healthz", "public"),
        ("GET", "/metrics", "metrics"),
        ("GET", "/openapi.json", "any"),
        ("GET", "/v1/models/a/b", "models"),
        ("POST", "/v1/judgments", "judgments"),
        ("POST", "/v1/recipes/check", "jobs:read"),
        ("DELETE", "/v1/jobs/x", "jobs:write"),
        ("PUT", "/v1/jobs", "jobs:write"),
        ("GET", "/v1/jobs/x/files/y/z", "jobs:read"),
        ("POST", "/v1/forensics/check", "forensics"),
        ("GET", "/v1/none", None),
    ],
)
def test_a_request_needs_the_scope_of_its_route(tmp_path, method, path, scope):
    app = FastAPI()
    table = RouteTable(app)
    service = ModelService([], RequestLimits(), ServerMetrics())
    with Workspace(tmp_path).open() as workspace:
        context = ServerContext(
            RequestLimits(), ServerMetrics(), service, JobRunner(workspace), MediaCheckService()
        )
        for module in ROUTES:
            module.add_routes(table, context)
    rule = table.find({"type": "http", "method": method, "path": path})
    assert (rule and rule.scope) == scope


def test_every_file_of_routes_is_listed():
    folder = Path(routes.__file__).parent
    names = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert {module.__name__.rpartition(".")[2] for module in ROUTES} == names


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"a": [math.nan, math.inf], "b": "é"}, {"a": [None, None], "b": "é"}),
        ({"a": math.nan, "b": "\ud800"}, {"a": None, "b": "\ud800"}),
    ],
)
def test_a_reply_is_json_whatever_it_holds(content, expected):
    app = FastAPI(default_response_class=JsonReply)
    app.get("/")(lambda: content)
    assert request(app, "GET", "/").json() == expected


def test_errors_are_written_in_one_form_wherever_they_arise():
    app = create_app(served(), api_keys=[KEY])
    for headers in (None, {"Authorization": f"Bearer {KEY}"}):
        reply = request(app, "GET", "/v1/none", headers=headers)
        assert reply.status_code in {401, 404}
        assert reply.text == json.dumps(reply.json(), separators=(",", ":"))
