"""Hostile files of every format: a precise refusal or a whole reading, soon, and never a crash."""

import io
import json
import os
import time
import zipfile
import zlib
from pathlib import Path

import pytest
from tests.attacks.test_documents import DOCX_PARTS, make_zip
from tests.unit.text.papers import write_objects

from stillroom.errors import DataError, MissingExtraError, StillroomError
from stillroom.records import Document
from stillroom.text import (
    ParseFailure,
    ParseLimits,
    ParserProcess,
    parse_bytes,
    parse_file,
    parse_folder,
    parser_process,
)
from stillroom.text.documents.builder import read_front_matter

docx = pytest.importorskip("docx")
openpyxl = pytest.importorskip("openpyxl")
pptx = pytest.importorskip("pptx")
pytest.importorskip("pypdfium2")

TEXT = b"BT /F0 12 Tf 72 700 Td (Hello world, this is text.) Tj ET "
CATALOG = b"<< /Type /Catalog /Pages 2 0 R %s >>"
SECONDS = 30  # far more than any takes, far less than what a hang would


@pytest.fixture(scope="module")
def worker():
    with ParserProcess() as one:
        yield one


def pdf(stream=TEXT, filters=b"", catalog=b"", page=b"", more=()) -> bytes:
    head = b"<< /Length %d %s >>\nstream\n" % (len(stream), filters)
    return write_objects(
        [
            CATALOG % catalog,
            b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R /Resources << "
            b"/Font << /F0 5 0 R >> /XObject << /X0 6 0 R >> >> %s >>" % page,
            head + stream + b"\nendstream",
            b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
            *more,
        ]
    )


def encrypted() -> bytes:
    keys = "/Filter /Standard /V 1 /R 2 /O <" + "41" * 32 + "> /U <" + "42" * 32 + "> /P -4"
    pages = b"<< /Type /Pages /Kids [] /Count 0 >>"
    return write_objects(
        [CATALOG % b"", pages], f"/Root 1 0 R /Encrypt << {keys} >> /ID [<00><00>]"
    )


def saved(thing) -> bytes:
    buffer = io.BytesIO()
    thing.save(buffer)
    return buffer.getvalue()


def edited(data: bytes, parts: dict[str, bytes | None]) -> bytes:
    """Return an archive with members replaced, added or, for None, taken out."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for name in [*old.namelist(), *(name for name in parts if name not in old.namelist())]:
            content = parts[name] if name in parts else old.read(name)
            if content is not None:
                new.writestr(name, content)
    return out.getvalue()


def word(body: str) -> bytes:
    plain = "<w:p><w:r><w:t>Hello from Word.</w:t></w:r></w:p>"
    document = DOCX_PARTS["word/document.xml"].replace(plain, body)
    return make_zip({**DOCX_PARTS, "word/document.xml": document})


def book(cells: str) -> bytes:
    made = openpyxl.Workbook()
    made.active.append(["a"])
    space = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    xml = f'<worksheet xmlns="{space}">{cells}</worksheet>'
    return edited(saved(made), {"xl/worksheets/sheet1.xml": xml.encode()})


def deck() -> bytes:
    made = pptx.Presentation()
    made.slides.add_slide(made.slide_layouts[1]).shapes.title.text = "T"
    return saved(made)


def epub(items: str, spine: str, **chapters: str) -> bytes:
    container = (
        '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
        '<rootfile full-path="a.opf"/></rootfiles></container>'
    )
    package = f'<package xmlns="http://www.idpf.org/2007/opf"><manifest>{items}</manifest>'
    package += f"<spine>{spine}</spine></package>"
    pages = {f"{name}.xhtml": page for name, page in chapters.items()}
    return make_zip({"META-INF/container.xml": container, "a.opf": package, **pages})


GOOD = pdf()
CELL = "<w:p><w:r><w:t>t</w:t></w:r></w:p>"
ROW = '<row r="{0}"><c r="A{0}"><v>1</v></c><c r="B{0}"><v>2</v></c></row>'
SPAN = '<w:tc><w:tcPr><w:gridSpan w:val="{}"/></w:tcPr>' + CELL + "</w:tc>"
MIXED = "Subject: s\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n"
REFUSED = {"document.unreadable", "document.no-text"}

PDFS = {
    "password": (encrypted(), {"document.encrypted"}),
    "cut short": (GOOD[:-60], REFUSED),
    "cut in half": (GOOD[: len(GOOD) // 2], REFUSED),
    "a table that names itself as the one before": (
        GOOD.replace(b"/Root", b"/Prev %d /Root" % GOOD.rfind(b"xref\n0")),
        {"read"},
    ),
    "two thousand million pages promised": (
        GOOD.replace(b"/Count 1", b"/Count 2147483647"),
        {"read", "document.too-large"},
    ),
    "fewer pages than none": (GOOD.replace(b"/Count 1", b"/Count -5"), {"read", *REFUSED}),
    "100 MB of spaces": (
        # Bombs take a second to pack: only the process that reads them does.
        lambda: pdf(zlib.compress(b" " * 100_000_000, 9), b"/Filter /FlateDecode"),
        REFUSED,
    ),
    "compressed twice": (
        lambda: pdf(
            zlib.compress(zlib.compress(b"\n" * 300_000_000, 9), 9),
            b"/Filter [/FlateDecode /FlateDecode]",
        ),
        REFUSED,
    ),
    "20,000 letters in no order": (
        pdf(
            b"BT /F0 5 Tf "
            + b"".join(
                b"1 0 0 1 %d %d Tm (x%d) Tj " % (i * 7 % 600, i * 11 % 790, i)
                for i in range(20_000)
            )
            + b"ET"
        ),
        {"read"},
    ),
    "a million saved states": (pdf(b"q " * 1_000_000 + TEXT), {"read", *REFUSED}),
    "a million open arrays": (pdf(b"[" * 1_000_000 + TEXT), {"read", *REFUSED}),
    "a form that draws itself": (
        pdf(
            b"/X0 Do " + TEXT,
            more=[
                b"<< /Type /XObject /Subtype /Form /BBox [0 0 600 700] /Resources << /XObject << "
                b"/X0 6 0 R >> >> /Length 8 >>\nstream\n/X0 Do  \nendstream"
            ],
        ),
        {"read"},
    ),
    "a page of a billion points": (
        GOOD.replace(b"[0 0 612 792]", b"[0 0 1e9 1e9]"),
        {"read", *REFUSED},
    ),
    "60,000 lines": (
        pdf(b"".join(b"%d 0 m %d 700 l S " % (i % 600, i % 600) for i in range(60_000)) + TEXT),
        {"read"},
    ),
    "a grid of 10,000 cells": (
        pdf(
            b"".join(
                b"%d 10 m %d 700 l S 10 %d m 600 %d l S " % ((10 + 5 * i,) * 4) for i in range(100)
            )
            + TEXT
        ),
        {"read"},
    ),
    "a picture of 5,000 by 5,000": (  # on a small page, which OCR looks at sooner
        pdf(
            b"q 60 0 0 70 0 0 cm /X0 Do Q",
            more=[
                b"<< /Type /XObject /Subtype /Image /Width 5000 /Height 5000 /ColorSpace "
                b"/DeviceGray /BitsPerComponent 8 /Length 9 >>\nstream\n123456789\nendstream"
            ],
        ).replace(b"[0 0 612 792]", b"[0 0 61 79]  "),
        {*REFUSED, "extra.missing"},
    ),
    "an outline that goes round": (
        pdf(
            catalog=b"/Outlines 6 0 R",
            more=[
                b"<< /First 7 0 R /Last 7 0 R /Count 1 >>",
                b"<< /Title (a) /Parent 6 0 R /Next 7 0 R /First 6 0 R /Dest [3 0 R /Fit] >>",
            ],
        ),
        {"read"},
    ),
    "a field that is its own parent": (
        pdf(
            catalog=b"/AcroForm << /Fields [6 0 R] >>",
            page=b"/Annots [6 0 R]",
            more=[
                b"<< /Type /Annot /Subtype /Widget /FT /Tx /T (a) /V (b) /Parent 6 0 R "
                b"/Kids [6 0 R] /Rect [0 0 9 9] >>"
            ],
        ),
        {"read"},
    ),
    "100,000 notes": (
        pdf(
            page=b"/Annots [" + b"6 0 R " * 100_000 + b"]",
            more=[b"<< /Type /Annot /Subtype /Text /Contents (note) /Rect [0 0 9 9] >>"],
        ),
        {"read"},
    ),
    "a script": (pdf(catalog=b"/OpenAction << /S /JavaScript /JS (while(1){}) >>"), {"read"}),
    "zeros": (b"%PDF-1.4\n" + bytes(1_000_000), REFUSED),
    "noise": (b"%PDF-1.4\n" + os.urandom(1_000_000), REFUSED),
}
OFFICE = {
    "word: a cell over 10^9 columns": (word(f"<w:tbl><w:tr>{SPAN.format(10**9)}</w:tr></w:tbl>")),
    "word: many wide cells": (
        word("<w:tbl>" + f"<w:tr>{SPAN.format(512) * 2}</w:tr>" * 2000 + "</w:tbl>")
    ),
    "word: a width that is no number": word(f"<w:tbl><w:tr>{SPAN.format('x')}</w:tr></w:tbl>"),
    "word: tables in tables": word(
        "<w:tbl><w:tr><w:tc>" * 60 + CELL + "</w:tc></w:tr></w:tbl>" * 60
    ),
    "word: no styles": edited(saved(docx.Document()), {"word/styles.xml": None}),
    "word: numbering that is none": edited(saved(docx.Document()), {"word/numbering.xml": b"<x/>"}),
    "word: an empty body": edited(saved(docx.Document()), {"word/document.xml": b""}),
    "xlsx: the last cell": book(
        '<sheetData><row r="1048576"><c r="XFD1048576"><v>1</v></c></row></sheetData>'
    ),
    "xlsx: a cell beyond the last": book(
        '<sheetData><row r="99999999999"><c r="AAAAAA1"><v>1</v></c></row></sheetData>'
    ),
    "xlsx: a text that is not there": book(
        '<sheetData><row r="1"><c r="A1" t="s"><v>99999</v></c></row></sheetData>'
    ),
    "xlsx: all is one cell": book(
        "<sheetData>"
        + "".join(ROW.format(number) for number in range(1, 2000))
        + '</sheetData><mergeCells><mergeCell ref="A1:XFD1048576"/></mergeCells>'
    ),
    "xlsx: merged areas without end": book(
        "<sheetData>"
        + "".join(ROW.format(number) for number in range(1, 3000))
        + "</sheetData><mergeCells>"
        + "".join(f'<mergeCell ref="A{number}:B1048576"/>' for number in range(1, 3000))
        + "</mergeCells>"
    ),
    "xlsx: a desert after a formula": book(
        '<sheetData><row r="1"><c r="A1"><f>1</f>' + " " * 2_000_000 + "<x/></c></row></sheetData>"
    ),
    "pptx: a slide is missing": edited(deck(), {"ppt/slides/slide1.xml": None}),
    "pptx: a layout is missing": edited(deck(), {"ppt/slideLayouts/slideLayout2.xml": None}),
    "pptx: a slide that is none": edited(deck(), {"ppt/slides/slide1.xml": b"<x/>"}),
    "epub: a chapter outside": epub(
        '<item id="a" href="../../etc/passwd" media-type="text/html"/>', '<itemref idref="a"/>'
    ),
    "epub: one chapter 100,000 times": epub(
        '<item id="a" href="a.xhtml" media-type="text/html"/>',
        '<itemref idref="a"/>' * 100_000,
        a="<p>x y z</p>",
    ),
    "epub: no package": make_zip({"META-INF/container.xml": "<a/>"}),
    "zip: noise": b"PK\x03\x04" + os.urandom(10_000),
}
NOTEBOOKS = [
    {"cells": {}, "metadata": {}},
    {"cells": [1, 2], "metadata": {}},
    {"cells": [{"source": 5, "cell_type": "code"}], "metadata": {}},
    {"cells": [{"source": None}], "metadata": None},
    {"cells": [{"source": [{}], "outputs": "x"}], "metadata": {"language_info": []}},
    {"cells": [{"source": "text", "outputs": 5}], "metadata": {}},
    [],
    {"metadata": {"title": ["x"]}, "cells": [{"source": "hello"}]},
]
MAILS = {
    "3,000 attachments": MIXED
    + "".join(
        f"--b\nContent-Disposition: attachment; filename=f{i}.bin\n\nx\n" for i in range(3000)
    )
    + "--b\nContent-Type: text/plain\n\nthe body at the end\n--b--",
    "mail in mail": "Subject: s\nContent-Type: message/rfc822\n\n" * 200 + "Subject: s\n\ntext",
    "a long subject": "Subject: =?utf-8?b?" + "QUFB" * 500_000 + "?=\n\nbody",
    "100,000 headers": "".join(f"X-{i}: y\n" for i in range(100_000)) + "Subject: s\n\nbody",
    "an encoding that is no name": 'Subject: s\nContent-Type: text/plain; charset="\0x"\n\nb\xff',
    "200,000 receivers": "Subject: s\nTo: " + "a@b," * 200_000 + "\n\nbody",
    "base64 that is none": "Subject: s\nContent-Transfer-Encoding: base64\n\n!!no!!====",
}


def outcome(data: bytes, name: str, worker: ParserProcess) -> str:
    """Return the code of the refusal, or 'read'; fail on whatever else, and on slowness."""
    start = time.monotonic()
    refusal: StillroomError | None = None
    try:
        document = parse_bytes(data, name, worker=worker, limits=ParseLimits(timeout_s=SECONDS))
    except (DataError, MissingExtraError) as error:
        refusal = error
    assert time.monotonic() - start < 5 * SECONDS  # wall time, on a machine that may be busy
    if refusal is not None:
        assert refusal.problems[0].what
        assert refusal.problems[0].next
        assert refusal.code not in {"document.crashed", "document.timeout", "document.memory"}
        return refusal.code
    assert document.text.strip()
    return "read"


@pytest.mark.parametrize("name", PDFS)
def test_hostile_pdf(name, worker):
    data, expected = PDFS[name]
    assert outcome(data() if callable(data) else data, "a.pdf", worker) in expected


@pytest.mark.parametrize("name", OFFICE)
def test_hostile_office_file(name, worker):
    kind = {"word": "docx", "zip": "docx"}.get(name.split(":")[0], name.split(":")[0])
    assert outcome(OFFICE[name], f"a.{kind}", worker) in {"read", *REFUSED}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=str)
def test_hostile_notebook(notebook, worker):
    assert outcome(json.dumps(notebook).encode(), "a.ipynb", worker) in {"read", *REFUSED}


@pytest.mark.parametrize("name", [name for name in MAILS if name != "3,000 attachments"])
def test_hostile_mail(name, worker):
    assert outcome(MAILS[name].encode("latin-1"), "a.eml", worker) == "read"


def test_the_body_behind_three_thousand_attachments_is_read(worker):
    document = parse_bytes(MAILS["3,000 attachments"].encode(), "a.eml", worker=worker)
    assert "the body at the end" in document.text
    assert len(document.metadata["attachments"]) == 3000


@pytest.mark.parametrize("suffix", ["txt", "md", "html", "csv", "json", "ipynb", "eml", "rst"])
def test_sixty_megabytes_of_spaces_and_nothing_at_all_are_empty(suffix, worker):
    for data in (b" " * 60_000_000, b"", b"\n" * 1000):
        assert outcome(data, f"a.{suffix}", worker) == "document.no-text"


@pytest.mark.parametrize("suffix", ["md", "rst", "html"])
@pytest.mark.parametrize("piece", ["[", "> ", "- ", "*a ", "`a", "|a", "<!--", "a\n==\n", "1. a\n"])
def test_one_mark_over_and_over_is_read_soon(suffix, piece, worker):
    size = 100_000 if suffix == "md" else 1_000_000
    data = (piece * (size // len(piece))).encode()
    assert outcome(data, f"a.{suffix}", worker) in {"read", "document.no-text"}


def test_a_text_that_takes_too_long_stops_nothing_else(tmp_path: Path):
    (tmp_path / "a.md").write_bytes(b"# x\n" * 500_000)
    (tmp_path / "b.md").write_bytes(b"# Fine\n\nand read.\n")
    first, second = parse_folder(tmp_path, limits=ParseLimits(timeout_s=1.5))
    assert isinstance(first, ParseFailure)
    assert first.code == "document.timeout"
    assert isinstance(second, Document)


def test_spans_of_a_page_that_cover_everything_are_bounded(worker):
    row = "<tr><td rowspan=512 colspan=512>x</td><td>y</td></tr>"
    page = f"<p>Before the table.</p><table>{row * 200}</table>"
    assert outcome(page.encode(), "a.html", worker) == "read"


def test_a_file_that_became_a_pipe_or_a_device_does_not_block(tmp_path: Path):
    pipe = tmp_path / "a.txt"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero")):
        with pytest.raises(DataError) as caught:
            parse_file(path)
        assert caught.value.code == "document.unreadable"


def test_names_with_line_ends_and_broken_bytes_are_shown_on_one_line(tmp_path: Path):
    odd = os.fsencode(tmp_path) + b"/a\nb\xff\x1b[31m.txt"
    Path(os.fsdecode(odd)).write_bytes(bytes(5000))
    (failure,) = parse_folder(tmp_path)
    assert isinstance(failure, ParseFailure)
    assert "\n" not in str(failure)
    assert "\x1b" not in str(failure)


def test_front_matter_that_unfolds_without_end_is_refused():
    lines = ["a0: &a0 [x]", *(f"a{n + 1}: &a{n + 1} [{f'*a{n},' * 9}]" for n in range(9))]
    long = ["a: &a " + "x" * 9000, "b: [" + "*a," * 900 + "]"]
    chain = ["a0: &a0 [x]", *(f"a{n + 1}: &a{n + 1} [*a{n}]" for n in range(40))]
    merged = ["a0: &a0 {x: y}", *(f"a{n + 1}: &a{n + 1} {{<<: *a{n}}}" for n in range(40))]
    for bomb, why in (
        (lines, "aliases unfold"),
        (long, "aliases unfold"),
        (chain, "nested too deeply"),
        (merged, "nested too deeply"),
        (["a: &a [*a]"], "within itself"),
        (["a: *b"], "undefined alias"),
    ):
        front = read_front_matter("---\n" + "\n".join(bomb) + "\n---\ntext")
        assert why in front.error
        assert front.fields == {}
    deep = "---\na: " + "{a: " * 5000 + "1" + "}" * 5000 + "\n---\ntext"
    assert read_front_matter(deep).fields == {}
    tagged = "---\na: !!python/object/apply:os.system ['true']\n---\ntext"
    assert read_front_matter(tagged).fields == {}


def test_front_matter_with_honest_aliases_is_read():
    front = (
        "---\na: &a [x, y]\nb: *a\nc: &c {d: 1}\ne:\n  <<: *c\n  f: &f g\nh: [*f, *f]\n---\ntext"
    )
    fields = {"a": ["x", "y"], "b": ["x", "y"], "c.d": 1, "e.d": 1, "e.f": "g", "h": ["g", "g"]}
    assert read_front_matter(front).fields == fields


def test_front_matter_of_a_thousand_brackets_is_refused_before_they_are_read():
    start = time.process_time()
    front = read_front_matter("---\na: " + "[" * 20_000 + "\n---\ntext")
    assert front.error == "values are nested too deeply"
    assert time.process_time() - start < 3  # without the limit more than a minute


def test_a_reading_that_is_interrupted_does_not_answer_the_next_file(monkeypatch):
    with ParserProcess() as process:
        parse_bytes(b"<p>The first page.</p>", "a.html", worker=process)
        exchange = parser_process._exchange

        def interrupt(*arguments):
            arguments[0].stdin.write(bytes(arguments[1][0]) + bytes(arguments[1][1]))
            arguments[0].stdin.flush()
            raise KeyboardInterrupt

        monkeypatch.setattr(parser_process, "_exchange", interrupt)
        with pytest.raises(KeyboardInterrupt):
            parse_bytes(b"<p>The second page.</p>", "b.html", worker=process)
        monkeypatch.setattr(parser_process, "_exchange", exchange)
        document = parse_bytes(b"<p>The third page.</p>", "c.html", worker=process)
    assert document.text == "The third page."


def test_what_a_file_repeats_or_nests_is_read_or_counted(worker):
    """Deep groups and wrappers, levels out of bounds, parts that are missing."""
    made = pptx.Presentation()
    slide = made.slides.add_slide(made.slide_layouts[6])
    group = slide.shapes
    for _ in range(30):
        group = group.add_group_shape().shapes
    box = group.add_textbox(0, 0, 9, 9)
    box.text_frame.text = "Words in a group."
    box.text_frame.paragraphs[0]._p.get_or_add_pPr().set("lvl", "999999999")
    slides = parse_bytes(saved(made), "a.pptx", worker=worker)
    assert slides.text == "  " * 8 + "- Words in a group."

    wrapped = "<w:sdt><w:sdtContent>" * 60 + CELL + "</w:sdtContent></w:sdt>" * 60
    text = parse_bytes(word(wrapped + CELL + "<w:altChunk/>"), "a.docx", worker=worker)
    assert text.text == "t\n\nt"
    assert text.metadata["imported_files_left_out"] == 1

    missing = b'<sheet name="Two" sheetId="2" r:id="rId99" xmlns:r="http://schemas.'
    missing += b'openxmlformats.org/officeDocument/2006/relationships"/></sheets>'
    workbook = book(ROW.format(1).join(("<sheetData>", "</sheetData>")))
    links = "xl/_rels/workbook.xml.rels"
    target = b'Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/worksheet"'
    target = b'<Relationship Id="rId99" Target="worksheets/none.xml" ' + target + b"/>"
    with zipfile.ZipFile(io.BytesIO(workbook)) as archive:
        listing = archive.read("xl/workbook.xml").replace(b"</sheets>", missing)
        linked = archive.read(links).replace(b"</Relationships>", target + b"</Relationships>")
    listing = listing.replace(b'name="Sheet"', b'name="One&#10;# Two"')
    parts = {"xl/workbook.xml": listing, links: linked}
    sheets = parse_bytes(edited(workbook, parts), "a.xlsx", worker=worker)
    assert sheets.metadata["sheets_left_out"] == 1
    assert sheets.text.startswith("## One # Two\n")


def test_a_notebook_adds_no_text_of_its_own(worker):
    cells = [{"cell_type": "code", "source": "x = 1"}]
    facts = {"language_info": {"name": "python```\n# Heading\n"}}
    notebook = json.dumps({"nbformat": 4, "metadata": facts, "cells": cells}).encode()
    assert parse_bytes(notebook, "a.ipynb").text == "```python # Heading\nx = 1\n```"
    cells += [{"cell_type": "markdown", "source": None}]  # no text, and no reason to refuse all
    notebook = json.dumps({"nbformat": 4, "metadata": facts, "cells": cells}).encode()
    assert parse_bytes(notebook, "a.ipynb").text == "```python # Heading\nx = 1\n```"
    for source in (3, {"a": "b"}):
        cells[-1]["source"] = source
        with pytest.raises(DataError, match="a cell's source is not text"):
            parse_bytes(json.dumps({"nbformat": 4, "cells": cells}).encode(), "a.ipynb")


def test_what_a_book_declares_is_bounded(worker):
    item = '<item id="a" href="a.xhtml"/>'
    page = "<html><body><p>Words.</p></body></html>"
    data = epub(item, '<itemref idref="a"/>', a=page)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        package = archive.read("a.opf").replace(
            b"<manifest>",
            b"<metadata><creator>" + b"A" * 500_000 + b"</creator>"
            b"<rights>" + b"R" * 900 + b"</rights></metadata><manifest>",
        )
    document = parse_bytes(edited(data, {"a.opf": package}), "a.epub", worker=worker)
    assert document.metadata["declared_creator"] == "A" * 1999 + "\N{HORIZONTAL ELLIPSIS}"
    assert document.metadata["declared_rights"] == "R" * 900
