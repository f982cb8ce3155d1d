"""Does every quoted byte stand in the document? Thousands of answers over generated and real files.

Documents are generated as text (UTF-8 with and without BOM, UTF-16, Latin-1; LF, CRLF, CR),
Markdown, HTML (entities, inline markup, tables), DOCX and PDF, in sentences of several scripts with
combining marks, zero-width characters and emoji; folders of real ones can be added with
``--documents``. Each is asked about by words and sentences of itself, under random settings. A
quote that says it is exact has to equal the decoded bytes that it names; another has to stand,
white space aside, in what an independent reader (``html.parser``, the XML of an office file,
pdfminer and pypdf, which are to be installed; of generated files, what was written) finds in the
file, and in HTML in the named bytes alone. ``unread`` counts those that no such reader can judge
(scans).

``python benchmarks/rag/verbatim_quotes.py [--answers 10000] [--documents FOLDER ...]
[--reader builtin:overlap] [--embedder static]`` prints ``reader/verbatim_share``, and every
failure.
"""

import argparse
import html
import json
import random
import re
import shutil
import sys
import tempfile
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from stillroom.jobs import Job
from stillroom.provenance import digest_file
from stillroom.rag import Index, ask
from stillroom.rag.jobs.index import IndexRecipe, run
from stillroom.testing import scripted_model

_HYPHEN = re.compile(r"-\s*\n\s*")
CHUNKERS = ("heading", "recursive", "sentence", "fixed")
_SPELLED = (
    "mill river kiln burns oak the of winter valve red pump rises sluice grinds barley 3 14.5 "
    "Straße déjà naïve Ærø ﬁrst ½ x² não été über Łódź"
)
WORDS = _SPELLED.split()
CJK = ["東京", "日本", "首都", "人口", "川", "水車", "石炭", "冬", "赤", "弁"]
ODD = [
    "e\u0301\u0302cole",
    "cafe\u0301",
    "a\u0308u\u00dfern",
    "\u0928\u092e\u0938\u094d\u0924\u0947",
    "zero\u200bwidth",
    "soft\u00adhyphen",
    "\u0627\u0644\u0646\u0647\u0631",
    "👩‍👩‍👧‍👦",
    "🇩🇪",
    "non\u00a0breaking",
    "\u05e0\u05d4\u05e8",
    "แม่น้ำ",
    "e.g.",
    "Dr. Oak",
    "[3]",
    "【1】",
    "&amp;",
    "<b>",
    "`code`",
    "http://a.example/?q=1",
    "\u202eleft\u202c",
]
UNREAD = "read by no other reader"  # a scan, a picture, a recording
MEDIA = {".jpg", ".png", ".mp3"}
SILENT = scripted_model(["a reader asks no model"])
_BLANK = re.compile(r"[\s\u200b-\u200f\u202a-\u202e\u2060-\u2069\u00ad\ufeff\x00-\x1f\x7f]+")


def make_sentence(rng: random.Random, *, plain: bool) -> str:
    """Return a sentence of random words; a plain one has printable ASCII alone."""
    if not plain and rng.random() < 0.25:
        return "".join(rng.choice(CJK) for _ in range(rng.randint(3, 12))) + "。"
    pool = [word for word in WORDS if word.isascii()] if plain else [*WORDS, *CJK, *ODD]
    words = [rng.choice(pool) for _ in range(rng.randint(4, 18))]
    return " ".join(words).capitalize() + rng.choice(".!?;" if plain else ".!?…;")


def make_paragraphs(rng: random.Random, *, plain: bool) -> list[str]:
    """Return paragraphs of sentences."""
    return [
        " ".join(make_sentence(rng, plain=plain) for _ in range(rng.randint(1, 6)))
        for _ in range(rng.randint(1, 8))
    ]


def write_text(path: Path, rng: random.Random) -> str:
    """Write a text file in some encoding with some line ends."""
    encoding = rng.choice(["utf-8", "utf-8-sig", "utf-16", "latin-1", "utf-8"])
    paragraphs = make_paragraphs(rng, plain=encoding == "latin-1")
    if path.suffix in {".md", ".rst"}:
        paragraphs.insert(0, "# The kiln of oak" if path.suffix == ".md" else "The kiln\n========")
    newline = rng.choice(["\n", "\r\n", "\r"])
    text = f"{newline}{newline}".join(part.replace("\n", newline) for part in paragraphs)
    path.write_bytes(text.encode(encoding))
    return text


def write_html(path: Path, rng: random.Random) -> str:
    """Write a page with entities, inline markup, lists and a table."""
    paragraphs = make_paragraphs(rng, plain=False)

    def mark(text: str) -> str:
        words = [html.escape(word) for word in text.split(" ")]
        at = rng.randrange(len(words))
        words[at] = rng.choice(
            ["<b>{}</b>", "<a href='x?a=1&amp;b'>{}</a>", "<em>{}</em>", "{}"]
        ).format(words[at])
        marked = rng.choice([" ", "&#32;", "\r\n", " "]).join(words)
        return "".join(
            f"&#{ord(c)};"
            if rng.random() < 0.02 and c.isalpha() and "&" not in marked and "<" not in marked
            else c
            for c in marked
        )

    body = "".join(
        rng.choice(["<p>{}</p>", "<ul><li>{}</li></ul>", "<div>{}<br></div>",
                    "<table><tr><td>{}</td><td>oak</td></tr></table>"]).format(mark(part))
        for part in paragraphs
    )  # fmt: skip
    page = (
        f"<!DOCTYPE html><html><head><meta charset='utf-8'><title>Kiln</title></head><body>{body}"
    )
    path.write_bytes(page.encode("utf-8-sig" if rng.random() < 0.3 else "utf-8"))
    return " ".join(paragraphs) + " oak Kiln"


def write_docx(path: Path, rng: random.Random) -> str:
    """Write a DOCX of runs, headings and a table."""
    from docx import Document

    document = Document()
    paragraphs = make_paragraphs(rng, plain=False)
    for number, text in enumerate(paragraphs):
        paragraph = document.add_heading("", 1) if number == 0 else document.add_paragraph()
        for word in text.split(" "):
            paragraph.add_run(word + " ").bold = rng.random() < 0.1
    table = document.add_table(1, 2)
    table.rows[0].cells[0].text, table.rows[0].cells[1].text = paragraphs[-1], "oak"
    document.save(str(path))
    return " ".join([*paragraphs, paragraphs[-1], "oak"])


def write_pdf(path: Path, rng: random.Random) -> str:
    """Write a PDF of two pages of lines in a standard font."""
    pages, texts = [], []
    for _ in range(2):
        lines: list[str] = []
        for text in make_paragraphs(rng, plain=True)[:5]:
            words = text.split(" ")
            lines += [" ".join(words[at : at + 12]) for at in range(0, len(words), 12)] + [""]
        texts += lines
        drawn = [
            line.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)") for line in lines
        ]
        shown = "".join(f"({line}) Tj T*\n" for line in drawn)
        pages.append(f"BT /F1 11 Tf 14 TL 72 760 Td\n{shown}ET".encode("latin-1"))
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[4 0 R 6 0 R]/Count 2>>",
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica/Encoding/WinAnsiEncoding>>",
    ]
    for number, content in enumerate(pages):
        objects.append(
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Resources<</Font<</F1 3 0 R>>>>"
            b"/Contents %d 0 R>>" % (5 + 2 * number)
        )
        objects.append(b"<</Length %d>>stream\n%s\nendstream" % (len(content), content))
    data, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(data))
        data += b"%d 0 obj%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    start = len(data)
    data += b"xref\n0 %d\n0000000000 65535 f \n%s" % (len(objects) + 1, table)
    data += b"trailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % (len(objects) + 1, start)
    path.write_bytes(data)
    return " ".join(texts)


WRITERS: dict[str, Callable[[Path, random.Random], str]] = {
    "txt": write_text, "md": write_text, "rst": write_text, "html": write_html,
    "docx": write_docx, "pdf": write_pdf,
}  # fmt: skip


class _Page(HTMLParser):
    """Collects the text of a page that is not hidden."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._hidden: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        style = (dict(attrs).get("style") or "").replace(" ", "")
        if tag in {"script", "style"} or "display:none" in style or tag in self._hidden:
            self._hidden.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._hidden and self._hidden[-1] == tag:
            self._hidden.pop()

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data)


def read_html(text: str) -> str:
    """Return the text of a page or a part of one."""
    page = _Page()
    page.feed(text)
    page.close()
    return "".join(page.parts)


def read_independently(path: Path) -> str:
    """Return the text of a file by another reader than the product's; empty if there is none."""
    if path.suffix in {".docx", ".pptx", ".xlsx", ".epub", ".odt"}:
        with zipfile.ZipFile(path) as opened:
            names = [name for name in opened.namelist() if name.endswith((".xml", ".xhtml"))]
            roots = [ElementTree.fromstring(opened.read(name)) for name in names]  # noqa: S314
        return "\n".join("".join(root.itertext()) for root in roots)
    if path.suffix in MEDIA:
        return ""
    if path.suffix == ".pdf":
        return read_pdf(path)
    text = path.read_bytes().decode("utf-8-sig", "replace")
    if path.suffix == ".ipynb":
        return "".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    return read_html(text) if path.suffix in {".html", ".htm"} else text


def read_pdf(path: Path) -> str:
    """Return what pdfminer, in two orders, and pypdf read, also without hyphens at line ends."""
    from pdfminer.high_level import extract_text
    from pdfminer.layout import LAParams
    from pypdf import PdfReader

    parts = [extract_text(path), extract_text(path, laparams=LAParams(boxes_flow=None))]
    pages = PdfReader(path).pages
    parts.append("\n".join(page.extract_text() for page in pages))
    notes = (note.get_object() for page in pages for note in page.get("/Annots") or ())
    parts += [str(note.get(key, "")) for note in notes for key in ("/Contents", "/V", "/T", "/TU")]
    return "\f".join(text + "\f" + _HYPHEN.sub("", text) for text in parts)


def squash(text: str) -> str:
    """Return a text without white space, invisible characters and the lines of tables."""
    return unicodedata.normalize("NFKC", _BLANK.sub("", text))


def check(quote: dict[str, Any], answer: Any, place: Path, truths: dict[str, str],
          index: Index) -> str:  # fmt: skip
    """Return what is wrong with a quote; empty if its bytes stand in the document."""
    source = place / quote["path"]
    data, text = source.read_bytes(), quote["text"]
    start, end = quote["byte_start"], quote["byte_end"]
    passage = answer.hits[quote["number"] - 1].passage
    if passage.location.digest not in {digest_file(source), digest_file(source).partition(":")[2]}:
        return "another file's digest"
    if not 0 <= start < end <= len(data):
        return f"bytes {start}-{end} of {len(data)}"
    told = answer.completion.text[quote["answer_start"] :][: len(text)]
    if told != text or passage.text[quote["start"] : quote["end"]] != text:
        return "the answer's text is not the passage's"
    if quote["is_exact"]:
        encoding = index.document(passage.document_id).metadata.get("encoding", "utf-8")
        decoded = data[start:end].decode(encoding)
        return "" if decoded == text else f"exact, but the bytes are {decoded!r:.80}"
    if quote["path"] not in truths:
        truths[quote["path"]] = squash(read_independently(source))
    if not truths[quote["path"]]:
        return UNREAD
    lines = text.split("\n") if source.suffix == ".pdf" else [text]  # columns are read in turn
    if not all(squash(line) in truths[quote["path"]] for line in lines):
        return "not in the document by another reader"
    if source.suffix == ".html":
        part = data[start:end].decode("utf-8", "replace")
        if squash(text) not in squash(read_html(part)):
            return f"not in its own bytes {part!r:.120}"
    return ""


def make_question(texts: list[str], rng: random.Random) -> str:
    """Return some words of a document, a stretch of it, or words that are in none."""
    words = rng.choice(texts).split()
    draw = rng.random()
    if draw < 0.5 and words:
        return " ".join(rng.choice(words) for _ in range(rng.randint(1, 6))) + "?"
    if draw < 0.95 and words:
        at = rng.randrange(len(words))
        return "What about " + " ".join(words[at : at + rng.randint(2, 9)]) + "?"
    return "Which zebra plays chess?"


def build(place: Path, folder: Path, chunker: str, embedder: str) -> list[str]:
    """Index a folder, and return the passages' texts."""
    recipe = IndexRecipe(
        documents=str(folder), embedder=embedder, chunker={"name": chunker, "size": 96},
        max_failed=1.0,
    )  # fmt: skip
    run(recipe, Job.start(place, "recipe\n"))
    with Index.open(place) as index:
        return [index.passage_at(row).text for row in range(len(index))]


def ask_all(index: Index, texts: list[str], count: int, reader: str,
            rng: random.Random) -> Iterator[Any]:  # fmt: skip
    """Yield answers under random settings."""
    for _ in range(count):
        settings: dict[str, Any] = {
            "k": rng.randint(1, 6),
            "neighbours": rng.randint(0, 2),
            "answering": {
                "name": "quote", "reader": reader, "min_probability": 0.0,
                "max_quotes": rng.randint(1, 5), "margin": rng.choice([0.0, 1.0, 6.0, 50.0]),
            },
        }  # fmt: skip
        yield ask(index, SILENT, make_question(texts, rng), **settings)


def main() -> None:
    """Print the share of quotes that stand in their documents, and each that does not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=10_000)
    parser.add_argument("--documents", type=Path, action="append", default=[])
    parser.add_argument("--reader", default="builtin:overlap")
    parser.add_argument("--embedder", default="static")
    parser.add_argument("--seed", type=int, default=0)
    figure = measure(parser.parse_args())
    print(json.dumps(figure))
    sys.exit(bool(figure["wrong"]))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the share of quotes that stand in their documents; print each that does not."""
    rng = random.Random(options.seed)  # no secrets
    counts: Counter[str] = Counter(wrong=0, unread=0)
    formats: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        for round_number, chunker in enumerate(CHUNKERS):
            folder = Path(temporary) / chunker
            (folder / "documents").mkdir(parents=True)
            truths: dict[str, str] = {}
            for number in range(36):
                suffix = list(WRITERS)[number % len(WRITERS)]
                name = f"g{number}.{suffix}"
                truth = squash(WRITERS[suffix](folder / "documents" / name, rng))
                if suffix != "html":  # where cells touch as they are marked up
                    truths[name] = truth
            for number, real in enumerate(options.documents):
                shutil.copytree(real, folder / "documents" / f"real{number}")
            texts = build(folder / "index", folder / "documents", chunker, options.embedder)
            share = options.answers // len(CHUNKERS) + (
                round_number < options.answers % len(CHUNKERS)
            )
            with Index.open(folder / "index") as index:
                for answer in ask_all(index, texts, share, options.reader, rng):
                    counts["answers"] += 1
                    for quote in answer.details.get("quotes", ()):
                        wrong = check(quote, answer, folder / "documents", truths, index)
                        counts["quotes"] += 1
                        counts["exact"] += bool(quote["is_exact"])
                        counts["bytes"] += len(quote["text"].encode())
                        counts["unread"] += wrong == UNREAD
                        counts["wrong"] += wrong not in {"", UNREAD}
                        formats[Path(quote["path"]).suffix] += 1
                        if wrong not in {"", UNREAD}:
                            said = {"path": quote["path"], "chunker": chunker, "wrong": wrong,
                                    "quote": quote["text"][:300]}  # fmt: skip
                            print(json.dumps(said, ensure_ascii=False), file=sys.stderr)
    value = 1 - counts["wrong"] / (counts["quotes"] - counts["unread"])
    return {
        "name": "reader/verbatim_share", "value": value, "n": counts["quotes"], **counts,
        "formats": dict(formats),
    }  # fmt: skip


if __name__ == "__main__":
    main()
