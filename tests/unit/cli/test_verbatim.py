import json

import pytest
from click.testing import CliRunner

from stillroom.cli.app import stillroom
from stillroom.errors import DataError
from stillroom.jobs import Job
from stillroom.records import Message, Record, write_records

TAUGHT = "A slow cooling kiln keeps the glaze from crazing overnight."


@pytest.fixture
def records(tmp_path):
    """A set of records; the first is quoted by the second."""
    rows = [
        Record((Message("user", "Why slow?"), Message("assistant", TAUGHT))),
        Record((Message("user", "And?"), Message("assistant", f"Note:\n{TAUGHT} \x1b[1mAlways."))),
    ]
    job = Job.start(tmp_path / "records", "version: 1\nkind: synth.records\n")
    write_records(job.output / "records.jsonl", rows)
    job.finish("records", origin={"kind": "unknown"})
    return tmp_path / "records", rows


def show(*arguments):
    return CliRunner().invoke(stillroom, ["show", *map(str, arguments)])


def test_an_answer_is_printed_with_spans_sources_and_own_words(records, tmp_path):
    folder, rows = records
    answer = tmp_path / "answer.json"
    said = {
        "answer": "I think a SLOW cooling kiln keeps the glaze from crazing [1].",
        "citations": [],
        "asked_of": str(folder),
    }
    answer.write_text(json.dumps(said))
    told = show(answer, "--trace")
    assert told.exit_code == 0
    assert told.stdout.splitlines() == [
        "I think «a SLOW cooling kiln keeps the glaze from crazing»(a) [1].",
        "",
        "(a) 9 words, 2 places",
        f"    record    {rows[0].id}  (assistant turn, unknown)",
        f"    record    {rows[1].id}  (assistant turn, unknown)",
        "",
        "searched 25 words of documents and records for spans of 5 words or more that are not "
        "common phrases",
        "verbatim in documents 0 of 12 words, in records 9",
        "in no span 3 words: “I think”; “1”",
    ]
    traced = json.loads(show(answer, "--trace", "--json").stdout)["trace"]
    assert traced["within"] == str(folder)
    assert traced["spans"][0]["records"][0]["record"] == rows[0].id


def test_a_text_file_and_a_record_are_traced(records, tmp_path):
    folder, rows = records
    text = tmp_path / "text.txt"
    text.write_text("Nothing of this stands anywhere.")
    told = show(text, "--trace", "--within", folder).stdout
    assert "in no span 5 words: “Nothing of this stands anywhere”" in told
    told = show(folder, "--trace", "--record", rows[1].id).stdout
    assert told.startswith("Note:\n«A slow cooling kiln keeps the glaze from crazing overnight»(a)")
    assert "\\x1b[1mAlways" in told
    assert f"{rows[0].id}  (assistant turn, unknown)" in told
    assert f"{rows[1].id}  (" not in told


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("text.txt", b"words", "does not name the run or records to search"),
        ("answer.json", b"{}", "is not a text that can be traced"),
        ("latin.txt", b"\xe4\xff", "is not a text that can be traced"),
    ],
)
def test_what_cannot_be_traced_is_an_error_that_says_what_to_do(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    told = show(tmp_path / name, "--trace")
    assert isinstance(told.exception, DataError)
    assert told.exception.code == "data.answer"
    assert said in str(told.exception)


def test_an_answer_of_an_index_that_has_changed_since_is_traced_with_a_note(tmp_path):
    job = Job.start(tmp_path / "index", "version: 1\nkind: rag.index\n")
    (job.output / "documents.jsonl").write_text("")
    (job.output / "passages.jsonl").write_text("")
    job.finish("index", details={"index": "b" * 64})
    answer = tmp_path / "answer.json"
    for state, noted in (("a" * 64, True), ("b" * 64, False)):
        said = {"answer": TAUGHT, "citations": [], "details": {"index": state}}
        answer.write_text(json.dumps({**said, "asked_of": str(tmp_path / "index")}))
        told = show(answer, "--trace")
        assert told.exit_code == 0
        note = "the index has changed since: it was aaaaaaaaaaaaaaaa then"
        assert (told.stdout.splitlines()[-1] == note) is noted
        traced = json.loads(show(answer, "--trace", "--json").stdout)["trace"]
        assert traced["notes"] == ([note] if noted else [])
