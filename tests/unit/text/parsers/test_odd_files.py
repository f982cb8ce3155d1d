"""Files as other projects' test suites hold them: every one of these once lost something."""

import io
import json
import time

import pytest

from stillroom.text.chunking.boundaries import find_tables
from stillroom.text.documents.office import extract_chart_text
from stillroom.text.interfaces import CHUNKERS
from stillroom.text.reader import parse_bytes

MAILBOX = (
    b"From a@b.c Tue Apr 15 20:24:47 2003\nSubject: One\nFrom: a@b.c\n\nFirst body.\n"
    b">From the year 2003 on\n\n"
    b"From x@y.z Wed Apr 16 20:24:47 2003\nSubject: Two\nContent-Transfer-Encoding: base64\n\n"
    b"U2Vjb25kIGJvZHku\n"
)
FRAMES = "<html><title>t</title><frameset><noframes><body>Words for old browsers.</body></noframes>"


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("name", ["a.txt", "a.html", "a.csv", "no suffix"])
def test_wide_letters_are_told_without_a_mark(encoding, name, bytes_of):
    data = "Plain words in wide letters, größer.\n".encode(encoding)
    document = parse_bytes(data, name)
    assert document.metadata["encoding"] == encoding
    assert document.text.startswith("Plain words")
    assert bytes_of(document, data, "größer")[0].decode(encoding) == "größer"


@pytest.mark.parametrize("data", [b"kept \0", b"kept \0x\0", b"ab\0cde\0f"])
def test_a_stray_zero_in_a_few_words_makes_no_wide_letters(data):
    document = parse_bytes(data, "a.txt")
    assert document.metadata.get("encoding", "utf-8") == "utf-8"
    assert document.text.strip() == data.decode().replace("\0", " ").strip()


def test_binary_data_is_no_wide_text():
    data = bytes([0, 0, 1, 200] * 50) + b"\xff\xff\xff\xff"
    with pytest.raises(ValueError, match="binary"):
        parse_bytes(data, "a.txt")


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"{\\rtf1\\ansi Words.}", "a Rich Text document"),
        (b"%!PS-Adobe-3.0\n", "a PostScript program"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "Office before 2007"),
    ],
)
def test_what_is_read_by_nothing_is_named(data, told):
    with pytest.raises(ValueError, match=told) as caught:
        parse_bytes(data, "a.bin")
    assert caught.value.code == "document.unknown-format"


def test_a_binary_workbook_is_named():
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("xl/workbook.bin", b"\0")
    with pytest.raises(ValueError, match="binary form") as caught:
        parse_bytes(buffer.getvalue(), "a.xlsb")
    assert caught.value.code == "document.unknown-format"


def test_text_for_browsers_without_frames_is_kept():
    assert parse_bytes(FRAMES.encode(), "a.html").text == "Words for old browsers."


def test_what_a_page_does_not_show_is_counted():
    page = "<p>Shown.</p><p hidden>Not shown.</p><math><mi>x</mi></math><script>no</script>"
    document = parse_bytes(page.encode(), "a.html")
    assert document.text == "Shown."
    assert document.metadata["hidden_characters_left_out"] == len("Not shown.x")


def test_a_mailbox_is_read_message_by_message(bytes_of):
    for name in ("a.mbox", "a.eml", "no suffix"):
        document = parse_bytes(MAILBOX, name)
        assert [one.title for one in document.headings] == ["One", "Two"]
        assert document.metadata["messages"] == 2
        assert bytes_of(document, MAILBOX, "First body.")[0] == b"First body."
        assert bytes_of(document, MAILBOX, "Second body.")[0] == b"U2Vjb25kIGJvZHku\n"


def test_mail_is_told_by_its_first_headers_whatever_they_are():
    mail = b"Content-Type: text/plain\nContent-Transfer-Encoding: base64\n\nV29yZHMu\n"
    assert parse_bytes(mail, "message").text == "Words."


def test_old_notebooks_have_cells_within_worksheets(bytes_of):
    cells = [
        {"cell_type": "heading", "level": 2, "source": ["A title"]},
        {"cell_type": "code", "input": "x = 1", "outputs": []},
        {"cell_type": "markdown", "source": "Words."},
    ]
    book = {"nbformat": 3, "worksheets": [{"cells": cells}, {"metadata": {}}]}
    data = json.dumps(book).encode()
    document = parse_bytes(data, "old.ipynb")
    assert document.text == "# A title\n\n```python\nx = 1\n```\n\nWords."
    assert document.headings[0].level == 2
    assert json.loads(bytes_of(document, data, "Words.")[0]) == cells[2]


def test_a_range_over_parts_out_of_order_is_still_a_range():
    mail = b"Date: Thu, 1 Jan 2026 00:00:00 +0000\nSubject: Last comes first\n\nBody.\n"
    document = parse_bytes(mail, "a.eml")
    assert document.text.startswith("Subject")
    place = document.locate(0, len(document.text))
    assert mail[place.byte_start : place.byte_end] == mail


def test_bytes_with_markup_between_are_not_called_exact():
    page = b"<p>one <b>two</b> three</p>"
    document = parse_bytes(page, "a.html")
    assert document.text == "one two three"
    whole = document.locate(0, 13)
    assert page[whole.byte_start : whole.byte_end] == b"one <b>two</b> three"
    assert not whole.is_exact
    assert document.locate(4, 7).is_exact


def test_charts_of_every_kind_and_diagrams_are_read():
    pytest.importorskip("lxml")
    from lxml import etree

    space = "http://schemas.openxmlformats.org/drawingml/2006/chart"
    point = '<c:pt idx="{}"><c:v>{}</c:v></c:pt>'.format
    xml = (
        f'<c:chartSpace xmlns:c="{space}"><c:chart><c:plotArea><c:area3DChart><c:ser>'
        f"<c:tx><c:v>Sold</c:v></c:tx><c:cat><c:numRef><c:numCache>"
        f"<c:formatCode>d/m/yyyy</c:formatCode>{point(0, 37261)}{point(1, 37262)}"
        f"</c:numCache></c:numRef></c:cat>"
        f"<c:val>{point(0, '8.1999999999999993')}{point(1, 3)}</c:val>"
        "</c:ser></c:area3DChart></c:plotArea></c:chart></c:chartSpace>"
    )
    assert extract_chart_text(etree.fromstring(xml)) == (
        "|  | Sold |\n| --- | --- |\n| 2002-01-05 | 8.2 |\n| 2002-01-06 | 3 |"
    )


def test_a_number_of_thousands_of_digits_in_a_chart_is_no_fault():
    etree = pytest.importorskip("lxml.etree")
    space = "http://schemas.openxmlformats.org/drawingml/2006/chart"
    point = f'<c:pt idx="{"9" * 5000}"><c:v>8</c:v></c:pt>'
    xml = f'<c:chartSpace xmlns:c="{space}"><c:ser><c:val>{point}</c:val></c:ser></c:chartSpace>'
    assert "8" in extract_chart_text(etree.fromstring(xml))


def test_slides_with_charts_keep_their_values_and_count_pictures():
    pptx = pytest.importorskip("pptx")
    from pptx.chart.data import CategoryChartData
    from pptx.enum.chart import XL_CHART_TYPE

    deck = pptx.Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[6])
    data = CategoryChartData()
    data.categories = ["East", "West"]
    data.add_series("Sales", (1.5, 2.25))
    slide.shapes.add_chart(XL_CHART_TYPE.COLUMN_CLUSTERED, 0, 0, 999, 999, data)
    slide.shapes.add_picture(io.BytesIO(PIXEL), 0, 0)
    buffer = io.BytesIO()
    deck.save(buffer)
    document = parse_bytes(buffer.getvalue(), "a.pptx")
    assert document.text.endswith("|  | Sales |\n| --- | --- |\n| East | 1.5 |\n| West | 2.25 |")
    assert document.metadata["pictures_left_out"] == 1


PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360"
    "00000000050001a5f645400000000049454e44ae426082"
)


@pytest.mark.parametrize(
    "lines",
    [
        "From here we went to the mill in 2003.\nIt was closed.",
        "From the minutes of 2003:\nAgenda: the mill of town four",
        "From a@b.c Tue Apr 15 20:24:47 2003\nis how a mailbox begins a message.",
    ],
)
def test_a_paragraph_of_a_mail_that_begins_with_from_begins_no_message(lines):
    head = b"From a@b.c Tue Apr 15 20:24:47 2003\nSubject: One\n\nFirst body.\n\n"
    after = b"\n\nFrom - Wed Apr 16 20:24:47 2003\nSubject: Two\n\nSecond body.\n"
    document = parse_bytes(head + lines.encode() + after, "a.mbox")
    assert lines in document.text
    assert document.metadata["messages"] == 2
    assert "messages_left_out" not in document.metadata


@pytest.mark.parametrize("day", ["2020-01-01T10:00:00Z", "Mon, 1 Jan 2020 10:00"])
def test_a_mailbox_may_have_the_year_before_the_time(day):
    second = f"From a@b.c {day}\nSubject: Two\n\nSecond body.\n"
    data = f"From a@b.c {day}\nSubject: One\n\nFirst body.\n\n{second}"
    assert parse_bytes(data.encode(), "a.mbox").metadata["messages"] == 2


def test_a_long_line_of_times_after_from_takes_no_time():
    head = b"From a@b.c Tue Apr 15 20:24:47 2003\nSubject: One\n\nBody.\n\nFrom "
    started = time.perf_counter()
    assert "messages" not in parse_bytes(head + b"1:11111" * 1200 + b"\n", "a.mbox").metadata
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize("kind", ["multipart/mixed", "multipart/mixed; boundary=other"])
def test_a_mail_of_parts_that_are_not_found_is_read_as_it_stands(kind):
    data = f"Subject: s\nContent-Type: {kind}\n\n--A\n\nThe mill ground corn.\n--A--\n".encode()
    document = parse_bytes(data, "a.eml")
    assert "The mill ground corn." in document.text
    assert document.metadata["attachments"] == []


def test_letters_of_inner_headers_that_are_not_encoded_are_read():
    mail = (
        "Subject: Outer\nContent-Type: message/rfc822\n\n"
        "Subject: Prüfung der Mühle\nFrom: Jürgen <j@x.org>\n\nText.\n"
    )
    document = parse_bytes(mail.encode("cp1252"), "a.eml")
    assert "Subject: Prüfung der Mühle\nFrom: Jürgen <j@x.org>" in document.text


def test_a_mail_within_a_mail_says_who_wrote_it_when(bytes_of):
    data = (
        b"Subject: Outer\nFrom: ann@x.org\nContent-Type: multipart/mixed; boundary=B\n\n--B\n\n"
        b"See below.\n--B\nContent-Type: message/rfc822\n\nFrom: bob@x.org\n"
        b"Date: Tue, 15 Apr 2003 20:24:47 +0000\nSubject: Inner\nContent-Type: multipart/mixed;\n"
        b" boundary=C\n\n--C\nContent-Type: text/plain\n\nThe mill burnt.\n--C--\n--B--\n"
    )
    document = parse_bytes(data, "a.eml")
    assert document.title == "Outer"
    assert "Subject: Inner\nFrom: bob@x.org\nDate: Tue, 15 Apr 2003" in document.text
    order = [document.text.index(one) for one in ("Outer", "See", "Inner", "burnt")]
    assert order == sorted(order)
    assert bytes_of(document, data, "bob@x.org")[0].strip() == b"From: bob@x.org"
    assert bytes_of(document, data, "The mill burnt.")[0] == b"The mill burnt."


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
def test_letters_of_mail_headers_that_are_not_encoded_are_read(encoding, bytes_of):
    data = "Subject: Prüfung der Mühle\nFrom: Jürgen <j@x.org>\n\nText.\n".encode(encoding)
    document = parse_bytes(data, "a.eml")
    assert document.title == "Prüfung der Mühle"
    assert "From: Jürgen <j@x.org>" in document.text
    assert bytes_of(document, data, "Mühle")[0].startswith(b"Subject: Pr")


@pytest.mark.parametrize(
    ("text", "columns", "header"),
    [
        ("\n\r\nmill,corn\n", ["mill", "corn"], "mill,corn"),
        ("sep=;\r\nmill;corn, rye\r\n", ["mill", "corn, rye"], "mill;corn, rye"),
        ('"mill\nof town",corn\n', ["mill\nof town", "corn"], '"mill\nof town",corn'),
        ('mill,"a;b;c"\n', ["mill", "a;b;c"], 'mill,"a;b;c"'),
        ('mill "old,corn\n', ['mill "old', "corn"], 'mill "old,corn'),
        ("mill,corn\r", ["mill", "corn"], "mill,corn"),
    ],
)
def test_the_header_of_values_by_commas_is_found(text, columns, header):
    rows = "".join(f"place {at},{at * 7}\n" for at in range(60))
    document = parse_bytes((text + rows).encode(), "a.csv")
    assert document.metadata["columns"] == columns
    assert [table.header for table in find_tables(document)] == [header]


def test_the_first_of_json_lines_is_no_header_of_the_others():
    rows = "".join(json.dumps({"town": f"Town {at}", "corn": at * 7}) + "\n" for at in range(60))
    passages = list(CHUNKERS.build("heading").chunk(parse_bytes(rows.encode(), "a.jsonl")))
    assert len(passages) > 3
    assert {one.table_header for one in passages} == {""}
