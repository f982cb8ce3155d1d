"""The main commands where the packages of other rooms are not installed, as in a plain install."""

import subprocess
import sys

import pytest

_LACKING = "cv2 av c2pa PIL cryptography"
_CODE = """\
import sys
for name in sys.argv.pop(1).split():
    sys.modules[name] = None
from stillroom.cli import main
main()
"""


def run(*words):
    command = [sys.executable, "-c", _CODE, _LACKING, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_documents_are_read_without_the_packages_for_pictures(tmp_path):
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "a.txt").write_text("The still is warm.\n", encoding="utf-8")
    recipe = tmp_path / "index.yaml"
    recipe.write_text("kind: rag\ndocuments: documents\nembedder: builtin:static\n")
    done = run("run", recipe, "--out", tmp_path / "index", "--quiet")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "words", [("check", "x.png"), ("provenance", "verify", "x.png"), ("trace", "x.png")]
)
def test_commands_that_need_them_name_the_extra(words):
    done = run("forensics", *words)
    assert done.returncode == 3, done.stderr
    assert "pip install 'stillroom[forensics]'" in done.stderr
    assert "[internal]" not in done.stderr
