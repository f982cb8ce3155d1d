"""What every test shares: quiet engines, no network but loopback, one cache folder a session."""

import contextlib
import functools
import gc
import itertools
import os
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from _pytest.runner import runtestprotocol
from hypothesis import HealthCheck, settings
from threadpoolctl import threadpool_limits

from tests.processes import skip_disk_syncs

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

if "PYTEST_XDIST_WORKER" in os.environ:  # a worker a core: more threads would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # where a test trains with all cores
    threadpool_limits(int(os.environ["OMP_NUM_THREADS"]))  # of numpy, which a plugin has loaded

# An empty package in place of one that holds the large reader's base: the default reader is the
# small one, which opens in a twentieth of the time, here and in processes that begin here.
HIDDEN = str(Path(__file__).with_name("hidden"))
sys.path.insert(0, HIDDEN)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [HIDDEN, os.environ.get("PYTHONPATH")]))

# A machine that is busy, or makes its tables of characters first, is no fault of a property.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

_SLOW_FOLDERS = ("tests/attacks/", "tests/contracts/", "tests/property/")
_LOOPBACK = ("127.", "::1", "localhost")
_connect = socket.socket.connect


def _connect_here(self, address):
    if isinstance(address, tuple) and not str(address[0]).startswith(_LOOPBACK):
        raise OSError(f"a test may not connect to {address[0]}")
    return _connect(self, address)


def _defer_grammars():
    """Have a package of jsonschema's read each of its 38 grammars when it is used, not in .8 s."""
    import lark

    build = lark.Lark

    class DeferredParser:
        def __init__(self, *arguments, **settings):
            self._open = functools.cache(lambda: build(*arguments, **settings))

        def parse(self, *arguments, **settings):
            return self._open().parse(*arguments, **settings)

    with mock.patch.object(lark, "Lark", DeferredParser):
        import rfc3987_syntax  # noqa: F401


with contextlib.suppress(ImportError):
    _defer_grammars()
skip_disk_syncs()
gc.disable()  # a million objects are collected with the tests, and none of them is garbage


@pytest.hookimpl(trylast=True)  # after they were shuffled
def pytest_collection_modifyitems(items):
    """Begin with the files that take longest: one at the end is waited for by the other worker."""
    slow = set(Path(__file__).with_name("slow_files.txt").read_text(encoding="utf-8").split())

    def rank(item):
        file = item.nodeid.partition("::")[0]
        if file.startswith("tests/integration/"):
            return 0
        return 1 if file in slow or file.startswith(_SLOW_FOLDERS) else 2

    items.sort(key=rank)
    if "STILLROOM_ALL_EXAMPLES" not in os.environ:
        _draw_half(items)


def _draw_half(items):
    """Draw half of the examples that a property asks for; make test-slow draws all of them."""
    for item in items:
        usual = getattr(item.obj, "_hypothesis_internal_use_settings", None)
        if usual is not None and item.get_closest_marker("hypothesis"):
            function = getattr(item.obj, "__func__", item.obj)
            count = max(1, usual.max_examples // 2)
            if not hasattr(function, "all_examples"):  # one function may be several items
                function.all_examples = usual.max_examples
                function._hypothesis_internal_use_settings = settings(usual, max_examples=count)


def _name_no_place_of_seeds():
    """Have torch seed devices that are not there without noting each time the whole stack."""
    for name in ("torch.cuda", "torch.xpu", "torch.mtia"):
        if name in sys.modules:
            sys.modules[name].traceback = SimpleNamespace(format_stack=list)


def pytest_collection_finish():
    """Leave out the tests themselves whenever garbage is collected."""
    _name_no_place_of_seeds()
    gc.freeze()
    gc.enable()
    gc.set_threshold(20_000, 20, 20)


def pytest_runtest_protocol(item, nextitem):
    """Send no more than one report of a test that passed: three a test cost the suite 6 s."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return None
    for report in runtestprotocol(item, log=False, nextitem=nextitem):
        if report.when == "call" or not report.passed:
            item.ihook.pytest_runtest_logreport(report=report)
    return True


@pytest.hookimpl(tryfirst=True)  # before the fixtures of the test
def pytest_runtest_setup(item):
    """Refuse every connection that leaves the machine, unless a test is marked ``network``."""
    is_online = item.get_closest_marker("network") is not None
    socket.socket.connect = _connect if is_online else _connect_here


@pytest.fixture(scope="session", autouse=True)
def _count_folders(tmp_path_factory):
    """Count the folders of tests: for the number of the next, pytest looks at all before it."""
    make, numbers = tmp_path_factory.mktemp, itertools.count()

    def make_next(name, numbered=True):
        return make(f"{name}_{next(numbers)}" if numbered else name, numbered=False)

    tmp_path_factory.mktemp = make_next


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory, _count_folders):
    """Keep the user's cache out of the tests."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("STILLROOM_CACHE")
    os.environ["STILLROOM_CACHE"] = str(folder)
    yield
    if before is None:
        os.environ.pop("STILLROOM_CACHE", None)
    else:
        os.environ["STILLROOM_CACHE"] = before
