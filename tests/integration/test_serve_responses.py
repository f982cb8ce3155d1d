"""The official client against a live server, over the endpoint that it calls ``responses``."""

import contextlib
import threading
import time

import httpx
import openai
import pytest
from pydantic import BaseModel
from tests.integration.test_serve_openai import KEY, Endless, ask_documents, client_of, live
from tests.unit.models.endpoint_server import Server

from stillroom.serve import RequestLimits, ServedModel, create_app
from stillroom.serve.mounts import Mount, open_mounts
from stillroom.testing import scripted_model

ASKED = {"model": "run", "input": "Where does it rise?"}


class River(BaseModel):
    name: str
    length: int


class Add(BaseModel):
    a: int
    b: int


def test_an_answer_from_documents_whole_streamed_and_gone_on_with():
    with client_of(ServedModel("run", scripted_model({"*": "x"}), ask_documents)) as client:
        whole = client.responses.create(**ASKED)
        assert whole.output_text == "It rises in the north [1]."
        (message,) = whole.output
        (mark,) = message.content[0].annotations
        assert whole.output_text[mark.start_index : mark.end_index] == "[1]"
        assert message.model_extra["citations"][0]["byte_start"] == 10
        assert whole.usage.total_tokens == 58
        with client.responses.stream(**ASKED) as stream:
            said = [event.delta for event in stream if event.type == "response.output_text.delta"]
            final = stream.get_final_response()
        assert "".join(said) == final.output_text == whole.output_text
        assert final.output[0].content[0].annotations == message.content[0].annotations
        assert final.output[0].model_extra["citations"] == message.model_extra["citations"]
        assert final.usage == whole.usage
        more = [{"role": "user", "content": ASKED["input"]}, *final.output]
        more.append({"role": "user", "content": "And then?"})
        assert client.responses.create(model="run", input=more).output_text == whole.output_text


def test_a_schema_is_parsed_into_its_class():
    model = scripted_model({"*": '{"name": "Elbe", "length": 1094}'})
    with client_of(ServedModel("run", model)) as client:
        parsed = client.responses.parse(**ASKED, text_format=River)
        assert parsed.output_parsed == River(name="Elbe", length=1094)
        assert model.asked[-1].schema["properties"].keys() == {"name", "length"}
        with client.responses.stream(**ASKED, text_format=River) as stream:
            assert stream.get_final_response().output_parsed == parsed.output_parsed
        more = [*parsed.output, {"role": "user", "content": "And then?"}]
        assert client.responses.create(model="run", input=more).status == "completed"


def test_functions_are_called_and_their_outcome_is_sent_on():
    call = {"id": "c1", "type": "function"}
    head = {"id": "x", "created": 1, "model": "theirs", "object": "chat.completion"}

    def answer(path, body, headers):
        if path == "/models":
            return {"data": [{"id": "theirs"}]}
        if body["messages"][-1]["role"] == "tool":
            message, reason = {"content": body["messages"][-1]["content"]}, "stop"
        else:
            function = {"name": "Add", "arguments": '{"a": 1, "b": 2}'}
            message, reason = {"tool_calls": [{"index": 0, **call, "function": function}]}, "stop"
        choice = {"index": 0, "finish_reason": reason}
        if not body["stream"]:
            return {**head, "choices": [{**choice, "message": message}]}
        if "stream_options" in body:  # this one does not count
            return (400, {"error": {"message": "stream_options is unknown"}})
        return [{**head, "choices": [{**choice, "delta": message}]}, "[DONE]"]

    tools = [openai.pydantic_function_tool(Add)["function"] | {"type": "function"}]
    with (
        Server(answer) as server,
        open_mounts([Mount("run", server.address)]) as (served,),
        client_of(served) as client,
    ):
        whole = client.responses.parse(**ASKED, tools=tools)
        with client.responses.stream(**ASKED, tools=tools) as stream:
            kinds = [event.type for event in stream]
            streamed = stream.get_final_response()
        assert "response.function_call_arguments.done" in kinds
        for found in (whole, streamed):
            (item,) = found.output
            assert (item.name, item.call_id) == ("Add", "c1")
            assert item.parsed_arguments == {"a": 1, "b": 2}
            assert found.usage is None
        outcome = {"type": "function_call_output", "call_id": item.call_id, "output": "3"}
        more = [{"role": "user", "content": "1 and 2?"}, *streamed.output, outcome]
        assert client.responses.create(model="run", input=more, tools=tools).output_text == "3"
        with pytest.raises(openai.BadRequestError) as refused:
            client.responses.create(**ASKED, tools=[{"type": "web_search"}])
        assert "web_search" in refused.value.message


def test_errors_become_the_clients_own():
    served = ServedModel("run", scripted_model({"*": "x"}))
    with client_of(served, key="wrong") as client, pytest.raises(openai.AuthenticationError):
        client.responses.create(**ASKED)
    with client_of(served) as client:
        with pytest.raises(openai.NotFoundError):
            client.responses.create(**{**ASKED, "model": "gpt-9"}, stream=True)
        with pytest.raises(openai.BadRequestError) as refused:
            client.responses.create(**ASKED, previous_response_id="resp_1")
        assert refused.value.param == "previous_response_id"
        assert "send the earlier items again" in refused.value.message
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve("resp_1")


def test_a_full_server_says_when_to_come_again():
    with client_of(
        ServedModel("run", Endless()), limits=RequestLimits(running=1, waiting=0)
    ) as client:
        stream = client.responses.create(**ASKED, stream=True)
        next(iter(stream))
        with pytest.raises(openai.RateLimitError) as full:
            client.responses.create(**ASKED)
        assert full.value.response.headers["retry-after"] == "2"
        stream.close()


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_client_that_leaves_stops_its_generation(is_stream):
    model = Endless()
    headers = {"Authorization": f"Bearer {KEY}"}
    with live(ServedModel("run", model)) as address:
        with contextlib.suppress(httpx.ReadTimeout), httpx.Client(timeout=0.5) as client:
            url, body = f"{address}/v1/responses", {**ASKED, "stream": is_stream}
            with client.stream("POST", url, json=body, headers=headers) as reply:
                next(reply.iter_lines())
        assert model.was_closed.wait(10)


def test_a_stream_that_outlasts_the_drain_is_told(monkeypatch):
    opened = []

    def keep(*args, **settings):
        opened.append(create_app(*args, **settings))
        return opened[-1]

    monkeypatch.setattr("tests.integration.test_serve_openai.create_app", keep)
    model = Endless()
    with client_of(ServedModel("run", model)) as client:
        stream = client.responses.create(**ASKED, stream=True)
        next(iter(stream))
        until = time.monotonic() + 30
        while model.said == 0 and time.monotonic() < until:
            time.sleep(0.01)
        ending = threading.Timer(0.05, opened[0].state.desk.end_by, [time.monotonic()])
        ending.start()
        *_, last = stream
        ending.join()
        assert model.was_closed.wait(10)
        with pytest.raises(openai.InternalServerError) as late:
            client.responses.create(**ASKED)
    assert last.type == "response.failed"
    assert last.response.error.model_extra["reason"] == "stopping"
    assert last.response.output_text.startswith("word ")
    assert late.value.code == "stopping"
