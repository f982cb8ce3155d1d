"""The prose that people read is in plain English: docstrings, errors, help, settings, docs."""

import ast
import re

from tests.contracts.sources import PACKAGE, modules, tree_of

ROOT = PACKAGE.parents[1]
FORBIDDEN = re.compile(
    r"\b(told|said|heard|whoever|otherwise than|by lot|in earnest|what becomes of"
    r"|nobody knows whom|stands? over|it is said)\b",
    re.IGNORECASE,
)
READ_BY_PEOPLE = {"help", "description", "expected", "next", "where", "short_help", "epilog"}
PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    if path.name != "glossary.md"
)


def texts_of(tree):
    """Yield every text of a module that a person reads, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found = [node.value]
        elif isinstance(node, ast.Raise):
            found = list(ast.walk(node))
        elif isinstance(node, ast.keyword) and node.arg in READ_BY_PEOPLE:
            found = list(ast.walk(node.value))
        else:
            continue
        for text in found:
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                yield text.lineno, text.value


def test_no_forbidden_phrase_in_what_people_read():
    hits = [
        f"{name}:{line}: {found.group()}"
        for name, path in modules()
        for line, text in texts_of(tree_of(path))
        if (found := FORBIDDEN.search(text))
    ]
    assert not hits


def test_no_forbidden_phrase_in_the_docs():
    hits = []
    for page in PAGES:
        prose = re.sub(r"```.*?```|`[^`]*`", "", page.read_text("utf-8"), flags=re.DOTALL)
        hits += [f"{page}: {found.group()}" for found in FORBIDDEN.finditer(prose)]
    assert not hits
