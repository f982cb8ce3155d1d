"""The how-to "Prove it to a stranger", run as printed; each output is compared with the page's."""

import os
import re
import subprocess
import sys
import threading
from multiprocessing.connection import Client, Listener
from pathlib import Path

import pytest
from tests.processes import run_process

pytest.importorskip("cryptography")
ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "how-to" / "prove-it-to-a-stranger.md"
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEX = re.compile(r"\b[0-9a-f]{12,64}\b")


# One stream, so that what was printed stands in the order in which it was.
_COMMAND = "import os, runpy; os.dup2(1, 2); runpy.run_module('stillroom', {}, '__main__', True)"
_SHIM = """#!{python} -S
import os, sys
from multiprocessing.connection import Client
with Client({place!r}) as caller:
    caller.send((sys.argv[1:], os.getcwd(), dict(os.environ)))
    code, printed = caller.recv()
sys.stdout.write(printed)
sys.exit(code)
"""


@pytest.fixture
def folder(tmp_path):
    """A folder whose ``bin/stillroom`` runs commands in processes that begin with the libraries."""
    place = str(tmp_path / "commands")
    shim = tmp_path / "bin" / "stillroom"
    shim.parent.mkdir()
    shim.write_text(_SHIM.format(python=sys.executable, place=place))
    shim.chmod(0o755)
    with Listener(place) as listener:
        answering = threading.Thread(target=answer_commands, args=(listener,))
        answering.start()
        yield tmp_path
        with Client(place) as caller:
            caller.send(None)
        answering.join()


def answer_commands(listener):
    while True:
        with listener.accept() as caller:
            asked = caller.recv()
            if asked is None:
                return
            words, folder, environment = asked
            command = [sys.executable, "-c", _COMMAND, *words]
            done = run_process(command, cwd=folder, env=environment)
            caller.send((done.returncode, done.stdout))


def run(block, folder):
    """Run a block of commands in one shell, as a reader would; return what it prints."""
    environment = {
        **os.environ,
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "STILLROOM_LAB": str(folder / "lab"),
    }
    environment.pop("STILLROOM_SIGNING_KEY", None)
    done = subprocess.run(
        ["bash", "-c", f"({block}) 2>&1"], cwd=folder, env=environment, capture_output=True
    )
    told = done.stdout.decode()
    assert "Traceback" not in told
    return told


def normalize(text, folder):
    """Return lines without what differs between two keys, two places and two times."""
    text = re.sub(r"\d+ s of processor time", "<s>", text)
    return _HEX.sub("<hex>", text.replace(str(folder), "…")).splitlines()


def test_the_page_does_what_it_prints(folder):
    told, compared = "", 0
    for language, body in _FENCE.findall(PAGE.read_text(encoding="utf-8")):
        if language == "yaml":
            (folder / body.split("\n", 1)[0].removeprefix("# ")).write_text(body)
        elif language == "bash":
            told = run(body, folder)
        else:
            lines = iter(normalize(told, folder))
            assert all(line in lines for line in normalize(body, folder)), told  # in this order
            compared += 1
    assert compared == 7
