"""Word, PowerPoint, Excel, EPUB and PDF, written by their libraries or by hand."""

import datetime
import io
import sys
import zipfile

import pytest

from stillroom.errors import DataError, MissingExtraError
from stillroom.text import parse_bytes

docx = pytest.importorskip("docx")
pptx = pytest.importorskip("pptx")
openpyxl = pytest.importorskip("openpyxl")
pytest.importorskip("pypdfium2")


def saved(thing) -> bytes:
    buffer = io.BytesIO()
    thing.save(buffer)
    return buffer.getvalue()


def test_word_gives_headings_lists_tables_and_comments(parse, bytes_of):
    word = docx.Document()
    word.add_heading("The title", 0)
    word.add_heading("First part", 1)
    paragraph = word.add_paragraph("Some ")
    paragraph.add_run("bold").bold = True
    word.add_comment(paragraph.runs, text="A remark.", author="Ann")
    word.add_paragraph("item one", style="List Bullet")
    word.add_paragraph("item two", style="List Bullet")
    table = word.add_table(2, 2)
    for cell, text in zip(table._cells, ["a", "b", "1", "2|3"], strict=True):
        cell.text = text
    data = saved(word)
    document = parse("docx", data)
    assert document.text == (
        "# The title\n\n# First part\n\nSome bold\n\n- item one\n- item two\n\n"
        "| a | b |\n| --- | --- |\n| 1 | 2\\|3 |\n\n## Comments\n\n- A remark."
    )
    assert document.title == "The title"
    assert document.heading_path(document.text.index("Some"))[-1] == "First part"
    found, place = bytes_of(document, data, "Some bold")
    assert place.label == "word/document.xml"
    assert found.startswith(b"PK\x03\x04")
    assert b"word/document.xml" in found[:60]
    assert bytes_of(document, data, "A remark")[1].label == "word/comments.xml"


_OPEN_XML = "application/vnd.openxmlformats-officedocument."


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        ("docm", "application/vnd.ms-word.document.macroEnabled.main+xml"),
        ("dotx", f"{_OPEN_XML}wordprocessingml.template.main+xml"),
        ("dotm", "application/vnd.ms-word.template.macroEnabledTemplate.main+xml"),
        ("pptm", "application/vnd.ms-powerpoint.presentation.macroEnabled.main+xml"),
        ("potx", f"{_OPEN_XML}presentationml.template.main+xml"),
        ("potm", "application/vnd.ms-powerpoint.template.macroEnabled.main+xml"),
        ("ppsx", f"{_OPEN_XML}presentationml.slideshow.main+xml"),
        ("ppsm", "application/vnd.ms-powerpoint.slideshow.macroEnabled.main+xml"),
    ],
)
def test_templates_shows_and_files_with_macros_are_read(suffix, kind):
    if suffix.startswith("do"):
        made, plain = docx.Document(), f"{_OPEN_XML}wordprocessingml.document.main+xml"
        made.add_paragraph("The mill of town four")
    else:
        made, plain = pptx.Presentation(), f"{_OPEN_XML}presentationml.presentation.main+xml"
        slide = made.slides.add_slide(made.slide_layouts[1])
        slide.shapes.title.text = "The mill of town four"
    data = retyped(saved(made), plain, kind)
    assert "The mill of town four" in parse_bytes(data, f"a.{suffix}").text


def test_a_word_file_of_a_foreign_kind_is_refused_in_the_same_words_each_time():
    plain = f"{_OPEN_XML}wordprocessingml.document.main+xml"
    data = retyped(saved(docx.Document()), plain, "application/x-foreign+xml")
    reasons = []
    for _ in range(2):
        with pytest.raises(DataError, match="application/x-foreign") as caught:
            parse_bytes(data, "a.docx")
        reasons.append(str(caught.value))
    assert " at 0x" not in reasons[0]
    assert reasons[0] == reasons[1]


@pytest.mark.parametrize("kind", ["docx", "pptx", "xlsx"])
def test_strict_open_xml_is_named(kind):
    made = {"docx": docx.Document, "pptx": pptx.Presentation, "xlsx": openpyxl.Workbook}[kind]()
    transitional = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    strict = "http://purl.oclc.org/ooxml/officeDocument/relationships"
    data = retyped(saved(made), transitional, strict, "_rels/.rels")
    with pytest.raises(DataError, match="Strict Open XML") as caught:
        parse_bytes(data, f"a.{kind}")
    assert caught.value.code == "document.unreadable"


def retyped(data: bytes, old: str, new: str, member: str = "[Content_Types].xml") -> bytes:
    """Return an archive whose main part is declared to be of another kind."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(out, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == member:
                assert old.encode() in content
                content = content.replace(old.encode(), new.encode())
            target.writestr(name, content)
    return out.getvalue()


def test_slides_are_labeled_and_carry_tables_and_notes(parse, bytes_of):
    deck = pptx.Presentation()
    for number in (1, 2):
        slide = deck.slides.add_slide(deck.slide_layouts[1])
        slide.shapes.title.text = f"Slide number {number}"
        slide.placeholders[1].text = f"Body {number}"
    slide.notes_slide.notes_text_frame.text = "Say this."
    table = slide.shapes.add_table(2, 2, 0, 0, 999, 999).table
    for row in range(2):
        for column in range(2):
            table.cell(row, column).text = f"{row}{column}"
    data = saved(deck)
    document = parse("pptx", data)
    assert "# Slide number 2" in document.text
    assert "| 00 | 01 |\n| --- | --- |\n| 10 | 11 |" in document.text
    assert document.text.endswith("Notes: Say this.")
    found, place = bytes_of(document, data, "Body 2")
    assert place.label == "slide 2"
    assert place.pages == (2,)
    assert b"ppt/slides/slide2.xml" in found[:80]


def test_sheets_are_tables_with_the_cells_of_each_block(parse, bytes_of):
    book = openpyxl.Workbook()
    book.active.title = "Sales"
    book.active.append(["day", "sum"])
    for number in range(30):
        book.active.append([datetime.date(2024, 1, 1) + datetime.timedelta(number), number * 1.5])
    book.create_sheet("Other").append(["x", None, "y"])
    data = saved(book)
    document = parse("xlsx", data)
    assert document.text.startswith("## Sales\n\n| day | sum |\n| --- | --- |\n| 2024-01-01 | 0 |")
    assert document.text.count("---") == 4
    found, place = bytes_of(document, data, "2024-01-30")
    assert place.label == "sheet Sales!A21:B31"
    assert b"xl/worksheets/sheet1.xml" in found[:80]
    assert bytes_of(document, data, "| x | y |")[1].label == "sheet Other!A1:C1"


def make_book(root: str = "", **more: str) -> bytes:
    container = (
        '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
        '<rootfile full-path="OEBPS/a.opf"/></rootfiles></container>'
    )
    items = "".join(
        f'<item id="{name}" href="{name}%20x.xhtml" media-type="application/xhtml+xml"/>'
        for name in ("one", "two")
    )
    package = (
        '<package xmlns="http://www.idpf.org/2007/opf" '
        'xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata><dc:title>A book</dc:title>'
        f"<dc:creator>Ann</dc:creator></metadata><manifest>{items}</manifest>"
        '<spine><itemref idref="two"/><itemref idref="one"/></spine></package>'
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("mimetype", "application/epub+zip")
        file.writestr(f"{root}META-INF/container.xml", container)
        file.writestr(f"{root}OEBPS/a.opf", package)
        for name in ("one", "two"):
            chapter = f"<html><body><h1>Chapter {name}</h1><a id='x'/><p>Text {name}.</p></body>"
            file.writestr(f"{root}OEBPS/{name} x.xhtml", chapter)
        for name, content in more.items():
            file.writestr(root + name.replace("__", "/"), content)
    return buffer.getvalue()


def test_a_book_is_read_in_the_order_of_its_spine(parse, bytes_of):
    data = make_book()
    document = parse("epub", data)
    assert document.text == "# Chapter two\n\nText two.\n\n# Chapter one\n\nText one."
    assert document.title == "A book"
    assert document.metadata["declared_creator"] == "Ann"
    found, place = bytes_of(document, data, "Text one")
    assert place.label == "OEBPS/one x.xhtml"
    assert b"<p>Text one.</p>" in found


def test_a_book_zipped_with_its_folder_is_read(parse, bytes_of):
    data = make_book("epub/")
    document = parse("epub", data)
    assert document.text == parse("epub", make_book()).text
    assert document.metadata["chapters_missing"] == 0
    found, place = bytes_of(document, data, "Text one")
    assert place.label == "epub/OEBPS/one x.xhtml"
    assert b"<p>Text one.</p>" in found


@pytest.mark.parametrize("root", ["", "epub/"])
def test_a_locked_book_is_refused(parse, root):
    locks = {"META-INF__encryption.xml": "<x>OEBPS/one x.xhtml</x>"}
    with pytest.raises(DataError, match="lock") as caught:
        parse("epub", make_book(root, **locks))
    assert caught.value.code == "document.encrypted"


def test_pdf_pages_and_outline_become_pages_and_headings(parse):
    import pypdfium2.raw as raw

    assert raw
    from_pages = make_pdf(["Chapter One begins.", "", "More of con-"])
    document = parse("pdf", from_pages)
    assert document.text == "Chapter One begins.\n\nMore of con-"
    assert document.metadata["pages"] == 3
    assert document.metadata["pages_without_text"] == 1
    place = document.locate(document.text.index("More"), len(document.text))
    assert place.pages == (3,)
    assert (place.byte_start, place.byte_end) == (0, len(from_pages))
    assert not place.is_exact
    assert [(one.title, one.start) for one in document.headings] == [("Chapter One", 0)]


def test_a_scan_without_text_says_so(parse):
    with pytest.raises(DataError, match="no text") as caught:
        parse("pdf", make_pdf([""]))
    assert caught.value.code == "document.no-text"


def make_pdf(texts: list[str]) -> bytes:
    """Return a PDF of one line a page, with an outline entry for the first."""
    objects = ["<< /Type /Catalog /Pages 2 0 R /Outlines 4 0 R >>", "", ""]
    objects[2] = "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"
    objects.append("<< /Type /Outlines /First 5 0 R /Last 5 0 R /Count 1 >>")
    objects.append("<< /Title (Chapter One) /Parent 4 0 R /Dest [6 0 R /Fit] >>")
    kids = []
    for text in texts:
        stream = f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET"
        kids.append(f"{len(objects) + 1} 0 R")
        objects.append(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font "
            f"<< /F1 3 0 R >> >> /Contents {len(objects) + 2} 0 R >>"
        )
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>"
    body = b"%PDF-1.4\n"
    offsets = []
    for number, one in enumerate(objects, 1):
        offsets.append(len(body))
        body += f"{number} 0 obj\n{one}\nendobj\n".encode()
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    return (
        body
        + (
            f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}trailer << /Size "
            f"{len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(body)}\n%%EOF"
        ).encode()
    )


@pytest.mark.parametrize(
    ("name", "package"),
    [("docx", "docx"), ("pptx", "pptx"), ("xlsx", "openpyxl"), ("pdf", "pypdfium2")],
)
def test_without_its_package_a_format_names_the_extra(name, package, parse, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"stillroom\[documents\]") as caught:
        parse(name, b"PK\x03\x04")
    assert caught.value.code == "extra.missing"


@pytest.mark.parametrize("name", ["docx", "pptx", "xlsx", "epub"])
def test_old_and_locked_office_files_are_told_apart_from_broken_ones(name, parse):
    with pytest.raises(DataError) as caught:
        parse(name, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600))
    assert caught.value.code == "document.encrypted"
    with pytest.raises(DataError) as caught:
        parse(name, b"PK\x03\x04" + bytes(600))
    assert caught.value.code == "document.unreadable"


def test_superscript_numbers_of_word_and_slides_are_told_from_digits(parse):
    import docx
    import pptx

    document, deck = docx.Document(), pptx.Presentation()
    frame = deck.slides.add_slide(deck.slide_layouts[6]).shapes.add_textbox(0, 0, 99, 99)
    for paragraph in (document.add_paragraph(), frame.text_frame.paragraphs[0]):
        for text in ("It gives 10", "6", " l, the 3", "rd", "."):
            run = paragraph.add_run()
            run.text = text
            if text in {"6", "rd"} and hasattr(run.font, "superscript"):
                run.font.superscript = True
            elif text in {"6", "rd"}:
                run.font._element.set("baseline", "30000" if text == "6" else "9" * 5000)
    for name, thing in (("docx", document), ("pptx", deck)):
        assert "It gives 10⁶ l, the 3rd." in parse(name, saved(thing)).text
