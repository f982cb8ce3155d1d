import os
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stillroom.errors import ResourceError
from stillroom.evaluate import sandbox
from stillroom.evaluate.sandbox import run_code, run_tests

NO_FILE = "FileNotFoundError PermissionError"  # without and with a view of the host's files
HOSTILE = {
    "import socket; socket.socket()": "PermissionError",
    "open('/etc/passwd').read()": NO_FILE,
    "open('/var/out', 'w')": NO_FILE,
    "import os; os.listdir('/srv')": NO_FILE,
    "import os; os.fork()": "PermissionError",
    "import subprocess; subprocess.run(['ls'])": "PermissionError",
    "import os; os.kill(os.getppid(), 9)": "PermissionError",
    "import os; os.remove('/etc/hosts')": "PermissionError",
    "import ctypes; ctypes.CDLL(None).ptrace(16, 1, 0, 0) and 1 / 0": "ZeroDivisionError",
    "x = [0] * 10**9": "out of memory",
    "print('x' * 10**7)": "OSError",
    "import os; os._exit(0)": "ended early",
    "import sys; sys.exit(0)": "ended early",
    "def f(): f()\nf()": "RecursionError",
    "def f(:": "SyntaxError",
    "while True: pass": "out of time",
    "import time; time.sleep(60)": "out of time",
}


@pytest.fixture
def change_isolation(monkeypatch, tmp_path):
    """Return a function that replaces text of a module that runs inside the sandbox."""

    def change(module, old, new):
        inside = tmp_path / "stillroom/evaluate/isolation"
        shutil.copytree(sandbox._START.parent, inside)
        text = (inside / module).read_text()
        assert old in text
        (inside / module).write_text(text.replace(old, new))
        monkeypatch.setattr(sandbox, "_START", inside / "start.py")

    return change


@pytest.mark.parametrize("code", HOSTILE)
def test_hostile_code_gets_nowhere_and_says_why(code):
    outcome = run_code([code], timeout_s=0.5)
    assert outcome.reason
    assert outcome.reason in HOSTILE[code]
    assert not outcome.is_done


def test_plain_code_runs_with_the_standard_library_and_no_environment():
    code = "import collections, decimal, json, math, os, re\nprint(sorted(os.environ), input())"
    outcome = run_code([code], stdin="hello\n")
    assert outcome.is_done
    assert outcome.output == "['LC_ALL', 'PYTHONHASHSEED'] hello\n"


def test_parts_share_a_namespace_in_order():
    assert run_code(["def add(a, b): return a + b", "assert add(1, 2) == 3"]).is_done
    assert run_code(["def add(a, b): return a - b", "assert add(1, 2) == 3"]).reason == (
        "AssertionError"
    )


def test_code_ends_as_an_interpreter_does():
    code = (
        "import atexit, threading, time\natexit.register(lambda: print('last'))\n"
        "def work():\n    time.sleep(.05)\n    print('thread')\n"
        "threading.Thread(target=work).start()"
    )
    assert run_code([code]).output.split() == ["thread", "last"]


def test_success_is_not_to_be_had_by_printing_it():
    code = 'import os\nfor fd in range(3, 12):\n try: os.write(fd, b\'{"done": ""}\\n\')\n'
    outcome = run_code([f"{code} except OSError: pass\nos._exit(0)"])
    assert outcome.reason == "ended early"


def test_where_the_doors_do_not_close_nothing_is_run(change_isolation):
    change_isolation("confinement.py", "libc.syscall(444, None, 0, 1)", "-1")
    with pytest.raises(ResourceError, match="cannot be isolated"):
        run_tests("x = 1", ["assert x == 1"])
    with pytest.raises(ResourceError, match="cannot be isolated") as caught:
        run_code(["print(1)"])
    assert caught.value.problems[0].code == "evaluate.sandbox"
    assert "Landlock" in caught.value.problems[0].expected


def test_tests_may_end_before_the_program_has_begun(change_isolation):
    change_isolation(
        "program.py", "    die_with_parent(libc)\n", "    __import__('time').sleep(9)\n"
    )
    assert "are not valid Python" in run_tests("def f(): return 1", ["assert f( == 1"]).reason


def test_where_users_have_no_namespaces_the_other_doors_close_and_it_is_said(monkeypatch, caplog):
    monkeypatch.setattr(sandbox, "_NAMESPACES", False)
    sandbox._warn_of_open_access.cache_clear()
    for code in ("open('/etc/passwd')", "import os; os.kill(os.getppid(), 0)"):
        assert run_code([code]).reason == "PermissionError"
    assert run_tests("def f(n): return n", ["assert f(1) == 1"]).is_done
    assert caplog.text.count("can find out which files exist") == 1
    sandbox._warn_of_open_access.cache_clear()


@pytest.mark.parametrize("namespaces", [True, False])
def test_threads_are_few_for_every_user(monkeypatch, namespaces):
    # the kernel does not count the threads of root, nor of a namespace that is not there
    monkeypatch.setattr(sandbox, "_NAMESPACES", namespaces)
    code = (
        "import _thread, time\nmade = 0\n_thread.stack_size(1 << 15)\n"
        "try:\n    while made < 900:\n        _thread.start_new_thread(time.sleep, (9,))\n"
        "        made += 1\nexcept RuntimeError:\n    pass\nprint(made)"
    )
    counted_together = not namespaces and os.geteuid() != 0
    tasks = int(Path("/proc/loadavg").read_text().split("/")[1].split()[0])
    most = tasks + 64 * os.cpu_count() if counted_together else 64
    assert 8 <= int(run_code([code]).output) <= most


LIMIT = "    _limit(resource.RLIMIT_CORE, 0)\n"


def test_a_machine_that_allows_less_is_no_reason_to_run_nothing(change_isolation):
    less = "    resource.setrlimit(resource.RLIMIT_NPROC, (50, 50))\n"
    change_isolation("confinement.py", LIMIT, less + LIMIT)
    assert run_code(["print(1)"]).output == "1\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_checks_of_one_user_take_no_threads_from_each_other(monkeypatch, change_isolation):
    monkeypatch.setattr(sandbox, "_NAMESPACES", False)
    start = "    seconds, threads ="
    user = "    os.setresuid(54321, 0, 0)\n    os.getuid = os.geteuid\n"
    few = "    globals()['_count_tasks'] = lambda: 0\n"
    change_isolation("confinement.py", start, user + few + start)
    code = (
        "import threading, time\nthreading.stack_size(1 << 16)\n"
        "for _ in range(45): threading.Thread(target=time.sleep, args=(0.3,)).start()"
    )
    with ThreadPoolExecutor(2) as pool:
        assert all(outcome.is_done for outcome in pool.map(run_code, [[code]] * 2))


def test_no_path_of_the_host_is_seen(caplog, tmp_path):
    sandbox._warn_of_open_access.cache_clear()
    outcome = run_code([f"import os\nos.stat({str(tmp_path)!r})"])
    if "user namespaces" in caplog.text:
        pytest.skip("this machine gives no user namespaces")
    assert outcome.reason == "FileNotFoundError"
    code = "import os\nprint(os.getppid(), os.path.exists('/etc'), os.path.exists('/proc'))"
    assert run_code([code]).output == "1 False False\n"


def test_nothing_is_left_running():
    mark = 2**29 + os.getpid()  # stands in the arguments; other tests run code at the same time
    sleeps = "import time\ndef f(): time.sleep(60)"
    limits = {"timeout_s": 0.2, "memory_bytes": mark}
    with ThreadPoolExecutor(2) as pool:
        runs = pool.submit(run_code, [f"{sleeps}\nf()"], **limits)
        tests = pool.submit(run_tests, sleeps, ["f()"], **limits)
    assert (runs.result().reason, tests.result().reason) == ("out of time", "out of time")
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert str(mark) not in listed.stdout


def test_a_start_that_took_too_long_is_tried_again_with_patience(monkeypatch):
    given = []

    def slow(order, files, out, err, timeout_s, plain=sandbox._run_processes):
        given.append(timeout_s)
        return (-signal.SIGXCPU, {}) if len(given) == 1 else plain(order, files, out, err, 60)

    monkeypatch.setattr(sandbox, "_run_processes", slow)
    assert run_code(["print(1)"], timeout_s=1).output == "1\n"
    assert given == [1, 1 + sandbox._STARTUP_S]
