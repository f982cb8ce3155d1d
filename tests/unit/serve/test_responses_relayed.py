"""Functions over OpenAI's newer endpoint: passed on as a chat, and answered in items."""

import json
import time

import openai.types.responses
import pytest
from tests.unit.serve.test_app import chat, check_error
from tests.unit.serve.test_described import check
from tests.unit.serve.test_responses import TOOL, events, respond, text_of, timeless, whole

from stillroom.serve import ServedModel, create_app
from stillroom.serve.middleware.metrics import ServerMetrics
from stillroom.testing import scripted_model

USAGE = {
    "prompt_tokens": 20,
    "completion_tokens": 9,
    "total_tokens": 29,
    "prompt_tokens_details": {"cached_tokens": 16},
    "completion_tokens_details": {"reasoning_tokens": 2},
}


class Far(type(scripted_model({"*": ""}))):
    """Another server: sends what it was given, whole or in chunks."""

    def __init__(self, answer=None, chunks=()):
        super().__init__({"*": ""})
        self.answer, self.chunks, self.got = answer, chunks, []

    def relay_chat(self, body, is_stopped):
        self.got.append(body)
        return self.answer

    def stream_chat(self, body):
        self.got.append(body)
        yield from self.chunks


def call(name="add", arguments='{"a": 1}', id="c1", **more):
    return {
        "id": id,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
        **more,
    }


def answer(reason="stop", usage=USAGE, **message):
    message = {"role": "assistant", "content": None, **message}
    return {"choices": [{"message": message, "finish_reason": reason}], "usage": usage}


def chunk(reason=None, **delta):
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}


def piece(at, arguments="", **more):
    """Return a chunk of a call; more of it is its beginning."""
    function = {"arguments": arguments, **({"name": more.pop("name")} if "name" in more else {})}
    return chunk(tool_calls=[{"index": at, "function": function, **more}])


def ask(far, **body):
    return respond(create_app(ServedModel("run", far)), tools=[TOOL], **body)


TWO_CALLS = [
    chunk(role="assistant", content="I "),
    chunk(content="add."),
    piece(0, id="c1", name="add"),
    piece(0, '{"a"'),
    piece(0, ": 1}"),
    piece(1, '{"a": 2}', id="c2", name="add"),
    chunk("tool_calls"),
    {"choices": [], "usage": USAGE},
]


def test_calls_are_items_whole_and_streamed():
    calls = [call(), call(arguments='{"a": 2}', id="c2")]
    far = Far(answer("tool_calls", content="I add.", tool_calls=calls))
    app = create_app(ServedModel("run", far))
    body = check(app, "/v1/responses", "post", respond(app, tools=[TOOL]))
    openai.types.responses.Response.model_validate(body, strict=True)
    message, one, two = body["output"]
    assert message["content"][0]["text"] == "I add."
    for item, name, arguments in ((one, "c1", '{"a": 1}'), (two, "c2", '{"a": 2}')):
        assert (item["type"], item["status"]) == ("function_call", "completed")
        assert (item["call_id"], item["name"], item["arguments"]) == (name, "add", arguments)
    assert body["usage"]["input_tokens_details"]["cached_tokens"] == 16
    assert body["usage"]["output_tokens_details"]["reasoning_tokens"] == 2
    assert body["usage"]["total_tokens"] == 29
    assert (body["tools"][0]["name"], body["tool_choice"]) == ("add", "auto")
    assert body["temperature"] is None  # the other server's own, which is not known here
    found = events(ask(Far(chunks=TWO_CALLS), stream=True))
    assert timeless(found[-1]["response"]) == timeless(body)
    kinds = [event["type"].removeprefix("response.") for event in found]
    assert kinds[-9:] == [
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]


def test_a_request_is_passed_on_as_a_chat():
    far = Far(answer(content="3"))
    text = {"format": {"type": "json_schema", "name": "n", "schema": {"type": "number"}}}
    whole(
        ask(
            far, instructions="Be brief.", temperature=0.5, seed=3, max_output_tokens=9, text=text,
            tool_choice={"type": "function", "name": "add"}, parallel_tool_calls=False,
            metadata={"a": "b"}, user="u", store=False,
            input=[
                {"role": "developer", "content": "Count."},
                {"role": "user", "content": [{"type": "input_text", "text": "1 and 2?"}]},
                {"type": "message", "role": "assistant", "content": "I add."},
                {"type": "function_call", "call_id": "c1", "name": "add", "arguments": "{}",
                 "id": "fc_1", "status": "completed"},
                {"type": "function_call", "call_id": "c2", "name": "add", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c1", "output": "3"},
                {"type": "function_call_output", "call_id": "c2",
                 "output": [{"type": "input_text", "text": "4"}]},
                {"type": "function_call", "call_id": "c3", "name": "add", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c3", "output": "5"},
            ],
        )
    )  # fmt: skip
    calls = [call(arguments="{}", id=f"c{at}") for at in (1, 2, 3)]
    assert far.got == [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "system", "content": "Count."},
                {"role": "user", "content": "1 and 2?"},
                {"role": "assistant", "content": "I add.", "tool_calls": calls[:2]},
                {"role": "tool", "tool_call_id": "c1", "content": "3"},
                {"role": "tool", "tool_call_id": "c2", "content": "4"},
                {"role": "assistant", "content": None, "tool_calls": calls[2:]},
                {"role": "tool", "tool_call_id": "c3", "content": "5"},
            ],
            "max_tokens": 9,
            "temperature": 0.5,
            "seed": 3,
            "parallel_tool_calls": False,
            "tools": [
                {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
            ],
            "tool_choice": {"type": "function", "function": {"name": "add"}},
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "n", "schema": {"type": "number"}},
            },
        }
    ]
    events(ask(far := Far(chunks=[chunk("stop", content="3")]), stream=True))
    assert far.got[0]["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("reason", "status", "why"),
    [
        ("stop", "completed", None),
        ("tool_calls", "completed", None),
        (None, "completed", None),
        ("length", "incomplete", "max_output_tokens"),
        ("content_filter", "incomplete", "content_filter"),
    ],
)
def test_why_the_other_server_ended_is_told(reason, status, why):
    for body in (
        whole(ask(Far(answer(reason, content="a")))),
        events(ask(Far(chunks=[chunk(content="a"), chunk(reason)]), stream=True))[-1]["response"],
    ):
        assert body["status"] == body["output"][0]["status"] == status
        assert (body["incomplete_details"] or {}).get("reason") == why


def test_what_the_other_server_refuses_is_a_refusal():
    body = whole(ask(Far(answer(content="Well. ", refusal="No."))))
    text, refused = body["output"][0]["content"]
    assert (text["text"], refused) == ("Well. ", {"type": "refusal", "refusal": "No."})
    chunks = [chunk(content="Well. "), chunk(refusal="N"), chunk("stop", refusal="o.")]
    streamed = events(ask(Far(chunks=chunks), stream=True))[-1]["response"]
    assert timeless(streamed["output"]) == timeless(body["output"])


def test_calls_without_numbers_or_names_of_their_own_are_told_apart():
    """Some servers number every call 0, send each at once, or send no id."""
    chunks = [
        chunk(tool_calls=[call(id="x", index=0)]),
        chunk(tool_calls=[call(id="y", index=0)]),
        chunk("stop", tool_calls=[call(id="y", index=1)]),
    ]
    body = events(ask(Far(chunks=chunks), stream=True))[-1]["response"]
    names = [item["call_id"] for item in body["output"]]
    assert names[:2] == ["x", "y"]
    assert len(set(names)) == 3
    nameless = [{"function": {"name": "add", "arguments": "{}"}}] * 2
    body = whole(ask(Far(answer(tool_calls=nameless))))
    assert len({item["call_id"] for item in body["output"]}) == 2


def test_what_is_not_counted_is_not_told():
    counters = ServerMetrics()
    app = create_app(ServedModel("run", Far(answer(usage=None, content="a"))), counters=counters)
    assert whole(respond(app, tools=[TOOL]))["usage"] is None
    app = create_app(ServedModel("run", Far(answer(content="a"))), counters=counters)
    whole(respond(app, tools=[TOOL]))
    tool = {"type": "function", "function": {"name": "add"}}
    assert chat(app, tools=[tool]).json()["usage"] == USAGE
    assert 'stillroom_tokens_total{kind="completion"} 18' in counters.render()


def test_the_first_token_of_another_server_comes_after_its_role_and_is_unknown_of_a_whole_reply():
    class Slow(Far):
        def stream_chat(self, body):
            for each in (chunk(role="assistant", content=""), chunk(content="a"), chunk("stop")):
                yield each
                time.sleep(0.1)

    lines = []
    whole(respond(create_app(ServedModel("run", Far(answer())), log=lines.append), tools=[TOOL]))
    app = create_app(ServedModel("run", Slow()), log=lines.append)
    events(respond(app, tools=[TOOL], stream=True))
    first, second = map(json.loads, lines)
    assert first["first_token_ms"] is None
    assert 100 <= second["first_token_ms"] <= second["ms"] - 190


BROKEN = [
    (answer("error", content="half"), "backend.broken"),
    (answer("abort"), "backend.broken"),
    (answer(content=7), "backend.answer"),
    (answer(tool_calls=[call(name=None)]), "backend.answer"),
    (answer(tool_calls=[call(name=7)]), "backend.answer"),
]


@pytest.mark.parametrize(("odd", "code"), BROKEN)
def test_what_is_no_answer_is_not_taken_for_one(odd, code, caplog):
    check_error(ask(Far(odd)), 503, code)
    found = events(ask(Far(chunks=[chunk(content="half "), odd]), stream=True))
    body = found[-1]["response"]
    assert (body["status"], body["error"]["code"]) == ("failed", "server_error")
    assert body["error"]["reason"] == code
    assert text_of(body).startswith("half ")


@pytest.mark.parametrize(
    "odd", [{}, {"choices": None}, {"choices": []}, {"choices": [7]}, {"choices": {"a": 1}}]
)
def test_nothing_is_no_answer(odd, caplog):
    check_error(ask(Far(odd)), 503, "backend.broken")
    body = events(ask(Far(chunks=[odd]), stream=True))[-1]["response"]
    assert (body["status"], body["output"]) == ("failed", [])


STRANGE = [
    (answer(content=[{"type": "text", "text": "a"}, 7, {"text": None}]), "a"),
    (answer(content="\ud800"), "\ud800"),
    (answer(tool_calls=7), ""),
    (answer(tool_calls=[7, {}, {"function": 7}]), ""),
    (answer(tool_calls=[call(arguments=None)]), {"arguments": ""}),
    (answer(tool_calls=[call(arguments={"a": 1})]), {"arguments": '{"a": 1}'}),
    (answer(tool_calls=[call(id=None)]), {"name": "add"}),
    (answer(tool_calls=[call(id=7, index="x")]), {"name": "add"}),
    (answer(content="a", usage={"prompt_tokens": "x", "completion_tokens": -1}), "a"),
    (answer(content="a", usage={"prompt_tokens_details": 7}), "a"),
    (answer(content="a", usage=7), "a"),
    (answer(reason=7, content="a"), "a"),
]


@pytest.mark.parametrize(("odd", "told"), STRANGE)
def test_strange_answers_are_told_in_sound_items(odd, told):
    reply = ask(Far(odd))
    bodies = [json.loads(reply.content)]
    if "ud800" not in reply.text:
        whole(reply)
        bodies.append(events(ask(Far(chunks=[odd]), stream=True))[-1]["response"])
    for body in bodies:
        (item,) = body["output"]
        if isinstance(told, str):
            assert item["content"][0]["text"] == told
        else:
            assert told.items() <= item.items()
            assert item["call_id"]


def test_arguments_that_come_too_late_break_the_answer_off():
    late = [*TWO_CALLS[:6], piece(0, "more")]
    body = events(ask(Far(chunks=late), stream=True))[-1]["response"]
    assert body["error"]["reason"] == "backend.answer"
    assert [item["status"] for item in body["output"]] == ["completed", "completed", "incomplete"]
    again = [*TWO_CALLS[:6], piece(0, ""), *TWO_CALLS[6:]]  # an empty piece is nothing
    assert events(ask(Far(chunks=again), stream=True))[-1]["type"] == "response.completed"
