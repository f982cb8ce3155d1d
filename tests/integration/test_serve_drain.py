"""A server that is asked to end: what runs is ended with a word, and everything is closed."""

import json
import re
import signal
import subprocess
import sys
import threading
import time

import httpx
from tests.integration.test_serve_openai import KEY, Endless, live

from stillroom.serve import RequestLimits, ServedModel, create_app
from stillroom.serve.middleware.metrics import ServerMetrics

BODY = {"model": "run", "messages": [{"role": "user", "content": "x"}], "stream": True}

_SERVER = """
import asyncio, contextlib
from stillroom.serve.server import format_url, listen, run_app

@contextlib.contextmanager
def mounted():
    yield
    print("closed", flush=True)

async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await stopping.wait()
        await send({"type": "http.response.body", "body": b"b"})

stopping = asyncio.Event()
with mounted(), listen("127.0.0.1", 0) as listening:
    print(format_url(listening, "127.0.0.1"), flush=True)
    run_app(app, listening, drain_s=30, on_stop=stopping.set)
"""


def test_a_server_that_is_asked_to_end_closes_what_it_opened():
    command = [sys.executable, "-c", _SERVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        address = process.stdout.readline().strip()
        with httpx.stream("GET", address, timeout=30) as reply:
            pieces = reply.iter_bytes()
            assert next(pieces) == b"a"
            process.send_signal(signal.SIGTERM)
            assert b"".join(pieces) == b"b"
        assert process.stdout.read() == "closed\n"
        assert process.wait(30) == 0


def test_streams_and_waiters_that_outlast_the_drain_are_told(monkeypatch):
    opened = []

    def keep(*args, **settings):
        opened.append(create_app(*args, **settings))
        return opened[-1]

    monkeypatch.setattr("tests.integration.test_serve_openai.create_app", keep)
    model, counters, told = Endless(), ServerMetrics(), {}
    limits = RequestLimits(running=1, waiting=4)
    with live(ServedModel("run", model), limits=limits, counters=counters) as address:
        headers = {"Authorization": f"Bearer {KEY}"}

        def ask(name):
            with httpx.Client(base_url=address, headers=headers, timeout=60) as client:
                told[name] = client.post("/v1/chat/completions", json=BODY)

        threads = [threading.Thread(target=ask, args=(name,)) for name in ("first", "second")]
        for thread in threads:
            thread.start()
            until = time.monotonic() + 30
            while model.said == 0:  # the first is let in before the second comes
                assert time.monotonic() < until
                time.sleep(0.01)
        opened[0].state.desk.end_by(time.monotonic())
        for thread in threads:
            thread.join(30)
        assert model.was_closed.wait(10)
    *_, last = [line for line in told["first"].text.split("\n\n") if line]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "stopping"
    assert not re.search(r"\[DONE\]", told["first"].text)
    late = told["second"]
    assert (late.status_code, late.headers["Retry-After"]) == (503, "5")
    assert late.json()["error"]["code"] == "stopping"
