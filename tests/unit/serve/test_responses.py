"""OpenAI's newer endpoint: the same answers as a chat's, in items, whole or as typed events."""

import json
import time

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from tests.unit.serve.test_app import ask_documents, chat, check_error, request, served

from stillroom.errors import BackendError, DataError
from stillroom.rag.index.view import AccessContext
from stillroom.records import Answer, Completion
from stillroom.serve import RequestLimits, ServedModel, create_app
from stillroom.serve.access import ApiKey
from stillroom.serve.middleware.metrics import ServerMetrics
from stillroom.testing import scripted_model

_EVENT = TypeAdapter(ResponseStreamEvent)


def respond(app, headers=None, **body):
    body = {"model": "run", "input": "What is it?", **body}
    return request(app, "POST", "/v1/responses", json_body=body, headers=headers)


def whole(reply):
    """Return an answer that the official client's types hold to be one."""
    assert reply.status_code == 200, reply.text
    Response.model_validate(reply.json(), strict=True)
    return reply.json()


def events(reply):
    """Return a stream's events, each as the official client's types have it, in a sound order."""
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in reply.text.removesuffix("\n\n").split("\n\n"):
        head, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert head == f"event: {found[-1]['type']}"
        _EVENT.validate_python(found[-1], strict=True)
    check_order(found)
    return found


def check_order(found):
    """Numbers rise by one; an item, and in it a part, is opened, written and closed, in turn."""
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    kinds = [event["type"].removeprefix("response.") for event in found]
    assert kinds[:2] == ["created", "in_progress"]
    assert kinds[-1] in {"completed", "incomplete", "failed"}
    item = part = None
    written, done = "", []
    for kind, event in zip(kinds[2:-1], found[2:-1], strict=True):
        if kind == "output_item.added":
            assert (item, event["output_index"]) == (None, len(done))
            item = event["item"]
            assert item["status"] == "in_progress"
            continue
        assert event["output_index"] == len(done)
        assert event.get("item_id", item["id"]) == item["id"]
        if kind == "output_item.done":
            assert part is None
            assert event["item"]["id"] == item["id"]
            done.append(event["item"])
            item, written = None, ""
        elif kind == "content_part.added":
            assert part is None
            part, written = event["part"], ""
        elif kind.endswith(".delta"):
            assert (part is None) == (item["type"] == "function_call")
            written += event["delta"]
        elif kind == "content_part.done":
            assert event["part"]["type"] == part["type"]
            part = None
        elif kind != "output_text.annotation.added":
            said = next(event[key] for key in ("text", "refusal", "arguments") if key in event)
            assert said == written
    if kinds[-1] != "failed":
        assert item is part is None
        assert found[-1]["response"]["output"] == done
    assert len({e["response"]["id"] for e in found if "response" in e}) == 1
    return done


def timeless(value):
    """Return a reply without what no two share."""
    if isinstance(value, dict):
        left = {"id", "created_at", "completed_at"}
        return {key: timeless(part) for key, part in value.items() if key not in left}
    return [timeless(part) for part in value] if isinstance(value, list) else value


def text_of(body):
    return "".join(part["text"] for item in body["output"] for part in item["content"])


def test_an_answer_says_what_held_for_it():
    body = whole(respond(create_app(served()), metadata={"a": "b"}, instructions="Be brief."))
    assert (body["object"], body["status"], text_of(body)) == ("response", "completed", "A still.")
    assert body["usage"] == {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 10,
    }
    assert (body["store"], body["metadata"]) == (False, {"a": "b"})
    assert (body["instructions"], body["max_output_tokens"]) == ("Be brief.", 256)
    assert (body["temperature"], body["top_p"]) == (0.0, 1.0)
    assert body["incomplete_details"] is body["error"] is None
    assert "citations" not in body["output"][0]


def test_a_stream_tells_every_step_in_order_and_ends_as_the_whole():
    app = create_app(served("one two three"))
    found = events(respond(app, stream=True))
    assert [event["type"].removeprefix("response.") for event in found] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [found[at]["response"]["status"] for at in (0, 1)] == ["in_progress"] * 2
    assert timeless(found[-1]["response"]) == timeless(whole(respond(app)))


@pytest.mark.parametrize("is_stream", [False, True])
def test_an_answer_that_is_cut_is_incomplete(is_stream):
    app = create_app(served("one two three"))
    reply = respond(app, stream=is_stream, max_output_tokens=2)
    if is_stream:
        last = events(reply)[-1]
        assert last["type"] == "response.incomplete"
        body = last["response"]
    else:
        body = whole(reply)
    assert (body["status"], text_of(body)) == ("incomplete", "one two")
    assert body["incomplete_details"] == {"reason": "max_output_tokens"}
    assert (body["output"][0]["status"], body["max_output_tokens"]) == ("incomplete", 2)
    assert body["completed_at"] is None


def test_an_empty_answer_is_a_message():
    app = create_app(served(""))
    assert text_of(whole(respond(app))) == ""
    assert text_of(events(respond(app, stream=True))[-1]["response"]) == ""


@pytest.mark.parametrize("is_stream", [False, True])
def test_documents_are_cited_as_in_a_chat(is_stream):
    def ask(messages, sampling, k, **more):
        *_, answer = ask_documents(messages, sampling, k, **more)
        yield "It rises in the north [1]."
        yield Answer(answer.completion, answer.citations, details={"abstained": False})

    app = create_app(served(ask=ask))
    turns = [{"role": "user", "content": text} for text in ("It was dry.", "What is it?")]
    reply = respond(app, input=turns, stream=is_stream)
    body = events(reply)[-1]["response"] if is_stream else whole(reply)
    (item,) = body["output"]
    (part,) = item["content"]
    message = chat(app, messages=turns).json()["choices"][0]["message"]
    for key in ("citations", "answer", "turns_not_read"):
        assert item[key] == message[key]
    (mark,) = part["annotations"]
    assert mark == {"type": "url_citation", **message["annotations"][0]["url_citation"]}
    assert part["text"][mark["start_index"] : mark["end_index"]] == "[1]"
    if is_stream:
        told = [e for e in events(respond(app, stream=True)) if "annotation" in e]
        assert [event["annotation"] for event in told] == [mark]


def test_what_was_answered_may_be_sent_back():
    """Both endpoints take their own answers as the client has them, citations and all."""
    seen = []

    def ask(messages, sampling, k, **more):
        seen.append([(message.role, message.content) for message in messages])
        return ask_documents(messages, sampling, k, **more)

    app = create_app(served(ask=ask))
    first = whole(respond(app, input=[{"role": "user", "content": "a"}] * 2))
    turns = [{"role": "user", "content": "What is it?"}, *first["output"]]
    second = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "b"}]}
    whole(respond(app, input=[*turns, second]))
    message = chat(app, messages=[{"role": "user", "content": "a"}] * 2).json()["choices"][0]
    assert message["message"]["turns_not_read"] == 1
    turns = [{"role": "user", "content": "What is it?"}, message["message"]]
    assert chat(app, messages=[*turns, {"role": "user", "content": "b"}]).status_code == 200
    assert (
        seen[1]
        == seen[3]
        == [
            ("user", "What is it?"),
            ("assistant", "It rises in the north [1]."),
            ("user", "b"),
        ]
    )


def test_what_is_asked_reaches_the_model():
    got = []

    class Listening(type(scripted_model({"*": ""}))):
        def generate(self, prompts, sampling, **more):
            got.append((prompts[0], sampling[0]))
            return super().generate(prompts, sampling, **more)

    app = create_app(ServedModel("run", Listening({"*": "x"})))
    format_ = {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True}
    body = whole(
        respond(
            app, instructions="Be brief.", temperature=0.5, top_p=0.9, max_output_tokens=9, seed=7,
            text={"format": format_},
            input=[
                {"role": "developer", "content": "Be kind."},
                {"role": "assistant", "type": "message", "id": "msg_1", "status": "completed",
                 "content": [{"type": "output_text", "text": "Ask.", "annotations": []}]},
                {"role": "user", "type": None,
                 "content": [{"type": "input_text", "text": text} for text in "ab"]},
            ],
        )
    )  # fmt: skip
    prompt, sampling = got[0]
    assert [(m.role, m.content) for m in prompt.messages] == [
        ("system", "Be brief."),
        ("system", "Be kind."),
        ("assistant", "Ask."),
        ("user", "a\nb"),
    ]
    assert prompt.schema == {"type": "object"}
    assert (sampling.temperature, sampling.top_p, sampling.seed) == (0.5, 0.9, 7)
    assert sampling.max_new_tokens == 9
    assert (body["temperature"], body["top_p"]) == (0.5, 0.9)
    assert body["text"] == {"format": format_}
    whole(respond(app, text={"format": {"type": "json_object"}}))
    assert got[1][0].schema == {"type": "object"}


def test_values_that_change_nothing_are_taken():
    neutral = {
        "background": False, "conversation": None, "include": ["reasoning.encrypted_content"],
        "max_tool_calls": 3, "moderation": None, "previous_response_id": None, "prompt": None,
        "prompt_cache_key": "x", "reasoning": {"effort": "none", "summary": None},
        "safety_identifier": "x", "service_tier": "auto", "store": False, "stream": None,
        "stream_options": {"include_obfuscation": False}, "text": {"verbosity": "medium"},
        "tool_choice": "auto", "tools": [], "top_logprobs": 0, "truncation": "disabled",
        "user": "x", "metadata": None, "parallel_tool_calls": True,
    }  # fmt: skip
    app = create_app(served())
    assert text_of(whole(respond(app, **neutral))) == "A still."
    nothing = dict.fromkeys(neutral) | {"temperature": None, "max_output_tokens": None}
    assert text_of(whole(respond(app, **nothing))) == "A still."


TOOL = {"type": "function", "name": "add", "parameters": {"type": "object"}}
REFUSED = [
    ({"model": "other"}, "model_not_found", "model"),
    ({"input": []}, "invalid_request", "input"),
    ({"input": [{"role": "user", "content": " "}]}, "no_question", "input"),
    ({"input": [{"role": "assistant", "content": "x"}]}, "no_question", "input"),
    ({"input": [{"role": "user", "content": "x"}] * 201}, "too_many_messages", "input"),
    ({"input": [{"type": "reasoning", "summary": []}]}, "invalid_request", "input.0"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "invalid_request", "input.0"),
    ({"input": [{"role": "tool", "content": "x"}]}, "invalid_request", "input.0.role"),
    ({"input": [{"type": "function_call"}]}, "invalid_request", "input.0.call_id"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        "invalid_request",
        "input.0.content.0",
    ),
    (
        {"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]},
        "unknown_call",
        "input.0.call_id",
    ),
    ({"max_output_tokens": 2049}, "max_tokens", "max_output_tokens"),
    ({"max_output_tokens": 0}, "invalid_request", "max_output_tokens"),
    ({"temperature": 2.5}, "invalid_request", "temperature"),
    ({"tools": [TOOL]}, "no_tools", "tools"),
    ({"tools": [{"type": "web_search"}]}, "invalid_request", "tools.0"),
    ({"tools": [TOOL], "k": 3}, "no_tools", "k"),
    ({"tool_choice": "required"}, "unknown_tool", "tool_choice"),
    ({"tool_choice": {"type": "function", "name": "x"}}, "unknown_tool", "tool_choice"),
    ({"tool_choice": {"type": "file_search"}}, "invalid_request", "tool_choice"),
    ({"text": {"format": {"type": "xml"}}}, "invalid_request", "text.format"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "invalid_request",
     "text.format.schema"),
    ({"text": {"verbosity": "low"}}, "invalid_request", "text.verbosity"),
    ({"k": 3}, "no_documents", "k"),
    ({"include": ["message.output_text.logprobs"]}, "invalid_request", "include.0"),
    ({"reasoning": {"effort": "high"}}, "invalid_request", "reasoning.effort"),
    ({"background": True}, "invalid_request", "background"),
    ({"truncation": "auto"}, "invalid_request", "truncation"),
    ({"service_tier": "priority"}, "invalid_request", "service_tier"),
    ({"metadata": {"x": "y" * 513}}, "invalid_request", "metadata.x"),
    ({"max_tokens": 5}, "unknown_parameter", "max_tokens"),
    ({"messages": []}, "unknown_parameter", "messages"),
    ({"n": 2}, "unknown_parameter", "n"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "code", "param"), REFUSED)
def test_what_is_not_served_is_refused_by_name(body, code, param):
    error = check_error(
        respond(create_app(served()), **body), 404 if "model" in body else 400, code
    )
    assert error["param"] == param


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("reasoning", {"input": [{"type": "reasoning", "summary": []}]}),
        ("input_image", {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
        ("web_search", {"tools": [{"type": "web_search"}]}),
        ("file_search", {"tool_choice": {"type": "file_search"}}),
    ],
)
def test_other_types_are_named_with_those_that_are_served(kind, body):
    error = check_error(respond(create_app(served()), **body), 400, "invalid_request")
    assert f"type '{kind}' are not supported; expected " in error["message"]


@pytest.mark.parametrize(
    "body", [{"store": True}, {"previous_response_id": "resp_1"}, {"conversation": {"id": "c"}}]
)
def test_what_builds_on_an_earlier_answer_is_told_what_to_send_instead(body):
    reply = respond(create_app(served()), **body)
    error = reply.json()["error"]
    (field,) = body
    assert (reply.status_code, error["code"], error["param"]) == (400, "not_kept", field)
    (problem,) = error["problems"]
    assert problem["where"] == field
    for part in ("what", "expected", "next"):
        assert problem[part]
        assert problem[part] in error["message"]


def test_json_is_not_asked_of_documents():
    app = create_app(served(ask=ask_documents))
    error = check_error(
        respond(app, text={"format": {"type": "json_object"}}), 400, "invalid_response_format"
    )
    assert error["param"] == "text.format"
    assert "run-bare" in error["message"]
    check_error(respond(app, tools=[TOOL]), 400, "no_tools")


@pytest.mark.parametrize(
    "value", ['{"a": 1e400}', '{"a": NaN}', '{"a":' * 300 + "1" + "}" * 300, '{"a": "\\ud800"}']
)
@pytest.mark.parametrize("is_stream", ["false", "true"])
def test_no_schema_breaks_what_is_sent_back(value, is_stream):
    """What a client sends in free form is a part of the answer: it must be JSON then, too."""
    form = f'{{"format": {{"type": "json_schema", "name": "x", "schema": {value}}}}}'
    raw = f'{{"model": "run", "input": "x", "stream": {is_stream}, "text": {form}}}'
    headers = {"content-type": "application/json"}
    app = create_app(served())
    reply = request(app, "POST", "/v1/responses", content=raw.encode(), headers=headers)
    if "ud800" not in value:
        param = check_error(reply, 400, "invalid_request")["param"]
        assert param.removesuffix(".a") == "text.format.schema"
        return
    body = events(reply)[-1]["response"] if is_stream == "true" else reply.json()
    assert body["text"]["format"]["schema"] == {"a": "\ud800"}


def test_a_stream_that_fails_says_so_and_keeps_what_was_said():
    def break_off(messages, sampling, k, **_):
        yield "half "
        raise ZeroDivisionError("secret")

    reply = respond(create_app(served(ask=break_off)), stream=True)
    last = events(reply)[-1]
    assert last["type"] == "response.failed"
    body = last["response"]
    assert (body["status"], text_of(body)) == ("failed", "half ")
    assert body["output"][0]["status"] == "incomplete"
    assert (body["error"]["code"], body["error"]["reason"]) == ("server_error", "internal_error")
    assert "secret" not in reply.text


@pytest.mark.parametrize("is_stream", [False, True])
def test_what_fails_before_the_first_piece_has_a_status(is_stream):
    def fail(prompt):
        raise BackendError("/secret/path broke", code="backend.failed")

    reply = respond(create_app(served(fail)), stream=is_stream)
    check_error(reply, 503, "backend.failed")
    assert "secret" not in reply.text


def test_keys_scopes_counters_and_log_are_a_chats():
    said, counters = [], ServerMetrics()
    keys = [
        ApiKey("a-key-of-enough-length"),
        ApiKey("jobs-key-of-enough-length", scopes=["jobs:read"]),
    ]
    app = create_app(served("secret answer"), api_keys=keys, counters=counters, log=said.append)
    check_error(respond(app), 401, "invalid_api_key")
    wrong = {"Authorization": "Bearer jobs-key-of-enough-length"}
    check_error(respond(app, headers=wrong), 403, "missing_scope")
    right = {"Authorization": "Bearer a-key-of-enough-length"}
    whole(respond(app, headers=right, input="secret question", instructions="secret rule"))
    events(respond(app, headers=right, stream=True))
    told = counters.render()
    assert 'method="POST",route="/v1/responses",status="200"} 2' in told
    assert 'stillroom_tokens_total{kind="completion"} 4' in told
    assert 'stillroom_own_seconds_count{route="/v1/responses"} 2' in told
    assert 'stillroom_queue_seconds_count{route="/v1/responses"} 2' in told
    assert json.loads(said[-1])["route"] == "/v1/responses"
    assert "secret" not in "".join(said)


def test_documents_are_asked_as_whom_the_key_says():
    asked = []

    def ask(messages, sampling, k, *, settings, access, **_):
        asked.append((access and access.tenant, k, settings))
        if access is None:
            raise DataError("whose?", code="rag.access-needed")
        yield from ask_documents(messages, sampling, k)

    keys = [ApiKey(f"key-of-{name}-long-enough", AccessContext(name)) for name in ("acme", "bolt")]
    model = served(ask=ask, access_rule="tenants")
    app = create_app(model, api_keys=[*keys, "key-of-nobody-long-enough"])
    for name in ("acme", "bolt"):
        headers = {"Authorization": f"Bearer key-of-{name}-long-enough"}
        whole(respond(app, headers=headers, k=5, pipeline="keyword"))
    assert asked == [(name, 5, {"pipeline": "keyword"}) for name in ("acme", "bolt")]
    nobody = {"Authorization": "Bearer key-of-nobody-long-enough"}
    check_error(respond(app, headers=nobody), 403, "no_tenant")


def test_an_answer_that_takes_too_long_fails_its_stream():
    class Slow(type(scripted_model({"*": ""}))):
        def stream(self, prompt, sampling):
            yield "a "
            while True:
                time.sleep(0.01)
                yield ""

    app = create_app(ServedModel("run", Slow({"*": ""})), limits=RequestLimits(timeout_s=0.3))
    body = events(respond(app, stream=True))[-1]["response"]
    assert (body["status"], body["error"]["reason"]) == ("failed", "timeout")


def test_usage_is_what_the_engine_told():
    class Counting(type(scripted_model({"*": ""}))):
        def stream(self, prompt, sampling):
            yield "a b c"
            return Completion("a b c", "length", 41, 7)

    body = events(respond(create_app(ServedModel("run", Counting({"*": ""}))), stream=True))[-1][
        "response"
    ]
    assert (body["usage"]["input_tokens"], body["usage"]["output_tokens"]) == (41, 7)
    assert body["status"] == "incomplete"


def test_nothing_is_kept_to_be_asked_for():
    app = create_app(served())
    name = whole(respond(app))["id"]
    check_error(request(app, "GET", f"/v1/responses/{name}"), 404, "http_error")
    check_error(request(app, "DELETE", f"/v1/responses/{name}"), 404, "http_error")
