"""Formats whose text is the file: every span must lead to its own bytes."""

import json
import time

import pytest

from stillroom.errors import DataError

PROSE = "Ein Satz mit Umlaut: Größe. 春眠不觉晓。 Emoji 😀 here.\r\nSecond line.\n"


@pytest.mark.parametrize("name", ["txt", "md", "rst", "csv", "json"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_spans_are_exact_in_every_encoding(name, encoding, parse, bytes_of):
    text = PROSE * (400 if encoding == "utf-8" else 3)
    data = text.encode(encoding)
    document = parse(name, data)
    assert document.text == text
    for piece in ("Größe", "春眠不觉晓", "😀 here", "Second"):
        found, place = bytes_of(document, data, piece)
        assert found == piece.encode(
            encoding.replace("-sig", "").replace("utf-16", "utf-16-le")
            if encoding == "utf-16"
            else encoding.replace("-sig", "")
        )
        assert place.is_exact


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Le café était très agréable, déjà vu à la plage près de l'hôtel. " * 4, "cp1252"),
        ("Привет, как дела? Это русский текст в старой кодировке. " * 4, "cp1251"),
        ("名前,年齢,住所\n佐藤太郎,30,東京\n三木英子,25,大阪\n髙橋淳,35,名古屋\n", "cp932"),
        ("我能吞下玻璃而不伤身体。这是一个测试文件，用来检查编码。" * 4, "gb18030"),
    ],
)
def test_legacy_encodings_are_told_and_spans_exact(text, encoding, parse, bytes_of):
    data = text.encode(encoding)
    document = parse("txt", data)
    assert document.text == text
    piece = text[7:12]
    start = 7
    place = document.locate(start, start + len(piece))
    assert data[place.byte_start : place.byte_end] == piece.encode(encoding)


def test_a_broken_byte_in_utf8_is_one_replaced_character_and_counted(parse, bytes_of):
    data = "é".encode() * 50 + b"\xff" + "après tout".encode()
    document = parse("txt", data)
    assert document.text == "é" * 50 + "\ufffd" + "après tout"
    assert document.metadata["undecodable_bytes"] == 1
    assert bytes_of(document, data, "après")[0] == "après".encode()
    assert bytes_of(document, data, "\ufffd")[0] == b"\xff"


def test_source_code_is_text_and_said_to_be_code(parse):
    document = parse("txt", "def f():\n    return 1\n", "src/a.py")
    assert document.metadata["is_code"] is True
    assert document.title == "a"


def test_markdown_headings_are_those_of_commonmark(parse):
    text = (
        "---\ntitle: From the front\n---\n# One *two*\n\n```sh\n# no heading\n```\n\n"
        "Three\n-----\n\ntext\n\n### [Four](http://x)\n\n> ## Quoted\n"
    )
    document = parse("md", text)
    assert document.title == "From the front"
    assert [(one.level, one.title) for one in document.headings] == [
        (1, "One two"),
        (2, "Three"),
        (3, "Four"),
        (2, "Quoted"),
    ]
    for one in document.headings:
        assert document.text[one.start :].lstrip("#> [").startswith(one.title.split()[0])
    assert document.heading_path(document.text.index("text\n")) == ("One two", "Three")


def test_markdown_headings_with_windows_line_ends_stand_where_they_are(parse):
    document = parse("md", "intro\r\n\r\n# Title\r\n\r\nbody\r\n")
    assert document.text[document.headings[0].start :].startswith("# Title")


def test_restructured_text_levels_follow_the_order_of_styles(parse):
    text = (
        "====\nTop\n====\n\nOne\n---\n\ntext\n\nTwo\n---\n\n"
        "Deep ``x``\n~~~~~~~~~~\n\n  Not\n  ---\n"
    )
    document = parse("rst", text)
    assert [(one.level, one.title) for one in document.headings] == [
        (1, "Top"),
        (2, "One"),
        (2, "Two"),
        (3, "Deep x"),
    ]
    assert text[document.headings[0].start :].startswith("====\nTop")
    assert document.title == "Top"


def test_csv_tells_its_delimiter_and_columns(parse):
    document = parse("csv", 'name;"full; name"\na;b\n')
    assert document.metadata["delimiter"] == ";"
    assert document.metadata["columns"] == ["name", "full; name"]


def test_json_escapes_read_as_characters_and_keep_their_bytes(parse, bytes_of):
    data = json.dumps({"poem": "春眠", "plain": 'a"b\n', "smile": "😀"}).encode()
    document = parse("json", data)
    assert json.loads(document.text) == json.loads(data)
    assert bytes_of(document, data, "春眠")[0] == b"\\u6625\\u7720"
    assert bytes_of(document, data, "plain")[0] == b"plain"
    assert "😀" in document.text
    assert parse("json", rb'{"a": "\\u6625"}').text == r'{"a": "\\u6625"}'


def test_json_that_is_not_valid_is_text_and_says_where(parse):
    assert "line 2" in parse("json", '{"a": 1}\n{"a":\n', "a.jsonl").metadata["json_error"]
    assert "json_error" not in parse("json", '{"a": 1}\n').metadata
    assert "json_error" not in parse("json", '{"a": 1}\n{"a": 2}\n', "A.JSONL").metadata
    assert "json_error" not in parse("json", '{"a":\n1}\n', "model").metadata
    ends = '{"a": "\u2028\u2029\x85\\u2028"}'
    for lines in (f"{ends}\n{ends}\n", f"{ends}\r\n{ends}", f"{ends}\r{ends}\r"):
        assert "json_error" not in parse("json", lines, "a.jsonl").metadata
    assert "line 2" in parse("json", f"{ends}\r\n{{", "a.jsonl").metadata["json_error"]


def test_a_notebooks_cells_have_the_bytes_of_the_cell(parse, bytes_of):
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "Some words."], "metadata": {}},
        {"cell_type": "code", "source": "print(1)", "outputs": [{}, {}], "metadata": {}},
    ]
    data = json.dumps({"metadata": {}, "cells": cells, "nbformat": 4}, indent=1).encode()
    document = parse("ipynb", data)
    assert document.text == "# Title\nSome words.\n\n```python\nprint(1)\n```"
    assert document.title == "Title"
    assert document.metadata["outputs_left_out"] == 2
    found, place = bytes_of(document, data, "print(1)")
    assert json.loads(found) == cells[1]
    assert place.label == "cell 2"


@pytest.mark.parametrize("data", ["{}", "[]", "not json", '{"metadata": {}, "cells": 3}'])
def test_what_is_no_notebook_is_refused(data, parse):
    with pytest.raises(DataError) as caught:
        parse("ipynb", data)
    assert caught.value.code in {"document.unreadable", "document.no-text"}


def test_mail_gives_headers_and_a_plain_body_with_exact_bytes(parse, bytes_of):
    data = (
        "From: Ann <ann@x.org>\r\nTo: Bob\r\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\n"
        "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
        "Dear Bob,\r\nschöne Grüße aus Köln.\r\n"
    ).encode()
    document = parse("eml", data)
    assert document.title == "Grüße"
    assert "From: Ann <ann@x.org>" in document.text
    found, place = bytes_of(document, data, "schöne Grüße")
    assert found == "schöne Grüße".encode()
    assert place.is_exact
    assert bytes_of(document, data, "Ann")[0].startswith(b"From: Ann")


def test_mail_with_parts_reads_the_plain_one_and_names_attachments(parse, bytes_of):
    data = (
        b"From: a\nSubject: s\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=B\n\n"
        b"--B\nContent-Type: multipart/alternative; boundary=C\n\n"
        b"--C\nContent-Type: text/plain\nContent-Transfer-Encoding: base64\n\n"
        b"SGVsbG8gZnJvbSB0aGUgcGxhaW4gcGFydC4=\n\n"
        b"--C\nContent-Type: text/html\n\n<p>Hello from HTML.</p>\n--C--\n"
        b"--B\nContent-Type: application/pdf\nContent-Disposition: attachment; filename=x.pdf\n\n"
        b"zzz\n--B--\n"
    )
    document = parse("eml", data)
    assert document.text.endswith("Hello from the plain part.")
    assert document.metadata["attachments"] == ["x.pdf"]
    found, place = bytes_of(document, data, "plain part")
    assert found.startswith(b"SGVsbG8")
    assert not place.is_exact


def test_a_header_that_a_mail_lacks_is_not_taken_from_its_long_first_header(parse):
    addresses = ", ".join(f"person{number}@example.org" for number in range(1_000))
    document = parse("eml", f"To: {addresses}\nSubject: Hi\n\nThe body.\n")
    names = [line.partition(":")[0] for line in document.text.splitlines() if ": " in line]
    assert names == ["Subject", "To"]
    assert "date" not in document.metadata


def test_a_file_without_mail_headers_is_no_mail(parse):
    with pytest.raises(DataError) as caught:
        parse("eml", "\n\njust text")
    assert caught.value.code == "document.unreadable"


@pytest.mark.parametrize("name", ["txt", "md", "rst", "csv", "json"])
def test_white_space_alone_is_no_document(name, parse):
    with pytest.raises(DataError) as caught:
        parse(name, " \n\t\n")
    assert caught.value.code == "document.no-text"


def test_a_few_accents_in_a_short_text_are_western(parse):
    assert parse("txt", "ein kurzer Text für alle".encode("cp1252")).text.endswith("für alle")
    assert parse("txt", "Zażółć gęślą jaźń. Dziękuję bardzo. ".encode("cp1250") * 4).text[:6] == (
        "Zażółć"
    )


def test_front_matter_is_typed_metadata_and_no_text(parse):
    text = (
        "---\ntitle: 'A title'\ndate: 2024-05-01\ntags: [a, 2]\ndraft: false\nweight: 1.5\n"
        "author:\n  name: Ann\n---\n# Heading\n\nText.\n"
    )
    document = parse("md", text)
    assert document.text == "# Heading\n\nText.\n"
    assert document.title == "A title"
    assert document.metadata["front_matter"] == {
        "title": "A title",
        "date": "2024-05-01",
        "tags": ["a", 2],
        "draft": False,
        "weight": 1.5,
        "author.name": "Ann",
    }
    assert document.headings[0].start == 0
    toml = parse("md", "+++\ntitle = 'T'\nday = 2024-05-01\n+++\n# Heading\n")
    assert toml.metadata["front_matter"] == {"title": "T", "day": "2024-05-01"}
    assert toml.text == "# Heading\n"
    broken = parse("md", "---\na: [\n---\n# Heading\n")
    assert "front_matter" not in broken.metadata
    assert broken.metadata["front_matter_error"]
    assert broken.text == "---\na: [\n---\n# Heading\n"  # what no field holds stays text
    rules = "---\nA sentence between two rules.\n---\nText.\n"
    assert parse("md", rules).text == rules
    with pytest.raises(DataError) as caught:
        parse("md", "---\ntitle: Nothing below\n---\n")
    assert caught.value.code == "document.no-text"


@pytest.mark.parametrize(
    ("front", "license"),
    [
        ("---\nlicense: CC-BY-4.0\n---\n", "CC-BY-4.0"),
        ("---\nLicence:  GPL-2.0-only OR MIT\n---\n", "GPL-2.0-only OR MIT"),
        ("+++\nlicense = 'MIT'\n+++\n", "MIT"),
        ("---\nlicense: unknown\n---\n", ""),
        ("---\nlicense: [MIT, ISC]\n---\n", ""),
        ("---\nlicense: 'a | b'\n---\n", ""),
        ("---\nlicense: MIT AND (ISC\n---\n", ""),
        ("---\nlicense: )MIT(\n---\n", ""),
        ("---\nlicense: __MIT__\n---\n", ""),
        ("---\nlicense: '- a: b'\n---\n", ""),
        ("---\nlicense: (MIT OR ISC) AND Zlib\n---\n", "(MIT OR ISC) AND Zlib"),
        (f"---\nlicense: {'a' * 200}\n---\n", ""),
        ("---\ntitle: T\n---\n", ""),
    ],
)
def test_the_license_in_front_matter_is_the_documents(front, license, parse):
    assert parse("md", f"{front}Text.\n").origin.license == license


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252", "iso2022_jp"])
def test_bytes_below_front_matter_are_the_texts_own(encoding, parse, bytes_of):
    word = "駅前" if encoding == "iso2022_jp" else "Größe"
    text = f"---\r\ntitle: {word}\r\n---\r\n# {word} one\r\n\r\nDie {word} dort.\r\n"
    data = text.encode(encoding)
    document = parse("md", data)
    assert document.text.startswith(f"# {word} one")
    found, place = bytes_of(document, data, f"Die {word} dort.")
    if place.is_exact:
        plain = encoding.removesuffix("-sig").replace("utf-16", "utf-16-le")
        assert found == f"Die {word} dort.".encode(plain)
    else:
        assert f"Die {word} dort.".encode(encoding) in found or found == data
    torn = b"---\ntitle: T\xff\xff\n---\n" + b"One \xfe two, and a good deal of plain text.\n" * 9
    document = parse("md", torn)
    found, _ = bytes_of(document, torn, "plain text.")
    assert found == b"plain text."


def test_mail_reads_attached_text_and_html_beside_plain_text(parse):
    mail = (
        "Subject: s\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n"
        "--b\nContent-Type: multipart/alternative; boundary=c\n\n"
        "--c\nContent-Type: text/plain\n\nthe plain way\n"
        "--c\nContent-Type: text/html\n\n<p>the other way</p>\n--c--\n"
        "--b\nContent-Type: text/html\n\n<p>a page of its own</p>\n"
        "--b\nContent-Type: text/csv\nContent-Disposition: attachment; filename=t.csv\n\na,b\n"
        "--b\nContent-Type: image/png\nContent-Disposition: attachment; filename=p.png\n\n"
        "x\n--b--\n"
    )
    document = parse("eml", mail)
    assert document.text.split() == (
        "Subject: s the plain way a page of its own ## t.csv a,b".split()
    )
    assert document.metadata["attachments"] == ["t.csv", "p.png"]


PYTHON = """#!/usr/bin/env python3
import os

# What a kettle is.
@decorated
class Kettle:
    def boil(self):
        return 100


async def pour():
    pass
"""


def test_functions_and_classes_of_code_are_its_sections(parse):
    document = parse("txt", PYTHON, "src/kettle")
    assert document.text == PYTHON
    assert document.metadata["programming_language"] == "python"
    assert [(one.level, one.title) for one in document.headings] == [
        (1, "Kettle"),
        (2, "boil"),
        (1, "pour"),
    ]
    assert document.headings[0].start == PYTHON.index("# What")
    assert document.heading_path(PYTHON.index("return")) == ("Kettle", "boil")


@pytest.mark.parametrize(
    ("name", "code", "titles"),
    [
        ("a.c", "static int add(int a,\n    int b) {\n}\nint x = f(3);\n", ["add"]),
        ("a.cpp", "void Pot::boil() const\n{\n}\n", ["Pot::boil"]),
        ("a.sql", "create table if not exists s.t (a int);\nCREATE VIEW v AS x;", ["s.t", "v"]),
        ("a.ts", "export class A {\n}\nexport default async function b() {}\n", ["A", "b"]),
        ("a.rs", "pub(crate) fn f() {}\nimpl Pot {\n    fn g() {}\n}", ["f", "Pot", "g"]),
        ("a.go", "func (p *Pot) Boil() {}\ntype Pot struct {}\n", ["Boil", "Pot"]),
        ("a.yaml", "def: class\n", []),
    ],
)
def test_definitions_of_many_languages(parse, name, code, titles):
    assert [one.title for one in parse("txt", code, name).headings] == titles


@pytest.mark.parametrize("line", ["static\n", "static ", " ", "a b(", "int a(int b\n", "(", "@\n"])
def test_definitions_are_found_in_linear_time(parse, line):
    start = time.monotonic()
    for name in ("a.c", "a.js", "a.sql", "a.rs", "a.py"):
        parse("txt", line * (300_000 // len(line)) + "x", name)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("text", "headings"),
    [
        ("CHAPTER 8. The Pulpit.\n\nI had not sat long.\n", [(1, "CHAPTER 8. The Pulpit.")]),
        (
            "The Weir\n\nBook the First\n\nChapter I\n\nWater.\n\nChapter II: Mills\r\n\r\nMeal.\n",
            [(1, "Book the First"), (2, "Chapter I"), (2, "Chapter II: Mills")],
        ),
        (
            "Article 1 (tolls)\n\nNo toll.\n\nArticle 2. The toll is paid at noon.\n\n§ 3\n\nNone.",
            [(1, "Article 1 (tolls)"), (1, "§ 3")],
        ),
        ("第一章 总则\n\n本法自公布之日起施行。\n", [(1, "第一章 总则")]),
        ("Kapitel 2 Die Mühle\n\nSie steht.\n", [(1, "Kapitel 2 Die Mühle")]),
        ("Part of the mill burns.\n\nPart a of it is oak\nand ash.\n\nActs\n\nSection\n", []),
        ("He reads chapter 3\n\nIn chapter 4\n\nChapter 5 tells of mills and of oars\n", []),
    ],
)
def test_plain_text_has_the_chapters_and_articles_that_it_names(parse, text, headings):
    document = parse("txt", text)
    assert [(one.level, one.title) for one in document.headings] == headings
    assert all(document.text[one.start :].startswith(one.title) for one in document.headings)


def test_underlined_lines_of_plain_text_are_headings(parse):
    document = parse(
        "txt",
        "Debian notes\n============\n\nWhat differs from upstream.\n\nPorts\n-----\n\n"
        "The daemon listens on 80.\n\nUsers\n-----\n\nOne is made.\n",
    )
    headings = [(one.level, one.title) for one in document.headings]
    assert headings == [(1, "Debian notes"), (2, "Ports"), (2, "Users")]
    assert document.title == "Debian notes"
    news = parse("txt", "2.1\n---\n\n- Faster.\n\n2.0\n---\n\n- New.\n", "doc/NEWS.txt")
    assert [one.title for one in news.headings] == ["2.1", "2.0"]
    assert news.title == "NEWS"
    assert parse("txt", "Contents:\n---------\n1. Use\n", "doc/README.txt").title == "README"


def test_fences_of_asciidoc_and_columns_are_no_headings_and_overlines_are(parse):
    text = (
        "=======\nUse it\n=======\n\n------------\n$ git commit\n------------\n\n"
        "NAME\n----\n\n----\nmake\n\nname\n----\n\n// part begins\n///////////////\n\n"
        "Name/IP    NP    Span\n=====================\na  1  2\n\nNOTES\n-----\n\nNone.\n"
    )
    titles = [one.title for one in parse("txt", text, "doc/use.txt").headings]
    assert titles == ["Use it", "NAME", "NOTES"]


def test_rules_and_heads_of_tables_in_plain_text_are_no_headings(parse):
    text = (
        "Good bye.\n---------\n\n"
        "Some lines of a letter\nthat is signed below\n--------------------\n\n"
        "Name\n----------------------------------------\nAda\n\n"
        "Key    Value\n---    -----\na      1\n\n----\n\nEnd of it.\n"
    )
    document = parse("txt", text, "doc/letter.txt")
    assert document.headings == ()
    assert document.title == "letter"


@pytest.mark.parametrize(
    ("line", "title"), [("max_size", "max_size"), ("_note_", "note"), ("__a_b__ c", "a_b c")]
)
def test_an_underscore_within_a_word_of_a_heading_is_no_emphasis(line, title, parse):
    document = parse("md", f"## {line}\n\nText.\n".encode())
    assert [heading.title for heading in document.headings] == [title]
