"""Ray: two nodes on one machine, of which one is killed in mid-job; the same bytes all the same."""

from __future__ import annotations

import json
import os
import signal
import threading
import time

import pytest
from tests.engine_works import Fatal, Squares
from tests.integration.main_job import digests, write_documents
from tests.integration.test_engines import flow

from stillroom.errors import DataError, ResourceError
from stillroom.flow import run_recipe
from stillroom.jobs.engines import open_engine
from stillroom.recipes.settings import EngineChoice

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ITEMS = list(range(24))
WANTED = [number**2 for number in ITEMS]
AHEAD = 6
"""Items that a node may have in hand: two calls at an actor, or what Ray Data sends ahead."""


@pytest.fixture(scope="module")
def cluster():
    # By default Ray lets every other process of the machine go before its workers, and gives a node
    # half a minute to start. Both are read as it is imported.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    os.environ["RAY_raylet_start_wait_time_s"] = "300"  # noqa: SIM112
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False},
    )
    try:
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def address_of(cluster):
    """Return the cluster's address on the loopback, the only one that tests may connect to."""
    return f"127.0.0.1:{cluster.address.rpartition(':')[2]}"


def on(cluster, told=lambda line: None, **settings):
    choice = {"ray": {"address": address_of(cluster), **settings}}
    return open_engine(EngineChoice.model_validate(choice), told)


def add_node(cluster):
    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    return node


def when_begun(work, kill):
    """Do something in another thread once a quarter is done."""

    def watch():
        while not work.notes.exists() or len(work.done()) < len(ITEMS) // 4:
            time.sleep(0.05)
        kill(work.done())

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_two_nodes_give_the_same_values_and_one_may_die(cluster, tmp_path):
    node = add_node(cluster)
    told = []
    with on(cluster, told.append, block_size=1) as engine:
        assert engine.num_workers == 2

        for way in ("stream", "map"):
            work = Squares(tmp_path / way, seconds=0.1)
            assert list(getattr(engine, way)(work, ITEMS)) == WANTED
            assert sorted(number for number, _ in work.done()) == ITEMS  # each item once
            with pytest.raises(DataError, match="5 is refused"):
                list(getattr(engine, way)(Squares(tmp_path / f"{way}-no", refused=5), ITEMS))

        work = Squares(tmp_path / "worker", seconds=0.2)
        watcher = when_begun(work, lambda done: os.kill(done[-1][1], signal.SIGKILL))
        assert list(engine.stream(work, ITEMS)) == WANTED
        watcher.join()
        assert engine.lost == 1
        assert "its tasks go to others" in told[0]
        assert len(work.done()) - len(ITEMS) <= AHEAD

        for way in ("stream", "map"):
            work = Squares(tmp_path / f"{way}-node", seconds=0.3)
            dying = node

            def kill(done, dying=dying):
                cluster.remove_node(dying, allow_graceful=False)

            watcher = when_begun(work, kill)
            assert list(getattr(engine, way)(work, ITEMS)) == WANTED
            watcher.join()
            assert len(work.done()) - len(ITEMS) <= AHEAD
            node = add_node(cluster)
    cluster.remove_node(node)


def test_a_cluster_that_is_not_there_is_said():
    pytest.importorskip("ray")
    choice = EngineChoice.model_validate({"ray": {"address": "127.0.0.1:1"}})
    with pytest.raises(ResourceError) as caught, open_engine(choice):
        pass
    assert caught.value.code == "engine.unreachable"


def test_a_job_on_two_nodes_gives_the_bytes_of_one_here(cluster, tmp_path):
    (tmp_path / "script.json").write_text(json.dumps(write_documents(tmp_path / "documents")))
    run_recipe(flow(tmp_path), tmp_path / "here")
    node = add_node(cluster)
    there = flow(tmp_path, {"ray": {"address": address_of(cluster)}})
    asked = tmp_path / "there"
    watcher = threading.Thread(target=lambda: kill_in_records(cluster, node, asked))
    watcher.start()
    run_recipe(there, asked)
    watcher.join()
    assert digests(asked) == digests(tmp_path / "here")
    assert node not in cluster.list_all_nodes()


def kill_in_records(cluster, node, out):
    """Kill a node when the step that asks for records has begun to keep units."""
    until = time.monotonic() + 300
    while time.monotonic() < until:
        if any(path.stat().st_size for path in out.glob("steps/.records-*/journals/units-*")):
            break
        time.sleep(0.01)
    cluster.remove_node(node, allow_graceful=False)


def test_work_that_kills_its_workers_ends_with_an_error(cluster, tmp_path):
    with on(cluster) as engine, pytest.raises(ResourceError) as caught:
        engine.call(Fatal(), [1])
    assert caught.value.code == "engine.worker-lost"
