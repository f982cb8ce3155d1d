"""An engine of llama.cpp that is closed right after it was opened."""

import subprocess
import sys

import pytest
from click.testing import CliRunner

from stillroom.cli import stillroom
from stillroom.testing import tiny_checkpoint

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
