"""HTML block reader: paragraphs, headings, lists, tables and code, with source offsets.

Works on tokens, without a tree and without recursion: an explicit stack of open elements carries
inherited properties (hidden, outside the main text, linked, preformatted, within ``main``). Time
is linear in the length of the text for any content.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from stillroom.text.documents.builder import render_table
from stillroom.text.documents.entities import EntityExpander
from stillroom.text.documents.markup import (
    RAW_TEXT_ELEMENTS,
    VOID_ELEMENTS,
    MarkupToken,
    iter_text_pieces,
    read_attributes,
)
from stillroom.text.unicode import raise_number

__all__ = ["HtmlBlock", "HtmlBlockReader"]


_BLOCK = frozenset(
    "address article aside blockquote body caption center dd details dialog div dl dt fieldset"  # noqa: SIM905
    " figcaption figure footer form h1 h2 h3 h4 h5 h6 header hgroup hr html legend li main menu nav"
    " ol p pre section summary table tbody td tfoot th thead tr ul".split()
)

_HIDDEN = frozenset(
    "script style noscript template svg math button select option datalist iframe object canvas"  # noqa: SIM905
    " audio video map textarea head xmp noembed".split()
)

_ASIDE = frozenset("nav footer aside menu dialog noframes".split())  # noqa: SIM905
_ASIDE_ROLES = frozenset("navigation banner contentinfo search complementary dialog menu".split())  # noqa: SIM905

_ASIDE_WORDS = frozenset(
    "nav navbar navigation menu breadcrumb breadcrumbs sidebar footer cookie cookies consent advert"  # noqa: SIM905
    " advertisement ads sponsor share sharing social related promo popup modal subscribe newsletter"
    " skiplink toc navbox editsection noprint catlinks pagination pager navheader navfooter"
    " titlearea srstatus".split()
)

# Elements whose id tells their use; that of a section or heading is made of its title.
_NAMED = frozenset("div ul ol table td form header".split())  # noqa: SIM905
_SECTIONS = frozenset("section subsection subsubsection chapter appendix level sect".split())  # noqa: SIM905

_PERMALINKS = frozenset(
    "headerlink permalink anchor-link anchorjs-link copiable-link copiable-anchor".split()  # noqa: SIM905
)
"""Classes of links behind headings, left out where their text is a sign such as a pilcrow."""

_CLOSES = {
    "li": frozenset(["li"]),
    "dt": frozenset(["dt", "dd"]),
    "dd": frozenset(["dt", "dd"]),
    "tr": frozenset(["tr", "td", "th"]),
    "td": frozenset(["td", "th"]),
    "th": frozenset(["td", "th"]),
    "tbody": frozenset(["tr", "td", "th", "thead", "tbody"]),
    "tfoot": frozenset(["tr", "td", "th", "thead", "tbody"]),
}

_SCOPES = frozenset("ul ol dl table body html".split())  # noqa: SIM905
_UNCOUNTED = frozenset({"script", "style", "title", "head"})
_LAYOUT_ROLES = frozenset({"presentation", "none"})
_TEXT = frozenset({"p", "li"})
_MAX_CODE_LINES = 3
_MAX_CELL = 1000
_MIN_ENTRIES, _MIN_ENTRY_CELLS, _MAX_ENTRY_CELL = 3, 3, 80
_MAX_CELL_UNDER_HEADER = 4000
_LOOKBACK = 64
_MAX_SPAN = 512
_MAX_TABLE_WIDTH = 64
_HIDDEN_STYLE = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
_WORD = re.compile(r"[a-z]+")
_BAR = re.compile(r"(?<!\\)\|")
_PAGE_TURNS = re.compile(
    r"(?:next|prev(?:ious)?|up|top|(?:table of )?contents|index|home|back|first|last|[\W\d_]++)++",
    re.IGNORECASE,
)


@dataclass(slots=True)
class _OpenElement:
    """An open element and the properties that its content inherits."""

    name: str = ""
    hidden: bool = False
    aside: bool = False
    sidebar: bool = False
    main: bool = False
    contents: bool = False
    linked: bool = False
    pre: bool = False
    items: int = 0
    indent: str = ""
    permalink: bool = False
    cell: bool = False
    raised: bool = False


@dataclass(slots=True)
class HtmlBlock:
    """A block of text: its pieces (text, start, end) and their properties.

    ``depth`` is the number of lists of definitions around it; ``is_term`` is whether the innermost
    defines it, or, at depth 0, whether it is the name in a table that is the head of an entry.
    """

    kind: str
    prefix: str = ""
    level: int = 0
    aside: bool = False
    main: bool = False
    contents: bool = False
    cell: tuple[int, int] = (-1, -1)
    span: tuple[int, int] = (1, 1)
    depth: int = 0
    is_term: bool = False
    pieces: list[tuple[str, int, int]] = field(default_factory=list)
    rows: list[tuple[str, int, int]] = field(default_factory=list)
    size: int = 0
    linked: int = 0

    @property
    def is_menu(self) -> bool:
        """Whether most of the text is linked, outside the main part and tables of contents."""
        is_linked = self.kind in {"p", "li"} and self.linked > 0.7 * self.size
        return is_linked and not (self.main or self.contents)

    @property
    def turns_pages(self) -> bool:
        """Whether it is a bar of links to the pages around this one."""
        is_short = self.kind in {"p", "li", "table"} and 0 < self.linked <= self.size < 80
        return is_short and bool(_PAGE_TURNS.fullmatch(self.text))

    @property
    def text(self) -> str:
        """The text as one string, without white space at its ends."""
        return "".join(piece[0] for piece in self.pieces).strip()


@dataclass(slots=True)
class _Table:
    """An open table: its first block's index, the current row and column, and the cell's span.

    ``taken`` are the last rows to which cells from above fill a column. ``has_header`` is whether
    header cells are marked, ``is_layout`` whether the role is not that of a data table, ``indent``
    that of the list item around it.
    """

    first: int
    is_layout: bool = False
    indent: str = ""
    has_header: bool = False
    row: int = -1
    cell: int = -1
    span: tuple[int, int] = (1, 1)
    taken: dict[int, int] = field(default_factory=dict)


class HtmlBlockReader:
    """Reads the blocks, title and language of a page, and counts hidden characters."""

    def __init__(
        self,
        text: str,
        is_xml: bool,
        tokens: Iterable[MarkupToken],
        entities: EntityExpander | None = None,
    ) -> None:
        self.text = text
        self._entities = entities
        self._tokens = tokens
        self.is_xml = is_xml
        self.blocks: list[HtmlBlock] = []
        self.title = ""
        self.language = ""
        self.hidden = 0
        self._stack = [_OpenElement()]
        self._open: Counter[str] = Counter()
        self._tables: list[_Table] = []
        self._block: HtmlBlock | None = None
        self._item = ""

    def read(self) -> None:
        """Read all of the markup into ``blocks``, ``title`` and ``language``."""
        for token in self._tokens:
            if token.kind == "text":
                self._read_text(token)
            elif token.kind == "start":
                self._start(token)
            else:
                self._end(token.name)
        while self._tables:
            self._close_table()
        entries = [block for block in self.blocks if block.is_term and not block.depth]
        names = {block.text for block in entries if len(block.text.split()) == 1}
        if not _MIN_ENTRIES <= len(names) == len(entries):  # no names: "5 kg", a repeated "Date"
            for block in entries:
                block.is_term = False

    def _read_text(self, token: MarkupToken) -> None:
        top = self._stack[-1]
        if token.name == "title" and not self.title:
            self.title = "".join(
                piece[0]
                for piece in iter_text_pieces(self.text, token.start, token.end, keep_space=False)
            )
        if token.name or top.hidden:
            if token.name not in _UNCOUNTED and top.name not in _UNCOUNTED:
                self.hidden += len(self.text[token.start : token.end].strip())
            return
        text = token.written or self.text[token.start : token.end]
        is_sign = top.permalink and not any(map(str.isalnum, html.unescape(text)))
        if is_sign or (self._block is None and text.isspace()):
            return
        block = self._block or self._begin()
        whole, start, end = self.text, token.start, token.end
        if token.written:
            whole, start, end = token.written, 0, len(token.written)
        pieces = iter_text_pieces(whole, start, end, keep_space=top.pre, entities=self._entities)
        if token.written:
            pieces = iter([("".join(piece[0] for piece in pieces), token.start, token.end)])
        for piece in pieces:
            block.pieces.append((raise_number(piece[0]), *piece[1:]) if top.raised else piece)
            size = len(piece[0]) if not piece[0].isspace() else 0
            block.size += size
            block.linked += size * top.linked

    def _begin(self) -> HtmlBlock:
        """Start a block of the kind given by the open elements."""
        top = self._stack[-1]
        block = HtmlBlock("p", top.indent, aside=top.aside, main=top.main, contents=top.contents)
        name = next(
            (element.name for element in self._stack[:-_LOOKBACK:-1] if element.name in _BLOCK), ""
        )
        if top.pre:
            block.kind = "code"
        elif len(name) == 2 and name[0] == "h" and name[1].isdigit():
            block.kind, block.level, block.prefix = "heading", int(name[1]), ""
        elif self._item:
            block.kind, block.prefix, self._item = "li", self._item, ""
        if self._tables and top.cell:  # a caption or stray text in a table is no cell
            block.cell = (self._tables[-1].row, self._tables[-1].cell)
            block.span = self._tables[-1].span
        block.depth = self._open["dl"]
        if block.depth:
            around = (element.name for element in self._stack[:-_LOOKBACK:-1])
            block.is_term = next((name for name in around if name in _CLOSES["dd"]), "") == "dt"
        self._block = block
        self.blocks.append(block)
        return block

    def _start(self, token: MarkupToken) -> None:
        name = token.name
        if name == "br" and self._block is not None:
            self._block.pieces.append(("\n", token.start, token.end))
        if name in _BLOCK or name == "body":
            self._block = None
            if self._stack[-1].name in {"head", "p"}:
                self._pop()
        self._close_implied(name)
        attributes = read_attributes(token.attributes) if token.attributes.strip() else {}
        if name == "html":
            self.language = attributes.get("lang", "")[:2].lower()
            self.is_xml |= "xmlns" in attributes
        is_closed = token.attributes.endswith("/") and (self.is_xml or name in RAW_TEXT_ELEMENTS)
        if name in VOID_ELEMENTS or is_closed:
            return
        self._push(name, attributes)
        if name == "li":
            self._begin_item()
        elif name == "table":
            is_layout = attributes.get("role", "") in _LAYOUT_ROLES
            self._tables.append(_Table(len(self.blocks), is_layout, self._stack[-1].indent))
        elif self._tables and name in {"tr", "td", "th"}:
            self._begin_cell(name, attributes)

    def _push(self, name: str, attributes: dict[str, str]) -> None:
        up = self._stack[-1]
        role = attributes.get("role", "")
        is_main = name == "main" or role == "main"
        main = up.main or is_main or name == "article"
        hidden = (
            name in _HIDDEN
            or "hidden" in attributes
            or bool(_HIDDEN_STYLE.search(attributes.get("style", "")))
        )
        permalink = name == "a" and not _PERMALINKS.isdisjoint(attributes.get("class", "").split())
        is_note = "footnote" in attributes.get("class", "") + role
        aside = (
            (name in _ASIDE and not is_note)
            or role in _ASIDE_ROLES
            or attributes.get("aria-hidden") == "true"
        )
        if not is_main and name not in {"html", "body", "article"}:
            words = set(_WORD.findall(attributes.get("class", "").lower()))
            if name in _NAMED and not main and words.isdisjoint(_SECTIONS):
                words.update(_WORD.findall(attributes.get("id", "").lower()))
            is_contents = name == "div" and not aside and words & _ASIDE_WORDS == {"toc"}
            aside = aside or not (is_contents or _ASIDE_WORDS.isdisjoint(words))
        else:
            words = set()
            is_contents = aside = False
        if up.sidebar and ("titlepage" in words or (name == "p" and {"sidebar", "title"} <= words)):
            up.aside = aside = False  # a box of DocBook or docutils, which has text of the page
        self._stack.append(
            _OpenElement(
                name,
                up.hidden or hidden,
                (up.aside and not is_main) or aside,
                not up.aside and words & _ASIDE_WORDS == {"sidebar"},
                main,
                (up.contents and not is_main) or is_contents,
                up.linked or (name == "a" and "href" in attributes),
                up.pre or name in {"pre", "listing"},
                indent=up.indent,
                permalink=permalink,
                cell=name in {"td", "th"} or (up.cell and name not in {"table", "caption"}),
                raised=name == "sup" or (up.raised and name not in _BLOCK),
            )
        )
        self._open[name] += 1

    def _begin_item(self) -> None:
        lists = [element for element in self._stack[-_LOOKBACK:] if element.name in {"ul", "ol"}]
        indent = "  " * max(len(lists) - 1, 0)
        self._stack[-1].indent = "  " * len(lists)  # of what follows the item's first block
        if lists and lists[-1].name == "ol":
            lists[-1].items += 1
            self._item = f"{indent}{lists[-1].items}. "
        else:
            self._item = f"{indent}- "

    def _begin_cell(self, name: str, attributes: dict[str, str]) -> None:
        table = self._tables[-1]
        if name == "tr":
            table.row, table.cell, table.span = table.row + 1, -1, (1, 1)
            return
        table.has_header |= name == "th"
        table.row = max(table.row, 0)
        table.cell += table.span[1]
        while table.taken.get(table.cell, -1) >= table.row:
            table.cell += 1
        table.span = (_cell_span(attributes, "rowspan"), _cell_span(attributes, "colspan"))
        if table.span[0] > 1:
            last = table.row + table.span[0] - 1
            table.taken.update(dict.fromkeys(range(table.cell, table.cell + table.span[1]), last))

    def _end(self, name: str) -> None:
        if name in _BLOCK:
            self._block = None
        if name == "li":
            self._item = ""
        if not self._open[name]:
            return
        if name == "table" and self._tables:
            self._close_table()
        while self._pop() != name:
            pass

    def _pop(self) -> str:
        if len(self._stack) == 1:
            return ""
        name = self._stack.pop().name
        self._open[name] -= 1
        return name

    def _close_implied(self, name: str) -> None:
        """Close elements that a start tag ends implicitly, such as the previous item or link."""
        closes = _CLOSES.get(name) or (frozenset(["a"]) if name == "a" else None)
        if closes is None:
            return
        for depth in range(len(self._stack) - 1, max(len(self._stack) - _LOOKBACK, 0), -1):
            tag = self._stack[depth].name
            if tag in _SCOPES:
                return
            if tag in closes:
                while len(self._stack) > depth:
                    self._pop()
                if name not in {"tr", "tbody", "tfoot"}:
                    return

    def _close_table(self) -> None:
        """Join the blocks of a data table into one; leave those of a layout table."""
        table = self._tables.pop()
        inside = [block for block in self.blocks[table.first :] if block.size]
        cells = [block for block in inside if block.cell[1] >= 0]
        self._block = None
        if _is_data_table(cells, table):
            first = cells[0]
            joined = HtmlBlock("table", aside=first.aside, main=first.main, contents=first.contents)
            joined.prefix, joined.rows = table.indent, _table_rows(cells)
            joined.depth, joined.is_term = first.depth, first.is_term
            joined.pieces = [_flatten_table(joined.rows)]
            joined.size = sum(block.size for block in cells)
            joined.linked = sum(block.linked for block in cells)
            self.blocks[table.first :] = [block for block in inside if block.cell[1] < 0] + [joined]
        elif not self._tables and _is_entry(cells, table):
            cells[0].is_term = True
        if self._tables:  # the enclosing table sees all of this as one cell
            outer = self._tables[-1]
            for block in self.blocks[table.first :]:
                block.cell, block.span = (outer.row, outer.cell), outer.span


def _cell_span(attributes: dict[str, str], name: str) -> int:
    """Return the number of rows or columns of a cell; 1 if it is not a number."""
    value = attributes.get(name, "1").strip()
    if not value.isdecimal() or len(value) > 5:
        return 1
    if name == "rowspan" and int(value) == 0:  # to the last row
        return _MAX_SPAN
    return min(max(int(value), 1), _MAX_SPAN)


def _is_data_table(cells: list[HtmlBlock], table: _Table) -> bool:
    """Return whether a table is a data table: rows and columns of short cells.

    Code, tables and headings within its cells are allowed where header cells are marked, or where
    less than half of the cells have them; a column of short code counts as text. A heading with
    its text below is layout, except in one column under a row of plain cells.
    """
    rows = {block.cell[0] for block in cells}
    columns = {block.cell[1] for block in cells}
    longest = max((block.size for block in cells), default=0)
    most = _MAX_CELL_UNDER_HEADER if table.has_header else _MAX_CELL
    if table.is_layout or len(rows) < 2 or len(columns) < 2 or longest > most:
        return False
    if table.has_header or all(block.kind in _TEXT for block in cells):
        return True
    held: dict[tuple[int, int], list[HtmlBlock]] = {}
    for block in cells:
        held.setdefault(block.cell, []).append(block)
    rich = 0
    titled: set[int] = set()
    listings = _find_code_columns(held, min(rows))
    for (row, column), blocks in held.items():
        kinds = {block.kind for block in blocks} - ({"code"} if column in listings else set())
        if "heading" in kinds and len(blocks) > 1:
            titled.add(column)
            if row == min(rows) or len(titled) > 1:
                return False
        is_label = "heading" in kinds and (row == min(rows) or column == min(columns))
        rich += not is_label and not kinds <= _TEXT
    total = max(sum(block.size for block in blocks) for blocks in held.values())
    return total <= _MAX_CELL and 2 * rich < len(held)


def _is_entry(cells: list[HtmlBlock], table: _Table) -> bool:
    """Return whether a table is the head of an entry, as of an option with its type and default.

    It is one row of short cells with text, no links.
    """
    return (
        not table.is_layout
        and len({block.cell for block in cells}) == len(cells) >= _MIN_ENTRY_CELLS
        and all(block.kind == "p" and block.cell[0] == 0 and not block.depth for block in cells)
        and all(block.size <= _MAX_ENTRY_CELL and 2 * block.linked < block.size for block in cells)
    )


def _find_code_columns(held: dict[tuple[int, int], list[HtmlBlock]], first: int) -> set[int]:
    """Return the columns that are a few lines of code in two rows, and in all but the first."""
    code: Counter[int] = Counter()
    for (row, column), blocks in held.items():
        lines = max(block.text.count("\n") for block in blocks)
        if lines < _MAX_CODE_LINES and all(block.kind == "code" for block in blocks):
            code[column] += 1
        elif row > first:
            code[column] -= len(held)
    return {column for column, count in code.items() if count > 1}


def _flatten_table(rows: list[tuple[str, int, int]]) -> tuple[str, int, int]:
    """Join a table's rows into one text, for the cell of an enclosing table."""
    lines = [
        ", ".join(cell.strip().replace("\\|", "|") for cell in _BAR.split(row)[1:-1])
        for row, _, _ in rows
    ]
    return "; ".join(lines), rows[0][1], rows[-1][2]


def _table_rows(cells: list[HtmlBlock]) -> list[tuple[str, int, int]]:
    """Return the lines of a data table, each with its position in the page.

    A cell that spans several rows or columns is repeated in each, except one alone in its row.
    """
    grid: dict[int, dict[int, str]] = {}
    where: dict[int, tuple[int, int]] = {}
    spans: dict[tuple[int, int], tuple[int, int]] = {}
    last = ""
    for block in cells:
        row, column = block.cell
        line = grid.setdefault(row, {})
        joint = "; " if block.kind == last == "li" else " "
        line[column] = f"{line[column]}{joint}{block.text}" if column in line else block.text
        last = block.kind
        if block.span != (1, 1):
            spans[block.cell] = block.span
        start = where[row][0] if row in where else block.pieces[0][1]
        where[row] = (start, block.pieces[-1][2])
    _repeat_spans(grid, spans)
    width = min(max(max(line) for line in grid.values()) + 1, 256)
    order = [row for row in sorted(grid) if any(column < width for column in grid[row])]
    lines = render_table(
        [[grid[row].get(column, "") for column in range(width)] for row in order]
    ).split("\n")
    del lines[1:2]
    return [(line, *where[row]) for line, row in zip(lines, order, strict=True)]


def _repeat_spans(
    grid: dict[int, dict[int, str]], spans: dict[tuple[int, int], tuple[int, int]]
) -> None:
    alone = {row for row, line in grid.items() if len(line) == 1}
    for (row, column), (rows, columns) in spans.items():
        text = grid[row][column]
        for below in range(row, row + rows):
            if below not in grid or (columns > 1 and row in alone) or columns > _MAX_TABLE_WIDTH:
                continue
            for index in range(column, min(column + columns, 256)):
                grid[below].setdefault(index, text)
