"""``ask --out`` and the export of records: files that say what wrote them."""

import base64
import json
import re
from dataclasses import replace

import pytest
from click.testing import CliRunner
from tests.console_folder import build_folder

from stillroom.cli import stillroom
from stillroom.cli.ask import write_answers
from stillroom.provenance.signing.keys import KEY_VARIABLE, create_key_pair
from stillroom.provenance.text_marks import open_marker
from stillroom.records import (
    Answer,
    Citation,
    Completion,
    Link,
    Location,
    Message,
    Origin,
    Record,
    read_records,
    write_records,
)
from stillroom.records.text_credentials import Disclosure, read_credentials, remove_marks

CITATION = Citation(1, "pas-1", Location("a.txt", "0" * 64, 0, 9), "It rises.")
BY_WORDS = "quote:reader=builtin:overlap,min_probability=0"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return build_folder(tmp_path_factory.mktemp("answers")) / "run"


def call(*arguments, code=0):
    told = CliRunner().invoke(stillroom, [str(one) for one in arguments])
    assert told.exit_code == code, (told.output, told.exception)
    return told.output + (str(told.exception) if code else "")


def test_nothing_asked_and_a_folder_of_documents_are_refused_with_what_to_do(run, tmp_path):
    assert "QUESTION is empty" in call("ask", run, " ", code=2)
    folder = tmp_path / "our minutes"
    folder.mkdir()
    (folder / "may.txt").write_text("The river rises in May.\n", encoding="utf-8")
    told = call("ask", folder, "When does it rise?", code=1)
    assert f"stillroom rag index '{folder}' --out index" in told
    told = call("show", folder / "may.txt", code=1)
    assert f"stillroom verify '{folder / 'may.txt'}'" in told


@pytest.mark.parametrize("suffix", ["txt", "md", "html"])
def test_a_quoted_answer_is_written_with_its_sources_and_a_mark(run, tmp_path, suffix):
    out = tmp_path / f"answer.{suffix}"
    told = call("ask", run, "Where does the river rise?", "--answering", BY_WORDS, "--out", out)
    assert f"\nwritten  {out}, with a content credential, signed by a key that is not kept" in told
    text = out.read_bytes().decode()
    (found,) = read_credentials(text)
    assert (found.state, found.source_type, found.says_synthetic) == ("valid", "composite", False)
    assert "The river rises in the north." in text
    (place,) = {line for line in told.splitlines() if line.startswith("[2] ")}
    path, start, end = re.match(r"\[2\] (\S+): bytes (\d+)-(\d+)", place).groups()
    assert f"{path}: bytes {start}-{end}" in text
    quoted = (run.parent / "documents" / path).read_bytes()[int(start) : int(end)]
    assert quoted == b"The ferry sails at noon."  # the passage goes on


@pytest.mark.parametrize("option", ["--evidence", "--json"])
def test_an_answer_in_a_file_is_shown(run, tmp_path, option):
    path, question = tmp_path / "an answer.json", "Where does the river rise?"
    ask = ["ask", run, question, "--answering", BY_WORDS]
    told = call(*ask, *([option, path] if option == "--evidence" else [option]))
    if option == "--json":
        path.write_text(told)
    shown = call("show", path)
    assert "The river rises in the north." in shown
    assert "rivers.txt: bytes" in shown
    as_json = json.loads(call("show", path, "--json"))["answer"]
    assert as_json["text"].startswith("The river rises")
    if option == "--evidence":
        assert f"question         {question}" in shown
        assert as_json["signature"] == "unsigned"
        assert re.search(rf"signature +unsigned \(stillroom verify '{path}'\)", shown)
        forged = r"Who pays?\n  signature        valid by key"
        envelope = json.loads(path.read_text())
        payload = base64.b64decode(envelope["payload"]).decode().replace(question, forged)
        envelope["payload"] = base64.b64encode(payload.encode()).decode()
        path.write_text(json.dumps(envelope))
        shown = call("show", path)
        assert "differences      digest: it was changed" in shown
        assert f"question         {forged}" in shown  # on one line
    else:
        path.write_text(json.dumps({**json.loads(told), "details": {"judged": [1]}}))
        assert "cannot be read: TypeError" in call("show", path, "--json", code=1)


def test_the_text_of_a_model_names_it_and_the_configured_key_signs(run, tmp_path, monkeypatch):
    private, public = create_key_pair(tmp_path / "me")
    monkeypatch.setenv(KEY_VARIABLE, str(private))
    out = tmp_path / "answer.md"
    call("ask", run, "Where does it rise?", "--answering", "generate", "--out", out)
    (found,) = read_credentials(out.read_bytes().decode())
    assert (found.state, found.says_synthetic) == ("valid", True)
    assert found.model_name
    assert found.model_identifier
    told = call("forensics", "provenance", "verify", out, "--trust", public)
    assert "integrity: intact" in told
    assert "trust: user" in told
    assert f"model {found.model_name}" in told
    out.write_text(out.read_text(encoding="utf-8").replace("rise", "sink", 1), encoding="utf-8")
    told = call("forensics", "provenance", "verify", out, "--trust", public, code=1)
    assert "changed since it was signed" in told


def test_a_file_says_what_no_passage_supports(tmp_path):
    statements = [
        {"start": 0, "end": 9, "status": "supported"},
        {"start": 10, "end": 19, "status": "unsupported"},
        {"start": 20, "end": 30, "status": "unverified"},
    ]
    answer = Answer(
        Completion("It rises. It falls. It floods."), (), (), {"statements": statements}
    )
    cited = replace(answer, citations=(CITATION,))
    for name, made, told in (
        ("a.txt", answer, ["No passage supports this answer."]),
        ("b.md", cited, ["Not in any passage: It falls.", "Not in the cited passage: It floods."]),
        ("c.html", cited, ["<p>Not in any passage: It falls.</p>"]),
        ("d.txt", replace(answer, details={"abstained": True}), []),
    ):
        list(write_answers([made], tmp_path / name, "Why?", model="m", is_marked=False))
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert all(line in text for line in told)
        assert told or "No passage" not in text


def test_lines_of_an_answer_stay_lines_and_a_heading_is_one(tmp_path):
    steps = Completion("1. Open it.\n2. Pour.\n\nWait <5 min.", 1, 1, "stop", "m")
    for name in ("a.html", "a.md"):
        answer = [Answer(steps, (), (CITATION,))]
        list(write_answers(answer, tmp_path / name, "How\nso?", model="m", is_marked=False))
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "<p>1. Open it.<br>\n2. Pour.</p>\n<p>Wait &lt;5 min.</p>" in text
    assert (tmp_path / "a.md").read_text(encoding="utf-8").startswith("# How so?\n\n1. Open")


def test_names_of_files_and_the_question_are_no_html_in_markdown(tmp_path):
    cited = replace(CITATION, location=replace(CITATION.location, path="<img src=x>.md"))
    answer = [Answer(Completion("Yes [1].", 1, 1, "stop", "m"), (cited,))]
    out = tmp_path / "a.md"
    list(write_answers(answer, out, "<b>Why?", model="m", is_marked=False))
    text = out.read_text(encoding="utf-8")
    assert text.startswith("# &lt;b&gt;Why?\n")
    assert "[1] &lt;img src=x&gt;.md" in text


def test_a_marked_question_is_asked_and_written_without_its_mark(run, tmp_path):
    question = open_marker().mark("Where does it rise?", Disclosure(model_name="m"))
    out = tmp_path / "answer.md"
    call("ask", run, question, "--answering", BY_WORDS, "--out", out)
    text = out.read_text(encoding="utf-8")
    assert remove_marks(text).startswith("# Where does it rise?\n")
    assert len(read_credentials(text)) == 1


def test_one_switch_gives_clean_text(run, tmp_path):
    out = tmp_path / "answer.txt"
    call("ask", run, "Where does it rise?", "--answering", BY_WORDS, "--out", out, "--no-mark")
    assert read_credentials(out.read_text(encoding="utf-8")) == []


def test_a_file_that_cannot_be_written_is_refused_before_the_question_is_asked(run, tmp_path):
    told = call("ask", run, "Where?", "--out", tmp_path / "answer.docx", code=1)
    assert "[data.suffix]" in told
    (tmp_path / "answer.txt").write_text("mine")
    told = call("ask", run, "Where?", "--out", tmp_path / "answer.txt", code=1)
    assert "[data.exists]" in told
    assert (tmp_path / "answer.txt").read_text() == "mine"
    words = ["Where does it rise?", "--answering", BY_WORDS]
    call("ask", run, *words, "--out", tmp_path / "answer.txt", "--overwrite")
    assert "mine" not in (tmp_path / "answer.txt").read_text(encoding="utf-8")


def test_exported_records_of_a_model_are_marked_on_demand(tmp_path):
    origin = Origin("synthetic", (Link("synth.generators.grounded_qa", "gguf:abc"),))
    turns = (Message("user", "What is a still?"), Message("assistant", "A vessel."))
    rows = [Record(turns, {}, origin), Record(turns, {}, Origin("human"))]
    write_records(tmp_path / "records.jsonl", rows)
    call("synth", "export", tmp_path / "records.jsonl", "--out", tmp_path / "data", "--mark")
    exported = tmp_path / "data" / "train.jsonl"
    ids = [json.loads(line)["id"] for line in exported.read_text().splitlines()]
    assert ids == [row.id for row in rows]
    read = list(read_records(exported))
    assert [one.origin.kind for one in read] == ["synthetic", "human"]
    assert read[0].origin.chain == (
        Link("c2pa.valid", "gguf:abc", read[0].origin.chain[0].parents),
    )
    assert read[0].messages == turns
    call("synth", "export", tmp_path / "records.jsonl", "--out", tmp_path / "clean")
    plain = [one.origin.chain for one in read_records(tmp_path / "clean/train.jsonl")]
    assert plain == [(), ()]
    told = call(
        *("synth", "export", tmp_path / "records.jsonl", "--out", tmp_path / "more"),
        *("--mark", "--format", "stillroom"),
        code=1,
    )
    assert "[data.mark]" in told
