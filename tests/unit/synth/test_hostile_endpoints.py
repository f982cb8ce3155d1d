"""Servers that misbehave cost the rows they misbehave on, and no other; what is wrong is said."""

import json
import os

import pytest
from tests.unit.models.endpoint_server import Server, completion
from tests.unit.synth.test_graph import do, outputs, write_seeds

from stillroom.errors import BackendError
from stillroom.recipes import parse_recipe
from stillroom.records import read_records

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
    """Let every endpoint give up soon."""
    from stillroom.models.method import BACKENDS

    build = BACKENDS.build

    def hurried(settings):
        if settings.get("name") == "openai":
            settings = {"tries": 2, "read_timeout_s": 1.5, "max_wait_s": 4.0, **settings}
        return build(settings)

    monkeypatch.setattr(BACKENDS, "build", hurried)


def make(server, seeds, filters="[shape, language, duplicate]", generator="rewrite"):
    return parse_recipe(
        f"""
version: 1
kind: synth
seeds: {seeds}
model: {server.address}#m
held_out: 0
engine: {{concurrency: 8}}
steps:
  ask: {{generator: {generator}}}
  keep: {{filters: {filters}}}
"""
    )


HOSTILE = {
    "bad request": (lambda n: (400, {"error": {"message": "too long"}}), "refused by"),
    "server error": (lambda n: (500, {"error": {"message": "oops"}}), "no answer from"),
    "html": (lambda n: (200, b"<html><body>Welcome</body></html>"), "no answer that can be read"),
    "html error": (lambda n: (502, b"<html>Bad gateway</html>"), "no answer from"),
    "truncated": (lambda n: (200, b'{"choices": [{"message": {"con'), "no answer that can be"),
    "another shape": (lambda n: {"result": {"text": "hello"}}, "an answer without text"),
    "no choices": (lambda n: {"choices": []}, "an answer without text"),
    "a list": (lambda n: (200, b"[1, 2]"), "no answer that can be read"),
    "empty": (lambda n: completion(""), "no rewriting"),
    "null": (lambda n: completion(None), "no rewriting"),
    "cut": (lambda n: completion("Bees make", finish_reason="length"), "cut at the token limit"),
    "10 MB": (lambda n: completion("wax " * (2_500_000 if n == 3 else 25_000)), "was asked"),
    "wrong language": (
        lambda n: completion("Die Arbeiterinnen erzeugen das Wachs aus Drüsen am Hinterleib."),
        "another language",
    ),
    "hangs": (lambda n: (200, completion("late"), {}, 5.0), "no answer from"),
    "closes": (lambda n: (200, None), "no answer from"),
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
    ill, before = False, len(server.requests)
    do(recipe, tmp_path / "out", overwrite=True)
    assert len(list(read_records(tmp_path / "out/output/records.jsonl"))) == ROWS
    assert len(server.requests) - before == ROWS // EVERY


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


def test_an_endless_answer_is_not_read_to_its_end(serve, patient, tmp_path, monkeypatch):
    monkeypatch.setattr("stillroom.models.endpoint._LARGEST_BYTES", 1 << 20)
    how = lambda n: completion("wax " * 1_000_000)  # noqa: E731
    server, seeds = serve(misbehave(how)), write_seeds(tmp_path / "seeds.jsonl", ROWS)
    do(make(server, seeds), tmp_path / "out")
    rows = (tmp_path / "out/output/dropped.jsonl").read_text().splitlines()
    assert [json.loads(row)["reason"] for row in rows] == ["an answer without text"] * 3
