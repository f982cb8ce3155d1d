"""Streams of several threads that share batches."""

import random
import threading
from contextlib import closing
from dataclasses import replace

import pytest

from stillroom.errors import BackendError
from stillroom.models import open_text_model
from stillroom.models.interfaces import BatchingModel
from stillroom.records import Message, Prompt, Sampling
from stillroom.testing import read_stream, tiny_checkpoint

WORDS = ["mill", "river", "lemon", "question", "sugar", "house", "answer", "north"]


def chat(*words, **more):
    return Prompt(messages=(Message("user", " ".join(words)),), **more)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tiny_checkpoint(tmp_path_factory.mktemp("tiny"))
    return open_text_model(str(folder), backend="transformers", dtype="float32", batch_size=4)


@pytest.fixture
def forwards(model, monkeypatch):
    """Count how often the model is asked, and for how many rows."""
    counted, own = [], model._forward
    monkeypatch.setattr(
        model, "_forward", lambda ids, *more: counted.append(len(ids)) or own(ids, *more)
    )
    return counted


def ask_all(model, asks):
    """Stream all at once, each in a thread of its own; return the completions or errors."""
    done, gate = [None] * len(asks), threading.Barrier(len(asks))

    def go(at):
        gate.wait()
        try:
            pieces, done[at] = read_stream(model.stream(*asks[at]))
            assert "".join(pieces) == done[at].text
        except BackendError as error:
            done[at] = error

    threads = [threading.Thread(target=go, args=(at,)) for at in range(len(asks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return done


def asks_of(count, tokens=12):
    rng = random.Random(count)
    return [
        (
            chat(*rng.choices(WORDS, k=1 + at % 9), str(at)),
            Sampling(tokens - at % 5, temperature=at % 2 * 0.8, seed=at),
        )
        for at in range(count)
    ]


@pytest.mark.parametrize("count", [1, 3, 17, pytest.param(40, marks=pytest.mark.slow)])
def test_a_stream_does_not_depend_on_the_streams_beside_it(model, count):
    asks = asks_of(count)
    assert ask_all(model, asks) == [model.generate([one], [how])[0] for one, how in asks]


def test_streams_of_one_bucket_share_their_forwards(model, forwards):
    asks = [(chat("mill", word), Sampling(12)) for word in WORDS]
    alone = [model.generate([one], [how])[0] for one, how in asks]
    one_by_one = len(forwards)
    forwards.clear()
    assert ask_all(model, asks) == alone
    assert len(forwards) < one_by_one * 0.75
    assert isinstance(model, BatchingModel)
    assert model.lanes == 16


def test_who_comes_late_hears_before_the_others_have_ended(model):
    with closing(model.stream(chat("mill"), Sampling(200))) as early:
        next(early)
        late = model.stream(chat("river"), Sampling(3))
        assert read_stream(late)[1] == model.generate([chat("river")], [Sampling(3)])[0]
        assert next(early) is not None


def test_one_that_leaves_or_fails_costs_the_others_nothing(model, monkeypatch):
    from stillroom.models.local.generation import DecodingState

    asks = [(chat("mill", word), Sampling(12)) for word in WORDS]
    alone = [model.generate([one], [how])[0] for one, how in asks]
    failing = replace(asks[3][1], seed=77)
    own = DecodingState.draw

    def draw(self, logits):
        if self._sampling.seed == 77 and len(self.ids) == 2:
            raise BackendError("this one fails", code="backend.schema")
        return own(self, logits)

    monkeypatch.setattr(DecodingState, "draw", draw)
    asks[3] = asks[3][0], failing
    leaving = model.stream(chat("mill", "left"), Sampling(200))
    next(leaving)
    leaving.close()
    done = ask_all(model, asks)
    assert isinstance(done[3], BackendError)
    assert done[:3] + done[4:] == alone[:3] + alone[4:]
    with pytest.raises(BackendError, match="this one fails"):
        model.generate([asks[3][0]], [failing])
    assert not model._batching._open
    assert not model._batching._waiting


def test_an_engine_that_fails_fails_every_stream_of_the_batch_and_recovers(model, monkeypatch):
    asks = [(chat("mill", word), Sampling(6)) for word in WORDS[:3]]

    def fail(*_):
        raise BackendError("out of memory", code="backend.schema")

    with monkeypatch.context() as patch:
        patch.setattr(model, "_forward", fail)
        assert {type(one) for one in ask_all(model, asks)} == {BackendError}
    assert ask_all(model, asks) == [model.generate([one], [how])[0] for one, how in asks]


def test_one_completion_is_cancelled_where_it_is_written(model):
    looks = iter(range(100))
    (done,) = model.generate([chat("mill")], Sampling(50), is_cancelled=lambda: next(looks) > 3)
    assert (done.finish_reason, done.text) == ("cancelled", "")
    assert not model._batching._open


def test_writing_keeps_the_number_of_threads_that_the_model_was_opened_with(tmp_path, monkeypatch):
    import torch

    before = torch.get_num_threads()
    try:
        folder = str(tiny_checkpoint(tmp_path))
        model = open_text_model(folder, backend="transformers", num_threads=2)
        other = threading.Thread(target=torch.set_num_threads, args=(1,))  # as an embedder does
        other.start()
        other.join()
        seen, own = set(), model._forward
        monkeypatch.setattr(
            model, "_forward", lambda *given: seen.add(torch.get_num_threads()) or own(*given)
        )
        model.generate([chat("mill")], [Sampling(2)])
        assert seen == {2}
    finally:
        torch.set_num_threads(before)
