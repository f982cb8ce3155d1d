"""From an answer that was kept, by the command line or a server, back to the bytes of its files."""

import io
import json
import zipfile
from functools import partial

import pytest
from click.testing import CliRunner

from stillroom.cli import stillroom
from stillroom.cli.results import print_answer
from stillroom.jobs import Job
from stillroom.models import open_embedder
from stillroom.provenance import read_answer, walk_answer
from stillroom.provenance.evidence import describe_citations
from stillroom.rag.generation import answer as answers
from stillroom.rag.index.searcher import Index
from stillroom.rag.jobs.index import IndexRecipe, run
from stillroom.serve.openai.replies import describe_answer
from stillroom.testing import scripted_model

# These tests script what the model writes.
ask = partial(answers.ask, answering="generate")

PAGE = "<html><body><h1>Mills</h1><p>The <b>wind</b> mill grinds barley at night.</p></body></html>"


@pytest.fixture
def asked(tmp_path):
    docx = pytest.importorskip("docx")
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "mill.html").write_text(PAGE)
    (folder / "lock.txt").write_text("The lock of the canal was built in 1834.\n")
    word, buffer = docx.Document(), io.BytesIO()
    word.add_paragraph("The weaver keeps eleven looms in the attic.")
    word.save(buffer)
    (folder / "weaver.docx").write_bytes(buffer.getvalue())
    recipe = IndexRecipe(documents=str(folder), embedder="static")
    run(recipe, Job.start(tmp_path / "index", "recipe\n"), embedder=open_embedder("static"))
    said = (
        "The wind mill grinds barley at night. The weaver keeps eleven looms in the attic. "
        "The lock of the canal was built in 1834."
    )
    with Index.open(tmp_path / "index") as index:
        yield tmp_path, ask(index, scripted_model(lambda prompt: said), "mill weaver lock canal")


def save(place, answer, shape):
    path = place / f"{shape}.json"
    if shape == "printed":
        import click

        @click.command()
        def command():
            print_answer([answer], as_json=True, asked_of=place / "index")

        path.write_text(CliRunner().invoke(command).stdout)
    else:
        message = {
            "content": answer.completion.text,
            "citations": describe_citations(answer.citations, answer.details),
            "answer": describe_answer(answer.details),
        }
        path.write_text(json.dumps({"model": "m", "choices": [{"message": message}]}))
    return path


@pytest.mark.parametrize("shape", ["printed", "served"])
def test_every_citation_leads_to_its_bytes(asked, shape):
    place, answer = asked
    path = save(place, answer, shape)
    tree = walk_answer(read_answer(path), place / "index").to_json()
    cited = [one for one in tree["children"] if one["kind"] == "citation"]
    assert len(cited) == 3
    found = {}
    for one in cited:
        (passage,) = one["children"]
        (document,) = passage["children"]
        name, _, span = document["title"].partition(": bytes ")
        start, _, end = span.split(",")[0].partition("-")
        data = (place / "documents" / name).read_bytes()
        found[name] = data[int(start) : int(end)]
        assert not any("changed" in note for note in document["notes"])
    assert found["mill.html"].endswith(b"<b>wind</b> mill grinds barley at night.")
    assert found["lock.txt"].decode().strip() == "The lock of the canal was built in 1834."
    assert found["weaver.docx"].startswith(b"PK\x03\x04")
    with zipfile.ZipFile(place / "documents/weaver.docx") as archive:
        member = archive.getinfo("word/document.xml")
        assert len(found["weaver.docx"]) >= member.compress_size
    within = [] if shape == "printed" else ["--within", str(place / "index")]
    shown = CliRunner().invoke(stillroom, ["show", str(path), "--lineage", *within])
    assert shown.exit_code == 0, shown.output
    assert "lock.txt: bytes" in shown.output
    assert "changed since" not in shown.output


def test_what_has_changed_or_gone_is_said(asked):
    place, answer = asked
    path = save(place, answer, "printed")
    (place / "documents/lock.txt").write_text("Other words.")
    kept = json.loads(path.read_text())
    kept["citations"][0]["passage_id"] = "pas-00000000000000000000"
    kept["details"]["index"] = "f" * 64
    path.write_text(json.dumps(kept))
    shown = CliRunner().invoke(stillroom, ["show", str(path), "--lineage"]).output
    assert "the file has changed since it was read" in shown
    assert "in no index that this was made from" in shown
    assert "the index has changed since: it was ffffffffffffffff then" in shown


def test_a_served_answer_must_say_what_it_was_asked_of(asked):
    place, answer = asked
    done = CliRunner().invoke(stillroom, ["show", str(save(place, answer, "served")), "--lineage"])
    assert "--within RUN" in str(done.exception)
    assert "data.answer" in str(done.exception)


def test_a_broken_citation_is_named(tmp_path):
    path = tmp_path / "answer.json"
    path.write_text(json.dumps({"answer": "x", "citations": [{"number": "one"}]}))
    with pytest.raises(ValueError, match="a citation of the answer cannot be read"):
        read_answer(path)
    path.write_text("[1, 2]")
    assert read_answer(path) is None
