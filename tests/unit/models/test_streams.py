from contextlib import closing

from stillroom.models.streams import with_end
from stillroom.records import Completion

DONE = Completion("It rises.", "stop", 3, 2)


def write(told):
    try:
        yield "It "
        yield "rises."
        told.append("written")
    finally:
        told.append("closed")
    return DONE


def test_the_end_comes_last():
    assert list(with_end(write([]))) == ["It ", "rises.", DONE]


def test_who_leaves_midway_closes_the_stream():
    told = []
    with closing(with_end(write(told))) as items:
        assert next(items) == "It "
    assert told == ["closed"]
