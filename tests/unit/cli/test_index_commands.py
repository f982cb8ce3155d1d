"""What the commands that change an index say of its digests and of its signature."""

import json
import re

import pytest
from click.testing import CliRunner

from stillroom.cli import stillroom
from stillroom.errors import DataError, IntegrityError, RecipeError
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
    shown = call("show", out).stdout
    assert re.search(rf"snapshot digest +{snapshot}", shown)
    assert re.search(r"files +[5-9], 0\.1 MB", shown)  # with those that depend on the clock
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


def test_an_update_takes_the_good_files_where_max_failed_allows_the_others(index):
    out, _ = index
    folder = out.parent / "documents"
    (folder / "new.txt").write_text("The miller sells flour.\n")
    for n in range(4):
        (folder / f"{n}.pdf").write_text("no pdf")
    with pytest.raises(DataError, match="4 of 8 documents cannot be used") as caught:
        call("rag", "update", out)
    advice = "stillroom rag update INDEX max_failed=0.5"
    assert caught.value.problems[0].next.endswith(advice)
    with pytest.raises(RecipeError, match="max_failed"):
        call("rag", "update", out, "max_failed=7")
    refused = CliRunner().invoke(stillroom, ["rag", "update", str(out), "chunker.size=9"])
    done = CliRunner().invoke(stillroom, ["rag", "update", str(out), ".", "chunker.size=9"])
    assert "an update takes max_failed=SHARE alone" in done.output
    assert refused.exit_code
    printed = call("rag", "update", out, *advice.split()[4:]).stdout
    assert "1 added, 0 changed" in printed
    assert "4 failed" in printed
    with pytest.raises(DataError, match="4 of 8 documents cannot be used"):
        call("rag", "update", out, folder)
    assert "4 failed" in call("rag", "update", out, folder, "max_failed=1").stdout


def test_search_and_ask_say_that_a_filter_excludes_every_passage(index):
    out, _ = index
    for command in (["ask", out, "What grinds corn?"], ["rag", "search", out, "mill"]):
        done = call(*command, "--where", "path = 'none'")
        assert "no passage passes the filter of documents" in done.output
        assert "the filter" not in call(*command, "--where", "path = 1.txt").output


def test_an_older_snapshot_is_not_to_be_updated(index):
    out, _ = index
    for n in range(3):
        (out.parent / f"documents/{n}.txt").write_text("The mill grinds wheat.\n")
    assert "update index' reads it again" in call("ask", out, "What does the mill grind?").stdout
    call("rag", "update", out)
    assert "since it was indexed" not in call("ask", out, "What does the mill grind?").stdout
    printed = call("ask", out, "What does the mill grind?", "--snapshot", "1").stdout
    assert "since it was indexed: this is snapshot 1; leave out --snapshot" in printed
    assert "rag update" not in printed


def test_a_search_names_the_words_that_no_passage_has(index):
    out, _ = index
    done = call("rag", "search", out, "What does the zeppelin grind?")
    assert 'no passage has "zeppelin"' in done.stderr
    told = json.loads(call("rag", "search", out, "zzzz qqqq", "--json").stdout)
    assert told["notices"] == ['no passage has "zzzz", "qqqq"']
    assert "no passage has" not in call("rag", "search", out, "grinding mills").stderr


def test_a_search_shows_a_heading_as_the_section_and_not_as_marks(tmp_path):
    folder, out = tmp_path / "documents", tmp_path / "index"
    folder.mkdir()
    (folder / "mills.md").write_text("# Mills\n\n## Old mill\n\nThe old mill grinds corn.\n")
    call("rag", "index", folder, "--out", out, "embedder=builtin:static")
    first = call("rag", "search", out, "Who grinds corn?").stdout
    assert "section Mills\n   Old mill: The old mill grinds corn.\n" in first
