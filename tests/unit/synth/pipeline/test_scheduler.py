"""Units share a thread where who is asked needs none that waits; a long step holds up no other."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import pytest
from tests.unit.synth.conftest import make_passages

from stillroom.errors import BackendError
from stillroom.records import Completion, Message
from stillroom.synth.pipeline.scheduler import DraftCache, stream_units
from stillroom.synth.prompting.stepwise import StepwiseGenerator, run_concurrently
from stillroom.synth.types import WorkItem

COUNT = 12


class Server:
    """Answers on threads of its own, what it was asked in capitals."""

    name = fingerprint = "server"
    context_length, concurrency = 1000, 4

    def __init__(self):
        self.threads = ThreadPoolExecutor(4)
        self.asked, self.waited = [], []

    def submit(self, prompt, sampling, done):
        said = prompt.messages[-1].content
        self.asked.append(said)
        if "refuse" in said:
            error = BackendError("no", code="backend.refused", expected="e", next="n")
            self.threads.submit(done, error)
        elif "break" in said:
            error = BackendError("down", code="backend.unauthorized", expected="e", next="n")
            self.threads.submit(done, error)
        else:
            self.threads.submit(done, Completion(said.upper(), "stop", 3, 2, self.name))

    def generate(self, prompts, sampling, *, on_done=None, is_cancelled=None):
        self.waited += [prompt.messages[-1].content for prompt in prompts]
        return [Completion("waited for", "stop", 1, 1, "other") for _ in prompts]

    def stream(self, *given): ...
    def score(self, *given): ...
    def count_tokens(self, text): ...
    def close(self): ...


class Twice(StepwiseGenerator):
    """Asks twice; what is between the asks is the test's."""

    templates: ClassVar = {}
    between: ClassVar = staticmethod(lambda unit: None)
    other: ClassVar = None

    @property
    def max_requests(self):
        return 2

    @property
    def max_tokens(self):
        return 9

    def write(self, unit):
        first = yield from unit.ask(f"first {unit.seed.attempt}", tokens=9)
        words = type(self).between(unit) or f"second {unit.seed.attempt}"
        second = yield from unit.ask(words, tokens=9, model=type(self).other)
        if first and second:
            unit.add_record([Message("user", first), Message("assistant", second)], {})


def stream(writer, model, shelf=None, count=COUNT, workers=4, *, started=None, **more):
    passage = make_passages()[0]
    seeds = [WorkItem(passage, "train", attempt) for attempt in range(count)]
    shelf, started = {} if shelf is None else shelf, [] if started is None else started

    class Kept:
        get = staticmethod(shelf.get)
        put = staticmethod(shelf.__setitem__)

    watched = (started.append(seed) or seed for seed in seeds)
    return stream_units(watched, writer, model, DraftCache(Kept), workers=workers, **more)


def test_drafts_come_in_order_and_from_the_shelf_the_second_time():
    model, shelf = Server(), {}
    first = list(stream(Twice(), model, shelf))
    said = [draft.records[0].messages for draft in first]
    assert [one[0].content for one in said] == [f"FIRST {number}" for number in range(COUNT)]
    assert [draft.asked for draft in first] == [2] * COUNT
    assert [draft.prompt_tokens for draft in first] == [6] * COUNT
    assert len(model.asked) == 2 * COUNT
    assert list(stream(Twice(), model, shelf)) == first
    assert len(model.asked) == 2 * COUNT


@pytest.mark.parametrize(("wanted", "most"), [(5, 9), (60, 14)])
def test_no_more_units_are_started_than_the_caller_can_still_want(wanted, most):
    started, given = [], []
    drafts = stream(
        Twice(), Server(), count=60, started=started, wanted=lambda: wanted - len(given)
    )
    while len(given) < 5:
        given.append(next(drafts))
    drafts.close()
    assert len(started) == most


def test_a_long_step_does_not_hold_up_the_other_units():
    done = threading.Semaphore(0)

    class Slow(Twice):
        @staticmethod
        def between(unit):
            if unit.seed.attempt:
                done.release()
            else:  # goes on when three others have been where it stands
                assert all(done.acquire(timeout=30) for _ in range(3))

    assert len(list(stream(Slow(), Server()))) == COUNT


def test_a_refused_ask_costs_its_unit_and_a_broken_teacher_ends_all():
    class Refused(Twice):
        @staticmethod
        def between(unit):
            return "refuse" if unit.seed.attempt == 3 else None

    drafts = list(stream(Refused(), Server()))
    assert [len(draft.records) for draft in drafts] == [1] * 3 + [0] + [1] * 8
    assert drafts[3].failures[0].reason == "refused by the teacher's server"

    class Broken(Twice):
        @staticmethod
        def between(unit):
            return "break" if unit.seed.attempt == 3 else None

    with pytest.raises(BackendError) as caught:
        list(stream(Broken(), Server()))
    assert caught.value.code == "backend.unauthorized"


def test_a_fault_of_the_method_is_raised_and_not_waited_for():
    class Faulty(Twice):
        @staticmethod
        def between(unit):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(stream(Faulty(), Server()))


class Waiting(Server):
    """Cannot be asked without a thread that waits; takes several prompts at once."""

    submit = None

    def generate(self, prompts, sampling, *, on_done=None, is_cancelled=None):
        said = [prompt.messages[-1].content for prompt in prompts]
        self.waited.append(said)
        for at, one in enumerate(said):
            if "refuse" in one:
                raise BackendError("no", code="backend.refused", expected="e", next="n")
            if "break" in one:
                raise BackendError("no", code="backend.unauthorized", expected="e", next="n")
            if on_done is not None:
                on_done(at, Completion(one.upper(), "stop", 3, 2, self.name))
        return [Completion(one.upper(), "stop", 3, 2, self.name) for one in said]


@pytest.mark.parametrize("kind", [Server, Waiting])
def test_another_model_is_asked_as_it_can_be(kind):
    class Other(Twice):
        other = kind()

    model = Server()
    drafts = list(stream(Other(), model))
    assert [draft.records[0].messages[1].content for draft in drafts] == [
        f"SECOND {number}" for number in range(COUNT)
    ]
    assert len(model.asked) == COUNT
    asked = {"asked": len(Other.other.asked), "waited": len(Other.other.waited)}
    assert (
        asked
        == {Server: {"asked": COUNT, "waited": 0}, Waiting: {"asked": 0, "waited": COUNT}}[kind]
    )


class Several(Twice):
    """Asks for several at once, of which one may be refused."""

    refused: ClassVar = ()

    def write(self, unit):
        asks = []
        for number in range(3):
            said = "refuse" if (unit.seed.attempt, number) in type(self).refused else "say"
            asks.append(unit.ask(f"{said} {unit.seed.attempt} {number}", tokens=9))
        for text in (yield from run_concurrently(asks)):
            if text:
                unit.add_record([Message("user", "?"), Message("assistant", text)], {})


def test_a_model_that_keeps_threads_waiting_gives_the_same_drafts():
    class Refused(Several):
        refused = ((1, 0), (3, 2))

    waiting = Waiting()
    drafts = list(stream(Refused(), waiting))
    assert drafts == list(stream(Refused(), Server()))
    assert [len(draft.records) for draft in drafts] == [3, 2, 3, 2] + [3] * 8
    assert sum(len(said) == 3 for said in waiting.waited) == COUNT  # a step of a unit in one call
    with pytest.raises(BackendError) as caught:
        list(stream(type("Broken", (Twice,), {"between": lambda unit: "break"})(), Waiting()))
    assert caught.value.code == "backend.unauthorized"


def test_what_is_at_work_comes_to_its_end_and_no_more_is_begun():
    model, shelf = Server(), {}
    drafts = stream(Twice(), model, shelf, count=400)
    next(drafts)
    drafts.close()
    assert len(model.asked) == 2 * len(shelf)  # nothing is paid for and lost
    assert len(shelf) <= 1 + 2 * 5  # twice what five at work are, beyond the first
