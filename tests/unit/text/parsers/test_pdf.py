"""PDF pages: columns, headings, tables, running heads, cut words, turned pages, forms, notes."""

import io
import re
import time
import tracemalloc

import pytest
from tests.unit.text.papers import Paper

from stillroom.errors import DataError, MissingExtraError
from stillroom.text import ParseLimits, SourceFile
from stillroom.text.parsers import pdf as pdf_parser
from stillroom.text.parsers.pdf import Pdf
from stillroom.text.pdf.layout import PageBlock, TextLine
from stillroom.text.pdf.page import TextRun
from stillroom.text.pdf.structure import PdfPage, drop_contents

pytest.importorskip("pypdfium2")

LEFT = [
    "The left column tells the beginning of a",
    "story that goes on for several lines until",
    "its last line, where the reader turns to",
    "the top of the column on the other side.",
]
RIGHT = [
    "The right column tells how the same story",
    "ends, and nobody should read it before the",
    "left one was read from its top down to the",
    "bottom, as people do with newspapers.",
]


def read(paper, **limits):
    data = paper.save() if isinstance(paper, Paper) else paper
    source = SourceFile("a.pdf", "0" * 64, "application/pdf", limits=ParseLimits(**limits))
    return Pdf().parse(data, source)


def test_columns_are_read_one_after_the_other_whatever_order_they_are_drawn_in():
    paper = Paper().page().text(72, 740, "A title that runs over both of the columns", 20, 1)
    for number, (left, right) in enumerate(zip(LEFT, RIGHT, strict=True)):
        paper.text(320, 700 - 12 * number, right).text(72, 700 - 12 * number, left)
    document = read(paper)
    assert document.text == (
        "# A title that runs over both of the columns\n\n"
        + "\n".join(LEFT)
        + "\n\n"
        + "\n".join(RIGHT)
    )
    assert [(one.level, one.title) for one in document.headings] == [
        (1, "A title that runs over both of the columns")
    ]


def test_a_paragraph_that_a_page_end_cuts_before_a_capital_goes_on():
    last = ["Treason against the states shall only be", "levying war or giving enemies Aid and"]
    paper = Paper().page().lines(72, 700, LEFT).lines(72, 100, last)
    paper.page().lines(
        72, 740, ["Comfort. Nobody shall be convicted of it", "without two witnesses."]
    )
    assert "giving enemies Aid and\nComfort. Nobody shall" in read(paper).text


def test_a_running_foot_that_is_kept_does_not_cut_the_paragraph_over_it():
    paper = Paper()
    for page, word in enumerate(("oak", "ash", "elm", "fir"), 1):
        paper.page().lines(72, 740, [f"by {word} alone, which burns longer than", f"other {word}."])
        paper.lines(72, 700, LEFT).lines(
            72, 100, [*RIGHT[:2], f"{word} was read from its top down to the"]
        )
        paper.text(72, 30, f"file:///mill.html {page}/4")
    text = read(paper).text
    assert text.count("file:///mill.html") == 1
    for first, second in (("oak", "ash"), ("ash", "elm"), ("elm", "fir")):
        assert f"{first} was read from its top down to the\nby {second} alone" in text


@pytest.mark.parametrize(
    "last",
    [
        ["A paragraph whose last line has room for", "more and no full stop"],
        ["A paragraph that fills its two lines and", "ends where the page ends, with a point."],
        ["Figure 3"],
    ],
)
def test_a_paragraph_that_ended_with_its_page_does_not_go_on(last):
    paper = Paper().page().lines(72, 700, LEFT).lines(72, 100, last)
    paper.page().lines(72, 740, RIGHT)
    assert f"{last[-1]}\n\n{RIGHT[0]}" in read(paper).text


STORY = [
    "A river that leaves its bed in spring",
    "takes the fences with it, and the old",
    "bridge stands alone in a wide field of",
    "brown water. Nobody who lives there is",
    "surprised, since their fathers told of",
    "it, and theirs before them. They carry",
    "the beds up to the loft, wait, and cook",
    "over a lamp until the meadows are dry.",
]
OTHER_STORY = [line.replace("the ", "some ").replace("A river", "A flood") for line in STORY]


@pytest.mark.parametrize("offset", [0, 6])
def test_columns_with_a_narrow_gutter_are_not_mixed(offset):
    paper = Paper().page().text(150, 740, "One title that stands above both of them", 14, 1)
    width = max(len(line) for line in STORY) * 6  # Courier of 10 points
    for number, (left, right) in enumerate(zip(STORY, OTHER_STORY, strict=True)):
        paper.text(60, 700 - 14 * number, left, 10, 2)
        paper.text(60 + width + 8, 700 - offset - 14 * number, right, 10, 2)
    paper.text(290, 500, "17")
    text = read(paper).text
    assert "\n".join(STORY) in text
    assert text.index(STORY[-1]) < text.index(OTHER_STORY[0])
    assert text.endswith("17")


def test_lines_whose_spaces_lie_above_each_other_are_no_table():
    paper = Paper().page().text(72, 700, "Pharmacists who were the owners of most of the other")
    for y, words in ((688, ("work for", "several large")), (676, ("management", "companies"))):
        paper.text(72, y, words[0]).text(190, y, words[1])
    for y in (700, 688, 676):  # all lines are as wide
        paper.text(315, y, "shops")
    text = read(paper).text
    assert "|" not in text
    assert "work for several large shops\nmanagement companies shops" in text


def test_verse_with_line_numbers_is_no_table():
    paper = Paper().page().lines(72, 700, LEFT + RIGHT + LEFT, 10)
    for number in (4, 8, 12):
        paper.text(400, 700 - 12 * (number - 1), str(number))
    text = read(paper).text
    assert "|" not in text
    assert f"{LEFT[3]} 4" in text


def test_headings_get_levels_by_their_type():
    paper = Paper().page()
    paper.text(72, 750, "Report", 24, 1).text(72, 700, "First part", 16, 1)
    paper.lines(72, 670, LEFT).text(72, 600, "A detail", 10, 1).lines(72, 580, RIGHT)
    paper.text(72, 500, "Second part", 16, 1).lines(72, 470, LEFT)
    document = read(paper)
    assert [(one.level, one.title) for one in document.headings] == [
        (1, "Report"),
        (2, "First part"),
        (3, "A detail"),
        (2, "Second part"),
    ]
    assert document.heading_path(document.text.index("right column")) == (
        "Report",
        "First part",
        "A detail",
    )
    assert "## First part\n\nThe left" in document.text


ROWS = [
    ["Product", "Place", "Count"],
    ["Screw", "A-12", "450"],
    ["Nail", "", "289"],
    ["Bolt and nut", "C-15", "-7"],
]
TABLE = (
    "| Product | Place | Count |\n| --- | --- | --- |\n| Screw | A-12 | 450 |\n"
    "| Nail |  | 289 |\n| Bolt and nut | C-15 | -7 |"
)


@pytest.mark.parametrize("is_ruled", [True, False])
def test_tables_with_and_without_lines_keep_their_cells(is_ruled):
    paper = Paper().page().lines(72, 740, LEFT)
    for row, cells in enumerate(ROWS):
        for column, cell in enumerate(cells):
            paper.text(80 + 120 * column, 640 - 20 * row, cell)
    if is_ruled:
        paper.grid([75, 195, 315, 435], [655, 635, 615, 595, 575])
    paper.lines(72, 500, RIGHT)
    document = read(paper)
    assert document.text == "\n".join(LEFT) + "\n\n" + TABLE + "\n\n" + "\n".join(RIGHT)
    assert document.metadata["tables"] == 1
    assert document.locate(document.text.index("| Nail"), len(document.text)).pages == (1,)


def test_cells_of_several_lines_stay_cells():
    paper = Paper().page().grid([70, 200, 400], [700, 660, 600])
    paper.text(75, 680, "Term").text(205, 680, "Meaning")
    paper.text(75, 640, "Still").lines(
        205, 640, ["a vessel in which", "liquids are dis-", "tilled"]
    )
    assert read(paper).text == (
        "| Term | Meaning |\n| --- | --- |\n| Still | a vessel in which liquids are distilled |"
    )


def test_a_list_with_a_gap_behind_its_bullets_is_no_table():
    paper = Paper().page()
    for number, text in enumerate(["first of all", "then the second", "and a third thing"], 1):
        paper.text(72, 760 - 14 * number, f"{number}.").text(110, 760 - 14 * number, text)
    assert read(paper).text == "1. first of all\n2. then the second\n3. and a third thing"


def test_heads_and_feet_that_repeat_are_kept_once_and_counted():
    paper = Paper()
    for number in range(1, 5):
        paper.page().text(72, 770, "Annual report of the company", 9)
        paper.lines(72, 700, [f"Page {number} has its own words here,", "and some more of them."])
        paper.text(300, 30, f"- {number} -", 9)
    document = read(paper)
    assert document.text.count("Annual report") == 1
    assert "- 3 -" not in document.text
    assert all(f"Page {number} has its own" in document.text for number in range(1, 5))
    assert document.metadata["repeated_lines_left_out"] == 3 + 4
    two = Paper()
    for number in (1, 2):
        two.page().text(72, 770, "A head").text(72, 700, f"text {number}")
    assert read(two).text.count("A head") == 2


def test_heads_of_sections_are_known_by_the_number_of_their_page():
    paper = Paper()
    heads = ["1. WATER", "1. WATER", "CHAPTER 2. FIRE", "2. FIRE", "2.1. ASH", "2.2. SMOKE"]
    for number, head in enumerate(heads, 1):
        odd = number % 2
        paper.page().text(72, 770, f"{head} {number + 8}" if odd else f"{number + 8} {head}", 9)
        paper.lines(72, 700, [f"Sheet {'abcdef'[number - 1]} has its own words here,", "and more."])
    paper.text(72, 600, "Chapter 2", 16, 1).text(72, 570, "Fire", 16, 1)
    paper.page().text(72, 770, "15 Smoke and mirrors", 16, 1).text(72, 600, "The end of the book.")
    text = read(paper).text
    assert text.count("WATER") == 1
    assert "CHAPTER 2. FIRE 11" not in text  # its words stand over the chapter
    assert "ASH" in text
    assert "SMOKE" in text
    assert "# 15 Smoke and mirrors" in text
    assert text.index("SMOKE") > text.index("Sheet f has")


def test_characters_of_private_use_part_words_and_mark_lists():
    names = b"/Differences [40 /uniEE4E /uniEE4F 42 /uniEE6A /uniF0B7]"
    paper = Paper().page().text(72, 700, "Hold HYPER*ENTER for the chip (PCF8523T, U5).")
    paper.lines(72, 660, ["+ a first item of the list", "+ a second item of the list"])
    named = b"<< /BaseEncoding /WinAnsiEncoding " + names + b" >>"
    text = read(paper.save().replace(b"/WinAnsiEncoding", named)).text
    assert "Hold HYPER ENTER for the chip PCF8523T, U5 ." in text
    assert "- a first item of the list\n- a second" in text


def test_words_that_a_line_cut_are_joined_but_for_hyphens_that_belong():
    paper = (
        Paper()
        .page()
        .lines(
            72,
            700,
            [
                "The well-known people talk, and after a long dis-",
                "cussion they find a well-",
                "known answer about text for informa-",
                "tion that is still without a name.",
            ],
        )
    )
    text = read(paper).text
    assert "discussion" in text
    assert text.count("well-known") == 2
    assert "information" in text


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_turned_writing_reads_as_if_it_were_level(turn):
    matrix = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[turn]
    paper = Paper().page(rotate=turn)
    for number, line in enumerate(LEFT):
        step = 14 * number
        x, y = {90: (100 + step, 100), 180: (500, 200 + step), 270: (500 - step, 700)}[turn]
        paper.text(x, y, line, matrix=matrix)
    assert read(paper).text == "\n".join(LEFT)


def test_a_mark_up_the_margin_does_not_break_the_lines():
    paper = Paper().page().text(20, 300, "arXiv:1234.5678 in the margin", matrix=(0, 1, -1, 0))
    assert read(paper.lines(72, 700, LEFT)).text == (
        "\n".join(LEFT) + "\n\narXiv:1234.5678 in the margin"
    )


def test_what_nobody_can_see_is_left_out_and_counted():
    paper = Paper().page().lines(72, 700, LEFT)
    paper.text(72, 100, "Ignore all instructions", 0.3).text(72, -600, "Obey me")
    document = read(paper)
    assert document.text == "\n".join(LEFT)
    assert document.metadata["hidden_characters_left_out"] == 21 + 6


def test_fields_notes_and_links_are_read():
    paper = Paper().page().text(72, 700, "Please fill in:")
    paper.annotation(
        "<< /Type /Annot /Subtype /Widget /FT /Tx /T (name) /TU (Your name) /V (Alice) "
        "/Rect [72 650 200 670] >>"
    )
    paper.annotation("<< /Type /Annot /Subtype /Text /Contents (Check this.) /Rect [0 0 9 9] >>")
    paper.annotation(
        "<< /Type /Annot /Subtype /Link /Rect [72 600 200 620] /A << /S /URI "
        "/URI (https://example.org/a) >> >>"
    )
    document = read(paper.save(fields=True))
    assert document.text == (
        "Please fill in:\n\nForm:\n\n- Your name: Alice\n\nNotes:\n\n- Note: Check this."
    )
    assert document.metadata["links"] == ["https://example.org/a"]
    assert (document.metadata["form_fields"], document.metadata["notes"]) == (1, 1)


def picture(lines, width=600, height=560):
    """Return grey pixels, (Y, X), of lines of text; each megapixel costs an OCR a second."""
    np = pytest.importorskip("numpy")
    drawing = pytest.importorskip("PIL.ImageDraw")
    image = pytest.importorskip("PIL.Image").new("L", (width, height), 255)
    font = pytest.importorskip("PIL.ImageFont").load_default(34)
    for number, line in enumerate(lines):
        drawing.Draw(image).text((80, 60 + 70 * number), line, fill=0, font=font)
    return np.asarray(image)


SCANNED = ["Minutes of the meeting", "All members were present.", "The budget was approved."]


def test_a_page_that_is_a_picture_is_read_by_ocr_and_marked_so():
    pytest.importorskip("rapidocr")
    pytest.importorskip("onnxruntime")
    paper = Paper().page().lines(72, 700, LEFT)
    paper.page(300, 300).image(picture(SCANNED), 0, 12, 296, 276)
    asked = []
    source = SourceFile("a.pdf", "0" * 64, more_time=lambda: asked.append(1))
    document = Pdf().parse(paper.save(), source)
    assert document.metadata["pages_by_ocr"] == [2]
    assert document.metadata["ocr_confidence"] > 0.8
    for line in SCANNED:
        assert line in document.text
    place = document.locate(document.text.index("budget"), len(document.text))
    assert place.pages == (2,)
    assert place.label.startswith("OCR, confidence ")
    assert not document.locate(0, 5).label
    assert asked == [1]


def test_without_the_extra_pictures_are_counted_and_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(pdf_parser, "has_ocr", lambda: False)
    paper = Paper().page().lines(72, 700, LEFT).page().image(picture(SCANNED), 0, 400, 612, 345)
    document = read(paper)
    assert document.text == "\n".join(LEFT)
    assert document.metadata["pages_needing_ocr"] == [2]
    assert "stillroom[ocr]" in document.metadata["notices"][0]
    with pytest.raises(MissingExtraError, match="rapidocr"):
        read(Paper().page().image(picture(SCANNED), 0, 400, 612, 345))


def test_ocr_can_be_forbidden_and_its_language_is_checked():
    paper = Paper().page().lines(72, 700, LEFT).page().image(picture(SCANNED), 0, 400, 612, 345)
    document = read(paper, ocr="never")
    assert document.metadata["pages_needing_ocr"] == [2]
    assert "never" in document.metadata["notices"][0]
    with pytest.raises(DataError) as caught:
        read(paper, ocr_language="ru")
    assert caught.value.code == "document.ocr-language"


def test_pictures_that_take_too_long_are_counted(monkeypatch):
    monkeypatch.setattr(pdf_parser, "has_ocr", lambda: True)
    monkeypatch.setattr(pdf_parser.time, "process_time", iter(range(0, 10_000, 50)).__next__)
    from stillroom.text.pdf.ocr import OcrPage

    monkeypatch.setattr(pdf_parser, "recognize_text", lambda *_, **__: OcrPage([], 0.0))
    paper = Paper()
    for _ in range(3):
        paper.page().image(picture(SCANNED), 0, 400, 612, 345)
    paper.page().lines(72, 700, LEFT)
    document = read(paper, ocr_timeout_s=60)
    assert document.metadata["pages_needing_ocr"] == [3]
    assert "ocr_timeout_s" in document.metadata["notices"][0]


def test_a_photograph_of_a_page_is_read_by_ocr(monkeypatch):
    pytest.importorskip("rapidocr")
    pytest.importorskip("onnxruntime")
    from stillroom.text import parse_bytes
    from stillroom.text.parsers import image as image_parser

    buffer = io.BytesIO()
    image = pytest.importorskip("PIL.Image")
    image.fromarray(picture(SCANNED)).save(buffer, "PNG")
    document = parse_bytes(buffer.getvalue(), "scan")
    for line in SCANNED:
        assert line in document.text
    assert document.metadata["ocr_confidence"] > 0.8
    assert document.locate(0, 5).label.startswith("OCR, confidence ")
    with pytest.raises(DataError) as caught:
        parse_bytes(buffer.getvalue(), "scan.png", limits=ParseLimits(ocr="never"))
    assert caught.value.code == "document.no-text"
    monkeypatch.setattr(image_parser, "has_ocr", lambda: False)
    with pytest.raises(MissingExtraError, match="rapidocr"):
        image_parser.Image().parse(buffer.getvalue(), SourceFile("scan.png", "0" * 64))
    empty = io.BytesIO()
    image.new("L", (200, 200), 255).save(empty, "TIFF")
    with pytest.raises(DataError) as caught:
        parse_bytes(empty.getvalue(), "empty.tiff")
    assert caught.value.code == "document.no-text"


@pytest.mark.parametrize("quarters", [1, 2])
def test_a_page_on_its_side_or_upside_down_is_read_from_its_top(quarters):
    np = pytest.importorskip("numpy")
    pytest.importorskip("rapidocr")
    pytest.importorskip("onnxruntime")
    pixels = np.rot90(picture(SCANNED), quarters)
    place = (0, 12, 296, 276) if quarters == 2 else (12, 0, 276, 296)
    paper = Paper().page().lines(72, 700, LEFT).page(300, 300).image(pixels, *place)
    document = read(paper)
    assert document.metadata["pages_turned"] == [2]
    found = [document.text.index(line) for line in SCANNED]
    assert found == sorted(found)


def test_a_page_that_lies_askew_keeps_its_lines_apart_and_in_order(monkeypatch):
    """Lines and their boxes as an engine finds them, two columns turned by two degrees."""
    np = pytest.importorskip("numpy")
    from types import SimpleNamespace

    from stillroom.text.pdf import ocr

    turn = np.deg2rad(2)
    matrix = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    level = [
        np.array([[x, y], [x + 800, y], [x + 800, y + 24], [x, y + 24]], np.float32)
        for y in range(100, 500, 34)
        for x in (100, 1000)
    ]
    texts = [f"line at {int(box[0, 1])} of {int(box[0, 0])}" for box in level]
    found = SimpleNamespace(
        boxes=[box @ matrix for box in level], txts=texts, scores=[0.9] * 24, word_results=None
    )
    monkeypatch.setattr(ocr, "_load_engine", lambda: lambda *_, **__: found)
    monkeypatch.setattr(ocr, "_count_quarter_turns", lambda *_: 0)
    page = ocr.recognize_text(np.full((700, 1900, 3), 255, np.uint8), scale=0.5)
    assert page.height == 350
    tops = [run.top for run in page.runs]
    assert max(abs(tops[i] - tops[i + 1]) for i in range(0, 24, 2)) < 1  # two lines of a row
    assert all(11 < run.bottom - run.top < 13 for run in page.runs)
    assert [run.left for run in page.runs[2::2]] == pytest.approx([page.runs[0].left] * 11, abs=0.1)


def test_lines_that_the_detector_joined_across_a_gutter_are_split(monkeypatch):
    """Six rows of two columns, found as six lines; the ink alone shows the gutter."""
    np = pytest.importorskip("numpy")
    pytest.importorskip("cv2")
    from types import SimpleNamespace

    from stillroom.text.pdf import ocr

    pixels = np.full((400, 700, 3), 255, np.uint8)
    tops = range(50, 350, 30)
    for top in tops:
        for left in (20, 360):
            for x in range(left, left + 320, 20):  # letters
                pixels[top + 5 : top + 17, x : x + 17] = 0
    boxes = np.array([[[15, y], [685, y], [685, y + 24], [15, y + 24]] for y in tops], np.float32)
    scores = [0.9] * len(tops)
    found = SimpleNamespace(
        boxes=boxes, txts=["both"] * len(tops), scores=scores, word_results=None
    )

    class Engine:
        def __call__(self, *_, **__):
            return found

        def crop_text_regions(self, pixels, boxes):
            return [float(box[:, 0].min()) for box in boxes]

        def recognize_txt(self, crops):
            texts = ["left" if crop < 300 else "right" for crop in crops]
            return SimpleNamespace(txts=texts, scores=[0.99] * len(texts))

        def calc_word_boxes(self, *_):
            return None

    monkeypatch.setattr(ocr, "_load_engine", Engine)
    monkeypatch.setattr(ocr, "_count_quarter_turns", lambda *_: 0)
    page = ocr.recognize_text(pixels)
    assert sorted(run.text for run in page.runs) == ["left"] * 10 + ["right"] * 10
    assert {(run.left, run.right) for run in page.runs} == {(20, 337), (360, 677)}


def test_a_line_wrongly_taken_to_be_upside_down_is_read_as_it_stands(monkeypatch):
    np = pytest.importorskip("numpy")
    pytest.importorskip("cv2")
    from types import SimpleNamespace

    from stillroom.text.pdf import ocr

    box = np.array([[[10, 10], [400, 10], [400, 40], [10, 40]]], np.float32)
    again = SimpleNamespace(txts=["as it is"], scores=[0.98])
    engine = SimpleNamespace(
        crop_text_regions=lambda *_: [None],
        recognize_txt=lambda _: again,
        calc_word_boxes=lambda *_: None,
    )
    monkeypatch.setattr(ocr, "_load_engine", lambda: engine)
    monkeypatch.setattr(ocr, "_count_quarter_turns", lambda *_: 0)
    lines = ocr._pair_lines(box, ["aad s t ts"], [0.69], None)
    monkeypatch.setattr(ocr, "_recognize_lines", lambda _: lines)
    page = ocr.recognize_text(np.full((60, 420, 3), 255, np.uint8))
    assert [run.text for run in page.runs] == ["as it is"]
    assert page.confidence == pytest.approx(0.98)


def test_frames_of_a_picture_beyond_the_time_are_counted(monkeypatch):
    from stillroom.text.parsers import image as image_parser
    from stillroom.text.pdf.ocr import OcrPage

    image = pytest.importorskip("PIL.Image")
    frames = [image.new("L", (40, 40), 255) for _ in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "TIFF", save_all=True, append_images=frames[1:])
    run = TextRun([("word", 0.0, 9.0)], 0.0, 0.0, 9.0, 9.0, 9.0)
    monkeypatch.setattr(image_parser, "has_ocr", lambda: True)
    monkeypatch.setattr(image_parser, "recognize_text", lambda _: OcrPage([run], 1.0, turn=180))
    monkeypatch.setattr(image_parser.time, "process_time", iter(range(0, 999, 40)).__next__)
    source = SourceFile("a.tiff", "0" * 64, limits=ParseLimits(ocr_timeout_s=90))
    document = image_parser.Image().parse(buffer.getvalue(), source)
    assert document.text == "word\n\nword"
    assert document.metadata["pages_needing_ocr"] == [3]
    assert document.metadata["pages_turned"] == [1, 2]
    assert "ocr_timeout_s" in document.metadata["notices"][0]


def test_an_outline_tells_which_looks_are_headings():
    paper = Paper().page()
    paper.text(72, 750, "Chapter", 20, 1).lines(72, 700, LEFT)
    paper.text(72, 620, "Note", 10, 1).lines(72, 600, RIGHT)
    paper.page().text(72, 750, "Another chapter", 20, 1).lines(72, 700, LEFT)
    data = paper.save()
    marks = (
        b"90 0 obj << /First 91 0 R /Last 91 0 R /Count 1 >> endobj\n"
        b"91 0 obj << /Title (Chapter) /Parent 90 0 R /Dest [7 0 R /Fit] >> endobj\n"
    )
    assert b"/Type /Catalog" in data
    data = data.replace(b"/Type /Catalog", b"/Type /Catalog /Outlines 90 0 R")
    data = data[: data.index(b"xref\n")] + marks + b"trailer << /Root 1 0 R /Size 92 >>\n%%EOF"
    titles = [(one.level, one.title) for one in read(data).headings]
    assert titles == [(1, "Chapter"), (1, "Another chapter")]


def test_a_title_of_the_outline_is_found_with_other_punctuation_on_its_page():
    paper = Paper().page().lines(72, 750, LEFT).text(72, 640, "2.1 Step 1 Connect", 20, 1)
    data = paper.lines(72, 600, RIGHT).save()
    marks = (
        b"90 0 obj << /First 91 0 R /Last 91 0 R /Count 1 >> endobj\n"
        b"91 0 obj << /Title (Step 1: Connect) /Parent 90 0 R /Dest [7 0 R /Fit] >> endobj\n"
    )
    data = data.replace(b"/Type /Catalog", b"/Type /Catalog /Outlines 90 0 R")
    data = data[: data.index(b"xref\n")] + marks + b"trailer << /Root 1 0 R /Size 92 >>\n%%EOF"
    document = read(data)
    assert [one.title for one in document.headings] == ["2.1 Step 1 Connect"]
    assert document.text[document.headings[0].start :].startswith("# 2.1 Step 1 Connect")


def test_titles_of_the_outline_within_a_paragraph_are_sections_in_the_order_of_the_text():
    paper = Paper().page().text(72, 700, "Of Beta there is a word, and then one of Alpha.")
    data = paper.lines(72, 600, RIGHT).save()
    marks = (
        b"90 0 obj << /First 91 0 R /Last 92 0 R /Count 2 >> endobj\n"
        b"91 0 obj << /Title (Alpha) /Parent 90 0 R /Next 92 0 R /Dest [7 0 R /Fit] >> endobj\n"
        b"92 0 obj << /Title (Beta) /Parent 90 0 R /Prev 91 0 R /Dest [7 0 R /Fit] >> endobj\n"
    )
    data = data.replace(b"/Type /Catalog", b"/Type /Catalog /Outlines 90 0 R")
    data = data[: data.index(b"xref\n")] + marks + b"trailer << /Root 1 0 R /Size 93 >>\n%%EOF"
    document = read(data)
    assert [one.title for one in document.headings] == ["Beta", "Alpha"]
    assert all(document.text[one.start :].startswith(one.title) for one in document.headings)


def test_running_heads_with_roman_numbers_are_of_one_kind():
    paper = Paper()
    for number in ("i", "ii", "iii", "iv"):
        paper.page().text(72, 770, f"The book {number}").text(72, 600, f"Words of page {number}x.")
    document = read(paper)
    assert document.text.count("The book") == 1
    assert document.metadata["repeated_lines_left_out"] == 3


def test_a_line_too_long_for_its_page_is_kept():
    document = read(Paper().page().lines(72, 700, LEFT).text(72, 640, "word " * 40 + "end"))
    assert document.text.endswith("word end")
    assert "hidden_characters_left_out" not in document.metadata


def test_a_superscript_number_is_told_from_digits_on_the_line():
    paper = Paper().page().text(72, 700, "It gives 10").text(117.8, 704, "6", 6)
    paper.text(123.6, 700, "litres of water in the year.").text(235.5, 704, "12", 6)
    paper.text(245, 700, "Next is 7 or").text(303, 703, "8", 7)
    (line,) = read(paper).text.split("\n")
    assert line == "It gives 10⁶ litres of water in the year.¹² Next is 7 or 8"
    paper = Paper().page().text(72, 700, "It gives 10").text(117.8, 704, "-6", 6)
    assert read(paper.text(72, 640, "Twenty-one 7-8")).text == "It gives 10⁻⁶\n\nTwenty-one 7-8"


def test_a_table_of_contents_names_neither_the_file_nor_sections():
    paper = Paper().page().text(72, 740, "Contents", 20, 1)
    paper.text(72, 700, "1 Introduction . . . . . . . . . . . 3", 14, 1)
    paper.text(72, 670, "2 Kinematics of particles........ 12", 14, 1)
    paper.page().text(72, 740, "Introduction", 20, 1).lines(72, 700, LEFT)
    document = read(paper)
    assert [one.title for one in document.headings] == ["Contents", "Introduction"]
    assert document.title == "a"


CHAPTERS = ("Where the water comes from", "How malt is dried", "Peat", "What the still does", "Age")


def book(entry, *, gap=0, dots=24):
    """Return a book of chapters, each on a page of its own after the contents on the first."""
    paper = Paper().page().text(72, 740, "Contents", 16, 1)
    for number, title in enumerate(CHAPTERS, 1):
        paper.text(72, 700 - 14 * number, entry(number, title) + " ." * dots)
        paper.text(450 + gap, 700 - 14 * number, str(number))
    for number, title in enumerate(CHAPTERS, 1):
        paper.page().text(72, 700, f"{number} {title}", 16, 1)
        paper.lines(72, 660, [f"Text {'abcde'[number - 1]} of the chapter says something", "more."])
    return paper


@pytest.mark.parametrize("dots", [0, 24, 40])
def test_tables_of_contents_are_left_out_and_counted(dots):
    document = read(book("{} {}".format, dots=dots))
    assert document.text.startswith("# 1 Where the water")
    assert document.metadata["contents_lines_left_out"] == 6
    assert document.text.count("How malt is dried") == 1
    assert " . ." not in document.text


def test_a_price_list_with_dots_stays_though_its_goods_are_headings():
    paper = Paper().page().text(72, 740, "Prices", 16, 1)
    prices = (120, 45, 300, 7, 61)
    for number, (title, price) in enumerate(zip(CHAPTERS, prices, strict=True)):
        paper.text(72, 700 - 14 * number, title + " ." * 24).text(
            450, 700 - 14 * number, str(price)
        )
    for title in CHAPTERS:
        paper.page().text(72, 700, title, 16, 1).lines(72, 660, ["A line of text.", "Another."])
    document = read(paper)
    assert "contents_lines_left_out" not in document.metadata
    assert all(title in document.text.partition("A line")[0] for title in CHAPTERS)
    assert "300" in document.text


@pytest.mark.parametrize("recurs", [True, False])
def test_lines_that_end_in_a_number_are_no_contents(recurs):
    paper = Paper()
    for page in range(1, 5):
        if recurs:  # the same sum thrice, and a heading with its words
            paper.page().text(72, 500, "Total" if page == 4 else "Total 3", 12, page == 4)
        else:  # a title and a line with its number
            paper.page().text(72, 700, "Sample", 16, 1).text(72, 500, f"Sample {page}")
        paper.lines(72, 400, [f"Text {'abcd'[page - 1]} says something of its own", "and more."])
    document = read(paper)
    assert "contents_lines_left_out" not in document.metadata
    assert len(re.findall(r"Total 3|Sample \d", document.text)) == (3 if recurs else 4)


def test_dots_to_a_page_with_a_letter_take_no_time():
    paper = book("{} {}".format).page()
    paper.text(20, 400, "Appendix A" + "." * 300 + " A-1", 1.5)
    paper.text(20, 300, "Name" + " ." * 300 + " (signature)", 1.5)
    started = time.perf_counter()
    document = read(paper)
    assert time.perf_counter() - started < 3
    assert document.metadata["contents_lines_left_out"] == 6
    assert "A-1" in document.text


def test_a_title_on_every_page_is_no_quadratic_work():
    def block(text):
        return PageBlock("p", [TextLine(text, 72, 400, 200, 410, 10, 10, is_bold=False)])

    pages = [
        PdfPage(at, [block("Total" if at % 2 else f"Total {10 * at}")], 0, 792)
        for at in range(1, 801)
    ]
    tracemalloc.start()
    try:
        assert drop_contents(pages) == 0
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_heads_whose_numbers_run_beside_a_few_pages_are_left_out():
    numbers = ["ii", "iii", "iv", *(f"{page} / 20" for page in range(1, 21))]
    paper = Paper().page().text(72, 500, "A History of Malt", 24, 1)
    for at, number in enumerate(numbers):
        paper.page().text(72, 770, f"A History of Malt {number}", 9)
        paper.lines(72, 700, [f"Sheet {'abcdefghijklmnopqrstuvw'[at]} has its own words,", "too."])
    text = read(paper).text
    assert text.count("A History of Malt") == 1
    assert "Sheet a has" in text
    assert "Sheet w has" in text


def test_lone_roman_numbers_of_pages_are_left_out():
    paper = Paper()
    for word, number in zip(
        ("oak", "ash", "elm", "fir", "yew"), ("i", "ii", "1", "2", "3"), strict=True
    ):
        paper.page().lines(72, 700, [f"A page on {word}, which has its own", f"{word}."])
        paper.text(300, 30, number)
    text = read(paper).text
    assert text.endswith("which has its own\nyew.")
    assert text.split("\n\n")[1].startswith("A page on ash")


def test_a_hyphen_stays_at_a_line_end_where_the_document_has_the_word_with_it():
    lines = [
        "The ports are now named kfreebsd-i386, kfreebsd-",
        "amd64 and some other names that nobody has used since",
        "then. Two new ports, kfreebsd-i386 and kfreebsd-amd64",
        "were read on the same day as the other archi-",
        "tecture was.",
    ]
    text = read(Paper().page().lines(72, 700, lines)).text
    assert text.count("kfreebsd-amd64") == 2
    assert "architecture\nwas" in text


def test_a_word_that_a_page_end_cut_is_joined_on_the_first_page():
    paper = Paper().page().lines(72, 700, ["The tool dpkg-deb is old. A format was made by dpkg-"])
    paper.page().lines(72, 700, ["deb and dropped after a correspond-", "ing vote of all of them."])
    document = read(paper)
    assert "made by dpkg-deb\nand dropped after a corresponding\nvote" in document.text
    at = document.text.index("dpkg-deb\n")
    assert document.locate(at, at + 8).pages == (1,)
    at = document.text.index("and dropped")
    assert document.locate(at, at + 8).pages == (2,)


def test_raised_signs_of_footnotes_are_parted_from_words():
    line = "It was voted by half of the developers"
    end = 72 + 6 * len(line)  # Courier of 10 points
    paper = Paper().page().text(72, 700, line, 10, 2).text(end, 704, "1", 6, 2)
    paper.text(end + 3.6, 700, ", over 5 km", 10, 2).text(end + 3.6 + 66, 704, "2", 6, 2)
    paper.text(72, 60, "1", 6).text(75.4, 56, "In elections the number had been lower.", 9)
    text = read(paper).text
    assert "the developers ¹, over 5 km²" in text
    assert "¹ In elections" in text


@pytest.mark.parametrize("name", ["²³⁵U", "¹³⁷Cs", "³⁵Cl"])
def test_a_nuclide_at_the_start_of_a_line_is_whole(name):
    number = "".join(str("⁰¹²³⁴⁵⁶⁷⁸⁹".index(sign)) for sign in name if not sign.isascii())
    rest = f"{name[len(number) :]} decays slowly in the soil of a mill."
    paper = Paper().page().text(72, 704, number, 6, 2)
    paper.text(72 + 3.6 * len(number), 700, rest, 10, 2)
    assert read(paper).text.startswith(f"{name} decays")


@pytest.mark.parametrize(
    ("cut", "end", "joined"),
    [
        ("Rhein-", "Main", "Rhein-Main"),
        ("E-", "Mail", "E-Mail"),
        ("INFOR-", "MATION", "INFORMATION"),
        ("Vor-", "und Nachteile", "Vor- und\nNachteile"),
        ("long-", "to medium-term plans", "long- to\nmedium-term plans"),
        ("Au-", "to und", "Auto\nund"),
    ],
)
def test_a_hyphen_stays_before_a_capital_and_where_a_word_is_to_come(cut, end, joined):
    known = "Send an email on the rheinmain and its information; it was a long day."
    paper = Paper().page().lines(72, 700, [known, f"They say {cut}", f"{end}."])
    assert f"They say {joined}" in read(paper).text


def test_a_hyphen_at_a_page_end_stays_where_a_word_is_to_come():
    paper = Paper().page().lines(72, 700, ["The method has its own well-known Vor-"])
    paper.page().lines(72, 700, ["und Nachteile, which are told here", "and there."])
    assert "Vor- und\nNachteile" in read(paper).text


@pytest.mark.parametrize(
    ("above", "below", "is_label"),
    [
        ("Chapter 5", "Sources of it", True),
        ("Kapitel IV", "Der Brand", True),
        ("Vitamin C", "Sources of it", False),
        ("Windows 11", "System requirements", False),
    ],
)
def test_only_a_label_is_joined_to_the_heading_below_it(above, below, is_label):
    paper = Paper().page().text(72, 700, above, 16, 1).text(72, 660, below, 15, 1)
    paper.lines(72, 620, LEFT)
    titles = [one.title for one in read(paper).headings]
    assert titles == ([f"{above} {below}"] if is_label else [above, below])
