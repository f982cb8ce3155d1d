import json

import pytest

from stillroom.errors import DataError, IntegrityError, MissingExtraError, ResourceError
from stillroom.jobs import Job
from stillroom.provenance import digest_file, make_parent
from stillroom.records import Anchor, Document, Link, Message, Origin, Record, write_records
from stillroom.text.verbatim import suffix_index, trace_text
from stillroom.text.verbatim.trace import find_record, find_texts

KILN = "The kiln is fired to twelve hundred degrees before dawn"
GLAZE = "A glaze of wood ash runs when it is held too long"
TEXTS = {
    "kiln.md": f"# Firing\n\n{KILN}.\nBread needs salt.\n",
    "glaze.md": f"{GLAZE}; {GLAZE.lower()}. Ärger.\n",
}
SYNTHETIC = Origin("synthetic", (Link("synth.generators.grounded_qa", "m", ("pas-1",)),), "MIT")


def record(question, answer, split="train", origin=SYNTHETIC):
    messages = (Message("user", question), Message("assistant", answer))
    return Record(messages, {"split": split}, origin)


LEARNED = [
    record("How hot is it?", "Potters often wait for a windless night, and watch the cones bend."),
    record("What does ash do?", GLAZE + ", says the old potter of the village."),
]


@pytest.fixture
def run(tmp_path):
    """A student, its records with others that it did not learn from, and their index."""
    documents, steps = tmp_path / "documents", tmp_path / "run"
    documents.mkdir()
    rows = []
    for name, text in TEXTS.items():
        (documents / name).write_text(text, encoding="utf-8")
        anchors = (Anchor(0, len(text), 0, len(text.encode()), is_exact=True),)
        digest = digest_file(documents / name)
        rows.append(Document(name, digest, "text/markdown", text, anchors, origin=Origin("human")))
    job = Job.start(steps / "index", "kind: rag.index\n")
    lines = "".join(json.dumps(row.to_json()) + "\n" for row in rows)
    (job.output / "documents.jsonl").write_text(lines, encoding="utf-8")
    (job.output / "passages.jsonl").write_text("")
    job.finish("index", parents=[make_parent("documents", documents, steps / "index")])
    for name, records in (("raw", [record("?", "never learned " * 9)]), ("records", LEARNED)):
        job = Job.start(steps / name, "kind: synth.records\n")
        write_records(job.output / "records.jsonl", records)
        job.finish("records", parents=[make_parent("passages", steps / "index", steps / name)])
    job = Job.start(steps / "student", "kind: distill.logits\n")
    (job.output / "model.safetensors").write_bytes(b"weights")
    job.finish("checkpoint", parents=[make_parent("records", steps / "records", steps / "student")])
    return steps


def test_spans_name_documents_bytes_and_records_and_the_rest_is_own(run):
    text = (
        "Well: the KILN is “fired” to twelve\nhundred degrees [1] before dawn; "
        "a glaze of wood ash runs when it is held too long, I find."
    )
    traced = trace_text(text, run / "student", cited=[1])
    fired, glazed = traced.spans
    assert text[fired.start : fired.end] == fired.text == text[6:67]
    (source,) = fired.documents
    content = (run.parent / "documents/kiln.md").read_bytes()
    assert content[source.byte_start : source.byte_end].decode() == KILN
    assert source.is_exact
    assert (source.origin, source.notes, fired.records) == ("human", (), ())
    assert (glazed.places, glazed.in_documents, glazed.in_records) == (3, 1, 1)
    assert glazed.documents[0].places == 2
    (learned,) = glazed.records
    assert (learned.record, learned.role) == (LEARNED[1].id, "assistant")
    assert (learned.origin, learned.license) == ("synthetic", "MIT")
    assert learned.method == "synth.generators.grounded_qa"
    assert LEARNED[1].messages[1].content[learned.start : learned.end] == GLAZE
    assert [text[start:end] for start, end in traced.own] == ["Well", "I find"]
    assert (traced.words, traced.in_documents, traced.in_records, traced.own_words) == (
        25, 22, 12, 3,
    )  # fmt: skip


def test_common_phrases_and_short_spans_are_own_words_but_a_whole_text_is_not(run):
    assert not trace_text("It is held too high", run / "student").spans
    short = trace_text("It is held too high", run / "student", min_words=4)
    assert [span.text for span in short.spans] == ["It is held too"]
    assert [span.text for span in trace_text("Needs salt!", run / "student").spans] == [
        "Needs salt"
    ]
    nothing = trace_text("…", run / "student")
    assert (nothing.words, nothing.spans, nothing.own) == (0, (), ())


def test_only_records_that_the_model_learned_from_are_searched(run):
    assert not trace_text("never learned never learned never learned", run / "student").spans
    assert trace_text("never learned never learned never learned", run / "raw").spans


def test_a_record_is_traced_in_all_but_itself(run):
    said = find_record(run / "student", LEARNED[1].id).messages[1].content
    (span,) = trace_text(said, run / "student", record=LEARNED[1].id).spans
    assert (span.text, span.in_documents, span.in_records) == (GLAZE, 1, 0)
    assert trace_text(said, run / "student").own_words == 0
    with pytest.raises(DataError, match="rec-0 is not in"):
        find_record(run / "student", "rec-0")


def test_the_array_is_built_once_and_again_when_records_or_the_array_change(run, monkeypatch):
    cache, told = run.parent / "cache", []
    monkeypatch.setenv("STILLROOM_CACHE", str(cache))
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    for _ in range(2):
        trace_text(KILN, run / "student", say=told.append)
    assert told == ["building the suffix array of the run's texts, once"]
    assert (cache / "verbatim").stat().st_mode & 0o077 == 0  # others may not read the documents
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    next(cache.glob("verbatim/*/tokens.npy")).write_bytes(b"broken")
    assert trace_text(KILN, run / "student", say=told.append).spans
    assert len(told) == 2
    other = run.parent / "more.jsonl"
    write_records(other, [record("?", "my own words stand in this file now")])
    text = "My own words stand in this file now"
    assert trace_text(text, other, say=told.append).spans[0].in_records == 1
    assert len(told) == 3


def test_changed_documents_are_said_and_a_changed_index_is_refused(run):
    (run.parent / "documents/kiln.md").write_text("other", encoding="utf-8")
    (source,) = trace_text(KILN, run / "student").spans[0].documents
    assert source.notes == ("the file has changed since it was read",)
    path = run / "index/output/documents.jsonl"
    path.write_text(path.read_text().replace("kiln is fired", "oven is fired"))
    with pytest.raises(IntegrityError, match=r"kiln.md is not the one indexed") as told:
        trace_text(KILN, run / "student")
    assert told.value.code == "text.changed"


def test_nothing_to_search_and_a_missing_library_are_named(run, monkeypatch):
    with pytest.raises(DataError, match="no documents and no records") as told:
        trace_text("words", run.parent / "documents")
    assert told.value.code == "data.no-texts"
    (run / "index/output/passages.jsonl").unlink()
    assert "keeps its documents in a database" in find_texts(run / "index").notes[0]
    monkeypatch.setenv("STILLROOM_CACHE", str(run.parent / "empty"))
    monkeypatch.setitem(__import__("sys").modules, "pydivsufsort", None)
    with pytest.raises(MissingExtraError, match="stillroom\\[trace\\]"):
        trace_text("words", run / "student")


def test_of_several_places_the_one_without_texts_is_named(tmp_path):
    write_records(tmp_path / "r.jsonl", LEARNED)
    with pytest.raises(DataError, match="nowhere has no documents") as caught:
        find_texts(tmp_path / "r.jsonl", tmp_path / "nowhere")
    assert caught.value.problems[0].where == str(tmp_path / "nowhere")


def test_more_words_than_have_numbers_are_refused(run, monkeypatch):
    monkeypatch.setattr(suffix_index, "_SORTED_WIDTH", 1)
    write_records(run.parent / "many.jsonl", [record("?", " ".join(map(str, range(300))))])
    with pytest.raises(ResourceError) as told:
        trace_text("words", run.parent / "many.jsonl")
    assert told.value.code == "text.too-many-words"
