import contextlib
import json
import os

import pytest
from click.testing import CliRunner

from stillroom.cli import stillroom
from stillroom.errors import DataError
from stillroom.jobs import Job
from stillroom.models import open_embedder
from stillroom.provenance import read_artifact
from stillroom.rag.index import builder
from stillroom.rag.ingestion.discovery import check_failures, digest_files
from stillroom.rag.ingestion.preparation import FailedDocument
from stillroom.rag.jobs.index import IndexRecipe, run
from stillroom.rag.maintenance import update
from stillroom.text import FolderScan, ParseFailure
from stillroom.text.interfaces import Chunker


class Meddling:
    """The embedder of hashed words, which changes the documents before its first call."""

    def __init__(self, meddle):
        self._inner, self._meddle = open_embedder("static"), meddle

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def embed(self, texts, *, kind):
        meddle, self._meddle = self._meddle, lambda: None
        meddle()
        return self._inner.embed(texts, kind=kind)


class Nothing(Chunker):
    """Finds no passage in any document that speaks of dogs."""

    def split(self, document, ruler):
        if "dog" in document.text:
            return []
        return IndexRecipe(documents="d", embedder="static").chunker.split(document, ruler)


def failures(artifact):
    return {failed["path"]: failed["code"] for failed in artifact.details["failed"]}


def test_a_document_that_changes_meanwhile_is_left_out_and_counted(build, folder):
    cities = folder / "places/tokyo.txt"
    artifact = build(embedder=Meddling(lambda: cities.write_text("Tokyo is large.\n")))
    assert failures(artifact) == {"places/tokyo.txt": "rag.document-changed"}
    assert artifact.details["documents"] == 5


def test_a_document_that_goes_away_meanwhile_is_left_out_and_counted(build, folder):
    artifact = build(embedder=Meddling((folder / "places/tokyo.txt").unlink))
    assert set(failures(artifact)) == {"places/tokyo.txt"}


def test_of_two_names_that_read_the_same_in_utf8_one_is_left_out_and_counted(build, folder):
    for name in (b"\xfe.txt", b"\xff.txt"):
        (folder / os.fsdecode(name)).write_text("An otter swims.\n")
    artifact = build()
    assert failures(artifact) == {"\N{REPLACEMENT CHARACTER}.txt": "rag.unreadable"}
    assert artifact.details["documents"] == 7


def test_a_document_without_a_passage_is_left_out_and_counted(folder, tmp_path):
    recipe = IndexRecipe(documents=str(folder), embedder="static")
    recipe = recipe.model_copy(update={"chunker": Nothing()})
    job = Job.start(tmp_path / "index", "recipe\n")
    artifact = run(recipe, job, embedder=open_embedder("static"))
    job.close()
    assert failures(artifact) == {"animals/dogs.md": "rag.no-text"}


def test_pages_that_are_pictures_are_told_while_an_index_is_built(build, folder, tmp_path):
    np = pytest.importorskip("numpy")
    pytest.importorskip("pypdfium2")
    from tests.unit.text.papers import Paper

    paper = Paper().page().text(72, 700, "A page of text that can be read without any reader.")
    paper.page().image(np.full((400, 600), 200, np.uint8), 0, 0, 612, 792)
    (folder / "scan.pdf").write_bytes(paper.save())
    build(limits={"ocr": "never"})
    events = (tmp_path / "index" / "events.jsonl").read_text()
    assert "scan.pdf" in events
    assert "1 page is a picture and left out" in events


def test_a_bad_file_takes_one_line_whatever_it_is_called(tmp_path):
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "good.md").write_text("The mill grinds corn.\n")
    names = ("bad\nleft out: good.md: forged.txt", "red\x1b[31m.txt", "turned\u202e.txt")
    for name in names:
        (folder / name).write_bytes(b"")
    out = str(tmp_path / "index")
    settings = ("embedder=builtin:static", "max_failed=0.9")
    told = CliRunner().invoke(stillroom, ["rag", "index", str(folder), "--out", out, *settings])
    assert told.exit_code == 0, told.output
    lines = told.stderr.splitlines()
    assert sum(line.startswith("warning: left out: ") for line in lines) == len(names)
    assert all(line.isprintable() for line in lines)
    assert any("bad\\nleft out: good.md: forged.txt: the file is empty" in line for line in lines)


def test_the_share_that_a_refusal_names_is_enough():
    failed = [FailedDocument(f"{n}.txt", "rag.unreadable", "broken") for n in range(29)]
    with pytest.raises(DataError) as caught:
        check_failures(failed, 100, 0.1, "papers")
    assert "stillroom rag index FOLDER --out INDEX --overwrite max_failed=0.29 " in str(
        caught.value
    )
    check_failures(failed, 100, 0.29, "papers")


@pytest.mark.parametrize("command", ["index", "update"])
def test_reading_stops_once_too_many_documents_have_failed(tmp_path, monkeypatch, command):
    for module in (builder, update):
        monkeypatch.setattr(module, "MOST_READ_IN_VAIN", 3)
    folder, out = tmp_path / "documents", tmp_path / "index"
    folder.mkdir()

    def invoke(*words):
        return CliRunner().invoke(stillroom, ["rag", *map(str, words)])

    for n in range(4):
        (folder / f"e{n}.txt").write_text("")
        (folder / f"z{n}.txt").write_text(f"The mill number {n} grinds corn.\n")
    settings = ("--out", out, "embedder=builtin:static")
    if command == "update":
        assert invoke("index", folder, *settings).exit_code == 0
        settings = ()
    for n in range(4):
        (folder / f"b{n}.txt").write_bytes(bytes(range(256)) * 4)
        (folder / f"y{n}.txt").write_text(f"The miller number {n} sells flour.\n")
    done = invoke(command, *([folder] if command == "index" else [out]), *settings)
    assert done.exit_code == 1, done.output
    assert "left out: b3.txt" in done.stderr
    assert not {"e0.txt", "y0.txt"} & set(done.stderr.replace(":", " ").split()), done.stderr
    assert "4 of 16 documents cannot be used (document.binary 4); stopped before" in str(
        done.exception
    )
    again = "--overwrite max_failed=1 " if command == "index" else "max_failed=1"
    assert again in str(done.exception)
    if command == "index":
        with pytest.raises(DataError, match="by the command that started it, with --resume"):
            read_artifact(out)


@pytest.mark.parametrize("names", ["names.ent", "names.mod"])
def test_documents_are_read_again_with_a_changed_list_of_entities(tmp_path, names):
    folder, out = tmp_path / "documents", tmp_path / "index"
    folder.mkdir()
    (folder / "page.docbook").write_text(
        f'<!DOCTYPE article [ <!ENTITY % names SYSTEM "{names}"> %names; ]>\n'
        "<article><para>The product &app; grinds corn.</para></article>\n"
    )
    (folder / "plain.xml").write_text("<article><para>Flour &amp; bran.</para></article>\n")
    (folder / "none.ent").write_text("")  # has no text, so that no index has it

    def call(name, *words):
        command = ["rag", name, *map(str, words)]
        return CliRunner().invoke(stillroom, command, catch_exceptions=False)

    def search():
        return call("search", out, "corn").stdout

    build = ("index", folder, "--out", out, "--overwrite", "embedder=builtin:static")
    for name in ("Millwright", "Stonegrinder"):
        (folder / names).write_text(f'<!ENTITY app "{name}">\n')
        done = call(*build)
        assert name in search(), done.output
    assert "has changed" not in call("update", out).stderr
    (folder / names).write_text('<!ENTITY app "Sifter">\n')
    assert f"{names} has changed, which may declare entities: 1 unch" in call("update", out).stderr
    assert "has changed" not in call("update", out).stderr
    call(*build)
    assert "Sifter" in search()


def test_pictures_without_text_are_no_failures_as_long_as_a_document_is_read():
    pictures = [FailedDocument(f"img/{n}.PNG", "document.no-text", "no text") for n in range(8)]
    check_failures(pictures, 9, 0.2, "wiki")
    broken = FailedDocument("scan.png", "document.unreadable", "broken")
    for failed in (
        [*pictures, broken],
        [*pictures, FailedDocument("a.pdf", "document.no-text", "")],
    ):
        with pytest.raises(DataError, match=r"max_failed=0\.5 ") as caught:
            check_failures(failed, 10, 0.2, "wiki")
        assert "at most 20% of them, files with nothing to read aside" in str(caught.value)
    with pytest.raises(DataError, match="8 of 8"):
        check_failures(pictures, 8, 1, "wiki")


def test_empty_files_are_listed_and_are_no_failures(tmp_path):
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "good.md").write_text("The mill grinds corn.\n")
    blank = {"__init__.py": "", "b.txt": " \n", "c.pdf": "", "d.md": "---\ntitle: D\n---\n\n"}
    for name, text in blank.items():
        (folder / name).write_text(text)
    out = tmp_path / "index"
    command = ["rag", "index", str(folder), "--out", str(out), "embedder=builtin:static"]
    told = CliRunner().invoke(stillroom, command)
    assert told.exit_code == 0, told.output
    assert [one["path"] for one in read_artifact(out).details["failed"]] == sorted(blank)
    for number in range(2):
        (folder / f"torn{number}.pdf").write_bytes(b"%PDF-1.4 nothing")
    told = CliRunner().invoke(stillroom, [*command[:4], str(tmp_path / "b"), command[5]])
    assert isinstance(told.exception, DataError)
    assert "max_failed=0.67" in told.exception.problems[0].next


def test_refused_paths_are_warned_of_whatever_they_are_called(tmp_path):
    folder = tmp_path / "documents"
    folder.mkdir()
    for number in range(9):
        (folder / f"{number}.md").write_text(f"Mill {number} grinds corn.\n")
    (folder / os.fsdecode(b"link\xff.md")).symlink_to("/etc/hostname")
    (folder / os.fsdecode(b"fifo\xfe.md")).symlink_to("/dev/zero")
    out = tmp_path / "index"
    command = ["rag", "index", str(folder), "--out", str(out), "embedder=builtin:static"]
    result = CliRunner().invoke(stillroom, command)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("warning: left out: ") == 2
    assert set(failures(read_artifact(out)).values()) == {"document.refused-path"}


def test_thousands_of_refused_paths_are_a_few_warnings_and_a_count(tmp_path):
    refused = tuple(ParseFailure(f"{n}.md", "document.refused-path", "link") for n in range(5000))
    with contextlib.closing(Job.start(tmp_path / "job", "kind: rag.index\n")) as job:
        _, failed = digest_files(tmp_path, FolderScan((), 0, refused), job)
        events = map(json.loads, (job.work / "events.jsonl").read_text().splitlines())
        lines = [event["text"] for event in events if event["event"] == "warning"]
    assert len(failed) == 5000
    assert len(lines) == 21
    assert lines[-1].startswith("left out besides: 4980 of 5000")
