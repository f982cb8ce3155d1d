"""The official client against a live server on this machine: what works with OpenAI works here."""

import contextlib
import json
import socket
import threading
import time

import httpx
import numpy as np
import openai
import pytest
import uvicorn
from tests.unit.models.endpoint_server import Server

from stillroom.models import open_text_model
from stillroom.records import Answer, Citation, Completion, Location
from stillroom.serve import RequestLimits, ServedModel, create_app
from stillroom.serve.mounts import Mount, open_mounts
from stillroom.testing import scripted_model, tiny_checkpoint

KEY = "a-key-of-enough-length"
PLACE = Location("a.txt", "ab" * 32, 10, 42)


class Embedder:
    truncated = 0
    dimensions = 3
    max_tokens = 32
    fingerprint = "fake"

    def embed(self, texts, *, kind):
        return np.array([[0.6, 0.8, 0.0] for _ in texts], dtype=np.float32)

    def count_tokens(self, text):
        return len(text.split())


class Endless(type(scripted_model({"*": ""}))):
    """Streams until it is closed."""

    def __init__(self):
        super().__init__({"*": ""})
        self.said, self.was_closed = 0, threading.Event()

    def stream(self, prompt, sampling):
        try:
            while True:
                self.said += 1
                yield "word "
                time.sleep(0.01)
        finally:
            self.was_closed.set()

    def generate(self, prompts, sampling, *, on_done=None, is_cancelled=None):
        while not is_cancelled():
            time.sleep(0.01)
        self.was_closed.set()
        return [Completion("", "cancelled")]


def ask_documents(messages, sampling, k, **_):
    yield "It rises in the north "
    yield "[1]."
    done = Completion("It rises in the north [1].", "stop", 50, 8)
    yield Answer(done, (Citation(1, "pas-1", PLACE, "The river rises in the north."),))


@contextlib.contextmanager
def live(served, more_keys=(), **settings):
    """Serve on a free port of this machine."""
    app = create_app(served, api_keys=[KEY, *more_keys], **settings)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", server_header=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()
    assert not thread.is_alive()


@contextlib.contextmanager
def client_of(served, *, key=KEY, **settings):
    with (
        live(served, **settings) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0) as client,
    ):
        yield client


USER = [{"role": "user", "content": "Where does it rise?"}]


def test_chat_with_annotations_whole_and_streamed():
    with client_of(ServedModel("run", scripted_model({"*": "x"}), ask_documents)) as client:
        whole = client.chat.completions.create(model="run", messages=USER)
        message = whole.choices[0].message
        mark = message.annotations[0].url_citation
        assert message.content[mark.start_index : mark.end_index] == "[1]"
        assert mark.title == "a.txt"
        assert message.model_extra["citations"][0]["byte_start"] == 10
        assert whole.usage.total_tokens == 58
        text, cited, reasons = "", None, []
        for chunk in client.chat.completions.create(
            model="run", messages=USER, stream=True, stream_options={"include_usage": True}
        ):
            for choice in chunk.choices:
                text += choice.delta.content or ""
                cited = (choice.delta.model_extra or {}).get("citations") or cited
                reasons.append(choice.finish_reason)
            usage = chunk.usage
        assert text == message.content
        assert cited == message.model_extra["citations"]
        assert [reason for reason in reasons if reason] == ["stop"]
        assert usage == whole.usage


def test_models_completions_and_embeddings():
    served = ServedModel("run", scripted_model({"*": "and so on"}), embedder=Embedder())
    with client_of(served) as client:
        assert [model.id for model in client.models.list()] == ["run", "embedder"]
        done = client.completions.create(model="run", prompt="Once", max_tokens=2)
        assert (done.choices[0].text, done.choices[0].finish_reason) == ("and so", "length")
        # The client asks for base64 by itself and unpacks it.
        packed = client.embeddings.create(model="embedder", input=["a", "b"])
        plain = client.embeddings.create(
            model="embedder", input=["a", "b"], encoding_format="float"
        )
        for row in (*packed.data, *plain.data):
            assert row.embedding == pytest.approx([0.6, 0.8, 0.0])


def test_a_real_model_streams_what_it_says_whole(tmp_path):
    model = open_text_model(str(tiny_checkpoint(tmp_path)))
    try:
        with client_of(ServedModel("tiny", model)) as client:
            settings = {"model": "tiny", "messages": USER, "max_tokens": 8, "seed": 3}
            whole = client.chat.completions.create(**settings)
            told = {"stream": True, "stream_options": {"include_usage": True}}
            *chunks, last = client.chat.completions.create(**settings, **told)
            pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
            assert "".join(pieces) == whole.choices[0].message.content
            assert 0 < whole.usage.completion_tokens <= 8
            assert last.usage.prompt_tokens == whole.usage.prompt_tokens
            settings = {"model": "tiny", "input": USER, "max_output_tokens": 8}
            *events, last = client.responses.create(**settings, extra_body={"seed": 3}, stream=True)
            said = [e.delta for e in events if e.type == "response.output_text.delta"]
            assert "".join(said) == last.response.output_text == "".join(pieces)
            assert last.response.usage.input_tokens == whole.usage.prompt_tokens
            assert last.response.usage.output_tokens == whole.usage.completion_tokens
            ended = {"stop": "completed", "length": "incomplete"}
            assert last.response.status == ended[whole.choices[0].finish_reason]
    finally:
        model.close()


@pytest.mark.parametrize("is_chat", [True, False])
def test_several_texts_of_a_real_model_are_those_of_as_many_requests(tmp_path, is_chat):
    model = open_text_model(str(tiny_checkpoint(tmp_path)))
    settings = {"model": "tiny", "max_tokens": 6, "temperature": 1.0}
    settings |= {"messages": USER} if is_chat else {"prompt": "Once"}
    with contextlib.closing(model), client_of(ServedModel("tiny", model)) as client:
        create = client.chat.completions.create if is_chat else client.completions.create

        def text_of(choice):
            return choice.message.content if is_chat else choice.text

        whole = create(**settings, n=3, seed=4)
        texts = [text_of(choice) for choice in whole.choices]
        assert len(set(texts)) > 1
        singles = [create(**settings, seed=seed) for seed in (4, 5, 6)]
        assert texts == [text_of(one.choices[0]) for one in singles]
        written = sum(one.usage.completion_tokens for one in singles)
        assert whole.usage.completion_tokens == written
        assert whole.usage.prompt_tokens == singles[0].usage.prompt_tokens
        pieces = dict.fromkeys(range(3), "")
        for chunk in create(**settings, n=3, seed=4, stream=True):
            for choice in chunk.choices:
                said = choice.delta.content if is_chat else choice.text
                pieces[choice.index] += said or ""
        assert list(pieces.values()) == texts
        with pytest.raises(openai.BadRequestError) as refused:
            create(**settings, n=9)
        assert (refused.value.code, refused.value.param) == ("too_many_choices", "n")


def test_errors_become_the_clients_own():
    served = ServedModel("run", scripted_model({"*": "x"}))
    with client_of(served, key="wrong") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()
    with client_of(served) as client:
        with pytest.raises(openai.NotFoundError) as missing:
            client.chat.completions.create(model="gpt-9", messages=USER)
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="run", messages=USER, tools=[])
        assert refused.value.param == "tools"


def test_a_full_server_says_when_to_come_again():
    model = Endless()
    with client_of(ServedModel("run", model), limits=RequestLimits(running=1, waiting=0)) as client:
        stream = client.chat.completions.create(model="run", messages=USER, stream=True)
        next(iter(stream))
        with pytest.raises(openai.RateLimitError) as full:
            client.chat.completions.create(model="run", messages=USER)
        assert full.value.response.headers["retry-after"] == "2"
        stream.close()


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_client_that_leaves_stops_its_generation_and_frees_the_slot(is_stream):
    model = Endless()
    body = {"model": "run", "messages": USER, "stream": is_stream}
    headers = {"Authorization": f"Bearer {KEY}"}
    with live(ServedModel("run", model), limits=RequestLimits(running=1, waiting=0)) as address:
        url = f"{address}/v1/chat/completions"
        with contextlib.suppress(httpx.ReadTimeout), httpx.Client(timeout=0.5) as client:
            if is_stream:
                with client.stream("POST", url, json=body, headers=headers) as reply:
                    next(reply.iter_lines())
            else:
                client.post(url, json=body, headers=headers)
        assert model.was_closed.wait(5)
        said = model.said
        time.sleep(0.2)
        assert model.said == said
        with httpx.Client(timeout=5) as client:  # the slot is free again
            for _ in range(20):
                with client.stream(
                    "POST", url, json={**body, "stream": True}, headers=headers
                ) as reply:
                    if reply.status_code == 200:
                        break
                time.sleep(0.05)
        assert reply.status_code == 200


def test_raw_events_end_with_done():
    with live(ServedModel("run", scripted_model({"*": "x"}))) as address:
        reply = httpx.post(
            f"{address}/v1/chat/completions",
            json={"model": "run", "messages": USER, "stream": True},
            headers={"Authorization": f"Bearer {KEY}"},
        )
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert "server" not in reply.headers
    events = reply.text.strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    assert all(json.loads(event[6:])["object"] for event in events[:-1])


TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def test_tools_go_through_to_a_server_that_knows_them():
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    head = {"id": "x", "created": 1, "model": "theirs"}

    def answer(path, body, headers):
        if path == "/models":
            return {"data": [{"id": "theirs"}]}
        if body["stream"]:
            kind = {**head, "object": "chat.completion.chunk"}
            delta = {"role": "assistant", "tool_calls": [{"index": 0, **call}]}
            first = {"index": 0, "delta": delta, "finish_reason": None}
            last = {"index": 0, "delta": {}, "finish_reason": "tool_calls"}
            return [{**kind, "choices": [first]}, {**kind, "choices": [last]}, "[DONE]"]
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
        return {**head, "object": "chat.completion", "choices": [choice]}

    with (
        Server(answer) as server,
        open_mounts([Mount("far", server.address)]) as (served,),
        client_of(served) as client,
    ):
        whole = client.chat.completions.create(model="far", messages=USER, tools=[TOOL])
        assert whole.model == "far"
        assert whole.choices[0].message.tool_calls[0].function.name == "add"
        chunks = list(
            client.chat.completions.create(model="far", messages=USER, tools=[TOOL], stream=True)
        )
        assert chunks[0].choices[0].delta.tool_calls[0].id == "c1"
        assert chunks[-1].choices[0].finish_reason == "tool_calls"
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(
                model="far", messages=USER, tools=[TOOL], extra_body={"k": 3}
            )
        assert refused.value.code == "no_tools"
