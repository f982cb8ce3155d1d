import threading
import time

import pytest

from stillroom.models.requests import run_in_threads
from stillroom.records import Completion


def test_order_is_kept_and_reports_come_on_the_callers_thread():
    threads = set()

    def ask(index, is_stopped):
        time.sleep(0.01 * (4 - index))
        return Completion(str(index))

    done = run_in_threads(
        ask, 4, 4, "m", lambda index, completion: threads.add(threading.current_thread())
    )
    assert [c.text for c in done] == ["0", "1", "2", "3"]
    assert threads == {threading.current_thread()}


def test_the_first_error_stops_the_rest():
    asked = []

    def ask(index, is_stopped):
        asked.append(index)
        if index == 1:
            raise KeyError("broken")
        time.sleep(0.02)
        return Completion("")

    with pytest.raises(KeyError):
        run_in_threads(ask, 100, 2, "m")
    assert len(asked) < 10


def test_cancelling_reaches_a_completion_in_work():
    def ask(index, is_stopped):
        while not is_stopped():
            time.sleep(0.01)
        return Completion("", "cancelled")

    begun = time.monotonic()
    done = run_in_threads(ask, 3, 2, "m", is_cancelled=lambda: time.monotonic() - begun > 0.1)
    assert {c.finish_reason for c in done} == {"cancelled"}
    assert time.monotonic() - begun < 2


def test_nothing_asked_gives_nothing():
    assert run_in_threads(lambda index, stopped: Completion(""), 0, 2, "m") == []
