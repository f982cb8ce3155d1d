"""What is kept open: never more than may be, never closed in use, opened once for two who ask."""

import asyncio
import threading
import time
from contextlib import contextmanager

import pytest
from fastapi import Request
from tests.console_folder import build_checkpoint

from stillroom.errors import DataError, ResourceError
from stillroom.serve.access import RequestLimits
from stillroom.serve.app import ModelCache
from stillroom.serve.middleware.concurrency import ResourceLRU, WorkerSlots, get_single_result
from stillroom.testing import scripted_model


class Doors:
    """Counts what is open."""

    def __init__(self):
        self.open, self.most, self.opened = [], 0, []

    @contextmanager
    def of(self, name, *, gate=None, error=None):
        if error is not None:
            raise error
        self.opened.append(name)
        self.open.append(name)
        self.most = max(self.most, len(self.open))
        if gate is not None:
            assert gate.wait(10)
        try:
            yield name
        finally:
            self.open.remove(name)


@pytest.fixture
def doors():
    return Doors()


def test_the_one_used_longest_ago_is_closed(doors):
    keeper = ResourceLRU(2, "doors")
    for name in ("a", "b", "a", "c"):
        with keeper.use(name, lambda name=name: doors.of(name)) as value:
            assert value == name
    assert doors.open == ["a", "c"]
    assert doors.most == 2
    keeper.close()
    assert doors.open == []


def test_many_at_once_open_no_more_than_may_be(doors):
    keeper, inside = ResourceLRU(2, "doors", patience_s=10), []

    def ask(name):
        with keeper.use(name, lambda: doors.of(name)):
            inside.append(name)

    threads = [threading.Thread(target=ask, args=(f"{at % 5}",)) for at in range(40)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(inside) == 40
    assert doors.most <= 2


def test_what_is_opening_counts_and_is_opened_once(doors):
    keeper, gate, got = ResourceLRU(1, "doors"), threading.Event(), []

    def ask():
        with keeper.use("a", lambda: doors.of("a", gate=gate)) as value:
            got.append(value)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for one in threads:
        one.start()
    while not doors.open:
        pass
    with pytest.raises(ResourceError, match="1 doors are open"), keeper.use("b", doors.of):
        pass
    gate.set()
    for one in threads:
        one.join()
    assert (got, doors.opened) == (["a"] * 3, ["a"])


def test_what_cannot_be_opened_takes_no_room(doors):
    keeper = ResourceLRU(1, "doors")
    wrong = DataError("no door", code="data.missing")
    for _ in range(2):
        with pytest.raises(DataError), keeper.use("x", lambda: doors.of("x", error=wrong)):
            pass
    with keeper.use("a", lambda: doors.of("a")):
        keeper.close()
        assert doors.open == ["a"]  # in use
    assert doors.open == []


def test_a_name_written_otherwise_is_the_same_model(tmp_path, monkeypatch):
    opened = []

    def open_model(reference, **_):
        opened.append(reference)
        return scripted_model({"*": "x"})

    monkeypatch.setattr("stillroom.serve.mounts.open_text_model", open_model)
    build_checkpoint(tmp_path / "a")
    (tmp_path / "link").symlink_to("a")
    shelf = ModelCache(tmp_path)
    assert {shelf.open(name).name for name in ("a", "./a", "a/", "a//", "link")} == {"a"}
    assert len(opened) == 1
    with pytest.raises(DataError):
        shelf.open("a/output/config.json")
    shelf.close()


def test_a_single_result_comes_when_its_slot_is_free():
    slots = WorkerSlots(RequestLimits(running=1))

    def work(is_stopped):
        yield 1
        time.sleep(0.2)

    async def ask():
        result = await get_single_result(slots.stream(work, Request({"type": "http"}, silent)))
        return result, slots._queue._free

    async def silent():
        await asyncio.Event().wait()

    assert [asyncio.run(ask()) for _ in range(3)] == [(1, 1)] * 3


def test_a_thread_that_cannot_be_started_leaves_its_slot_free(monkeypatch):
    slots = WorkerSlots(RequestLimits(running=1, wait_s=1))

    def fail(_self):
        raise RuntimeError("can't start new thread")

    async def silent():
        await asyncio.Event().wait()

    async def ask():
        request = Request({"type": "http"}, silent)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            with pytest.raises(RuntimeError, match="new thread"):
                await get_single_result(slots.stream(lambda _: iter([1]), request))
        return await get_single_result(slots.stream(lambda _: iter([2]), request))

    assert asyncio.run(ask()) == 2
