"""A run that is killed keeps every completion it had, and goes on to the same bytes."""

import signal
import subprocess
import sys
import time

from stillroom.models.cache import CompletionCache, wrap_with_cache
from stillroom.records import Prompt, Sampling
from stillroom.testing import scripted_model

WORKER = """
import sys, time
from pathlib import Path
from stillroom.models.cache import wrap_with_cache
from stillroom.records import Prompt, Sampling
from stillroom.testing import scripted_model

def answer(prompt):
    time.sleep(0.005)
    return prompt.text.upper()

model = wrap_with_cache(scripted_model(answer, fingerprint="m"), Path(sys.argv[1]))
start, stop = int(sys.argv[2]), int(sys.argv[3])
model.generate([Prompt(text=f"row {n}") for n in range(start, stop)], Sampling())
model.close()
"""


def start(path, first, last):
    return subprocess.Popen([sys.executable, "-c", WORKER, str(path), str(first), str(last)])


def test_a_kill_loses_nothing_that_was_done(tmp_path):
    path = tmp_path / "c.sqlite"
    process = start(path, 0, 2000)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if path.exists():
            cache = CompletionCache(path)
            done = len(cache)
            cache.close()
            if done > 20:
                break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    model = scripted_model(lambda prompt: prompt.text.upper(), fingerprint="m")
    again = wrap_with_cache(model, path)
    kept = len(again.cache)
    assert kept > 20
    given = again.generate([Prompt(text=f"row {n}") for n in range(kept + 5)], Sampling())
    assert [c.text for c in given] == [f"ROW {n}" for n in range(kept + 5)]
    assert len(model.asked) == 5
    again.close()


def test_several_processes_share_one_cache(tmp_path):
    path = tmp_path / "c.sqlite"
    processes = [start(path, first, first + 60) for first in (0, 30, 60)]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    cache = CompletionCache(path)
    assert len(cache) == 120
    cache.close()
