"""Asked without a thread that waits, a cache and a pool give what ``generate`` gives."""

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from inspect import getattr_static

import pytest

from stillroom.errors import BackendError, Cancelled
from stillroom.models import open_text_model
from stillroom.models.cache import CompletionCache, wrap_with_cache
from stillroom.models.endpoints.pool import LoadBalancedModel, PoolEndpoint
from stillroom.models.interfaces import AsyncModel, TemplatedModel
from stillroom.records import Completion, Message, Prompt, Sampling
from stillroom.testing import scripted_model

SAMPLING = Sampling(max_new_tokens=8)
WAIT_S = 30


def prompt(text):
    return Prompt((Message("user", text),))


class Teacher:
    """Answers when the test lets it, on a thread of its own."""

    name = fingerprint = "teacher"
    context_length, concurrency = 1000, 4

    def __init__(self):
        self.asked = []
        self.is_closed = False
        self._thread = ThreadPoolExecutor(1)

    def submit(self, prompt, sampling, done):
        if self.is_closed:
            raise BackendError("closed", code="backend.closed", expected="e", next="n")
        self.asked.append((prompt.messages[-1].content, done))

    def answer(self, value, at=0):
        """Give a value to one of those that wait, and return when it has been taken."""
        self._thread.submit(self.asked.pop(at)[1], value).result(WAIT_S)

    def generate(self, *given, **told): ...
    def stream(self, *given): ...
    def score(self, *given): ...
    def count_tokens(self, text): ...

    def close(self):
        self.is_closed = True


def fault(code):
    return BackendError("no", code=code, expected="e", next="n")


def submit(model, text, sampling=SAMPLING):
    """Return what will be given, which may come once only."""
    future = Future()
    model.submit(prompt(text), sampling, future.set_result)
    return future


def outcome(value):
    return (type(value), value.code) if isinstance(value, BackendError) else value


def generated(model, text):
    try:
        return model.generate([prompt(text)], SAMPLING)[0]
    except BackendError as error:
        return error


def script(completion):
    """Answer, refuse, give no JSON, or give an answer without a completion, as the prompt says."""

    def answer(path, body, headers):
        said = body["messages"][-1]["content"]
        if "refuse" in said:
            return 400, {"error": {"message": "no"}}
        if "garble" in said:
            return b"<html>"
        if "nothing" in said:
            return {"choices": []}
        if "down" in said:
            return 503, {"error": {"message": "later"}}
        return completion(said.upper(), finish_reason="length" if "long" in said else "stop")

    return answer


SAID = ["one", "refuse", "garble", "two", "nothing", "down", "one", "long"]


@pytest.fixture
def teacher(tmp_path):
    return Teacher()


@pytest.fixture
def model(teacher, tmp_path):
    made = wrap_with_cache(teacher, tmp_path / "c.sqlite")
    yield made
    made.close()


def test_a_cache_gives_what_generate_gives(serve, completion, tmp_path):
    server = serve(script(completion))
    patience = {"tries": 1, "max_wait_s": 0.01}
    one, other = (
        wrap_with_cache(open_text_model(f"{server.address}#m", **patience), tmp_path / name)
        for name in ("one.sqlite", "other.sqlite")
    )
    for _ in range(2):
        futures = [submit(one, said) for said in SAID]
        given = [outcome(future.result(WAIT_S)) for future in futures]
        assert given == [outcome(generated(other, said)) for said in SAID]
    assert len(one.cache) == len(other.cache) == 3
    for said in ("one", "two", "long"):
        key = CompletionCache.cache_key(one.fingerprint, prompt(said), SAMPLING)
        assert one.cache.get(key) == other.cache.get(key)
    one.close()
    other.close()


def test_what_is_kept_is_given_before_submit_returns(model, teacher):
    model.cache.put(CompletionCache.cache_key("teacher", prompt("a"), SAMPLING), Completion("A"))
    assert submit(model, "a").result(0) == Completion("A")
    assert (model.hits, teacher.asked) == (1, [])


def test_the_same_prompt_in_flight_is_asked_once(model, teacher):
    futures = [submit(model, "a") for _ in range(3)]
    different = submit(model, "a", Sampling(max_new_tokens=8, seed=1))
    assert len(teacher.asked) == 2
    teacher.answer(Completion("A"))
    assert {future.result(0).text for future in futures} == {"A"}
    assert not different.done()
    teacher.answer(Completion("B"))
    assert different.result(0).text == "B"
    assert (model.hits, len(model.cache)) == (2, 2)
    assert submit(model, "a").result(0).text == "A"


@pytest.mark.parametrize(
    "value", [fault("backend.timeout"), Cancelled("closed"), Completion("", "cancelled")]
)
def test_what_fails_is_told_to_all_who_wait_and_asked_again(model, teacher, value):
    futures = [submit(model, "a") for _ in range(2)]
    teacher.answer(value)
    assert [future.result(0) for future in futures] == [value] * 2
    assert (model.hits, len(model.cache)) == (0, 0)
    again = submit(model, "a")
    teacher.answer(Completion("A"))
    assert again.result(0).text == "A"
    assert len(model.cache) == 1


def test_what_another_process_has_kept_meanwhile_is_given(model, teacher):
    future = submit(model, "a")
    model.cache.put(
        CompletionCache.cache_key("teacher", prompt("a"), SAMPLING), Completion("theirs")
    )
    teacher.answer(Completion("ours"))
    assert future.result(0).text == "theirs"


def test_a_cache_that_cannot_be_written_is_told(model, teacher):
    future = submit(model, "a")
    model.cache.close()
    teacher.answer(Completion("A"))
    assert isinstance(future.result(0), Exception)
    assert isinstance(submit(model, "a").result(0), Exception)


def test_many_threads_ask_for_the_same_few_and_each_is_asked_once(serve, completion, tmp_path):
    server = serve(lambda path, body, headers: (200, completion("x"), {}, 0.05))
    model = wrap_with_cache(
        open_text_model(f"{server.address}#m", concurrency=4), tmp_path / "c.sqlite"
    )
    start = threading.Barrier(8)

    def ask(number):
        start.wait(WAIT_S)
        return [submit(model, f"p{at}") for at in range(5)]

    with ThreadPoolExecutor(8) as pool:
        given = [future.result(WAIT_S) for found in pool.map(ask, range(8)) for future in found]
    assert {one.text for one in given} == {"x"}
    assert len(server.requests) == len(model.cache) == 5
    assert model.hits == 35
    model.close()


def test_who_waits_for_a_model_that_is_closed_is_told(serve, completion, tmp_path):
    server = serve(lambda path, body, headers: (200, completion("x"), {}, 20.0))
    model = wrap_with_cache(open_text_model(f"{server.address}#m"), tmp_path / "c.sqlite")
    futures = [submit(model, f"p{at}") for at in range(3)]
    waiting = ThreadPoolExecutor(1).submit(model.generate, [prompt("waits")], SAMPLING)
    until = time.monotonic() + WAIT_S
    while len(server.requests) < 4 and time.monotonic() < until:
        time.sleep(0.01)
    model.close()
    assert {future.result(WAIT_S).code for future in futures} == {"job.cancelled"}
    assert waiting.result(WAIT_S)[0].finish_reason == "cancelled"


def test_only_what_can_be_asked_so_says_that_it_can(tmp_path, teacher):
    plain = wrap_with_cache(scripted_model({"*": "x"}), tmp_path / "a.sqlite")
    asked = wrap_with_cache(teacher, tmp_path / "b.sqlite")
    assert isinstance(asked, AsyncModel)
    assert not isinstance(plain, AsyncModel)
    assert getattr_static(plain, "submit", None) is None  # how later Pythons look
    assert isinstance(plain, TemplatedModel) == isinstance(plain.model, TemplatedModel)
    assert getattr_static(asked, "render", None) is None
    hedged = LoadBalancedModel([PoolEndpoint(Teacher()), PoolEndpoint(Teacher())], hedge_after_s=1)
    mixed = LoadBalancedModel([PoolEndpoint(Teacher()), PoolEndpoint(scripted_model({"*": "x"}))])
    assert isinstance(LoadBalancedModel([PoolEndpoint(Teacher())], hedge_after_s=1), AsyncModel)
    assert not isinstance(hedged, AsyncModel)
    assert not isinstance(mixed, AsyncModel)
    plain.close()
    asked.close()


def pooled(*servers, **settings):
    first, *others = (f"{one.address}#m" for one in servers)
    return open_text_model(first, others=tuple(others), tries=1, max_wait_s=0.01, **settings)


def test_a_pool_shares_by_weight_as_generate_does(serve, completion):
    servers = [serve(script(completion)) for _ in range(2)]
    pools = [pooled(*servers, weights=(3.0, 1.0)) for _ in range(2)]
    said = [f"p{at}" for at in range(40)]
    futures = [submit(pools[0], one) for one in said]
    given = [future.result(WAIT_S) for future in futures]
    assert given == pools[1].generate([prompt(one) for one in said], SAMPLING)
    assert len({one.model for one in given}) == 2
    assert pools[0].asked == pools[1].asked
    for pool in pools:
        pool.close()


@pytest.mark.parametrize("said", ["one", "refuse", "garble", "nothing", "down"])
def test_a_pool_fails_as_generate_does(serve, completion, said):
    servers = [serve(script(completion)) for _ in range(2)]
    one, other = pooled(*servers), pooled(*servers)
    value, wanted = submit(one, said).result(WAIT_S), generated(other, said)
    assert outcome(value) == outcome(wanted)
    if isinstance(wanted, BackendError):  # which names what the first one said, at least
        assert wanted.problems[0].next == value.problems[0].next
    assert one.asked == other.asked
    one.close()
    other.close()


def test_what_fails_is_passed_over_and_left_to_rest():
    first, second = Teacher(), Teacher()
    pool = LoadBalancedModel([PoolEndpoint(first), PoolEndpoint(second, 0.0)])
    future = submit(pool, "a")
    first.answer(fault("backend.unavailable"))
    assert not future.done()
    second.answer(Completion("A"))
    assert future.result(0).text == "A"
    later = submit(pool, "b")
    assert (len(first.asked), len(second.asked)) == (0, 1)
    second.answer(fault("backend.rate-limit"))
    first.answer(Completion("B"))
    assert later.result(0).text == "B"
    assert submit(pool, "c").done() is False
    assert len(first.asked) == 1  # it has answered, so it rests no longer


def test_what_a_request_did_wrong_is_asked_of_no_other():
    first, second = Teacher(), Teacher()
    future = submit(LoadBalancedModel([PoolEndpoint(first), PoolEndpoint(second)]), "a")
    mine, other = (first, second) if first.asked else (second, first)
    mine.answer(fault("backend.refused"))
    assert future.result(0).code == "backend.refused"
    assert not other.asked


def test_where_all_fail_all_are_named_and_a_closed_one_is_told():
    first, second = Teacher(), Teacher()
    pool = LoadBalancedModel([PoolEndpoint(first), PoolEndpoint(second, 0.0)])
    future = submit(pool, "a")
    first.answer(fault("backend.timeout"))
    second.answer(fault("backend.broken"))
    assert len(future.result(0).problems) == 2
    pool = LoadBalancedModel([PoolEndpoint(first), PoolEndpoint(second, 0.0)])
    future = submit(pool, "a")
    second.close()
    first.answer(fault("backend.timeout"))
    assert future.result(0).code == "backend.closed"
    first.close()
    with pytest.raises(BackendError):
        submit(LoadBalancedModel([PoolEndpoint(first)]), "a")
