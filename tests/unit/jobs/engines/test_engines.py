"""The registry of engines, and the local one."""

from __future__ import annotations

import pickle
import signal
import sys
import threading
import time

import pytest
from pydantic import ValidationError
from tests.engine_works import Squares

from stillroom.errors import DataError, MissingExtraError, RecipeError, ResourceError
from stillroom.flow import run_recipe
from stillroom.jobs.engines import LocalEngine, open_engine, open_processes
from stillroom.jobs.engines.interfaces import map_prefetched
from stillroom.jobs.engines.worker import RayWorker, select_environment, unpack_results
from stillroom.recipes import EngineChoice, parse_recipe

ITEMS = list(range(11))


def test_local_engine_gives_values_in_order_and_opens_a_work_once(tmp_path):
    work = Squares(tmp_path / "notes")
    engine = LocalEngine()
    wanted = [number**2 for number in ITEMS]

    for size in (1, 3, 100):
        assert list(engine.stream(work, iter(ITEMS), block_size=size)) == wanted
        assert list(engine.map(work, ITEMS, block_size=size)) == wanted
    assert engine.call(Squares(tmp_path / "notes"), [2, 3]) == [4, 9]
    assert work.opened() == 1  # equal works are one


def test_local_stream_takes_no_more_than_it_is_asked_for(tmp_path):
    taken = []

    def items():
        for number in ITEMS:
            taken.append(number)
            yield number

    stream = LocalEngine().stream(Squares(tmp_path / "notes"), items(), block_size=2)
    next(stream)
    assert taken == [0, 1]


def test_pause_is_called_between_blocks(tmp_path):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(LocalEngine().map(Squares(tmp_path / "notes"), ITEMS, pause=stop))


def test_map_ahead_keeps_order_whatever_ends_first():
    import time

    def work(number):
        time.sleep(0.01 * (5 - number))
        return -number

    assert list(map_prefetched(work, iter(range(5)), workers=4)) == [(n, -n) for n in range(5)]


def test_a_hand_gives_back_what_the_work_raises(tmp_path):
    work = Squares(tmp_path / "notes", refused=3)
    hand = RayWorker(1, {})

    done = hand.run("key", lambda: pickle.dumps(work), pickle.dumps([1, 2]))
    assert unpack_results(done) == [1, 4]
    with pytest.raises(DataError, match="3 is refused"):
        unpack_results(hand.run("key", lambda: b"not asked for again", pickle.dumps([3])))


def test_a_hand_tells_where_a_foreign_error_came_from(tmp_path):
    hand = RayWorker(1, {})
    done = hand.run("key", lambda: pickle.dumps(Squares(tmp_path / "notes")), pickle.dumps(["x"]))
    with pytest.raises(TypeError) as caught:
        unpack_results(done)
    assert "on a worker" in caught.value.__notes__[0]


def test_a_hand_closes_the_works_that_were_used_longest_ago(tmp_path):
    hand = RayWorker(1, {})
    for number in range(6):
        work = Squares(tmp_path / f"notes-{number}")
        hand.run(str(number), lambda work=work: pickle.dumps(work), pickle.dumps([1]))
    closed = ["close" in (tmp_path / f"notes-{number}").read_text() for number in range(6)]
    assert closed == [True, True, False, False, False, False]


def test_a_work_that_leaves_while_it_is_in_hand_is_closed_after_that(tmp_path):
    hand, slow = RayWorker(1, {}), Squares(tmp_path / "slow", seconds=0.3)
    done = []
    packed = pickle.dumps(slow)
    thread = threading.Thread(
        target=lambda: done.append(hand.run("slow", lambda: packed, pickle.dumps([3])))
    )
    thread.start()
    while not slow.notes.exists():
        time.sleep(0.005)
    for number in range(4):
        work = pickle.dumps(Squares(tmp_path / f"notes-{number}"))
        hand.run(str(number), lambda work=work: work, pickle.dumps([1]))
    assert "close" not in slow.notes.read_text()
    thread.join()
    assert unpack_results(done[0]) == [9]
    assert slow.notes.read_text().splitlines()[-1].startswith("close")


def test_what_an_engine_here_opened_is_closed_with_it(tmp_path):
    engine, work = LocalEngine(), Squares(tmp_path / "notes")
    assert engine.call(work, [2]) == [4]
    engine.close()
    engine.close()
    assert work.notes.read_text().count("close") == 1


def test_workers_are_given_no_variable_that_holds_a_secret():
    kept = {
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HOME": "/models",
        "HF_HUB_OFFLINE": "1",
        "STILLROOM_MODELS": "/models",
        "HF_KEYRING_FOLDER": "/rings",
    }
    secret = {
        "HF_TOKEN": "hf_1",
        "HF_TOKEN_PATH": "/token",
        "STILLROOM_API_KEY": "sk-1",
        "STILLROOM_SECRET": "1",
        "STILLROOM_ADMIN_PASSWORD": "1",
        "STILLROOM_POSTGRES": "postgres://me:secret@host/db",
        "OPENAI_API_KEY": "sk-2",
        "PATH": "/bin",
    }
    assert select_environment({**kept, **secret}) == kept


@pytest.mark.parametrize(
    ("written", "address"),
    [("ray", None), ({"ray": {"address": "auto"}}, "auto")],
)
def test_engine_is_read_in_both_forms(written, address):
    choice = EngineChoice.model_validate(written)
    assert choice.ray.address == address
    assert choice.model_dump() == {}  # where work is done is no part of the resolved recipe
    assert EngineChoice.model_validate("local").ray is None


def test_unknown_engine_is_refused():
    with pytest.raises(ValidationError, match="'spark' is not an engine"):
        EngineChoice.model_validate("spark")


def test_missing_ray_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(MissingExtraError, match="pip install 'stillroom\\[ray\\]'"),
        open_engine(EngineChoice.model_validate("ray")),
    ):
        pass


def test_an_engine_that_would_be_ignored_is_refused():
    merge = "version: 1\nkind: merge.weights\nmethod: linear\nmodels: [{model: a}, {model: b}]\n"
    with pytest.raises(RecipeError, match=r"engine is not a setting of 'merge\.weights'"):
        parse_recipe(merge + "engine: ray\n")


def test_a_job_without_its_engine_leaves_no_folder(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    recipe = parse_recipe(f"kind: rag.index\ndocuments: {tmp_path}\nengine: ray\n")
    with pytest.raises(MissingExtraError):
        run_recipe(recipe, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_is_told_and_not_waited_for():
    with pytest.raises(ResourceError) as caught, open_processes(1, "workers") as pool:
        list(pool.map(signal.raise_signal, [signal.SIGKILL, signal.SIGTERM]))
    assert caught.value.code == "engine.worker-lost"
    assert "lower workers" in str(caught.value)
