"""What is handed in is worked on by so many at once, in its order, and told of once."""

import asyncio
from concurrent.futures import Future

import pytest

from stillroom.errors import Cancelled
from stillroom.models.endpoints.transport import EventLoopThread

WAIT_S = 30


@pytest.fixture
def thread():
    made = []

    def start(lanes):
        made.append(EventLoopThread("test", lanes=lanes))
        return made[-1]

    yield start
    for one in made:
        if not one.is_closed:
            one.cancel()
            one.close()


def hand_in(thread, work):
    """Return what will be told, which may come once only."""
    future = Future()
    thread.submit(work, future.set_result)
    return future


def test_no_more_than_the_lanes_are_at_work_and_all_come_to_their_end(thread):
    running, most, begun = [], [], []

    async def work(number):
        begun.append(number)
        running.append(number)
        most.append(len(running))
        await asyncio.sleep(0.001 * (number % 3))
        running.remove(number)
        if number % 5 == 0:
            raise ValueError(number)
        return number

    several = thread(4)
    told = [hand_in(several, work(number)) for number in range(60)]
    values = [one.result(WAIT_S) for one in told]
    assert [str(one) for one in values] == [str(number) for number in range(60)]
    assert [isinstance(one, ValueError) for one in values] == [n % 5 == 0 for n in range(60)]
    assert begun == list(range(60))
    assert max(most) <= 4
    assert hand_in(several, work(61)).result(WAIT_S) == 61  # after all lanes had ended


def test_who_rests_lets_another_work(thread):
    only = thread(1)

    async def rest():
        await only.rest(10 * WAIT_S)

    async def work():
        return "done"

    resting = hand_in(only, rest())
    assert [hand_in(only, work()).result(WAIT_S) for _ in range(3)] == ["done"] * 3
    assert not resting.done()
    only.cancel()
    assert isinstance(resting.result(WAIT_S), Cancelled)


def test_what_is_left_when_the_thread_ends_is_told(thread):
    only = thread(1)

    async def work():
        await asyncio.sleep(10 * WAIT_S)

    told = [hand_in(only, work()) for _ in range(4)]
    only.cancel()
    only.close()
    assert all(isinstance(one.result(WAIT_S), Cancelled) for one in told)
    unheard = work()
    with pytest.raises(RuntimeError):
        only.submit(unheard, print)
    unheard.close()


def test_what_ends_as_the_thread_does_is_told(thread):
    only, told = thread(1), Future()

    def end():
        only._tell(told.set_result, "told")
        only.loop.stop()

    only.loop.call_soon_threadsafe(end)
    only.thread.join(WAIT_S)
    only.close()
    assert told.result(0) == "told"
