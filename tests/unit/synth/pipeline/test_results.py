from types import SimpleNamespace

from tests.unit.synth.conftest import Shelf, collect, make_passages

from stillroom.records import Message, Record
from stillroom.synth.interfaces import Filter, FilterResult, Generator
from stillroom.synth.pipeline.scheduler import generate_units
from stillroom.synth.types import GenerationFailure, GenerationResult, WorkItem


class Countdown(Generator):
    """Gives one record a seed, without any teacher."""

    paper = ""

    @property
    def max_requests(self):
        return 1

    @property
    def max_tokens(self):
        return 1

    def open(self, seeds, model):
        return SimpleNamespace(run=lambda: self._drafts(seeds, model))

    def _drafts(self, seeds, model):
        model.append([seed.key for seed in seeds])
        for seed in seeds:
            record = Record((Message("assistant", seed.passage.text),), {"key": seed.key})
            yield GenerationResult(
                seed.key, (record,), (GenerationFailure("said nonsense", "uh"),), asked=2
            )


class Even(Filter):
    """Keeps texts of even length, and remembers what was admitted."""

    paper = ""

    def judge(self, record):
        keep = len(record.messages[0].content) % 2 == 0
        return FilterResult(keep, "" if keep else "odd")


SEEDS = [WorkItem(passage, "train") for passage in make_passages()]


class Calls(list):
    fingerprint = "none"


def count_down(shelf, batch_size, wanted=100):
    calls = Calls()
    more = {"shelf": shelf, "target": wanted, "batch_size": batch_size}
    return collect(calls, Countdown(), [Even()], make_passages(), **more), calls


def test_everything_is_accounted_for():
    harvest, _ = count_down(Shelf(), 3)
    assert harvest.units == len(SEEDS)
    assert harvest.parsed == len(SEEDS)
    assert harvest.requests == 2 * len(SEEDS)
    odd = sum(drop.reason == "odd" for drop in harvest.rejected)
    assert len(harvest.records) + odd == harvest.parsed
    assert harvest.reasons["generator: said nonsense"] == len(SEEDS)


def test_the_size_of_a_group_does_not_change_what_is_kept():
    one = count_down(Shelf(), 1, wanted=2)[0]
    many = count_down(Shelf(), 5, wanted=2)[0]
    assert one == many
    assert len(one.records) == 2


def test_finished_units_are_not_asked_again():
    shelf = Shelf()
    first, _ = count_down(shelf, 4)
    for key in list(shelf)[::2]:
        del shelf[key]
    missing = [seed.key for seed in SEEDS if seed.key not in shelf]
    again, calls = count_down(shelf, 4)
    assert again == first
    assert [key for call in calls for key in call] == missing


def test_it_stops_when_enough_is_kept():
    harvest, calls = count_down(Shelf(), 1, wanted=1)
    assert len(harvest.records) == 1
    assert len(calls) == harvest.units < len(SEEDS)


def test_nothing_wanted_asks_nothing():
    harvest, calls = count_down(Shelf(), 1, wanted=0)
    assert (harvest.units, calls) == (0, [])


def test_pause_is_called_where_the_shelf_is_whole():
    seen = []
    shelf = Shelf()
    list(
        generate_units(
            SEEDS, Countdown(), [], shelf, batch_size=4, pause=lambda: seen.append(len(shelf))
        )
    )
    assert seen == [0, 4]
