"""What goes wrong around a live server: backends that die, disks that fill, clients that leave."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import threading
import time

import httpx
import pytest
import uvicorn
from tests.integration.test_serve_openai import KEY, Endless, live
from tests.unit.models.endpoint_server import Server
from tests.unit.serve import test_jobs as jobs

from stillroom.serve import RequestLimits, ServedModel
from stillroom.serve.mounts import Mount, open_mounts
from stillroom.serve.server import build_header_timeout_protocol
from stillroom.testing import scripted_model

BODY = {"model": "far", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4}


def say(text):
    return {"choices": [{"index": 0, "delta": {"content": text}}]}


@pytest.fixture
def far():
    """Return a function that serves an endpoint that answers as it is told; yields a client."""
    opened = []

    def start(answer, **settings):
        def whole(path, body, headers):
            return {"data": [{"id": "m"}]} if path == "/models" else answer(body)

        server = Server(whole)
        server.__enter__()
        opened.append(server.__exit__)
        mounted = open_mounts([Mount("far", server.address)])
        (served,) = mounted.__enter__()
        opened.append(mounted.__exit__)
        living = live(served, **settings)
        address = living.__enter__()
        opened.append(living.__exit__)
        headers = {"Authorization": f"Bearer {KEY}"}
        client = httpx.Client(base_url=address, headers=headers, timeout=60)
        opened.append(lambda *_: client.close())
        return server, client

    yield start
    for close in reversed(opened):
        close(None, None, None)


def test_a_backend_that_refuses_is_a_503_with_a_number(far):
    _, client = far(lambda body: (400, {"error": {"message": "SECRETCAUSE"}}))
    reply = client.post("/v1/chat/completions", json=BODY)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "backend.refused")
    assert "SECRETCAUSE" not in reply.text
    assert client.get("/readyz").status_code == 200


def test_a_backend_that_dies_within_a_stream_ends_it_with_an_error(far):
    _, client = far(lambda body: [say("one "), say("two "), None])
    reply = client.post("/v1/chat/completions", json={**BODY, "stream": True})
    assert reply.status_code == 200
    *_, last = [line for line in reply.text.split("\n\n") if line]
    error = json.loads(last.removeprefix("data: "))["error"]
    assert error["type"] == "server_error"
    assert "[DONE]" not in reply.text
    # The slot is free again.
    assert client.post("/v1/chat/completions", json={**BODY, "stream": True}).status_code == 200


def test_clients_that_are_cut_leave_the_line_and_the_engine():
    model = Endless()
    limits = RequestLimits(running=1, waiting=4)
    with live(ServedModel("run", model), limits=limits) as address:
        host, port = address.removeprefix("http://").split(":")
        body = json.dumps({**BODY, "model": "run", "stream": True, "max_tokens": 2000}).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {KEY}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode()
        cut = [socket.create_connection((host, int(port))) for _ in range(5)]
        for one in cut:
            one.sendall(head + body)
            time.sleep(0.05)
        assert b"200" in cut[0].recv(64)
        with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {KEY}"}) as client:
            full = client.post("/v1/chat/completions", json={**BODY, "model": "run"})
            assert (full.status_code, full.headers["Retry-After"]) == (429, "2")
            for one in reversed(cut):
                one.close()
            assert model.was_closed.wait(10)
            until = time.monotonic() + 10
            while True:  # those who waited are missed at the next look
                with client.stream(
                    "POST", "/v1/chat/completions", json={**BODY, "model": "run", "stream": True}
                ) as reply:
                    if reply.status_code == 200:
                        assert next(reply.iter_lines()).startswith("data: ")
                        break
                assert time.monotonic() < until
                time.sleep(0.1)


def test_who_waits_is_served_in_turn_key_by_key():
    order, model = [], scripted_model({"*": "x"})
    all_wait, generate = threading.Event(), model.generate

    def slow(prompts, sampling, **more):
        order.append(prompts[0].messages[-1].content)
        assert all_wait.wait(60)
        return generate(prompts, sampling, **more)

    model.generate = slow
    other = "another-key-of-length"
    limits = RequestLimits(running=1, waiting=4)
    with live(ServedModel("run", model), limits=limits, more_keys=[other]) as address:

        def ask(key, text):
            body = {**BODY, "model": "run", "messages": [{"role": "user", "content": text}]}
            headers = {"Authorization": f"Bearer {key}"}
            url = f"{address}/v1/chat/completions"
            return httpx.post(url, json=body, headers=headers, timeout=60).status_code

        asked = [(KEY, f"a{at}") for at in range(4)] + [(other, "b0")]
        threads = [threading.Thread(target=ask, args=one) for one in asked]
        for thread in threads:
            thread.start()
            time.sleep(0.2)  # one after the other
        assert ask(other, "too many") == 429  # all the others stand in line
        all_wait.set()
        for thread in threads:
            thread.join()
    assert order == ["a0", "a1", "b0", "a2", "a3"]


def test_a_body_that_does_not_come_is_not_waited_for():
    with live(
        ServedModel("run", scripted_model({"*": "x"})), limits=RequestLimits(body_s=0.3)
    ) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as slow:
            slow.sendall(
                f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {KEY}\r\n"
                "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{".encode()
            )
            assert b" 408 " in slow.recv(200)


def test_a_body_of_two_lengths_is_refused_and_hides_no_second_request():
    body = b"0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with live(ServedModel("run", scripted_model({"*": "x"}))) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as sender:
            sender.sendall(
                f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {KEY}\r\n"
                f"Content-Length: {len(body)}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
                + body
            )
            reply = b"".join(iter(lambda: sender.recv(4096), b""))
    assert reply.startswith(b"HTTP/1.1 400 ")
    assert reply.count(b"HTTP/1.1") == 1


@contextlib.contextmanager
def impatient(seconds):
    """Yield a socket's maker to a server that waits so long for the head of a request."""

    async def app(scope, receive, send):
        await asyncio.sleep(1.2 * seconds)  # an answer may take its time
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(
            app, http=build_header_timeout_protocol(seconds), lifespan="off", log_level="warning"
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield lambda: socket.create_connection(listening.getsockname(), timeout=30)
        finally:
            server.should_exit = True
            thread.join()


def trickle(slow):
    for _ in range(200):
        slow.sendall(b"X-More: 1\r\n")
        time.sleep(0.05)


def test_a_head_that_does_not_come_is_not_waited_for():
    whole = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with impatient(0.5) as connect, connect() as silent, connect() as slow, connect() as patient:
        patient.sendall(whole)
        slow.sendall(whole[:-2])
        with pytest.raises(ConnectionError):  # bytes that come do not set the clock back
            trickle(slow)
        assert silent.recv(100) == b""
        assert b" 204 " in patient.recv(200)
        patient.sendall(whole[:9])  # the next head on the same connection
        assert patient.recv(100) == b""


@pytest.mark.parametrize(
    "sent", [b"\x16\x03\x01\x02 a hello of TLS\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\x00b\r\n\r\n"]
)
def test_what_is_not_http_has_an_error_in_the_usual_shape(sent):
    with impatient(0.5) as connect, connect() as client:
        client.sendall(sent)
        head, _, body = b"".join(iter(lambda: client.recv(4096), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json")
    assert json.loads(body)["error"]["code"] == "invalid_http"


def test_a_key_asks_no_more_often_than_it_may():
    served = ServedModel("run", scripted_model({"*": "x"}))
    headers = {"Authorization": f"Bearer {KEY}"}
    with (
        live(served, limits=RequestLimits(requests_per_minute=2)) as address,
        httpx.Client(base_url=address, headers=headers) as client,
    ):
        statuses = [client.get("/v1/models").status_code for _ in range(3)]
        assert statuses == [200, 200, 429]
        assert int(client.get("/v1/models").headers["Retry-After"]) >= 1
        assert client.get("/healthz").status_code == 200


@pytest.fixture
def small_disk(tmp_path):
    """Return a folder on a disk of its own, of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        made = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("mount is not installed")
    if made.returncode:
        pytest.skip(f"mounting is not permitted here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill_up(path, leave=0):
    """Write until the disk is full but for some bytes."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        for _ in range(1 << 10):
            os.write(descriptor, bytes(4096))
    os.ftruncate(descriptor, max(os.lseek(descriptor, 0, os.SEEK_CUR) - leave, 0))
    os.close(descriptor)


def test_a_full_disk_loses_no_job(small_disk):
    jobs.fill(small_disk)
    filler = small_disk / "filler"
    with jobs.live(small_disk) as client:
        done = jobs.submit(client)
        jobs.follow(client, done)
        fill_up(filler)
        full = client.post("/v1/jobs", json={"recipe": jobs.MERGE})
        assert (full.status_code, full.json()["error"]["code"]) == (507, "resource.disk-full")
        assert [job["id"] for job in client.get("/v1/jobs").json()["data"]] == [done]
        assert client.get(f"/v1/jobs/{done}/files/artifact.json").status_code == 200
        filler.unlink()
        fill_up(filler, leave=40_000)  # enough for the ticket, too little for the job
        short = jobs.submit(client)
        job = jobs.wait_for(client, short, "failed", "finished")
        assert job["error"]["code"] in {"resource.disk", "resource.disk-full"}, job
        filler.unlink()
        client.post(f"/v1/jobs/{short}/resume")
        assert jobs.wait_for(client, short, "failed", "finished")["state"] == "finished"
