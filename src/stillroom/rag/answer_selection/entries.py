"""What a manual states of a setting below its name, and which of it a question asks for.

Manuals state the same of each setting in the same order, in lines with labels ("Default: 10"), in
the rows of a table or in a list of definitions: each such cell is one statement, and the sibling's
differs from it in nothing but the value.
"""

from __future__ import annotations

import re
from itertools import takewhile

__all__ = [
    "begins_with_cells",
    "find_asked_label",
    "find_cells",
    "get_row_label",
    "is_description_asked",
    "states_nothing",
]

_LABEL = r"[*_]{0,3}[A-Z][\w/-]*(?: [\w/()-]+){0,3}[*_]{0,3}:[*_]{0,3}[ \t]"
_CELL = re.compile(
    rf"^[ \t]*(?={_LABEL})[*_]{{0,3}}(?P<label>[^:\n]+?)[*_]{{0,3}}:"
    rf"[^\n]*(?:\n(?![ \t]*{_LABEL})[ \t]*[^\s][^\n]*)*",
    re.MULTILINE,
)
_MIN_CELLS = 3
_MAX_NOTHING = 60  # characters of a cell that states nothing
_NOTHING = re.compile(r"[\W_]*[^:|\n]*[:|][\W_]*(?:none|not set|n/a|unset)?[\W_]*", re.IGNORECASE)
_LABELED_ROW = re.compile(r"[ \t]*\|[^|\n]{1,40}:[*_`]*[ \t]*\|")
_ROW_LABEL = re.compile(r"\|[ \t]{0,4}[*_`]{0,3}([^|\n]{1,40}?)[*_`]{0,3}:?[*_`]{0,3}[ \t]*\|")
# What asks for a cell, and what its label then has; the first that a question has counts. Chosen
# on manuals of ProFTPD, and from what those of Apache, nginx, PHP and OpenSSH are known to write.
_KINDS = tuple(
    (re.compile(asked, re.IGNORECASE), re.compile(label, re.IGNORECASE))
    for asked, label in (
        (r"\bdefaults?\b", r"\bdefaults?\b"),
        (
            r"\bwhere (?:may|can|must|should|is|are|do|could)\b.*\b(?:allowed|go|placed|set|used?"
            r"|valid)\b|\b(?:contexts?|scopes?)\b",
            r"\b(?:contexts?|scopes?|sections?|allowed in|valid in|used in|where)\b",
        ),
        (
            r"\b(?:which|what) (?:\w+ )?(?:arguments?|settings|values?)\b|\bsyntax\b"
            r"|\b(?:possible|allowed|valid) values\b",
            r"\b(?:syntax|usage|values?|choices|range|type|arguments?|format)\b",
        ),
        (
            r"\b(?:since|from|in) (?:which|what) (?:version|release)\b|\bsince when\b"
            r"|\bwhen was\b.*\b(?:added|introduced)\b",
            r"\b(?:compatibility|versions?|since|introduced|added|availability)\b",
        ),
        (r"\b(?:which|what) (?:module|package)\b", r"\b(?:module|package)\b"),
    )
)
_DESCRIPTION = re.compile(
    r"\bwhat does\b.*\b(?:do|mean|configure|control)\W*$|\bwhat is\b.*\bfor\W*$"
    r"|\bwhat (?:is|are)(?: the)? \S+\W*$|\bwhat \S+ (?:does|is for|means)\W*$",
    re.IGNORECASE,
)


def find_cells(text: str) -> list[tuple[str, int, int]]:
    """Return label, start and end of each line with a label in a run of three or more.

    Their labels differ, and nothing is between them; a line without one goes on with it.
    """
    found, run = list[re.Match[str]](), list[re.Match[str]]()
    for cell in _CELL.finditer(text):
        if run and text[run[-1].end() : cell.start()].strip():
            found += _keep_block(run)
            run = []
        run.append(cell)
    found += _keep_block(run)
    return [(cell["label"], cell.start(), cell.end()) for cell in found]


def _keep_block(run: list[re.Match[str]]) -> list[re.Match[str]]:
    labels = {cell["label"] for cell in run}
    return run if len(labels) == len(run) >= _MIN_CELLS else []


def begins_with_cells(text: str) -> bool:
    """Return whether a text begins with lines with labels, or three rows of a table with them."""
    cells = find_cells(text)
    if cells and not text[: cells[0][1]].strip():
        return True
    rows = takewhile(lambda line: line.lstrip().startswith("|"), text.strip().splitlines())
    return sum(bool(_LABELED_ROW.match(row)) for row in rows) >= _MIN_CELLS


def states_nothing(cell: str) -> bool:
    """Return whether a cell has a label and no value, or "None": prose may say more."""
    return len(cell) <= _MAX_NOTHING and bool(_NOTHING.fullmatch(cell))


def get_row_label(row: str) -> str:
    """Return the first cell of a row, without its colon; empty if that is no label."""
    match = _LABELED_ROW.match(row) and _ROW_LABEL.match(row)
    return match[1] if match else ""


def find_asked_label(question: str) -> re.Pattern[str] | None:
    """Return what the label of a cell has that states what a question asks for, if it is one."""
    return next((label for asked, label in _KINDS if asked.search(question)), None)


def is_description_asked(question: str) -> bool:
    """Return whether a question asks what a setting does or is."""
    return bool(_DESCRIPTION.search(question))
