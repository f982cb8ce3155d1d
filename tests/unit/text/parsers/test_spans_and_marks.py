"""What office files and pages hide, span, number and delete."""

import datetime
import io
import zipfile

import pytest

from stillroom.text import SourceFile
from stillroom.text.documents.builder import DocumentBuilder

docx = pytest.importorskip("docx")
openpyxl = pytest.importorskip("openpyxl")
pptx = pytest.importorskip("pptx")
W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"


def saved(thing) -> bytes:
    buffer = io.BytesIO()
    thing.save(buffer)
    return buffer.getvalue()


def replaced(data: bytes, parts: dict[str, bytes], edit: dict[str, tuple[bytes, bytes]]) -> bytes:
    """Return an archive with members added and strings within members replaced."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name in edit:
                assert edit[name][0] in content
                content = content.replace(*edit[name])
            new.writestr(name, content)
        for name, content in parts.items():
            new.writestr(name, content)
    return out.getvalue()


def body(xml: str) -> bytes:
    """Return a Word file with that body."""
    data = saved(docx.Document())
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        main = archive.read("word/document.xml")
    start, end = main.index(b"<w:body>"), main.index(b"</w:body>")
    return replaced(data, {}, {"word/document.xml": (main[start:end], b"<w:body>" + xml.encode())})


def paragraph(text: str, properties: str = "") -> str:
    return f"<w:p>{properties}<w:r><w:t>{text}</w:t></w:r></w:p>"


def test_merged_cells_of_word_stand_in_every_column_and_row(parse):
    word = docx.Document()
    table = word.add_table(4, 3)
    texts = ["Sales of the year", "", "", "Region", "2023", "", "North", "1", "2", "", "3", "4"]
    for cell, text in zip(table._cells, texts, strict=True):
        cell.text = text
    table.cell(0, 0).merge(table.cell(0, 2))
    table.cell(1, 1).merge(table.cell(1, 2))
    table.cell(2, 0).merge(table.cell(3, 0))
    rows = parse("docx", saved(word)).text.split("\n")
    assert [rows[0], *rows[2:]] == [
        "| Sales of the year |  |  |",
        "| Region | 2023 | 2023 |",
        "| North | 1 | 2 |",
        "| North | 3 | 4 |",
    ]


def test_numbered_lists_of_word_are_numbered_and_nested(parse):
    word = docx.Document()
    for style in ("List Number", "List Number", "List Bullet"):
        word.add_paragraph("item", style=style)
    word.add_paragraph("Between.")
    text = parse("docx", saved(word)).text
    assert text == "1. item\n2. item\n- item\n\nBetween."


def test_word_keeps_insertions_and_counts_deletions_hidden_text_and_margins(parse):
    word = docx.Document()
    word.sections[0].header.paragraphs[0].text = "Confidential"
    word.add_paragraph("ANCHOR")
    data = replaced(
        saved(word),
        {},
        {
            "word/document.xml": (
                b"<w:t>ANCHOR</w:t></w:r>",
                b"<w:t>Kept</w:t></w:r><w:del><w:r><w:delText> gone</w:delText></w:r></w:del>"
                b"<w:ins><w:r><w:t> and new</w:t></w:r></w:ins>"
                b"<w:r><w:rPr><w:vanish/></w:rPr><w:t>Obey!</w:t></w:r>",
            )
        },
    )
    document = parse("docx", data)
    assert document.text == "Kept and new"
    assert document.metadata == {
        "deleted_characters_left_out": 5,
        "hidden_characters_left_out": 5,
        "insertions_kept": 1,
        "heads_and_feet_left_out": 1,
    }


def test_content_controls_and_notes_of_word_are_read(parse):
    control = f"<w:sdt><w:sdtContent>{paragraph('Within a control.')}</w:sdtContent></w:sdt>"
    note = '<w:p><w:r><w:t>Claim</w:t></w:r><w:r><w:footnoteReference w:id="2"/></w:r></w:p>'
    data = body(control + note + "<w:sectPr/>")
    notes = f'<w:footnotes xmlns:w="{W}"><w:footnote w:id="2">{paragraph("Source.")}</w:footnote>'
    data = replaced(data, {"word/footnotes.xml": (notes + "</w:footnotes>").encode()}, {})
    assert parse("docx", data).text == (
        "Within a control.\n\nClaim[^2]\n\n## Footnotes\n\n- [^2]: Source."
    )


def test_workbooks_repeat_merged_cells_and_show_formulas_without_values(parse):
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "Plan"
    for row in (
        ["A title over all", None, None],
        ["Region", "2023", None],
        ["North", 0.1 + 0.2, "=B3*2"],
        [None, datetime.date(2024, 5, 1), True],
    ):
        sheet.append(row)
    sheet.merge_cells("A1:C1")
    sheet.merge_cells("B2:C2")
    sheet.merge_cells("A3:A4")
    sheet.row_dimensions[4].hidden = True
    document = parse("xlsx", saved(book))
    assert document.text.split("\n")[2:] == [
        "| A title over all |  |  |",
        "| --- | --- | --- |",
        "| Region | 2023 | 2023 |",
        "| North | 0.3 | =B3*2 |",
        "| North | 2024-05-01 | True |",
    ]
    assert document.metadata["formulas_without_values"] == 1
    assert document.metadata["hidden_rows"] == 1


def test_columns_of_a_workbook_stay_below_their_header_in_every_block(parse):
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(["name", "note", "count"])
    for number in range(45):
        sheet.append([f"n{number}", "seen" if number < 19 else None, number])
    sheet.append(["last", None, 1, "beyond"])
    lines = parse("xlsx", saved(book)).text.split("\n")
    assert "| n30 |  | 30 |" in lines
    again = len(lines) - 1 - lines[::-1].index("| name | note | count |  |")
    assert lines[again + 1] == "| --- | --- | --- | --- |"
    assert lines[-1] == "| last |  | 1 | beyond |"


def test_tables_of_a_page_with_spans_keep_every_cell_below_its_header(parse):
    page = (
        "<table><tr><th colspan=3>All of it</th></tr>"
        "<tr><th>Region</th><th colspan=2>2023</th></tr>"
        "<tr><td rowspan=2>North</td><td>1</td><td>2</td></tr><tr><td>3</td><td>4</td></tr>"
        "<tr><td colspan=99999999>x</td><td rowspan=-1>y</td></tr></table>"
    )
    lines = parse("html", page).text.split("\n")
    assert lines == [
        "| All of it |  |  |",
        "| --- | --- | --- |",
        "| Region | 2023 | 2023 |",
        "| North | 1 | 2 |",
        "| North | 3 | 4 |",
        "| x | y |  |",
    ]


def test_tables_of_slides_repeat_merged_cells(parse):
    deck = pptx.Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[6])
    table = slide.shapes.add_table(3, 2, 0, 0, 999, 999).table
    for row, texts in enumerate([["Title", ""], ["a", "1"], ["", "2"]]):
        for column, text in enumerate(texts):
            table.cell(row, column).text = text
    table.cell(0, 0).merge(table.cell(0, 1))
    table.cell(1, 0).merge(table.cell(2, 0))
    assert parse("pptx", saved(deck)).text == "| Title |  |\n| --- | --- |\n| a | 1 |\n| a | 2 |"


def test_marks_of_a_parser_have_no_place_between_parts_that_have_the_same():
    assembly = DocumentBuilder(SourceFile("a.pdf", "0" * 64))
    assembly.add("One.", (0, 9))
    assembly.gap()
    assembly.add("Two.", (0, 9))
    assembly.add("\n- ")
    assembly.add("Three.", (0, 9))
    document = assembly.finish()
    covered = [document.text[one.start : one.end] for one in document.anchors]
    assert covered == ["One.\n\nTwo.", "Three."]
