from contextlib import closing

from stillroom.models.requests import stream_with_completion
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
    assert list(stream_with_completion(write([]))) == ["It ", "rises.", DONE]


def test_who_leaves_midway_closes_the_stream():
    told = []
    with closing(stream_with_completion(write(told))) as items:
        assert next(items) == "It "
    assert told == ["closed"]
