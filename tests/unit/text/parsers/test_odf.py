"""OpenDocument, written by hand."""

import io
import zipfile

import pytest

from stillroom.errors import DataError
from stillroom.text.reader import parse_bytes

pytest.importorskip("lxml")

SPACES = " ".join(
    f'xmlns:{name}="urn:oasis:names:tc:opendocument:xmlns:{path}:1.0"'
    for name, path in {
        "office": "office",
        "text": "text",
        "table": "table",
        "draw": "drawing",
        "presentation": "presentation",
        "style": "style",
    }.items()
)
META = '<m xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>The title of it</dc:title></m>'


def write(body, **members):
    buffer = io.BytesIO()
    content = f"<office:d {SPACES}><office:body>{body}</office:body></office:d>"
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("mimetype", "application/vnd.oasis.opendocument.text")
        file.writestr("content.xml", content)
        for name, text in members.items():
            file.writestr(name.replace("__", "/") + ".xml", text)
    return buffer.getvalue()


def cell(text, **attributes):
    told = " ".join(f'table:{key.replace("_", "-")}="{value}"' for key, value in attributes.items())
    inner = f"<text:p>{text}</text:p>" if text else ""
    return f"<table:table-cell {told}>{inner}</table:table-cell>"


COVERED = "<table:covered-table-cell/>"


def row(*cells):
    return f"<table:table-row>{''.join(cells)}</table:table-row>"


def test_a_text_keeps_headings_lists_notes_and_leads_to_its_member(bytes_of):
    data = write(
        "<office:text><text:tracked-changes><text:p>gone</text:p></text:tracked-changes>"
        "<text:table-of-content><text:p>One 1</text:p></text:table-of-content>"
        '<text:h text:outline-level="2">A <text:span>heading</text:span></text:h>'
        '<text:p>Two<text:s text:c="2"/>words<text:note><text:note-citation>1</text:note-citation>'
        "<text:note-body><text:p>A note.</text:p></text:note-body></text:note> here."
        "<office:annotation><text:p>A remark.</text:p></office:annotation></text:p>"
        "<text:list><text:list-item><text:p>one</text:p><text:list><text:list-item>"
        "<text:p>deep</text:p></text:list-item></text:list></text:list-item>"
        "<text:list-item><text:p>two</text:p></text:list-item></text:list>"
        "<text:p><draw:frame><draw:image/></draw:frame></text:p></office:text>",
        meta=META,
    )
    document = parse_bytes(data, "a.odt")
    assert document.text == (
        "## A heading\n\nTwo words[^1] here.\n\n- one\n  - deep\n- two\n\n"
        "## Footnotes\n\n- [^1]: A note.\n\n## Comments\n\n- A remark."
    )
    assert document.title == "The title of it"
    counted = {"deleted_characters": 4, "contents": 1, "pictures": 1}
    for name, count in counted.items():
        assert document.metadata[f"{name}_left_out"] == count
    found, place = bytes_of(document, data, "Two words")
    assert place.label == "content.xml"
    assert b"Two" in found
    assert parse_bytes(data, "no suffix").text == document.text


def test_cells_that_span_stand_in_each_column_and_row():
    document = parse_bytes(
        write(
            "<office:text><table:table>"
            + row(cell("year"), cell("sold", number_columns_spanned=2), COVERED)
            + row(cell("2001", number_rows_spanned=2), cell("a"), cell("b"))
            + row(COVERED, cell("c"), cell("d"))
            + row(cell("in all", number_columns_spanned=3), COVERED, COVERED)
            + "</table:table></office:text>"
        ),
        "a.odt",
    )
    assert document.text.split("\n") == [
        "| year | sold | sold |",
        "| --- | --- | --- |",
        "| 2001 | a | b |",
        "| 2001 | c | d |",
        "| in all |  |  |",
    ]


def test_sheets_are_named_and_their_endless_empty_rows_are_not_written():
    empty = '<table:table-row table:number-rows-repeated="1048576">{}</table:table-row>'
    document = parse_bytes(
        write(
            '<office:spreadsheet><table:table table:name="Prices">'
            + row(
                cell("tea"),
                cell("4", number_columns_repeated=2),
                cell("", number_columns_repeated=16384),
            )
            + empty.format(cell("", number_columns_repeated=16384))
            + "</table:table></office:spreadsheet>"
        ),
        "a.ods",
    )
    assert document.text == "## Prices\n\n| tea | 4 | 4 |\n| --- | --- | --- |"
    assert document.locate(15, 18).label == "sheet Prices"


def test_slides_have_numbers_titles_and_notes():
    page = (
        '<draw:page><draw:frame presentation:class="title"><draw:text-box>'
        "<text:p>Slide {0}</text:p></draw:text-box></draw:frame><draw:frame><draw:text-box>"
        "<text:p>Body {0}</text:p>"
        "</draw:text-box></draw:frame><presentation:notes><text:p>Say {0}.</text:p>"
        "</presentation:notes></draw:page>"
    )
    pages = page.format(1) + page.format(2)
    document = parse_bytes(write(f"<office:presentation>{pages}</office:presentation>"), "a.odp")
    assert document.text.startswith("# Slide 1\n\nBody 1\n\nNotes: Say 1.\n\n# Slide 2")
    place = document.locate(document.text.index("Body 2"), len(document.text))
    assert (place.pages, place.label) == ((2,), "slide 2")


def test_what_is_locked_broken_or_empty_is_refused():
    locked = write("", **{"META-INF__manifest": "<m><encryption-data/></m>"})
    for data, code in (
        (locked, "document.encrypted"),
        (write("<office:text>"), "document.unreadable"),
        (write("<office:text/>"), "document.no-text"),
        (write("")[:200], "document.unreadable"),
    ):
        with pytest.raises(DataError) as caught:
            parse_bytes(data, "a.odt")
        assert caught.value.code == code


def test_rows_and_columns_beyond_the_limits_are_counted():
    many = row(cell("x")).replace("row>", 'row table:number-rows-repeated="300000">', 1)
    wide = row(cell("x"), cell("", number_columns_repeated=600), cell("lost"))
    sheet = '<office:spreadsheet><table:table table:name="S">{}</table:table></office:spreadsheet>'
    document = parse_bytes(write(sheet.format(many)), "a.ods")
    assert document.metadata["rows_left_out"] == 200_000
    for cells in (wide, row(cell("x", number_columns_repeated=1000))):
        document = parse_bytes(write(sheet.format(cells)), "a.ods")
        assert document.metadata["rows_cut_at_column"] == {"512": 1}


def test_hidden_text_is_left_out_and_counted():
    style = (
        '<style:style style:name="{}" style:family="{}"><style:text-properties {}/></style:style>'
    )
    styles = [
        ("P", "paragraph", 'text:display="none"'),
        ("T", "text", 'text:display="none"'),
        ("V", "paragraph", 'text:display="true"'),
    ]
    hidden = "".join(style.format(*one) for one in styles)
    body = (
        f"<office:automatic-styles>{hidden}</office:automatic-styles><office:text>"
        '<text:p text:style-name="P">1234</text:p>'
        '<text:p text:style-name="T">Seen '
        '<text:span text:style-name="T">56</text:span>too.</text:p>'
        '<text:p text:style-name="V">Also seen.</text:p>'
        '<text:section text:display="none"><text:p>789</text:p></text:section></office:text>'
    )
    document = parse_bytes(write(body), "a.odt")
    assert document.text == "Seen too.\n\nAlso seen."
    assert document.metadata["hidden_characters_left_out"] == 9


def test_text_is_not_hidden_by_a_style_of_another_scope_or_family_or_above_it():
    def style(name, family, shown):
        display = f'<style:text-properties text:display="{shown}"/>'
        return f'<style:style style:name="{name}" style:family="{family}">{display}</style:style>'

    own = style("H", "paragraph", "none") + style("S", "text", "true") + style("", "text", "none")
    body = (
        f"<office:automatic-styles>{own}</office:automatic-styles><office:text>"
        '<text:p text:style-name="P1">Of the text.</text:p>'
        '<text:p text:style-name="H">12<text:s/><text:span text:style-name="S">Shown </text:span>'
        "34<text:span>5<text:note><text:p>6</text:p></text:note></text:span></text:p>"
        "<table:table><table:table-row><table:table-cell>"
        '<text:list text:style-name="H"><text:list-item><text:p>Item</text:p></text:list-item>'
        "</text:list></table:table-cell></table:table-row></table:table>"
        '<text:p text:style-name="C">78</text:p>'
        '<text:section text:display="none"><text:p><text:span>9</text:span></text:p>'
        "</text:section></office:text>"
    )
    margins = style("P1", "paragraph", "none")
    common = style("C", "paragraph", "none")
    styles = (
        f"<office:s {SPACES}><office:styles>{common}</office:styles>"
        f"<office:automatic-styles>{margins}</office:automatic-styles></office:s>"
    )
    document = parse_bytes(write(body, styles=styles), "a.odt")
    assert document.text == "Of the text.\n\nShown\n\n| Item |\n| --- |"
    assert document.metadata["hidden_characters_left_out"] == 9
