"""Documents as records that a student learns as they stand."""

import json

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.cli.app import stillroom
from stillroom.distill.data.plain_text import ChunkingPlan, chunk_documents
from stillroom.errors import DataError
from stillroom.models import load_causal_lm
from stillroom.provenance import verify_artifact
from stillroom.records import Origin, read_records
from stillroom.train.data import split_records

SENTENCES = [f"The {word} of the house was kept in a jar. " for word in ("oil", "salt", "rue")]


@pytest.fixture
def documents(tmp_path):
    folder = tmp_path / "documents"
    folder.mkdir()
    for at in range(12):
        body = f"# Drops {at}\n\n" + "".join(SENTENCES) * 6
        (folder / f"{at}.md").write_text(body)
    return folder


def records_of(out):
    return list(read_records(out / "output"))


def test_no_record_is_longer_than_is_learned(documents, teacher_folder, tmp_path):
    plan = ChunkingPlan(documents, str(teacher_folder), 64, 0.25, Origin("human", (), "CC0-1.0"))
    artifact, told = chunk_documents(plan, tmp_path / "out")
    _, tokenizer = load_causal_lm(teacher_folder, dtype="float32", device="cpu")
    records = records_of(tmp_path / "out")
    assert len(records) == sum(told.records.values()) > 12
    for record in records:
        (message,) = record.messages
        assert message.role == "assistant"
        assert len(tokenizer(message.content).input_ids) <= 64
        assert record.origin.kind == "human"
        assert record.origin.license == "CC0-1.0"
    whole = "".join((documents / f"{at}.md").read_text() for at in range(12))
    kept = sum(len("".join(one.messages[0].content.split())) for one in records)
    assert kept == len("".join(whole.split()))
    assert artifact.origin == {"kind": "human", "chain": [], "license": "CC0-1.0"}


def test_whole_documents_are_held_out_where_there_are_enough(documents, teacher_folder, tmp_path):
    chunk_documents(ChunkingPlan(documents, str(teacher_folder), 64, 0.4), tmp_path / "out")
    splits = {}
    for record in records_of(tmp_path / "out"):
        splits.setdefault(record.fields["document_id"], set()).add(record.fields["split"])
    assert all(len(found) == 1 for found in splits.values())
    assert {"train", "held_out"} == set().union(*splits.values())


def test_the_end_of_a_single_text_is_held_out(documents, teacher_folder, tmp_path):
    chunk_documents(
        ChunkingPlan(documents / "3.md", str(teacher_folder), 32, 0.3), tmp_path / "out"
    )
    splits = [record.fields["split"] for record in records_of(tmp_path / "out")]
    assert splits == sorted(splits, reverse=True)  # train, then held_out
    assert 0.1 < splits.count("held_out") / len(splits) <= 0.3


def test_a_record_leads_back_to_the_bytes_of_its_document(documents, teacher_folder, tmp_path):
    runner, out = CliRunner(), tmp_path / "out"
    asked = ["distill", "texts", str(documents), "--tokenizer", str(teacher_folder)]
    done = runner.invoke(stillroom, [*asked, "--out", str(out), "--max-tokens", "48", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["documents"] == 12
    record = records_of(out)[2]
    shown = runner.invoke(stillroom, ["show", str(out), "--lineage", "--record", record.id])
    assert shown.exit_code == 0, shown.output
    assert record.fields["source"] in shown.output
    assert "bytes" in shown.output
    place = next(
        json.loads(line)["location"]
        for line in (out / "output" / "passages.jsonl").read_text().splitlines()
        if json.loads(line)["id"] == record.fields["passage_id"]
    )
    raw = (documents / place["path"]).read_bytes()[place["byte_start"] : place["byte_end"]]
    assert raw.decode() == record.messages[0].content
    assert not verify_artifact(out)


def test_files_without_text_are_named_and_the_rest_goes_on(documents, teacher_folder, tmp_path):
    (documents / "empty.md").write_text("")
    (documents / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    _, told = chunk_documents(ChunkingPlan(documents, str(teacher_folder)), tmp_path / "out")
    assert {one.path for one in told.failures} == {"empty.md", "broken.pdf"}
    assert told.documents == 12
    assert "not read: broken.pdf" in str(told)


def test_nothing_to_learn_is_said(tmp_path, teacher_folder):
    (tmp_path / "blank.txt").write_text("  \n \n")
    with pytest.raises(DataError) as caught:
        chunk_documents(ChunkingPlan(tmp_path / "blank.txt", str(teacher_folder)), tmp_path / "out")
    assert caught.value.code == "distill.no-text"
    with pytest.raises(DataError, match="at least 16") as caught:
        chunk_documents(ChunkingPlan(tmp_path, str(teacher_folder), 3), tmp_path / "other")
    assert caught.value.code == "distill.texts"


@settings(max_examples=15, deadline=None)
@given(text=st.text(min_size=1, max_size=400).filter(lambda text: text.strip()))
def test_any_text_comes_back_whole(text, teacher_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")
    (folder / "one.txt").write_text(f"kept {text}", encoding="utf-8", newline="")
    chunk_documents(ChunkingPlan(folder / "one.txt", str(teacher_folder), 16), folder / "out")
    for line in (folder / "out" / "output" / "passages.jsonl").read_text().split("\n")[:-1]:
        passage = json.loads(line)
        place, raw = passage["location"], (folder / "one.txt").read_bytes()
        if place["is_exact"]:
            assert raw[place["byte_start"] : place["byte_end"]].decode() == passage["text"]
    kept = "".join("".join(one.messages[0].content.split()) for one in records_of(folder / "out"))
    assert kept.startswith("kept")


def test_a_file_of_rows_that_nobody_knows_says_which_keys_they_have(tmp_path):
    (tmp_path / "r.jsonl").write_text('{"a": 1, "b": 2}\n')
    with pytest.raises(DataError, match=r"row 1: the row's keys \(a, b\)"):
        split_records(tmp_path / "r.jsonl")
