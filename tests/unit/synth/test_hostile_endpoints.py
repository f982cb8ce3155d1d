"""Servers that misbehave cost the rows they misbehave on, and no other; what is wrong is said."""

import contextlib
import gzip
import json
import os
import socket
import struct
import threading

import pytest
from tests.unit.models.endpoint_server import Server, completion
from tests.unit.synth.pipeline.test_steps import do, outputs, write_seeds

from stillroom.errors import BackendError
from stillroom.models import open_text_model
from stillroom.models.endpoints.client import Endpoint, RequestPolicy
from stillroom.recipes import parse_recipe
from stillroom.records import Message, Prompt, Record, Sampling, read_records
from stillroom.synth.pipeline.scheduler import DraftCache
from stillroom.synth.prompting.requests import NO_ANSWER
from stillroom.synth.types import GenerationFailure, GenerationResult

ROWS, EVERY = 24, 8
GOOD = "Worker bees produce wax from glands, said of number {}."


def number_of(body):
    text = body["messages"][-1]["content"]
    return int(text.split("Task ")[1].split(":")[0])


def misbehave(how):
    """Return an answer that is good but for every eighth row."""

    def answer(path, body, headers):
        if path == "/models":
            return {"data": [{"id": "m"}]}
        number = number_of(body)
        return how(number) if number % EVERY == 3 else completion(GOOD.format(number))

    return answer


@pytest.fixture
def serve():
    running = []

    def start(answer):
        server = Server(answer).__enter__()
        running.append(server)
        return server

    yield start
    for server in running:
        server.__exit__()


@pytest.fixture
def patient(monkeypatch):
    """Let every endpoint try again soon, and give up soon."""
    from stillroom.models.interfaces import BACKENDS

    build = BACKENDS.build

    def hurried(settings):
        if settings.get("name") == "openai":
            settings = {"tries": 2, "read_timeout_s": 1.0, "max_wait_s": 4.0, **settings}
        return build(settings)

    monkeypatch.setattr(BACKENDS, "build", hurried)
    monkeypatch.setattr("stillroom.models.endpoints.client._backoff", lambda attempt: 0.01)


def make(server, seeds, filters="[shape, language, duplicate]", generator="rewrite", engine=""):
    return parse_recipe(
        f"""
version: 1
kind: synth.records
seeds: {seeds}
model: {server.address}#m
held_out: 0
engine: {{concurrency: 8{engine}}}
pipeline:
  steps:
    ask: {{generator: {generator}}}
    keep: {{filters: {filters}}}
"""
    )


HOSTILE = {
    "bad request": (lambda n: (400, {"error": {"message": "too long"}}), "refused by"),
    "server error": (lambda n: (500, {"error": {"message": "oops"}}), "no answer from"),
    "html": (lambda n: (200, b"<html><body>Welcome</body></html>"), "no answer that can be"),
    "html error": (lambda n: (502, b"<html>Bad gateway</html>"), "no answer from"),
    "truncated": (lambda n: (200, b'{"choices": [{"message": {"con'), "no answer that can be"),
    "another shape": (lambda n: {"result": {"text": "hello"}}, "an answer without text"),
    "no choices": (lambda n: {"choices": []}, "an answer without text"),
    "a list": (lambda n: (200, b"[1, 2]"), "no answer that can be"),
    "empty": (lambda n: completion(""), "no rewriting"),
    "null": (lambda n: completion(None), "no rewriting"),
    "cut": (lambda n: completion("Bees make", finish_reason="length"), "cut at the token limit"),
    "10 MB": (lambda n: completion("wax " * (2_500_000 if n == 3 else 25_000)), "was asked"),
    "wrong language": (
        lambda n: completion("Die Arbeiterinnen erzeugen das Wachs aus Drüsen am Hinterleib."),
        "another language",
    ),
    "hangs": (lambda n: (200, completion("late"), {}, 5.0), "no answer from"),
    "no text at all": (lambda n: {"choices": [{"message": {"role": "a"}}]}, "an answer without"),
    "content is a number": (lambda n: completion(3), "an answer without text"),
    "cut by a filter": (
        lambda n: completion("Bees", finish_reason="content_filter"),
        "an answer without text",
    ),
    "cut, in other words": (lambda n: completion("Bees", finish_reason="MAX_TOKENS"), "cut at the"),
    "nested without end": (lambda n: (200, b"[" * 200_000), "no answer that can be"),
    "packed as nobody asked": (
        lambda n: (200, b"xx", {"Content-Encoding": "zstd"}),
        "no answer that can be",
    ),
    "packed broken": (
        lambda n: (200, b"no gzip", {"Content-Encoding": "gzip"}),
        "no answer that can be",
    ),
    "closes": (lambda n: (200, None), "no answer from"),
    "an error with 200": (
        lambda n: {"error": {"message": "upstream overloaded", "code": 503}},
        "no answer from",
    ),
    "a refusal with 200": (lambda n: {"error": {"message": "no", "code": 400}}, "refused by"),
    "gives up": (lambda n: completion("Worker bees pro", finish_reason="error"), "no answer from"),
    "gives up, in the choice": (
        lambda n: {"choices": [{"error": {"message": "boom"}, "message": {"content": ""}}]},
        "no answer from",
    ),
    "half a character": (lambda n: completion("\ud800 \x00 wax is soft"), "broken characters"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_answer_costs_its_row_and_no_other(serve, patient, tmp_path, name):
    how, reason = HOSTILE[name]
    server, seeds = serve(misbehave(how)), write_seeds(tmp_path / "seeds.jsonl", ROWS)
    filters = "[shape, {name: language, languages: [en]}]"
    do(make(server, seeds, filters), tmp_path / "out")
    kept = list(read_records(tmp_path / "out/output/records.jsonl"))
    rows = (tmp_path / "out/output/dropped.jsonl").read_text(encoding="utf-8").splitlines()
    dropped = [json.loads(row) for row in rows]
    assert len(kept) + len(dropped) == ROWS
    assert len(kept) >= ROWS - ROWS // EVERY
    assert [row["reason"] for row in dropped if reason not in row["reason"]] == []
    assert len(dropped) == ROWS // EVERY


def test_rate_limits_are_waited_for_and_cost_nothing(serve, patient, tmp_path):
    seen = set()

    def limit(number):
        if number in seen:
            return completion(GOOD.format(number))
        seen.add(number)
        return 429, {"error": {"message": "slow down"}}, {"Retry-After": "0.2"}

    server, seeds = serve(misbehave(limit)), write_seeds(tmp_path / "seeds.jsonl", ROWS)
    do(make(server, seeds), tmp_path / "out")
    assert len(list(read_records(tmp_path / "out/output/records.jsonl"))) == ROWS


@pytest.mark.parametrize("wait", ["86400", "1e9", "Fri, 01 Jan 2100 00:00:00 GMT"])
def test_who_asks_to_wait_for_days_ends_the_run_and_says_so(serve, patient, tmp_path, wait):
    limit = lambda n: (429, {"error": {"message": "quota of the day"}}, {"Retry-After": wait})  # noqa: E731
    server, seeds = serve(misbehave(limit)), write_seeds(tmp_path / "seeds.jsonl", ROWS)
    with pytest.raises(BackendError) as caught:
        do(make(server, seeds), tmp_path / "out")
    assert caught.value.code == "backend.rate-limit"
    assert "asks to" in str(caught.value)


@pytest.mark.parametrize("wait", ["-5", "nan", "inf", "soon", "Mon, 01 Jan 1990 00:00:00 GMT"])
def test_a_wait_that_is_none_is_no_wait(serve, patient, tmp_path, wait):
    seen = set()

    def limit(number):
        if number in seen:
            return completion(GOOD.format(number))
        seen.add(number)
        return 429, {"error": {"message": "slow down"}}, {"Retry-After": wait}

    server, seeds = serve(misbehave(limit)), write_seeds(tmp_path / "seeds.jsonl", 4)
    do(make(server, seeds), tmp_path / "out")
    assert len(list(read_records(tmp_path / "out/output/records.jsonl"))) == 4


def test_a_key_that_expires_ends_the_run_and_another_goes_on(serve, patient, tmp_path, monkeypatch):
    valid = "key-one"
    served = 0

    def answer(path, body, headers):
        nonlocal served
        if headers.get("Authorization") != f"Bearer {valid}":
            return 401, {"error": {"message": "the key has expired"}}
        served += path.endswith("completions")
        return misbehave(lambda n: completion(GOOD.format(n)))(path, body, headers)

    def expire(path, body, headers):
        nonlocal valid
        if served >= ROWS // 2 and valid == "key-one":
            valid = "key-two"
        return answer(path, body, headers)

    server, seeds = serve(expire), write_seeds(tmp_path / "seeds.jsonl", ROWS)
    monkeypatch.setenv("OPENAI_API_KEY", "key-one")
    recipe = make(server, seeds)
    with pytest.raises(BackendError) as caught:
        do(recipe, tmp_path / "out")
    assert caught.value.code == "backend.unauthorized"
    assert "key-one" not in str(caught.value)
    os.environ["OPENAI_API_KEY"] = "key-two"
    do(recipe, tmp_path / "out", resume=True)
    assert len(list(read_records(tmp_path / "out/output/records.jsonl"))) == ROWS
    assert served == ROWS
    do(recipe, tmp_path / "whole")
    assert outputs(tmp_path / "out") == outputs(tmp_path / "whole")


def test_rows_without_an_answer_are_asked_again_by_the_next_run(serve, patient, tmp_path):
    ill = True

    def falter(number):
        return (503, {"error": {"message": "busy"}}) if ill else completion(GOOD.format(number))

    server, seeds = serve(misbehave(falter)), write_seeds(tmp_path / "seeds.jsonl", ROWS)
    recipe = make(server, seeds)
    do(recipe, tmp_path / "out")
    assert len(list(read_records(tmp_path / "out/output/records.jsonl"))) == ROWS - ROWS // EVERY
    lacking = f"{ROWS // EVERY} of {ROWS} requests had no answer"
    assert lacking in (tmp_path / "out/events.jsonl").read_text()
    ill, before = False, len(server.requests)
    do(recipe, tmp_path / "out", overwrite=True)
    assert len(list(read_records(tmp_path / "out/output/records.jsonl"))) == ROWS
    assert len(server.requests) - before == ROWS // EVERY
    assert "had no answer" not in (tmp_path / "out/events.jsonl").read_text()


def test_a_server_that_answers_nothing_any_more_ends_the_run(serve, patient, tmp_path):
    def answer(path, body, headers):
        if path == "/models":
            return {"data": [{"id": "m"}]}
        return 503, {"error": {"message": "maintenance"}}

    server, seeds = serve(answer), write_seeds(tmp_path / "seeds.jsonl", 60)
    with pytest.raises(BackendError) as caught:
        do(make(server, seeds), tmp_path / "out")
    assert caught.value.code == "backend.unavailable"
    assert "maintenance" in str(caught.value)


def answers_with(body):
    return lambda path, *_: {"data": [{"id": "m"}]} if path == "/models" else (200, body)


def test_pages_in_the_place_of_answers_end_the_run(serve, patient, tmp_path):
    server = serve(answers_with(b"<html><body>Welcome to the  router"))
    seeds = write_seeds(tmp_path / "seeds.jsonl", 60)
    with pytest.raises(BackendError) as caught:
        do(make(server, seeds), tmp_path / "out")
    problem = caught.value.problems[0]
    assert problem.code == "backend.malformed"
    assert "10 consecutive units" in problem.what
    assert "not JSON: '<html><body>Welcome to the router'" in problem.what
    assert "/v1" in problem.next
    assert "--resume" in problem.next


BUSY = 503, {"error": {"message": "busy"}}


@pytest.mark.parametrize("generator", ["rewrite", "persona"])
@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("bad", [(200, b"<html>down</html>"), BUSY])
def test_a_dead_server_ends_the_run_whatever_the_concurrency(
    serve, patient, tmp_path, bad, concurrency, generator
):
    server = serve(lambda path, *_: {"data": [{"id": "m"}]} if path == "/models" else bad)
    recipe = make(server, write_seeds(tmp_path / "seeds.jsonl", 60), generator=generator)
    engine = recipe.engine.model_copy(update={"concurrency": concurrency})
    recipe = recipe.model_copy(update={"engine": engine})
    with pytest.raises(BackendError, match="10 consecutive units"):
        do(recipe, tmp_path / "out")


@pytest.mark.parametrize("bad", [(200, b"<html>down</html>"), BUSY])
def test_a_server_that_loses_every_second_answer_ends_the_run(serve, patient, tmp_path, bad):
    def answer(path, body, headers):
        if path == "/models":
            return {"data": [{"id": "m"}]}
        is_brief = "as a summary" in json.dumps(body["messages"])
        return bad if is_brief else completion(GOOD.format(number_of(body)))

    styles = "{name: rewrite, styles: [plain, brief]}"
    recipe = make(serve(answer), write_seeds(tmp_path / "seeds.jsonl", 60), generator=styles)
    with pytest.raises(BackendError, match="10 consecutive units"):
        do(recipe, tmp_path / "out")


@pytest.mark.parametrize("body", [b"<html>down</html>", b"[1]", b""])
def test_pages_in_the_place_of_judgments_end_the_run_and_are_asked_again(
    serve, patient, tmp_path, body
):
    good, bad = serve(misbehave(lambda n: completion(GOOD.format(n)))), serve(answers_with(body))
    seeds = write_seeds(tmp_path / "seeds.jsonl", 40)
    recipe = make(good, seeds, f'[{{name: judge, judges: ["{bad.address}#m"]}}]')
    for is_resumed in (False, True):
        before = len(bad.requests)
        with pytest.raises(BackendError, match="consecutive records could not be scored") as caught:
            do(recipe, tmp_path / "out", resume=is_resumed)
        assert "/v1" in caught.value.problems[0].next
        assert 0 < len(bad.requests) - before < 230  # of 240


LOST, WRONG = GenerationFailure(NO_ANSWER, "busy"), GenerationFailure("a wrong answer", "7")
RECORD = Record((Message("assistant", "a"),))


@pytest.mark.parametrize(
    ("records", "failures", "asked"),
    [(15, (LOST,), 16), (1, (LOST, *(WRONG,) * 14), 16), (0, (LOST, *(WRONG,) * 15), 16)],
)
def test_units_of_which_most_is_answered_end_no_run(records, failures, asked):
    store = DraftCache({})
    for number in range(40):
        store.watch(GenerationResult(str(number), (RECORD,) * records, failures, asked))


@pytest.mark.parametrize(
    ("records", "failures", "asked"), [(1, (LOST,), 2), (0, (LOST,), 5), (0, (LOST, WRONG), 3)]
)
def test_units_that_lack_half_or_end_for_one_answer_end_the_run(records, failures, asked):
    store = DraftCache({})
    for number in range(9):
        store.watch(GenerationResult(str(number), (RECORD,) * records, failures, asked))
    with pytest.raises(BackendError):
        store.watch(GenerationResult("9", (RECORD,) * records, failures, asked))


@pytest.mark.parametrize("concurrency", [1, 4])
def test_units_of_an_earlier_run_say_nothing_of_a_dead_server(
    serve, patient, tmp_path, concurrency
):
    """Half of them are in the cache, every second one."""
    ill, is_dead = (503, {"error": {"message": "busy"}}), False

    def answer(path, body, headers):
        if path == "/models":
            return {"data": [{"id": "m"}]}
        number = number_of(body)
        return ill if is_dead or number % 2 else completion(GOOD.format(number))

    server, seeds = serve(answer), write_seeds(tmp_path / "seeds.jsonl", 60)
    recipe = make(server, seeds, "[shape]")
    engine = recipe.engine.model_copy(update={"concurrency": concurrency})
    recipe = recipe.model_copy(update={"engine": engine})
    do(recipe, tmp_path / "out")
    is_dead = True
    with pytest.raises(BackendError, match="10 consecutive units"):
        do(recipe, tmp_path / "out", overwrite=True)


def test_an_endless_answer_is_not_read_to_its_end(serve, patient, tmp_path, monkeypatch):
    monkeypatch.setattr("stillroom.models.endpoints.client._MAX_BODY_BYTES", 1 << 20)
    how = lambda n: completion("wax " * 1_000_000)  # noqa: E731
    server, seeds = serve(misbehave(how)), write_seeds(tmp_path / "seeds.jsonl", ROWS)
    do(make(server, seeds), tmp_path / "out")
    rows = (tmp_path / "out/output/dropped.jsonl").read_text().splitlines()
    assert [json.loads(row)["reason"] for row in rows] == ["an answer without text"] * 3


USAGES = ["none", [1, 2], {"prompt_tokens": "many"}, {"prompt_tokens": [3]}, {"total_tokens": -4}]


@pytest.mark.parametrize("usage", [*USAGES, {"prompt_tokens": float("inf")}])
def test_counts_that_are_none_are_taken_as_none(serve, patient, tmp_path, usage):
    how = lambda n: {**completion(GOOD.format(n)), "usage": usage}  # noqa: E731
    server, seeds = serve(misbehave(how)), write_seeds(tmp_path / "seeds.jsonl", ROWS)
    recipe = make(server, seeds, engine=", tokens_per_minute: 1000000000")
    do(recipe, tmp_path / "out")
    assert len(list(read_records(tmp_path / "out/output/records.jsonl"))) == ROWS


def test_parts_of_text_are_one_text(serve, patient, tmp_path):
    def how(number):
        parts = [{"type": "text", "text": "Worker bees produce wax, "}, {"type": "refusal"}]
        return completion([*parts, {"type": "text", "text": f"said of number {number}."}])

    server, seeds = serve(misbehave(how)), write_seeds(tmp_path / "seeds.jsonl", ROWS)
    do(make(server, seeds), tmp_path / "out")
    said = [one.messages[-1].content for one in read_records(tmp_path / "out/output/records.jsonl")]
    assert len(said) == ROWS
    assert "Worker bees produce wax, said of number 3." in said


def test_a_megabyte_that_unpacks_to_a_gigabyte_is_not_unpacked(
    serve, patient, tmp_path, monkeypatch
):
    monkeypatch.setattr("stillroom.models.endpoints.client._MAX_BODY_BYTES", 1 << 20)
    packed = gzip.compress(json.dumps(completion("wax " * 2_000_000)).encode())
    small = gzip.compress(json.dumps(completion(GOOD.format(3))).encode())

    def how(number):
        return 200, small if number == 3 else packed, {"Content-Encoding": "gzip"}

    server, seeds = serve(misbehave(how)), write_seeds(tmp_path / "seeds.jsonl", ROWS)
    do(make(server, seeds), tmp_path / "out")
    rows = (tmp_path / "out/output/dropped.jsonl").read_text().splitlines()
    assert [json.loads(row)["reason"] for row in rows] == ["an answer without text"] * 2
    assert server.requests[-1][2]["Accept-Encoding"] == "identity"


def test_a_redirect_ends_the_run_and_says_where_to(serve, patient, tmp_path):
    def how(number):
        return 302, b"", {"Location": "http://127.0.0.1:9/login?token=secret"}

    server, seeds = serve(misbehave(how)), write_seeds(tmp_path / "seeds.jsonl", ROWS)
    with pytest.raises(BackendError) as caught:
        do(make(server, seeds), tmp_path / "out")
    assert caught.value.code == "backend.address"
    assert "redirects to http://127.0.0.1:9/login" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_an_answer_that_trickles_in_is_not_waited_for(tmp_path, monkeypatch):
    """A byte now and then keeps a connection alive for ever; the whole answer has a bound."""

    def trickle(sock):
        connection, _ = sock.accept()
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        with contextlib.suppress(OSError):
            while not done.wait(0.05):
                connection.sendall(b" ")
        connection.close()

    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as sock:
        thread = threading.Thread(target=trickle, args=(sock,), daemon=True)
        thread.start()
        patience = RequestPolicy(tries=1, read_timeout_s=0.5, answer_timeout_s=0.6)
        endpoint = Endpoint(f"http://127.0.0.1:{sock.getsockname()[1]}/v1", patience=patience)
        with pytest.raises(BackendError) as caught:
            endpoint.ask("/chat/completions", {})
        done.set()
        thread.join(10)
        endpoint.close()
    assert caught.value.code == "backend.broken"


def test_a_connection_that_is_reset_is_no_server_that_is_down():
    def reset():
        with sock.accept()[0] as connection:
            connection.recv(65536)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def ask():
        with pytest.raises(BackendError) as caught:
            endpoint.ask("/chat/completions", {})
        return caught.value.code

    with socket.create_server(("127.0.0.1", 0)) as sock:
        address = f"http://127.0.0.1:{sock.getsockname()[1]}/v1"
        endpoint = Endpoint(address, patience=RequestPolicy(tries=1))
        thread = threading.Thread(target=reset, daemon=True)
        thread.start()
        assert ask() == "backend.broken"
        thread.join(10)
    assert ask() == "backend.down"
    endpoint.close()


def test_a_recipe_may_wait_longer_for_a_slow_server(serve, patient, tmp_path):
    how = lambda n: (200, completion(GOOD.format(n)), {}, 1.3)  # noqa: E731
    server, seeds = serve(misbehave(how)), write_seeds(tmp_path / "seeds.jsonl", 4)
    do(make(server, seeds, engine=", timeout_s: 30"), tmp_path / "out")
    assert len(list(read_records(tmp_path / "out/output/records.jsonl"))) == 4


def test_json_that_a_server_did_not_answer_is_asked_for_by_the_next_run(serve, patient, tmp_path):
    ill = True

    def falter(number):
        if ill:
            return 503, {"error": {"message": "busy"}}
        return completion(json.dumps({"problem": f"What is seven times {number}, said anew?"}))

    def answer(path, body, headers):
        if path == "/models":
            return {"data": [{"id": "m"}]}
        text = body["messages"][-1]["content"]
        if "response_format" not in body:
            return completion(f"It is so. The answer is {text.split('times ')[1].split(',')[0]}.")
        return falter(number_of(body)) if number_of(body) % EVERY == 3 else good(number_of(body))

    def good(number):
        return completion(json.dumps({"problem": f"What is seven times {number}, said anew?"}))

    rows = [
        {"question": f"Task {n}: say {n}.", "answer": f"{n}", "origin": "human"}
        for n in range(ROWS)
    ]
    seeds = tmp_path / "seeds.jsonl"
    seeds.write_text("".join(json.dumps(row) + "\n" for row in rows))
    server = serve(answer)
    recipe = make(server, seeds, "[refusal]", "{name: metamath, ways: [rephrase]}")
    do(recipe, tmp_path / "out")
    dropped = (tmp_path / "out/output/dropped.jsonl").read_text().splitlines()
    reasons = [json.loads(row)["reason"] for row in dropped]
    assert reasons == ["no answer from the teacher's server"] * (ROWS // EVERY)
    ill, before = False, len(server.requests)
    do(recipe, tmp_path / "out", overwrite=True)
    assert len(list(read_records(tmp_path / "out/output/records.jsonl"))) == ROWS
    assert len(server.requests) - before == 2 * (ROWS // EVERY)


def test_a_request_that_is_refused_is_not_asked_again_as_json(serve, patient, tmp_path):
    """Once a server took a schema, a refusal is the request's own: no rung below helps."""

    def answer(path, body, headers):
        if path == "/models":
            return {"data": [{"id": "m"}]}
        if "bad" in body["messages"][-1]["content"]:
            return 400, {"error": {"message": "flagged"}}
        return completion(json.dumps({"n": 1}))

    server = serve(answer)
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    model = open_text_model(f"{server.address}#m")
    asked = [Prompt((Message("user", text),), schema=schema) for text in ("good", "bad")]
    model.generate(asked[:1], Sampling())
    with pytest.raises(BackendError):
        model.generate(asked[1:], Sampling())
    model.close()
    assert sum(path.endswith("completions") for path, *_ in server.requests) == 2
