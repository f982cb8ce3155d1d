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
commands = [[]]
for word in sys.argv[1:]:
    commands[-1].append(word) if word != "--then" else commands.append([])
for command in commands:
    sys.argv[1:] = command
    print("--then")
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise
"""


_MODELS = "torch transformers accelerate peft"


def run(*words, lacking=_LACKING):
    command = [sys.executable, "-c", _CODE, lacking, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_documents_are_read_without_the_packages_for_pictures(tmp_path):
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "a.txt").write_text("The still is warm.\n", encoding="utf-8")
    recipe = tmp_path / "index.yaml"
    recipe.write_text("kind: rag.index\ndocuments: documents\nembedder: builtin:static\n")
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


@pytest.mark.parametrize(
    "embedder", ["builtin:static", "hub:sentence-transformers/all-MiniLM-L6-v2"]
)
def test_an_index_is_built_searched_and_verified_without_torch(embedder, tmp_path):
    documents, index = tmp_path / "documents", tmp_path / "index"
    documents.mkdir()
    for number in range(3):
        text = f"The mill of town {number} ground {number + 7} sacks of corn.\n"
        (documents / f"{number}.txt").write_text(text, encoding="utf-8")
    done = run(
        *("rag", "index", documents, "--out", index, f"embedder={embedder}"),
        *("--then", "verify", index),
        *("--then", "doctor"),
        *("--then", "rag", "search", index, "sacks of town 2"),
        lacking=_MODELS,
    )
    assert done.returncode == 0, done.stderr
    assert "2.txt" in done.stdout.split("--then\n")[-1].splitlines()[0], done.stdout + done.stderr


def test_what_needs_a_local_model_names_the_extra(tmp_path):
    done = run("distill", "align", "hub:a/b", "hub:c/d", "x.txt", lacking=_MODELS)
    assert done.returncode == 3, done.stderr
    assert "pip install 'stillroom[models]'" in done.stderr
