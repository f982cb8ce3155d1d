"""What the commands that change an index say of its digests and of its signature."""

import json
import re

import pytest
from click.testing import CliRunner

from stillroom.cli import stillroom
from stillroom.errors import IntegrityError
from stillroom.provenance.signing import create_key_pair


def call(*words):
    done = CliRunner().invoke(stillroom, [*map(str, words)], catch_exceptions=True)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture
def index(tmp_path):
    folder, out = tmp_path / "documents", tmp_path / "index"
    folder.mkdir()
    for n in range(3):
        (folder / f"{n}.txt").write_text(f"The mill number {n} grinds corn.\n")
    return out, call("rag", "index", folder, "--out", out, "embedder=builtin:static").stdout


def test_commands_name_the_snapshot_digest_alike(index):
    out, printed = index
    snapshot = json.loads(call("rag", "log", out, "--json").stdout)["snapshots"][0]["digest"]
    assert f"snapshot 1, snapshot digest {snapshot[:16]}" in printed
    assert f"snapshot digest {snapshot[:16]}" in call("rag", "log", out).stdout
    assert re.search(rf"snapshot digest +{snapshot}", call("show", out).stdout)
    (out.parent / "documents/new.txt").write_text("The miller sells flour.\n")
    printed = [call("rag", "update", out).stdout, call("rag", "delete", out, "new.txt").stdout]
    for line in printed:
        assert re.search("snapshot digest [0-9a-f]{16}$", line.strip()), line
    assert snapshot[:16] in printed[1]


@pytest.mark.parametrize("command", [["update"], ["delete", "0.txt"], ["compact"]])
def test_a_change_of_a_signed_index_says_that_its_signature_is_outdated(
    index, tmp_path, monkeypatch, command
):
    out, _ = index
    key = create_key_pair(tmp_path / "me")[0]
    call("sign", out, "--key", key)
    (out.parent / "documents/new.txt").write_text("The miller sells flour.\n")
    name, *paths = command
    done = call("rag", name, out, *paths)
    advice = f"sign it again: stillroom sign {out} --key"
    assert advice in done.stderr
    with pytest.raises(IntegrityError, match="was changed after it was signed") as caught:
        call("verify", out)
    assert "if you changed it yourself" in str(caught.value)
    call("sign", out, "--key", key)
    call("verify", out)
    monkeypatch.setenv("STILLROOM_SIGNING_KEY", str(key))
    (out.parent / "documents/newer.txt").write_text("The dam holds.\n")
    assert advice not in call("rag", "update", out).stderr
    call("verify", out)
