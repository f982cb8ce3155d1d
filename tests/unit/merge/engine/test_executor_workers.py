"""How many threads a merge takes: as many as there are cores, and as keep the disk busy."""

import time

import pytest

from stillroom.merge.engine.executor import OrderedThreadPool, choose_threads


@pytest.mark.parametrize(
    ("cores", "wall", "busy", "expected"),
    [
        (8, 1.0, 1.0, 8),  # nothing waits: every core
        (64, 1.0, 1.0, 16),  # digests are one thread's, and set the pace
        (1, 1.0, 1.0, 1),
        (8, 1.0, 0.5, 2),  # half of it is the disk's, which two threads keep busy
        (8, 1.0, 0.75, 4),
        (8, 1.0, 0.01, 1),  # nothing but waiting: another would wait as well
        (8, 1.0, 0.0, 1),
    ],
)
def test_threads_are_chosen_by_cores_and_disk(cores, wall, busy, expected):
    assert choose_threads(cores, wall, busy) == expected


def test_blocks_come_in_order_before_and_after_the_choice(monkeypatch):
    monkeypatch.setattr("stillroom.merge.engine.executor._count_cores", lambda: 4)
    monkeypatch.setattr("stillroom.merge.engine.executor._SAMPLE_SECONDS", 1e-9)
    monkeypatch.setattr("stillroom.merge.engine.executor.choose_threads", lambda *_: 3)
    with OrderedThreadPool(0) as workers:
        assert list(workers.map(lambda number: number * number, 50)) == [n * n for n in range(50)]
        assert workers.count == 3
        assert list(workers.map(lambda number: -number, 7)) == [-n for n in range(7)]


def test_a_merge_of_a_few_blocks_starts_no_thread():
    with OrderedThreadPool(0) as workers:
        assert list(workers.map(lambda number: number, 3)) == [0, 1, 2]
        assert workers.count == 0


def test_blocks_that_only_wait_get_no_second_thread():
    with OrderedThreadPool(0) as workers:
        list(workers.map(lambda number: time.sleep(0.03), 2))
        assert workers.count == 1
