"""What a server counts is what Prometheus can read, and holds nothing that anybody said."""

import json
import re
import threading
import time

from tests.unit.serve.test_app import KEY, chat, request, served

from stillroom.records import Answer, Completion
from stillroom.serve import create_app
from stillroom.serve.middleware.metrics import RequestTiming, ServerMetrics

CANARY = "zanzibarquux"
_SAMPLE = re.compile(r'[a-z_]+\{([a-z]+="[^"\\\n]*",?)*\} [0-9.e+-]+|# (HELP|TYPE) [a-z_]+ .+')


def read(app, **more):
    found = request(app, "GET", "/metrics", **more)
    assert found.status_code == 200
    assert found.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = found.text.splitlines()
    assert all(_SAMPLE.fullmatch(line) for line in lines)
    return dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))


def ask(messages, sampling, k, **_):
    yield f"It is {CANARY}."
    details = {"abstained": False, "cached": None, "stage_ms": {"embed": 14.0, "generate": 500.0}}
    yield Answer(Completion(f"It is {CANARY}.", "stop", 50, 8), (), (), details)


def test_requests_tokens_and_stages_are_counted_and_nothing_that_was_said():
    app = create_app(served(ask=ask))
    for body in ({}, {"stream": True}, {"model": CANARY}):
        chat(app, messages=[{"role": "user", "content": f"where is {CANARY}?"}], **body)
    request(app, "GET", f"/{CANARY}")
    counted = read(app)
    chats = 'route="/v1/chat/completions"'
    assert counted[f'stillroom_requests_total{{method="POST",{chats},status="200"}}'] == "2.0"
    assert counted[f'stillroom_requests_total{{method="POST",{chats},status="404"}}'] == "1.0"
    assert counted['stillroom_requests_total{method="GET",route="other",status="404"}'] == "1.0"
    assert counted['stillroom_tokens_total{kind="completion"}'] == "16.0"
    assert counted['stillroom_answers_total{outcome="answered"}'] == "2.0"
    assert counted['stillroom_stage_seconds_sum{stage="generate"}'] == "1.0"
    assert counted['stillroom_stage_seconds_count{stage="embed"}'] == "2.0"
    assert counted[f'stillroom_request_seconds_bucket{{le="+Inf",{chats}}}'] == "3.0"
    assert counted[f"stillroom_request_seconds_count{{{chats}}}"] == "3.0"
    assert CANARY not in request(app, "GET", "/metrics").text


def test_the_time_to_the_first_token_ends_where_the_first_text_does():
    def write_slowly(messages, sampling, k, **_):
        yield ""
        time.sleep(0.2)
        yield "It "
        time.sleep(0.2)
        yield "is."
        yield Answer(Completion("It is.", "stop", 50, 2), (), (), {})

    lines = []
    app = create_app(served(ask=write_slowly), log=lines.append)
    for is_stream in (True, False):
        chat(app, stream=is_stream)
        line = json.loads(lines[-1])
        assert 200 <= line["first_token_ms"] <= line["ms"] - 190
        assert 0 <= line["queue_ms"] < 190
    route = '{route="/v1/chat/completions"}'
    counted = read(app)
    assert counted[f"stillroom_time_to_first_token_seconds_count{route}"] == "2.0"
    assert counted[f"stillroom_queue_seconds_count{route}"] == "2.0"
    request(app, "GET", "/v1/models")
    assert json.loads(lines[-1])["queue_ms"] is None


def test_counters_need_a_key_where_keys_are_asked_for_and_refusals_count():
    app = create_app(served(), api_keys=[KEY])
    assert request(app, "GET", "/metrics").status_code == 401
    counted = read(app, headers={"Authorization": f"Bearer {KEY}"})
    assert counted['stillroom_requests_total{method="GET",route="other",status="401"}'] == "1.0"


def test_counts_of_several_threads_add_up():
    counters = ServerMetrics()

    def work():
        for _ in range(500):
            counters.count_request("/x", "GET", 200, 0.02)
            counters.count_reply({"prompt_tokens": 1, "completion_tokens": 2}, {})

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = counters.render().splitlines()
    assert 'stillroom_tokens_total{kind="completion"} 4000.0' in lines
    assert 'stillroom_request_seconds_bucket{le="0.01",route="/x"} 0.0' in lines
    assert 'stillroom_request_seconds_bucket{le="0.025",route="/x"} 2000.0' in lines


def test_two_servers_of_a_process_count_apart_and_tell_no_series_but_theirs():
    one, other = ServerMetrics(), ServerMetrics()
    one.count_request("/x", "GET", 200, 0.02)
    other.count_reply({"prompt_tokens": 1, "completion_tokens": 2}, {})
    assert '"completion"' not in one.render()
    assert "/x" not in other.render()
    assert "_created" not in one.render() + other.render()


def test_the_wait_of_a_request_without_an_answer_is_in_the_histogram():
    counters, timing = ServerMetrics(), RequestTiming()
    counters.count_request("/r", "POST", 404, 1.0, timing=RequestTiming())
    timing.add_wait(2.0)
    counters.count_request("/r", "POST", 429, 2.0, timing=timing)
    lines = counters.render().splitlines()
    assert 'stillroom_queue_seconds_count{route="/r"} 1.0' in lines
    assert 'stillroom_queue_seconds_sum{route="/r"} 2.0' in lines
