"""Document builder: text with byte anchors, Markdown tables, subtitle cues, front matter.

For formats whose text differs from the file's bytes. Headings, lists, tables and code are written
as Markdown, so that chunkers and models see one notation.

Front matter is YAML between ``---`` lines or TOML between ``+++`` lines. Fields keep their types as
in JSON (dates become ISO 8601); nested maps get dotted names. YAML that its aliases unfold without
limit is refused.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from stillroom.errors import DataError
from stillroom.recipes.yaml_text import load_foreign_yaml
from stillroom.records import Anchor, Definition, Document, Heading
from stillroom.text.interfaces import SourceFile

__all__ = [
    "DocumentBuilder",
    "FrontMatter",
    "add_cue",
    "build_document",
    "expand_row",
    "format_timestamp",
    "is_contents_title",
    "read_front_matter",
    "render_table",
    "require_text",
]


_SURROGATE = re.compile("[\ud800-\udfff]")
_TABLES_OF_CONTENTS = frozenset(
    "contents|table of contents|inhalt|inhaltsverzeichnis|table des matières|sommaire|índice"  # noqa: SIM905
    "|contenido|indice|sommario|содержание|оглавление|目次|目录".split("|")
)
_MAX_COLUMNS = 512
_MAX_TABLE_WIDTH = 64


class DocumentBuilder:
    """Builds a document block by block."""

    def __init__(self, source: SourceFile) -> None:
        self.source = source
        self._parts: list[str] = []
        self._length = 0
        self._anchors: list[Anchor] = []
        self._headings: list[Heading] = []
        self._definitions: list[Definition] = []
        self._is_marked = False  # text without a place follows the last anchor

    @property
    def length(self) -> int:
        """Number of characters so far."""
        return self._length

    @property
    def first_heading(self) -> str:
        """The title of the first heading, or an empty string."""
        return self._headings[0].title if self._headings else ""

    def add(
        self,
        text: str,
        span: tuple[int, int] | None = None,
        *,
        page: int = 0,
        label: str = "",
        is_exact: bool = False,
    ) -> None:
        """Append text with its byte range in the file.

        Raises:
            DataError: If the document grows beyond the limit.
        """
        if not text:
            return
        start, self._length = self._length, self._length + len(text)
        if self._length > self.source.limits.text_characters:
            found = f"the document holds {self._length} characters or more"
            raise self.source.limits.make_excess_error("text_characters", found, self.source.path)
        self._parts.append(text)
        if span is None:
            self._is_marked = self._is_marked or not text.isspace()
            return
        anchor = Anchor(start, self._length, *span, page, label, is_exact)
        last = self._anchors[-1] if self._anchors and not self._is_marked else None
        if last and not is_exact and replace(last, start=start, end=self._length) == anchor:
            self._anchors[-1] = replace(last, end=self._length)
        else:
            self._anchors.append(anchor)
        self._is_marked = False

    def gap(self, text: str = "\n\n") -> None:
        """Append white space between blocks, unless the document is empty."""
        if self._length:
            self.add(text)

    def heading(self, level: int, title: str, *, position: int | None = None) -> None:
        """Start a section here, or at a position; the caller adds the heading's text."""
        title = " ".join(title.split())[:300]
        if title:
            start = self._length if position is None else position
            self._headings.append(Heading(start, max(level, 1), title))

    def define(self, entries: Iterable[Definition]) -> None:
        """Add entries of lists of definitions, of places in the text so far."""
        self._definitions += entries

    def add_list(self, title: str, lines: Sequence[str], **place: Any) -> None:
        """Add a section of its own for notes or comments, if there are any."""
        if lines:
            self.gap()
            self.heading(2, title)
            self.add(f"## {title}\n\n" + "\n".join(lines), **place)

    def finish(
        self, *, title: str = "", metadata: Mapping[str, Any] | None = None, expected: str = ""
    ) -> Document:
        """Return the document.

        The title is by default the first heading, else the file's name; ``expected`` tells in the
        error why the text may be empty.

        Raises:
            DataError: If there is no text.
        """
        document = build_document(
            "".join(self._parts),
            self._anchors,
            self.source,
            headings=sorted(self._headings, key=lambda heading: heading.start),
            title=title,
            metadata=metadata,
        )
        entries = tuple(sorted(self._definitions, key=lambda entry: entry.start))
        return require_text(replace(document, definitions=entries), expected)


def build_document(
    text: str,
    anchors: Iterable[Anchor],
    source: SourceFile,
    *,
    headings: Sequence[Heading] = (),
    title: str = "",
    metadata: Mapping[str, Any] | None = None,
) -> Document:
    """Build a document from finished text; lone surrogates become U+FFFD and are counted."""
    facts = dict(metadata or {})
    broken = len(_SURROGATE.findall(text))
    if broken:
        text = _SURROGATE.sub("\ufffd", text)
        facts["replaced_characters"] = broken
    name = _SURROGATE.sub("\ufffd", " ".join(title.split())[:300])
    first = next((heading.title for heading in headings if heading.level == 1), "")
    if is_contents_title(first):
        first = ""
    return Document(
        path=source.path,
        digest=source.digest,
        media_type=source.media_type,
        text=text,
        anchors=tuple(anchors),
        headings=tuple(
            replace(heading, title=_SURROGATE.sub("\ufffd", heading.title)) for heading in headings
        ),
        title=name or first or source.stem,
        origin=source.origin,
        metadata=facts,
    )


def is_contents_title(title: str) -> bool:
    """Return whether a heading is that of a table of contents."""
    return title.strip().casefold().rstrip(" :") in _TABLES_OF_CONTENTS


def require_text(document: Document, expected: str = "") -> Document:
    """Return the document, refusing one without text.

    Raises:
        DataError: If the text is empty or white space.
    """
    if document.text.strip():
        return document
    raise DataError(
        "the document holds no text",
        code="document.no-text",
        where=document.path,
        expected=expected or "some text",
        next="leave the file out, or replace it by one with text",
    )


def expand_row(cells: Sequence[tuple[str, int]]) -> list[str]:
    """Expand the cells of a row to one text per column.

    A cell is repeated in each column that it spans, so that every column keeps its header; one that
    spans the whole row, or more than 64 columns, appears once.
    """
    if len(cells) == 1:
        return [cells[0][0], *[""] * (min(cells[0][1], _MAX_COLUMNS) - 1)]
    row: list[str] = []
    for text, width in cells:
        row += [text] * width if width <= _MAX_TABLE_WIDTH else [text, *[""] * (width - 1)]
    return row[: _MAX_COLUMNS + 1]


def render_table(rows: Sequence[Sequence[str]], columns: Sequence[int] | None = None) -> str:
    """Render rows as a Markdown table; the first row is the header.

    Cells become one line each, bars are escaped, short rows are padded, empty rows are left
    out. ``columns`` are by default those that are not empty.
    """
    cells = [
        [" ".join(cell.split()).replace("|", "\\|") for cell in row[:_MAX_COLUMNS]] for row in rows
    ]
    cells = [row for row in cells if any(row)]
    width = max((len(row) for row in cells), default=0)
    cells = [[*row, *[""] * (width - len(row))] for row in cells]
    used = columns or [column for column in range(width) if any(row[column] for row in cells)]
    if not used or not cells:
        return ""
    width = max(width, max(used) + 1)
    cells = [[*row, *[""] * (width - len(row))] for row in cells]
    lines = ["| " + " | ".join(row[column] for column in used) + " |" for row in cells]
    lines.insert(1, "|" + " --- |" * len(used))
    return "\n".join(lines)


_MARKUP = re.compile(r"</?[A-Za-z][^<>\n]{0,200}>|<\d[\d:.,]*>|\{\\[^{}\n]{0,200}\}")


def format_timestamp(seconds: float) -> str:
    """Format a time as hours, minutes and seconds: ``0:01:05``."""
    total = int(seconds)
    return f"{total // 3600}:{total // 60 % 60:02d}:{total % 60:02d}"


def add_cue(
    assembly: DocumentBuilder,
    line: str,
    begins: float,
    span: tuple[int, int],
    *,
    is_exact: bool = False,
) -> None:
    """Add one line of a subtitle cue to a document.

    A line of markup only is skipped. ``begins`` is in seconds; ``is_exact``, whether the line
    equals its bytes, is ignored for a line with markup.
    """
    text = _MARKUP.sub("", line).strip()
    if not text:
        return
    assembly.gap("\n")
    is_same = text == line
    assembly.add(text, span, label=format_timestamp(begins), is_exact=is_exact and is_same)


_YAML = re.compile(
    r"---[ \t]*\r?\n(.*?)^(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE
)

_TOML = re.compile(r"\+\+\+[ \t]*\r?\n(.*?)^\+\+\+[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_MAX_CHARACTERS = 64 * 1024
_MAX_FIELDS = 200
_MAX_DEPTH = 4
# Nothing that would be markup in a card, or reach beyond itself where licenses are joined
_LICENSE = re.compile(r"(?=.{1,100}\Z)(?=[^\W_]|\()(?:[\w .,:;/+&-]|\([\w .,:;/+&-]+\))+")
FrontMatterValue = str | int | float | bool | list[str | int | float | bool]


@dataclass(frozen=True, slots=True)
class FrontMatter:
    """The fields, the start of the text, and the reason why fields could not be read."""

    fields: dict[str, FrontMatterValue] = field(default_factory=dict)
    end: int = 0
    error: str = ""

    @property
    def license(self) -> str:
        """The license that the text states; empty if it states none, or not as one short name."""
        names = {name.lower(): value for name, value in self.fields.items()}
        stated = names.get("license", names.get("licence"))
        if not isinstance(stated, str) or stated.lower() == "unknown":
            return ""
        return " ".join(stated.split()) if _LICENSE.fullmatch(stated) else ""


def read_front_matter(text: str) -> FrontMatter:
    """Parse the front matter at the start of a text; empty if there is none."""
    match = _YAML.match(text, 0, _MAX_CHARACTERS) or _TOML.match(text, 0, _MAX_CHARACTERS)
    if match is None:
        return FrontMatter()
    load = load_foreign_yaml if text.startswith("---") else _load_toml
    try:
        loaded = load(match.group(1))
        fields = dict(_flatten_fields(loaded, "", 0)) if isinstance(loaded, dict) else {}
    except (ValueError, RecursionError) as error:
        return FrontMatter({}, match.end(), str(error).split("\n", 1)[0][:200])
    return FrontMatter(dict(list(fields.items())[:_MAX_FIELDS]), match.end())


def _load_toml(content: str) -> Any:
    import tomllib

    return tomllib.loads(content)


def _flatten_fields(
    values: dict[Any, Any], prefix: str, depth: int
) -> Iterator[tuple[str, FrontMatterValue]]:
    if depth > _MAX_DEPTH:
        raise ValueError("maps are nested too deeply")
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _flatten_fields(value, f"{name}.", depth + 1)
        elif isinstance(value, list | tuple | set):
            items = sorted(value, key=str) if isinstance(value, set) else value
            yield name, [_json_scalar(item) for item in items if item is not None]
        elif value is not None:
            yield name, _json_scalar(value)


def _json_scalar(value: object) -> str | int | float | bool:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value)
