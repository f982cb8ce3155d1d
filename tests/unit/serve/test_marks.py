"""Content credentials in what the server sends: in every format, and said in a header."""

import json

import pytest
from tests.unit.serve.test_app import ask_documents, chat, events, request, served

from stillroom.provenance.text_marks import open_marker
from stillroom.records import Answer, Completion
from stillroom.records.text_credentials import (
    Disclosure,
    has_credential,
    read_credentials,
    remove_marks,
)
from stillroom.serve import create_app
from stillroom.serve.access import RequestLimits
from stillroom.serve.openai.service import CREDENTIAL_HEADER
from stillroom.serve.routes.chat_completions import ChatRequest
from stillroom.testing import scripted_model

ROUTES = ("chat", "responses", "completions")


def marked(model=None):
    return create_app(model or served("It is a still."), marker=open_marker())


def send(app, route, *, stream=False, model="run", **more):
    """Return the header and the text of a reply, whole or put together from its events."""
    if route == "responses":
        body = {"model": model, "input": "What is it?", "stream": stream, **more}
        reply = request(app, "POST", "/v1/responses", json_body=body)
        data = [line[6:] for line in reply.text.splitlines() if line.startswith("data: ")]
        body = json.loads(data[-1])["response"] if stream else reply.json()
        text = body["output"][0]["content"][0]["text"]
        deltas = [json.loads(line) for line in data]
        if stream:
            kind = "response.output_text.delta"
            assert "".join(one["delta"] for one in deltas if one["type"] == kind) == text
    elif route == "completions":
        body = {"model": model, "prompt": "It", "stream": stream, **more}
        reply = request(app, "POST", "/v1/completions", json_body=body)
        parts = events(reply) if stream else [reply.json()]
        text = "".join(part["choices"][0]["text"] for part in parts)
    else:
        reply = chat(app, stream=stream, model=model, **more)
        if stream:
            deltas = [part["choices"][0]["delta"] for part in events(reply)]
            text = "".join(delta.get("content") or "" for delta in deltas)
        else:
            text = reply.json()["choices"][0]["message"]["content"]
    return reply.headers[CREDENTIAL_HEADER], text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ROUTES)
def test_every_text_is_marked_and_the_header_says_so(route, stream):
    header, text = send(marked(), route, stream=stream)
    assert header == "c2pa; key=not-kept" + "; unless=json,empty" * stream
    (found,) = read_credentials(text)
    assert found.state == "valid"
    assert found.says_synthetic
    assert found.model_identifier == scripted_model({"*": "It is a still."}).fingerprint
    assert remove_marks(text) == "It is a still."


def test_clean_text_is_sent_without_a_marker():
    header, text = send(create_app(served("It is a still.")), "chat")
    assert (header, text) == ("none; off", "It is a still.")


def test_json_stays_json():
    model = served('{"a": 1}')
    header, text = send(marked(model), "chat", response_format={"type": "json_object"})
    assert header == "none; json"
    assert json.loads(text) == {"a": 1}


@pytest.mark.parametrize(("text", "header"), [('{"a": 1}', "json"), ("", "empty")])
def test_json_that_nobody_demanded_stays_json_too(text, header):
    assert send(marked(served(text)), "chat") == (f"none; {header}", text)
    assert send(marked(served(text)), "chat", stream=True)[1] == text


def test_quotes_are_said_to_be_composed_and_citations_stay_in_place():
    def quote(messages, sampling, k, **_):
        text = "It rises [1]."
        yield text
        details = {"answering": "quote", "origins": {"human": 1}}
        yield Answer(Completion(text, "stop", 5, 5, "reader:1"), (), (), details)

    model = served(ask=quote)
    _, text = send(marked(model), "chat")
    (found,) = read_credentials(text)
    assert (found.source_type, found.says_synthetic, found.model) == ("composite", False, "")
    app = marked(served(ask=ask_documents))
    message = chat(app).json()["choices"][0]["message"]
    mark = message["annotations"][0]["url_citation"]
    assert message["content"][mark["start_index"] : mark["end_index"]] == "[1]"
    assert read_credentials(message["content"])[0].says_synthetic


def test_a_mark_that_a_client_sends_back_is_not_read_by_the_model():
    app = marked()
    _, first = send(app, "chat")
    turns = [
        {"role": "user", "content": "Is it?"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": [{"type": "text", "text": first}]},
    ]
    usage = chat(app, messages=turns).json()["usage"]
    assert usage["prompt_tokens"] < 50


def test_of_several_texts_the_header_names_those_with_a_mark():
    texts = iter(["It is a still.", '{"a": 1}', "It boils."])

    def write(messages, sampling, k, **_):
        yield Answer(Completion(next(texts), "stop", 5, 5, "m"), (), (), {})

    reply = chat(marked(served(ask=write)), n=3)
    assert reply.headers[CREDENTIAL_HEADER] == "c2pa; key=not-kept; choices=0,2"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("half of \ud83d", "unicode"),
        (open_marker().mark("Copied.", Disclosure()), "marked"),
    ],
    ids=["unicode", "marked"],  # the mark differs in each process
)
def test_a_text_that_takes_no_mark_is_sent_as_it_is(text, reason):
    def write(messages, sampling, k, **_):
        yield text
        yield Answer(Completion(text, "stop", 5, 5, "m"), (), (), {})

    for stream in (False, True):
        header, sent = send(marked(served(ask=write)), "chat", stream=stream)
        assert sent == text
        assert stream or header == f"none; {reason}"


def test_no_route_lets_a_model_read_marks():
    text = open_marker().mark("It is a still.", Disclosure(model_name="m"))
    app = marked()
    body = {"model": "run", "prompt": text}
    usage = request(app, "POST", "/v1/completions", json_body=body).json()["usage"]
    assert usage["prompt_tokens"] < 50
    read = []
    part = {"type": "text", "text": text}
    for content in (text, [part]):
        turns = [{"role": "user", "content": content}]
        chatted = ChatRequest(model="m", messages=turns, tools=[{"type": "function"}])
        order = chatted.to_generation_request(RequestLimits())
        read.append(json.dumps(order.proxied_body, ensure_ascii=False))
    assert not any(map(has_credential, read))
    assert all("It is a still." in one for one in read)
