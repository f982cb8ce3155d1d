"""What some documents hold, told by none of the readers that are measured.

Office formats and books are read from their XML by the few lines below, pages by lxml, PDF by hand
(``parsing_references``) or by poppler's pdftotext with tables and headings noted by hand.
"""

import csv
import json
import posixpath
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

from defusedxml.ElementTree import fromstring
from parsing_scores import Found, Table, read_markdown

__all__ = ["truth_of"]

HERE = Path(__file__).parent / "parsing_references"
W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
A = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
S = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
MAIN = {
    "test_wikipedia.html": "//div[@id='mw-content-text']",
    "test_blog.html": "//article",
    "test_serp.html": "//main",
}
ENCODINGS = {"test_mskanji.csv": "cp932"}


def truth_of(path: Path, name: str) -> tuple[Found, str] | None:
    """Return what a document holds and how that is known, or nothing where it is not."""
    by_hand = HERE / f"{path.name}.md"
    if by_hand.exists():
        return read_markdown(by_hand.read_text()), "by hand"
    structure = json.loads((HERE / "structure.json").read_text())
    if name in structure:
        return _of_pdf(path, structure[name])
    readers = {".docx": _docx, ".pptx": _pptx, ".xlsx": _xlsx, ".epub": _epub, ".html": _html,
               ".ipynb": _ipynb, ".csv": _csv}  # fmt: skip
    reader = readers.get(path.suffix)
    return reader(path) if reader else None


def _of_pdf(path: Path, structure: dict) -> tuple[Found, str] | None:
    given = path.parent / "expected_outputs" / f"{path.stem}.md"
    headings = [(level, title) for level, title in structure.get("headings", [])]
    tables = structure.get("tables", [])
    if given.exists():
        found = read_markdown(given.read_text())
        return Found(
            found.lines, headings, tables
        ), "with the file (markitdown's), headings by hand"
    if not shutil.which("pdftotext"):
        return None
    told = subprocess.run(["pdftotext", "-raw", str(path), "-"], capture_output=True, check=True)
    lines = told.stdout.decode().replace("\f", "\n").split("\n")
    return Found(lines, headings, tables), "poppler, tables and headings by hand"


def _text(element: ET.Element, tag: str) -> str:
    return "".join(one.text or "" for one in element.iter(tag))


def _docx(path: Path) -> tuple[Found, str]:
    with zipfile.ZipFile(path) as archive:
        body = fromstring(archive.read("word/document.xml")).find(f"{W}body")
        styles = _styles(fromstring(archive.read("word/styles.xml")))
        notes = [
            _text(one, f"{W}t")
            for name in ("footnotes", "endnotes", "comments")
            if f"word/{name}.xml" in archive.namelist()
            for one in fromstring(archive.read(f"word/{name}.xml"))
        ]
    found = Found(headings=[], tables=[])
    assert body is not None
    for child in body:
        if child.tag == f"{W}tbl":
            rows = [
                [_text(cell, f"{W}t") for cell in row.findall(f"{W}tc")]
                for row in child.findall(f"{W}tr")
            ]
            found.tables = [*(found.tables or []), rows]
            found.lines += [" ".join(row) for row in rows]
            continue
        text = _docx_text(child)
        style = child.find(f"{W}pPr/{W}pStyle")
        level = styles.get(style.get(f"{W}val", ""), 0) if style is not None else 0
        if level and text.strip():
            found.headings = [*(found.headings or []), (level, text)]
        found.lines.append(text)
    found.lines += notes
    return found, "its XML"


def _docx_text(element: ET.Element) -> str:
    """Return words and formulas; tracked deletions have tags of their own."""
    math = "{http://schemas.openxmlformats.org/officeDocument/2006/math}t"
    return "".join(one.text or "" for one in element.iter() if one.tag in {f"{W}t", math})


def _styles(root: ET.Element) -> dict[str, int]:
    levels = {}
    for style in root.iter(f"{W}style"):
        name = style.find(f"{W}name")
        title = (name.get(f"{W}val", "") if name is not None else "").lower()
        match = re.fullmatch(r"heading (\d)", title)
        if match or title == "title":
            levels[style.get(f"{W}styleId", "")] = int(match.group(1)) if match else 1
    return levels


def _pptx(path: Path) -> tuple[Found, str]:
    found = Found(headings=[], tables=[])
    with zipfile.ZipFile(path) as archive:
        slides = [
            name for name in archive.namelist() if re.match(r"ppt/slides/slide\d+\.xml", name)
        ]
        for name in sorted(slides, key=lambda one: int(re.findall(r"\d+", one)[0])):
            root = fromstring(archive.read(name))
            for table in root.iter(f"{A}tbl"):
                rows = [
                    [_text(cell, f"{A}t") for cell in row.findall(f"{A}tc")]
                    for row in table.findall(f"{A}tr")
                ]
                found.tables = [*(found.tables or []), rows]
            found.lines += [_text(one, f"{A}t") for one in root.iter(f"{A}p")]
            found.headings = [*(found.headings or []), *_titles(root)]
        for name in archive.namelist():
            if re.fullmatch(r"ppt/charts/chart\d+\.xml", name):
                rows = _chart(fromstring(archive.read(name)))
                found.tables = [*(found.tables or []), rows]
                found.lines += [" ".join(row) for row in rows]
    return Found(found.lines, found.headings, found.tables), "its XML"


def _chart(root: ET.Element) -> Table:
    """Return a chart's title line, then its categories and values."""
    c = "{http://schemas.openxmlformats.org/drawingml/2006/chart}"
    series = list(root.iter(f"{c}ser"))
    names = [_text(one.find(f"{c}tx") or one, f"{c}v") for one in series]
    columns = [[v.text or "" for v in one.iterfind(f"{c}val//{c}v")] for one in series]
    categories = [v.text or "" for v in series[0].iterfind(f"{c}cat//{c}v")]
    return [["", *names], *[list(row) for row in zip(categories, *columns, strict=False)]]


def _titles(root: ET.Element) -> Iterator[tuple[int, str]]:
    p = "{http://schemas.openxmlformats.org/presentationml/2006/main}"
    for shape in root.iter(f"{p}sp"):
        kind = shape.find(f"{p}nvSpPr/{p}nvPr/{p}ph")
        title = _text(shape, f"{A}t")
        if kind is not None and kind.get("type") in {"title", "ctrTitle"} and title:
            yield 1, title


def _xlsx(path: Path) -> tuple[Found, str]:
    with zipfile.ZipFile(path) as archive:
        shared = [_text(one, f"{S}t") for one in fromstring(archive.read("xl/sharedStrings.xml"))]
        names = [
            one.get("name", "")
            for one in fromstring(archive.read("xl/workbook.xml")).iter(f"{S}sheet")
        ]
        tables = []
        for number in range(1, len(names) + 1):
            root = fromstring(archive.read(f"xl/worksheets/sheet{number}.xml"))
            tables.append([[_cell(one, shared) for one in row] for row in root.iter(f"{S}row")])
    lines = [" ".join(row) for table in tables for row in table]
    headings = [(2, name) for name in names]
    return Found([*names, *lines], headings, tables), "its XML"


def _cell(cell: ET.Element, shared: list[str]) -> str:
    value = cell.findtext(f"{S}v") or ""
    return shared[int(value)] if cell.get("t") == "s" and value else value


def _html(path: Path) -> tuple[Found, str]:
    return _of_page(
        path.read_bytes(), MAIN.get(path.name, "//body")
    ), f"lxml at {MAIN.get(path.name)}"


def _of_page(data: bytes, where: str) -> Found:
    import lxml.html

    root = lxml.html.document_fromstring(data)
    main = (root.xpath(where) or [root])[0]
    for gone in main.xpath(
        ".//script|.//style|.//nav|.//*[@role='navigation']|.//noscript|.//template|.//svg|.//math|.//button|.//*[@hidden]"
        "|.//*[contains(@style,'display:none') or contains(@style,'display: none')]"
    ):
        gone.drop_tree()
    headings = [
        (int(one.tag[1]), " ".join(one.text_content().split()))
        for one in main.iter("h1", "h2", "h3", "h4", "h5", "h6")
    ]
    tables = [
        [[" ".join(cell.text_content().split()) for cell in row.xpath("./td|./th")]
         for row in table.xpath("./tr|./tbody/tr|./thead/tr")]
        for table in main.xpath(".//table[contains(@class,'wikitable')]")
    ]  # fmt: skip
    blocks = main.xpath(".//p|.//li|.//h1|.//h2|.//h3|.//h4|.//h5|.//h6|.//td|.//th|.//pre")
    inner = [one for one in blocks if not any(up in set(blocks) for up in one.iterancestors())]
    lines = [" ".join(" ".join(one.itertext()).split()) for one in inner or [main]]
    return Found(lines, headings, tables)


def _epub(path: Path) -> tuple[Found, str]:
    found = Found(headings=[], tables=[])
    with zipfile.ZipFile(path) as archive:
        container = fromstring(archive.read("META-INF/container.xml"))
        package = next(
            one.get("full-path", "") for one in container.iter() if "full-path" in one.attrib
        )
        root = fromstring(archive.read(package))
        items = {
            one.get("id"): one.get("href", "") for one in root.iter() if one.tag.endswith("}item")
        }
        for one in root.iter():
            if one.tag.endswith("}itemref"):
                href = posixpath.join(posixpath.dirname(package), items[one.get("idref")])
                page = _of_page(archive.read(href), "//body")
                found.lines += page.lines
                found.headings = [*(found.headings or []), *(page.headings or [])]
    return found, "its XML"


def _ipynb(path: Path) -> tuple[Found, str]:
    cells = json.loads(path.read_text())["cells"]
    text = "\n\n".join(
        f"```\n{''.join(cell['source'])}\n```"
        if cell["cell_type"] == "code"
        else "".join(cell["source"])
        for cell in cells
    )
    return read_markdown(text), "its JSON"


def _csv(path: Path) -> tuple[Found, str]:
    text = path.read_text(encoding=ENCODINGS.get(path.name, "utf-8"))
    rows = list(csv.reader(text.splitlines()))
    return Found([" ".join(row) for row in rows]), "the csv module"
