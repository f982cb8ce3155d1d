"""The how-to "Prove it to a stranger", run as printed; each output is compared with the page's."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("cryptography")
ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "how-to" / "prove-it-to-a-stranger.md"
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEX = re.compile(r"\b[0-9a-f]{12,64}\b")


def run(block, folder):
    """Run a block of commands in one shell, as a reader would; return what it prints."""
    shim = folder / "bin" / "stillroom"
    if not shim.exists():
        shim.parent.mkdir()
        shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m stillroom "$@"\n')
        shim.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{shim.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "src"),
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


def test_the_page_does_what_it_prints(tmp_path):
    told, compared = "", 0
    for language, body in _FENCE.findall(PAGE.read_text(encoding="utf-8")):
        if language == "yaml":
            (tmp_path / body.split("\n", 1)[0].removeprefix("# ")).write_text(body)
        elif language == "bash":
            told = run(body, tmp_path)
        else:
            lines = iter(normalize(told, tmp_path))
            assert all(line in lines for line in normalize(body, tmp_path)), told  # in this order
            compared += 1
    assert compared == 7
