"""The prose that people read is in plain English: docstrings, errors, help, settings, docs."""

import ast
import re

import pytest

from tests.contracts.sources import PACKAGE, modules, tree_of

ROOT = PACKAGE.parents[1]
FORBIDDEN = re.compile(
    r"\b(told|said|heard|whoever|otherwise than|by lot|in earnest|what becomes of"
    r"|nobody knows whom|stands? over|it is said)\b",
    re.IGNORECASE,
)
READ_BY_PEOPLE = {"help", "description", "expected", "next", "where", "short_help", "epilog"}
MODULES = list(modules())
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


@pytest.mark.parametrize(("name", "path"), MODULES, ids=[name for name, _ in MODULES])
def test_no_forbidden_phrase_in_what_people_read(name, path):
    hits = {
        line: FORBIDDEN.search(text).group()
        for line, text in texts_of(tree_of(path))
        if FORBIDDEN.search(text)
    }
    assert not hits


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_no_forbidden_phrase_in_the_docs(page):
    text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    hits = [match.group() for match in FORBIDDEN.finditer(text)]
    assert not hits
