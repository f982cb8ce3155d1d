"""Checks of recipes and media: so many wait, the others are told when, and nobody who left is."""

import asyncio
import contextlib
import io
import time
from types import SimpleNamespace

import httpx
import pytest
from PIL import Image
from tests.unit.serve.test_jobs import MERGE, fill

from stillroom.serve import RequestLimits, create_app
from stillroom.serve.errors import ApiError
from stillroom.serve.jobs.processes import spawn
from stillroom.serve.jobs.runner import JobRunner
from stillroom.serve.media_check import MediaCheckService
from stillroom.serve.middleware.auth import CLIENT_KEY, RECEIVED_KEY
from stillroom.serve.middleware.concurrency import FairQueue, run_while_connected
from stillroom.serve.middleware.metrics import TIMING_KEY, RequestTiming
from stillroom.serve.workspace import Workspace

LIMITS = RequestLimits(checks=1)


@pytest.fixture
def app(tmp_path):
    fill(tmp_path)
    with Workspace(tmp_path).open() as workspace:
        yield create_app(
            None, jobs=JobRunner(workspace), media_check=MediaCheckService(), limits=LIMITS
        )


@pytest.fixture
def started(monkeypatch):
    """The processes that were started; none of them ever tells anything."""
    found = []

    async def mute(order, folder, scratch, **more):
        found.append(await spawn(order, folder, scratch, **more))
        return found[-1]

    async def never(process):
        await asyncio.sleep(60)

    monkeypatch.setattr("stillroom.serve.jobs.processes.spawn", mute)
    monkeypatch.setattr("stillroom.serve.jobs.processes.read_worker_result", never)
    return found


def picture():
    data = io.BytesIO()
    Image.new("RGB", (16, 16)).save(data, "PNG")
    return data.getvalue()


ASKED = {
    "/v1/recipes/check": {"json": {"recipe": MERGE}},
    "/v1/forensics/check": {"files": [("file", ("a.png", picture()))]},
}


async def until(is_so):
    async with asyncio.timeout(20):
        while not is_so():
            await asyncio.sleep(0.01)


class Leaving:
    """An app whose clients leave when they are told to, as a server tells it."""

    def __init__(self, app):
        self.app, self.has_left, self.bodies = app, asyncio.Event(), 0

    async def __call__(self, scope, receive, send):
        is_whole = False

        async def told():
            nonlocal is_whole
            if is_whole:
                await self.has_left.wait()
                return {"type": "http.disconnect"}
            message = await receive()
            is_whole = not message.get("more_body")
            self.bodies += 1
            return message

        await self.app(scope, told, send)


@pytest.mark.parametrize("path", ASKED)
def test_a_client_that_leaves_ends_its_check_and_the_line_goes_on(app, started, path):
    async def go():
        leaving = Leaving(app)
        async with client_of(leaving) as client:
            tasks = [asyncio.create_task(client.post(path, **ASKED[path])) for _ in range(2)]
            await until(lambda: started)
            leaving.has_left.set()
            replies = await asyncio.gather(*tasks)
        assert [reply.status_code for reply in replies] == [499, 499]
        assert [process.returncode for process in started] == [-9]  # who waited started none

    asyncio.run(go())


@pytest.mark.parametrize("path", ASKED)
def test_a_line_that_is_full_is_told_when_to_come_again(app, started, path):
    async def go():
        leaving = Leaving(app)
        async with client_of(leaving) as client:
            tasks = [asyncio.create_task(client.post(path, **ASKED[path])) for _ in range(2)]
            await until(lambda: started and leaving.bodies >= 2)
            await asyncio.sleep(0.1)
            reply = await client.post(path, **ASKED[path])
            assert (reply.status_code, reply.headers["Retry-After"]) == (429, "2")
            assert reply.json()["error"]["code"] == "too_many_requests"
            leaving.has_left.set()
            await asyncio.gather(*tasks)

    asyncio.run(go())


def test_media_have_their_place_before_they_are_read(app, started):
    """Bodies that have begun to come count, so that no more of them lie on the disk at once."""

    async def go():
        goes_on = asyncio.Event()

        async def slow():
            yield b"--x\r\n"
            await goes_on.wait()
            yield b"--x--\r\n"

        form = {"Content-Type": "multipart/form-data; boundary=x"}
        async with client_of(app) as client:
            tasks = [
                asyncio.create_task(
                    client.post("/v1/forensics/check", headers=form, content=slow())
                )
                for _ in range(2)
            ]
            await asyncio.sleep(0.2)
            reply = await client.post("/v1/forensics/check", **ASKED["/v1/forensics/check"])
            assert reply.status_code == 429
            goes_on.set()
            assert [one.status_code for one in await asyncio.gather(*tasks)] == [400, 400]
        assert not started

    asyncio.run(go())


def upload(client, pace, *, pieces=1000, stops_after=None):
    """Send a form with a file in pieces of a thousand bytes, one each so many seconds.

    After ``stops_after`` pieces nothing more comes.
    """

    async def body():
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
        for number in range(pieces):
            if number == stops_after:
                await asyncio.Event().wait()
            await asyncio.sleep(pace)
            yield b"x" * 1000
        yield b"\r\n--x--\r\n"

    form = {"Content-Type": "multipart/form-data; boundary=x"}
    return asyncio.create_task(client.post("/v1/forensics/check", headers=form, content=body()))


def test_the_slowest_upload_gives_way_where_all_places_are_taken(app, started, monkeypatch):
    judge_after = "stillroom.serve.middleware.concurrency._PACE_S"
    monkeypatch.setattr(judge_after, 1e9)

    async def go():
        async with client_of(app) as client:
            slow, slower = upload(client, 0, stops_after=200), upload(client, 0, stops_after=1)
            await asyncio.sleep(0.1)
            early = await upload(client, 0, pieces=3)
            assert early.status_code == 429  # neither had time to show its pace
            await asyncio.sleep(0.5)
            monkeypatch.setattr(judge_after, 0.0)
            fast = upload(client, 0, pieces=3)
            reply = await slower
            assert (reply.status_code, reply.headers["Retry-After"]) == (408, "2")
            assert reply.json()["error"]["code"] == "body_too_slow"
            await until(lambda: started)
            assert not slow.done()
            for task in (fast, slow):
                task.cancel()
            await asyncio.gather(fast, slow, return_exceptions=True)

    asyncio.run(go())


def test_a_slow_upload_is_served_while_there_is_room(app, started, monkeypatch):
    monkeypatch.setattr("stillroom.serve.middleware.concurrency._PACE_S", 0.1)

    async def go():
        async with client_of(app) as client:
            slow = upload(client, 0.05, pieces=10)
            await asyncio.sleep(0.3)
            other = upload(client, 0.05, pieces=10)
            await until(lambda: started)
            for task in (slow, other):
                task.cancel()
            await asyncio.gather(slow, other, return_exceptions=True)

    asyncio.run(go())


async def fill_places(*uploads, age=60.0):
    """Fill a queue with uploads of (client, bytes that arrived, whether it is still read); another
    one comes. Return the numbers of those that had to give way."""
    queue = FairQueue(LIMITS, running=1, most_waiting=len(uploads) - 1)
    gone = set()

    async def hold(number, client, received, is_reading):
        request = SimpleNamespace(scope={CLIENT_KEY: client, RECEIVED_KEY: received})
        try:
            async with queue.place(request) as place:
                place.begun, place.is_reading = time.monotonic() - age, is_reading
                await asyncio.sleep(60)
        except ApiError as error:
            gone.add((number, error.status))

    tasks = [asyncio.create_task(hold(number, *one)) for number, one in enumerate(uploads)]
    await asyncio.sleep(0)
    try:
        async with queue.place(SimpleNamespace(scope={})):
            await asyncio.sleep(0.01)
    except ApiError as error:
        return error.status
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(end, asyncio.CancelledError) for end in ended) == len(tasks) - len(gone)
    return gone


@pytest.mark.parametrize(
    ("uploads", "gone"),
    [
        ([(1, 9000, True), (2, 10, True), (3, 500, True)], {(1, 408)}),
        ([(1, 9000, True), (1, 800, True), (2, 5, True)], {(1, 408)}),
        ([(1, 0, False), (2, 700, True)], {(1, 408)}),
        ([(1, 0, False), (2, 0, False)], 429),
    ],
    ids=["slowest", "of the client with most", "only what is still read", "all are read"],
)
def test_who_gives_way(uploads, gone):
    assert asyncio.run(fill_places(*uploads)) == gone


def test_nobody_gives_way_before_its_pace_is_known():
    assert asyncio.run(fill_places((1, 0, True), (2, 0, True), age=4.0)) == 429


def test_an_upload_that_has_arrived_keeps_its_place(app, started, monkeypatch):
    monkeypatch.setattr("stillroom.serve.middleware.concurrency._PACE_S", 0.0)

    async def go():
        async with client_of(app) as client:
            path = "/v1/forensics/check"
            tasks = [asyncio.create_task(client.post(path, **ASKED[path])) for _ in range(2)]
            await until(lambda: started)
            await asyncio.sleep(0.3)
            assert (await client.post(path, **ASKED[path])).status_code == 429
            await asyncio.sleep(0.3)
            assert not any(task.done() for task in tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(go())


@contextlib.asynccontextmanager
async def client_of(app):
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://localhost", timeout=60
    ) as client:
        yield client


def test_a_cancellation_that_the_look_at_the_client_swallows_ends_the_work(monkeypatch):
    monkeypatch.setattr("stillroom.serve.middleware.concurrency._DISCONNECT_POLL_S", 0.01)

    async def go():
        looks, ended = asyncio.Event(), []

        async def look():
            looks.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
            return False

        async def work():
            try:
                await asyncio.sleep(60)
            finally:
                ended.append(True)

        request = SimpleNamespace(is_disconnected=look)
        task = asyncio.create_task(run_while_connected(request, work()))
        await looks.wait()
        task.cancel()
        async with asyncio.timeout(20):
            await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        assert ended

    asyncio.run(go())


def test_the_wait_of_who_gave_up_or_was_cancelled_counts_and_no_refusal_at_the_door():
    queue = FairQueue(RequestLimits(wait_s=0.01), running=1, most_waiting=1)

    def make_request(is_gone=False):
        async def is_disconnected():
            return is_gone

        clock = RequestTiming()
        return SimpleNamespace(scope={TIMING_KEY: clock}, is_disconnected=is_disconnected), clock

    async def go():
        first, clock = make_request()
        await queue.enter(first)
        assert clock.queue_s == 0
        for is_gone, status in ((False, 429), (True, 499)):
            request, clock = make_request(is_gone)
            with pytest.raises(ApiError) as caught:
                await queue.enter(request)
            assert (caught.value.status, clock.queue_s >= 0.01) == (status, True)
        waiting, clock = make_request()
        task = asyncio.create_task(queue.enter(waiting))
        await asyncio.sleep(0.05)
        refused, refused_clock = make_request()
        with pytest.raises(ApiError):
            await queue.enter(refused)
        assert refused_clock.queue_s is None
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert clock.queue_s >= 0.04

    asyncio.run(go())
