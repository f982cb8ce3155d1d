"""Several endpoints as one: shares by weight, fall-back, hedging, and tokens a minute."""

import threading
import time

import pytest

from stillroom.errors import BackendError
from stillroom.models import open_text_model
from stillroom.models.endpoints.pool import LoadBalancedModel, PoolEndpoint
from stillroom.models.interfaces import ConcurrentModel
from stillroom.records import Completion, Message, Prompt, Sampling
from stillroom.testing import scripted_model

SAMPLING = Sampling(max_new_tokens=8)
SLOW_S = 0.8


def prompt(text):
    return Prompt((Message("user", text),))


@pytest.fixture
def connect():
    opened = []

    def start(first, *others, **settings):
        addresses = [
            one if isinstance(one, str) else f"{one.address}#m" for one in (first, *others)
        ]
        patience = {"tries": 1, "connect_timeout_s": 2, **settings}
        opened.append(open_text_model(addresses[0], others=tuple(addresses[1:]), **patience))
        return opened[-1]

    yield start
    for model in opened:
        model.close()


def say(completion, text, sleep_s=0.0):
    return lambda path, body, headers: (200, completion(text), {}, sleep_s)


def fail(status):
    return lambda path, body, headers: (status, {"error": {"message": "no"}})


def test_requests_are_shared_by_weight_and_the_same_one_goes_the_same_way(
    serve, completion, connect
):
    one, two = serve(say(completion, "one")), serve(say(completion, "two"))
    model = connect(one, two, weights=(3.0, 1.0))
    assert isinstance(model, ConcurrentModel)
    prompts = [prompt(f"p{number}") for number in range(80)]
    first = [one.text for one in model.generate(prompts, SAMPLING)]
    assert 45 <= len(one.requests) <= 72
    assert len(one.requests) + len(two.requests) == 80
    assert [one.text for one in model.generate(prompts[::-1], SAMPLING)][::-1] == first


@pytest.mark.parametrize("status", [401, 402, 404, 429, 500, 503])
def test_what_fails_is_passed_over_and_left_to_rest(serve, completion, connect, status):
    broken, sound = serve(fail(status)), serve(say(completion, "sound"))
    model = connect(broken, sound, max_wait_s=0.01)
    for _ in range(4):
        (given,) = model.generate([prompt("p")], SAMPLING)
        assert given.text == "sound"
    assert given.model.endswith(f"{sound.port}/v1#m")
    assert len(broken.requests) == 1
    assert model.asked == [1, 4]


def test_an_endpoint_that_is_down_is_passed_over(serve, completion, connect):
    model = connect("http://127.0.0.1:9/v1#m", serve(say(completion, "sound")))
    assert model.generate([prompt("p")], SAMPLING)[0].text == "sound"


def test_what_a_request_did_wrong_is_asked_of_no_other(serve, completion, connect):
    strict, other = serve(fail(400)), serve(say(completion, "sound"))
    model = connect(strict, other)
    with pytest.raises(BackendError) as caught:
        model.generate([prompt("p")], SAMPLING)
    assert caught.value.code == "backend.refused"
    assert not other.requests


def test_where_all_fail_all_are_named(serve, connect):
    one, two = serve(fail(500)), serve(fail(429))
    model = connect(one, two, max_wait_s=0.01)
    with pytest.raises(BackendError) as caught:
        model.generate([prompt("p")], SAMPLING)
    assert str(one.port) in str(caught.value)
    assert str(two.port) in str(caught.value)


def test_what_is_slow_is_hedged(serve, completion, connect):
    slow, quick = serve(say(completion, "slow", SLOW_S)), serve(say(completion, "quick"))
    model = connect(slow, quick, hedge_after_s=0.1)
    begun = time.monotonic()
    assert model.generate([prompt("p")], SAMPLING)[0].text == "quick"
    assert time.monotonic() - begun < SLOW_S
    assert model.asked == [1, 1]


def test_who_loses_against_its_hedge_is_told_to_stop():
    told = threading.Event()

    class Endless(type(scripted_model({"*": ""}))):
        def generate(self, prompts, sampling, *, on_done=None, is_cancelled=None):
            until = time.monotonic() + 20
            while not is_cancelled() and time.monotonic() < until:
                time.sleep(0.01)
            if is_cancelled():
                told.set()
            return [Completion("", "cancelled") for _ in prompts]

    members = (
        PoolEndpoint(Endless({"*": ""}, name="endless")),
        PoolEndpoint(scripted_model({"*": "quick"}), 0),
    )
    pool = LoadBalancedModel(members, hedge_after_s=0.05)
    assert pool.generate([prompt("p")], SAMPLING)[0].text == "quick"
    assert told.wait(20)


def test_nothing_is_hedged_that_answers_in_time(serve, completion, connect):
    first, other = serve(say(completion, "first")), serve(say(completion, "other"))
    model = connect(first, other, hedge_after_s=5)
    assert model.generate([prompt("p")], SAMPLING)[0].text == "first"
    assert not other.requests


def test_a_hedge_goes_on_at_once_where_the_first_fails(serve, completion, connect):
    model = connect(serve(fail(500)), serve(say(completion, "sound")), hedge_after_s=30)
    begun = time.monotonic()
    assert model.generate([prompt("p")], SAMPLING)[0].text == "sound"
    assert time.monotonic() - begun < 5


def test_weights_must_fit(serve, completion, connect):
    one, two = serve(say(completion, "one")), serve(say(completion, "two"))
    for weights in ((1.0,), (0.0, 0.0), (1.0, -1.0)):
        with pytest.raises(BackendError) as caught:
            connect(one, two, weights=weights)
        assert caught.value.code == "backend.request"


def test_tokens_a_minute_space_the_requests(serve, completion, connect):
    # no answer counts its tokens, so that nothing of what was reserved is given back
    uncounted = {key: value for key, value in completion("x").items() if key != "usage"}
    server = serve(lambda path, body, headers: uncounted)
    model = open_text_model(f"{server.address}#m", tokens_per_minute=12_000, concurrency=4)
    begun = time.monotonic()
    model.generate([prompt(f"p{number}") for number in range(3)], Sampling(max_new_tokens=40))
    spent = time.monotonic() - begun
    model.close()
    times = [at for *_, at in server.requests]
    # each is held back to its own moment; on a busy machine one may come late, near the next
    assert all(at - begun > 0.1 * number for number, at in enumerate(sorted(times)))
    assert spent > 0.5


def test_what_was_reserved_and_not_used_is_given_back(serve, completion, connect):
    server = serve(say(completion, "x"))  # which counts 8 tokens
    model = open_text_model(f"{server.address}#m", tokens_per_minute=6000, concurrency=1)
    begun = time.monotonic()
    for number in range(4):
        model.generate([prompt(f"p{number}")], Sampling(max_new_tokens=1600))
    model.close()
    assert time.monotonic() - begun < 16.0  # reserved were 1600 and more each, 16 s
