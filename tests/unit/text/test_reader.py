import bz2
import gzip
import io
import json
import lzma
import tarfile

import pytest

from stillroom.errors import DataError, StillroomError
from stillroom.provenance import Artifact
from stillroom.records import Document, Origin
from stillroom.text import (
    ParseLimits,
    ParserProcess,
    list_documents,
    parse_bytes,
    parse_file,
    parse_folder,
    reader,
)
from stillroom.text.reader import detect_parser, map_suffixes, scan_folder

ENGLISH = "The river was high after the rain, and nobody crossed it for a week. " * 3


def test_a_file_knows_its_path_digest_language_and_origin(tmp_path):
    path = tmp_path / "sub" / "a.md"
    path.parent.mkdir()
    path.write_text(f"# River\n\n{ENGLISH}", encoding="utf-8")
    document = parse_file(path, root=tmp_path, origin=Origin("human", license="MIT"))
    assert document.path == "sub/a.md"
    assert document.media_type == "text/markdown"
    assert document.language == "en"
    assert document.origin == Origin("human", license="MIT")
    assert document.title == "River"
    assert parse_file(path).path == "a.md"
    assert parse_file(path).origin.kind == "unknown"
    assert Document.from_json(document.to_json()) == document


def test_a_folder_is_read_in_order_of_path_and_twice_the_same(tmp_path):
    for name in ("b.txt", "a/z.txt", "a.txt", "A.txt", ".hidden.txt", "~$a.docx"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{name}: {ENGLISH}")
    paths = [path.relative_to(tmp_path).as_posix() for path in list_documents(tmp_path)]
    assert paths == ["A.txt", "a.txt", "a/z.txt", "b.txt"]
    first = list(parse_folder(tmp_path))
    assert [one.path for one in first] == paths
    assert first == list(parse_folder(tmp_path))


def test_results_of_jobs_among_the_documents_are_left_out(tmp_path):
    for name in ("a.txt", "index/output/b.txt", "run/c.txt", "mine/d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("Text.")
    artifact = json.dumps(Artifact("index", ()).to_json(), indent=1)
    (tmp_path / "index" / "artifact.json").write_text(artifact)
    (tmp_path / "run" / "recipe.yaml").touch()
    for name in ("run", "mine"):
        (tmp_path / name / ".lock").touch()
    (tmp_path / "mine" / "artifact.json").write_text('{"name": "a pot"}')
    scan = scan_folder(tmp_path)
    names = [path.relative_to(tmp_path).as_posix() for path in scan.files]
    assert names == ["a.txt", "mine/artifact.json", "mine/d.txt"]
    assert scan.hidden == 3  # two folders, and a file in "mine"


def test_one_file_stands_for_a_folder(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(ENGLISH)
    assert list_documents(path) == [path]
    assert [one.path for one in parse_folder(path)] == ["a.txt"]


@pytest.mark.parametrize(
    ("name", "data", "parser"),
    [
        ("a.MD", b"x", "md"),
        ("a.py", b"x", "txt"),
        ("README", b"plain words", "txt"),
        ("page", b"  <!DOCTYPE html><p>x", "html"),
        ("page", b'<?xml version="1.0"?>\n<!DOCTYPE html><p>x', "html"),
        ("index.cache", b'<FILENAME filename="index.html"><html><p>x', "html"),
        ("mail", b"From: a@b\nSubject: c\n\nbody", "eml"),
        ("a.txt", b"%PDF-1.4 ...", "pdf"),
        ("a", b"HTTP/1.1 200 OK\r\n\r\n%PDF-1.4 ...", "pdf"),
        ("a", b"A file begins with %PDF-1.4.", "txt"),
        ("a.md", b"# Magic\n\n%PDF-1.4 begins a file.\n", "md"),
        ("a.eml", b"Subject: x\nFrom: a@b.c\n\nSee\n%PDF-1.4 ...", "eml"),
        ("x", b"\xff\xfea\x00b\x00", "txt"),
        ("x", "wide words".encode("utf-16-le"), "txt"),
        ("a.unknown", b"text all the same", "txt"),
    ],
)
def test_a_parser_is_chosen_by_suffix_then_by_content(name, data, parser):
    assert detect_parser(name, data).method_name() == parser


def test_every_suffix_belongs_to_one_parser():
    from stillroom.text import PARSERS

    claimed = [suffix for name in PARSERS.names() for suffix in PARSERS.get(name).suffixes]
    assert len(claimed) == len(set(claimed)) == len(map_suffixes())


@pytest.mark.parametrize(
    ("name", "data", "code", "words"),
    [
        ("a.bin", b"GIF89a", "document.unknown-format", "GIF"),
        ("a.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "document.unknown-format", "before 2007"),
        (
            "a.gnumeric",
            gzip.compress(b"<a/>"),
            "document.unknown-format",
            "gzip-compressed, not read",
        ),
        ("a.zip", b"PK\x03\x04" + bytes(40), "document.unknown-format", "zip"),
        ("a", bytes(range(32)) * 9, "document.binary", "binary"),
        ("a.txt", b"", "document.no-text", "empty"),
    ],
)
def test_what_cannot_be_read_says_why_and_what_next(name, data, code, words):
    with pytest.raises(DataError, match=words) as caught:
        parse_bytes(data, name)
    assert caught.value.code == code
    assert caught.value.problems[0].next


def test_an_archive_is_to_be_unpacked_not_saved_in_another_format():
    for data in (b"PK\x03\x04" + bytes(40), bytes(257) + b"ustar\x00", b"Rar!" + bytes(9)):
        with pytest.raises(DataError) as caught:
            parse_bytes(data, "a.part")
        assert caught.value.problems[0].next == "unpack it, or leave it out"


@pytest.mark.parametrize("suffix", ["doc", "xls", "ppt", "DOT", "msg", "zip", "gif"])
@pytest.mark.parametrize(
    "data",
    [
        b"broken",
        b"\xd0\xcf\x11\xe0",
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a",
        b"\x00" * 600,
        b"A line of text, then\n\x01\x05 what is left of a binary file.\n" + b"text " * 99,
    ],
)
def test_what_is_left_of_a_binary_file_is_not_read_as_text(suffix, data):
    with pytest.raises(DataError) as caught:
        parse_bytes(data, f"minutes.{suffix}")
    assert caught.value.code in {"document.unknown-format", "document.binary"}
    assert caught.value.problems[0].next


def test_an_empty_file_is_called_empty_whatever_its_suffix():
    with pytest.raises(DataError, match="the file is empty"):
        parse_bytes(b"", "minutes.doc")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"FAXMAN\n\nA program that shows faxes, under X.\n\x0cNext page\n", "shows faxes"),
        ("Größe\tPreis\n12\t3,50\n".encode("utf-16"), "Preis"),
        (b"<html><body><table><tr><td>Corn</td></tr></table></body></html>", "Corn"),
        (b"See the manual.", "manual"),
        ("See the manual.".encode("utf-16"), "manual"),
        (b"digraph { fax -> page }", "digraph"),
        (b"Old Mac line\rNext line\r", "Next"),
        (b"N\x08NAME\n     faxman - shows faxes\n\x1a", "faxman"),
    ],
)
def test_a_text_with_the_suffix_of_a_binary_format_is_read(data, words):
    assert words in parse_bytes(data, "faxman.doc").text


def test_a_broken_picture_is_refused_in_words():
    pytest.importorskip("rapidocr")
    with pytest.raises(DataError, match="no whole picture") as caught:
        parse_bytes(b"\x89PNG\r\n\x1a\nxxxx", "scan.png")
    assert "object at" not in str(caught.value)


def test_sizes_are_limited_before_and_after_parsing(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("x" * 100)
    for limits in (ParseLimits(file_bytes=99), ParseLimits(text_characters=99)):
        with pytest.raises(DataError) as caught:
            parse_file(path, limits=limits)
        assert caught.value.code == "document.too-large"


def test_a_file_that_is_not_there_is_an_error_with_its_name(tmp_path):
    with pytest.raises(DataError, match="cannot be opened") as caught:
        parse_file(tmp_path / "no.txt")
    assert caught.value.code == "document.unreadable"
    assert caught.value.problems[0].where == "no.txt"


def test_the_worker_gives_what_the_parser_gives_and_keeps_the_errors_parts():
    page = f"<title>T</title><h1>Große</h1><p>{ENGLISH}</p>".encode()
    with ParserProcess() as worker:
        apart = parse_bytes(page, "a.html", worker=worker, origin=Origin("human"))
        assert parse_bytes(page, "b.html", worker=worker).text == apart.text
        # In an old code page, not named: its language is guessed by a model that is unpacked.
        old = page.decode().encode("cp1252")
        assert parse_bytes(old, "old.html", worker=worker).text == apart.text
        with pytest.raises(StillroomError) as caught:
            parse_bytes(b"<script>x</script>", "c.html", worker=worker)
        assert worker.starts == 1
    assert caught.value.problems[0].where == "c.html"
    assert caught.value.problems[0].expected
    assert apart.origin == Origin("human")
    assert parse_bytes(page, "a.html", origin=Origin("human")) == apart


@pytest.mark.parametrize(
    ("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
)
def test_a_compressed_file_is_read_as_what_it_holds(tmp_path, suffix, pack):
    packed = pack(b"<h1>Notes</h1><p>The pump was replaced.</p>")
    (tmp_path / f"notes.html{suffix}").write_bytes(packed)
    (document,) = parse_folder(tmp_path)
    assert document.path == f"notes.html{suffix}"
    assert document.text == "# Notes\n\nThe pump was replaced."
    place = document.locate(9, 31)  # no byte of a compressed file is a character
    assert (place.byte_start, place.byte_end, place.is_exact) == (0, len(packed), False)
    assert f"compressed ({suffix})" in place.note


def test_xml_that_holds_a_web_page_is_read_as_one_compressed_or_not():
    page = (
        b'<?xml version="1.0"?>\n<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN" "x">\n'
        b'<html xmlns="http://www.w3.org/1999/xhtml"><body><h1>Notes</h1><p>New.</p></body></html>'
    )
    others = (
        b'<?xml version="1.0"?><toc><c><u>a.html</u><t>Notes</t></c></toc>',
        b"<head><title>a schema of its own</title></head>",
    )
    for pack, suffix in ((bytes, ""), (gzip.compress, ".gz")):
        assert parse_bytes(pack(page), f"a.xml{suffix}").text == "# Notes\n\nNew."
        for other in others:
            assert parse_bytes(pack(other), f"toc.xml{suffix}").text == other.decode()


def test_a_compressed_file_is_titled_by_its_name_without_suffixes():
    document = parse_bytes(gzip.compress(b"Closes a bug.\n"), "doc/changelog.Debian.gz")
    assert document.title == "changelog"
    assert parse_bytes(gzip.compress(b"x = 1\n" * 9), "a/run.py.gz").metadata["is_code"]


def test_a_compressed_file_that_claims_a_huge_dictionary_is_refused_where_memory_is_short(
    monkeypatch,
):
    def fail(file):
        raise MemoryError

    monkeypatch.setitem(reader._COMPRESSIONS, ".xz", fail)
    with pytest.raises(DataError, match="too little memory"):
        parse_bytes(lzma.compress(b"x"), "log.xz")


def test_a_compressed_file_that_is_cut_off_damaged_or_no_text_is_refused():
    packed = gzip.compress(b"The pump was replaced. " * 80)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as file:
        file.addfile(tarfile.TarInfo("a.txt"))
    for data, name, code, reason in (
        (packed[:-9], "log.gz", "document.unreadable", "cannot be unpacked"),
        (b"plain text", "log.gz", "document.unreadable", "cannot be unpacked"),
        (gzip.compress(b""), "log.gz", "document.no-text", "empty"),
        (gzip.compress(packed), "log.gz", "document.unknown-format", "gzip archive"),
        (archive.getvalue(), "log.tar.gz", "document.unknown-format", "tar archive"),
        (
            gzip.compress(b" " * 30_000),
            "log.gz",
            "document.too-large",
            "20481 bytes or more when unpacked",
        ),
    ):
        with pytest.raises(DataError, match=reason) as raised:
            parse_bytes(data, name, limits=ParseLimits(file_bytes=20_480))
        assert raised.value.problems[0].code == code
        assert raised.value.problems[0].where == name
