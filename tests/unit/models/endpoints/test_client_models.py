"""The openai backend against a real HTTP server that misbehaves on purpose."""

import json
import socket
import time
from email.utils import formatdate

import pytest

from stillroom.errors import BackendError
from stillroom.models import open_text_model
from stillroom.models.endpoints import client as endpoint_module
from stillroom.models.endpoints.transport import is_key_safe, read_retry_after, split_model_address
from stillroom.provenance.text_marks import open_marker
from stillroom.records import Message, Prompt, Sampling
from stillroom.records.text_credentials import Disclosure
from stillroom.testing import read_stream

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def chat(text, **more):
    return Prompt(messages=(Message("user", text),), **more)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(endpoint_module, "_FIRST_BACKOFF_S", 0.02)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def connect():
    opened = []

    def start(server, **settings):
        address = server if isinstance(server, str) else f"{server.address}#m"
        opened.append(open_text_model(address, **settings))
        return opened[-1]

    yield start
    for model in opened:
        model.close()
        model.close()


def test_completions_come_in_order_with_their_accounting(serve, completion, connect):
    server = serve(lambda path, body, headers: completion(body["messages"][0]["content"].upper()))
    done = connect(server).generate([chat("a"), chat("b")], Sampling(seed=7, stop=("x",)))
    assert [c.text for c in done] == ["A", "B"]
    assert (done[0].prompt_tokens, done[0].completion_tokens) == (5, 3)
    body = server.requests[0][1]
    assert (body["model"], body["seed"], body["stop"]) == ("m", 7, ["x"])
    assert "top_k" not in body


def test_raw_text_goes_to_completions(serve, completion, connect):
    server = serve(lambda path, body, headers: completion(f"{path} {body['prompt']}"))
    assert connect(server).generate([Prompt(text="abc")], Sampling())[0].text == "/completions abc"


def test_no_more_than_the_allowed_requests_are_in_flight(serve, completion, connect):
    server = serve(lambda path, body, headers: (200, completion("x"), {}, 0.05))
    server.gathers = 3
    connect(server, concurrency=3).generate([chat("a")] * 12, Sampling())
    assert server.most_busy == 3


def test_rates_space_the_requests(serve, completion, connect):
    server = serve(lambda path, body, headers: completion("x"))
    connect(server, requests_per_minute=600).generate([chat("a")] * 4, Sampling())
    times = sorted(request[3] for request in server.requests)
    assert times[-1] - times[0] >= 0.2  # three waits of 0.1 s, less a first request that came late


@pytest.mark.parametrize("status", [429, 500, 503, 408])
def test_what_may_pass_is_retried(serve, completion, connect, status):
    answers = iter([(status, {"error": "busy"}), (status, {"error": "busy"}), completion("done")])
    server = serve(lambda path, body, headers: next(answers))
    assert connect(server).generate([chat("a")], Sampling())[0].text == "done"
    assert len(server.requests) == 3


def test_retry_after_holds_the_whole_endpoint(serve, completion, connect):
    answers = iter([(429, {"error": "slow down"}, {"Retry-After": "1"})])
    server = serve(lambda path, body, headers: next(answers, completion("done")))
    model = connect(server, concurrency=1)
    begun = time.monotonic()
    model.generate([chat("a"), chat("b")], Sampling())
    assert time.monotonic() - begun >= 0.99
    assert min(r[3] for r in server.requests[1:]) - server.requests[0][3] >= 0.95


def test_a_limit_that_does_not_end_gives_up_in_bounded_time(serve, connect):
    server = serve(lambda path, body, headers: (429, {"error": "no"}, {"Retry-After": "3600"}))
    with pytest.raises(BackendError) as caught:
        connect(server).generate([chat("a")], Sampling())
    assert caught.value.code == "backend.rate-limit"
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "error", "code"),
    [
        (400, "too long", "backend.refused"),
        (401, "bad key", "backend.unauthorized"),
        (404, "no such model", "backend.not-found"),
        (429, {"message": "pay", "code": "insufficient_quota"}, "backend.quota"),
    ],
)
def test_what_cannot_pass_is_not_retried(serve, connect, status, error, code):
    server = serve(lambda path, body, headers: (status, {"error": error}))
    with pytest.raises(BackendError) as caught:
        connect(server).generate([chat("a")], Sampling())
    assert caught.value.code == code
    assert len(server.requests) == 1


def test_one_refused_prompt_does_not_cost_the_others(serve, completion, connect):
    def answer(path, body, headers):
        text = body["messages"][0]["content"]
        return (400, {"error": "bad"}) if text == "bad" else completion(text)

    done = {}
    with pytest.raises(BackendError) as caught:
        connect(serve(answer), concurrency=1).generate(
            [chat("bad"), chat("good"), chat("fine")], Sampling(), on_done=done.__setitem__
        )
    assert sorted(done) == [1, 2]
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize("bad", [b"<html>busy</html>", b"[1]", None])
def test_broken_answers_are_retried_then_named(serve, completion, connect, bad):
    server = serve(lambda path, body, headers: (200, bad))
    with pytest.raises(BackendError) as caught:
        connect(server, tries=2).generate([chat("a")], Sampling())
    assert caught.value.code in {"backend.malformed", "backend.broken"}
    assert len(server.requests) == 2


def test_an_answer_without_a_completion_is_named(serve, connect):
    server = serve(lambda path, body, headers: {"choices": []})
    with pytest.raises(BackendError) as caught:
        connect(server).generate([chat("a")], Sampling())
    assert caught.value.code == "backend.answer"


def test_an_endpoint_that_is_down_is_reported_in_bounded_time(connect):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    begun = time.monotonic()
    with pytest.raises(BackendError) as caught:
        connect(f"http://127.0.0.1:{port}/v1#m").generate([chat("a")] * 20, Sampling())
    assert caught.value.code == "backend.down"
    assert "curl" in caught.value.problems[0].next
    assert time.monotonic() - begun < 5


def test_a_silent_endpoint_times_out(serve, completion, connect):
    server = serve(lambda path, body, headers: (200, completion("x"), {}, 2.0))
    with pytest.raises(BackendError) as caught:
        connect(server, read_timeout_s=0.2, tries=2).generate([chat("a")], Sampling())
    assert caught.value.code == "backend.timeout"


def test_cancelling_does_not_wait_for_the_endpoint(serve, completion, connect):
    server = serve(lambda path, body, headers: (200, completion("x"), {}, 20.0))
    begun = time.monotonic()
    done = connect(server).generate(
        [chat("a")], Sampling(), is_cancelled=lambda: time.monotonic() - begun > 0.1
    )
    assert done[0].finish_reason == "cancelled"
    assert time.monotonic() - begun < 10


def test_the_schema_goes_down_the_ladder_and_stays_there(serve, completion, connect):
    def answer(path, body, headers):
        if "response_format" in body:
            return 400, {"error": "response_format is not supported"}
        return completion('```json\n{"a": 1}\n```')

    server = serve(answer)
    model = connect(server, concurrency=1)
    done = model.generate([chat("x", schema=SCHEMA)] * 2, Sampling())
    assert [json.loads(c.text) for c in done] == [{"a": 1}, {"a": 1}]
    kinds = [(b.get("response_format") or {}).get("type") for _, b, _, _ in server.requests]
    assert kinds == ["json_schema", "json_object", None, None]
    assert "required" in server.requests[-1][1]["messages"][-1]["content"]


def test_thoughts_are_not_the_answer_and_a_prefix_is_not_repeated(serve, completion, connect):
    texts = iter(["<think>hm</think>\nYes", "<think>hm", "Sure, yes"])
    model = connect(serve(lambda path, body, headers: completion(next(texts))), concurrency=1)
    done = model.generate([chat("a"), chat("a"), chat("a", prefix="Sure,")], Sampling())
    assert [c.text for c in done] == ["Yes", "", " yes"]


def test_the_mark_of_another_server_is_not_in_the_text(serve, completion, connect):
    mark = open_marker().make_mark("Hello", Disclosure(model_name="Theirs"))
    server = serve(lambda path, body, headers: completion("Hello" + mark))
    assert connect(server).generate([chat("a")], Sampling())[0].text == "Hello"
    server = serve(lambda path, body, headers: told(["Hel", "lo", mark]))
    pieces, done = read_stream(connect(server).stream(chat("a"), Sampling()))
    assert (pieces, done.text) == (["Hel", "lo"], "Hello")


def test_a_stream_arrives_in_pieces(serve, connect):
    pieces = [{"choices": [{"delta": {"content": text}}]} for text in ("Hel", "lo")]
    server = serve(lambda path, body, headers: [*pieces, {"choices": []}, "[DONE]"])
    assert list(connect(server).stream(chat("a"), Sampling())) == ["Hel", "lo"]


def told(pieces, **last):
    """Return the events of a stream: pieces, and what the last event says."""
    events = [{"choices": [{"delta": {"content": text}}], "usage": None} for text in pieces]
    return [*events, {"choices": [{"delta": {}, "finish_reason": "length"}], **last}, "[DONE]"]


def test_a_stream_returns_what_the_server_counted_and_why_it_ended(serve, connect):
    usage = {"prompt_tokens": 40, "completion_tokens": 2}
    server = serve(lambda path, body, headers: told(["Hel", "lo"], usage=usage))
    pieces, done = read_stream(connect(server).stream(chat("a"), Sampling()))
    assert pieces == ["Hel", "lo"]
    assert (done.text, done.finish_reason) == ("Hello", "length")
    assert (done.prompt_tokens, done.completion_tokens) == (40, 2)
    assert server.requests[0][1]["stream_options"] == {"include_usage": True}


def test_a_server_that_refuses_to_count_a_stream_is_asked_without_that_from_then_on(serve, connect):
    def answer(path, body, headers):
        return (400, {"error": "stream_options?"}) if "stream_options" in body else told(["Hi"])

    server = serve(answer)
    model = connect(server)
    for _ in range(2):
        pieces, done = read_stream(model.stream(chat("a"), Sampling()))
        assert (pieces, done.completion_tokens) == (["Hi"], 0)
    assert ["stream_options" in body for _, body, _, _ in server.requests] == [True, False, False]


def test_a_refusal_of_something_else_does_not_end_the_counting(serve, connect):
    answers = iter([(400, {"error": "too long"})] * 2 + [told(["Hi"])])
    server = serve(lambda path, body, headers: next(answers))
    model = connect(server)
    with pytest.raises(BackendError) as caught:
        read_stream(model.stream(chat("a"), Sampling()))
    assert caught.value.code == "backend.refused"
    read_stream(model.stream(chat("a"), Sampling()))
    assert "stream_options" in server.requests[-1][1]


@pytest.mark.parametrize(
    ("why", "code"), [("content_filter", "backend.answer"), ("error", "backend.broken")]
)
def test_a_stream_that_was_given_up_on_is_an_error_after_its_pieces(serve, connect, why, code):
    events = [
        {"choices": [{"delta": {"content": "Hel"}}]},
        {"choices": [{"delta": {}, "finish_reason": why}]},
        "[DONE]",
    ]
    stream = connect(serve(lambda path, body, headers: events)).stream(chat("a"), Sampling())
    assert next(stream) == "Hel"
    with pytest.raises(BackendError) as caught:
        next(stream)
    assert caught.value.code == code


def test_a_stream_that_breaks_off_is_an_error(serve, connect):
    server = serve(lambda path, body, headers: [{"choices": [{"text": "Hel"}]}, "{broken"])
    with pytest.raises(BackendError) as caught:
        list(connect(server).stream(chat("a"), Sampling()))
    assert caught.value.code == "backend.broken"


def test_a_stream_without_its_end_is_whole_only_if_it_says_why_it_ended(serve, connect):
    piece = {"choices": [{"delta": {"content": "Hel"}}]}
    odd = [{"choices": [None]}, {"choices": "?"}, {"choices": [{"delta": "x", "text": 3}]}]
    ended = [{"choices": [{"delta": {}, "finish_reason": "stop"}]}]
    told = iter([[piece, *odd], [piece, *odd, *ended]])
    model = connect(serve(lambda path, body, headers: next(told)))
    with pytest.raises(BackendError) as caught:
        list(model.stream(chat("a"), Sampling()))
    assert caught.value.code == "backend.broken"
    assert list(model.stream(chat("a"), Sampling())) == ["Hel"]


def test_the_key_is_sent_but_never_told(serve, connect):
    def answer(path, body, headers):
        return 401, {"error": f"wrong key {headers['Authorization']}"}

    server = serve(answer)
    model = connect(server, api_key="sk-secret")
    with pytest.raises(BackendError) as caught:
        model.generate([chat("a")], Sampling())
    assert server.requests[0][2]["Authorization"] == "Bearer sk-secret"
    assert "sk-secret" not in str(caught.value)
    assert "sk-secret" not in model.fingerprint


def test_the_key_comes_from_the_environment_and_a_named_one_must_be_there(
    serve, completion, connect, monkeypatch
):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-env")
    server = serve(lambda path, body, headers: completion("x"))
    connect(server).generate([chat("a")], Sampling())
    assert server.requests[0][2]["Authorization"] == "Bearer sk-env"
    with pytest.raises(BackendError, match="MY_KEY"):
        connect(server, api_key_env="MY_KEY")


def test_keys_do_not_travel_in_the_clear():
    assert is_key_safe("https://api.example.com/v1")
    assert is_key_safe("http://127.0.0.1:8000/v1")
    assert not is_key_safe("http://gpu.example.com/v1")


def test_the_only_model_is_found_and_several_are_named(serve, completion, connect):
    names = ["solo"]
    server = serve(lambda path, body, headers: {"data": [{"id": name} for name in names]})
    assert connect(server.address).name == "solo"
    names.append("duo")
    with pytest.raises(BackendError, match="solo, duo") as caught:
        connect(server.address)
    assert caught.value.code == "backend.which-model"


@pytest.mark.parametrize("bad", ["http://", "http://user:pw@host/v1#m"])
def test_bad_addresses_are_refused_without_showing_a_password(bad):
    with pytest.raises(BackendError) as caught:
        split_model_address(bad)
    assert caught.value.code == "backend.address"
    assert "pw" not in str(caught.value)


def test_scores_are_refused_and_closed_models_say_so(serve, completion, connect):
    model = connect(serve(lambda path, body, headers: completion("x")))
    with pytest.raises(BackendError) as caught:
        model.score([chat("a")], ["b"])
    assert caught.value.code == "backend.no-score"
    model.close()
    with pytest.raises(BackendError) as caught:
        model.generate([chat("a")], Sampling())
    assert caught.value.code == "backend.closed"


@pytest.mark.parametrize(
    ("value", "seconds"), [("2", 2), ("0.5", 0.5), ("", 0), ("soon", 0), ("-1", 0), ("inf", 0)]
)
def test_retry_after_reads_seconds(value, seconds):
    assert read_retry_after(value) == seconds


def test_retry_after_reads_dates():
    assert 8 < read_retry_after(formatdate(time.time() + 10, usegmt=True)) <= 10
    assert read_retry_after(formatdate(time.time() - 10, usegmt=True)) == 0


def test_half_a_character_reaches_no_server(serve, completion, connect):
    server = serve(lambda path, body, headers: completion("x"))
    assert connect(server).generate([chat("a \ud800")], Sampling())[0].text == "x"
    assert server.requests[0][1]["messages"][0]["content"] == "a \ufffd"
