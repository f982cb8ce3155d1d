"""What the sources hold: sizes, exports, error codes with headings and tests, and plain English.

Sources are parsed once for all of it, and no tree of them is kept.
"""

import ast
import functools
import re
from typing import NamedTuple

from stillroom.registry import find_registries
from tests.contracts.sources import ROOT, modules, tree_of

_CODE = re.compile(r"[a-z]+\.[a-z0-9-]+\Z")
_QUOTED = re.compile(f'"({_CODE.pattern[:-2]})"')
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


class Outline(NamedTuple):
    """What the rules ask of one module."""

    long: dict
    exports: set
    definitions: set
    classes: set
    phrases: list
    unready: list
    codes: set
    coded_classes: dict
    coded_functions: dict
    calls: list


@functools.cache
def outlines():
    """Return the outline of each module."""
    return {name: outline_of(tree_of(path)) for name, path in modules()}


def outline_of(tree):
    """Outline a module."""
    nodes = {}
    for node in ast.walk(tree):
        nodes.setdefault(type(node), []).append(node)
    functions = [*nodes.get(ast.FunctionDef, []), *nodes.get(ast.AsyncFunctionDef, [])]
    public = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    return Outline(
        {one.name: count for one in functions if (count := code_lines(one)) > 60},
        find_exports(tree),
        {node.name for node in public},
        {node.name for node in public if isinstance(node, ast.ClassDef)},
        [
            f"{line}: {found.group()}"
            for line, text in texts_of(nodes)
            if (found := FORBIDDEN.search(text))
        ],
        [node.lineno for node in nodes.get(ast.Try, []) if forgets_depth(node)],
        {code for value in codes_of(nodes) for code in strings_of(value)},
        dict(classes_with_code(nodes)),
        dict(functions_with_code(nodes)),
        [
            (node.func.id, [strings_of(argument) for argument in node.args])
            for node in nodes.get(ast.Call, [])
            if isinstance(node.func, ast.Name) and node.args
        ],
    )


def code_lines(function):
    """Return how many lines a function's body has, its docstring aside."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return function.end_lineno - body[0].lineno + 1 if body else 0


def find_exports(tree):
    """Return the names in ``__all__``."""
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            return set(ast.literal_eval(node.value))
    return set()


def texts_of(nodes):
    """Yield every text of a module that a person reads, with its line."""
    found = [node.value for node in nodes.get(ast.Expr, []) if isinstance(node.value, ast.Constant)]
    read = [node.value for node in nodes.get(ast.keyword, []) if node.arg in READ_BY_PEOPLE]
    for node in [*nodes.get(ast.Raise, []), *read]:
        found += ast.walk(node)
    for text in found:
        if isinstance(text, ast.Constant) and isinstance(text.value, str):
            yield text.lineno, text.value


def forgets_depth(node):
    """Whether a ``try`` reads JSON and catches what is no JSON, but not what is nested too deeply.

    Python raises no ValueError for it: a stranger's file would end the command as a bug.
    """
    caught = " ".join(ast.unparse(one.type) for one in node.handlers if one.type)
    return (
        "ValueError" in caught
        and "RecursionError" not in caught
        and any("json.loads(" in ast.unparse(line) for line in node.body)
    )


def classes_with_code(nodes):
    """Yield dataclasses with a field ``code``, and its place."""
    for node in nodes.get(ast.ClassDef, []):
        fields = [
            field.target.id
            for field in node.body
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        ]
        if "code" in fields:
            yield node.name, fields.index("code")


def functions_with_code(nodes):
    """Yield functions with a parameter ``code``, and its place."""
    for node in nodes.get(ast.FunctionDef, []):
        names = [argument.arg for argument in node.args.args]
        if "code" in names:
            yield node.name, names.index("code")


def codes_of(nodes):
    """Yield what gives a code by name: arguments, defaults and variables."""
    for node in nodes.get(ast.Call, []):
        yield from (keyword.value for keyword in node.keywords if keyword.arg == "code")
    for node in nodes.get(ast.Assign, []):
        if any(isinstance(target, ast.Name) and target.id == "code" for target in node.targets):
            yield node.value
    for node in nodes.get(ast.arguments, []):
        yield from (
            default
            for argument, default in zip(node.kwonlyargs, node.kw_defaults, strict=True)
            if argument.arg == "code" and default is not None
        )


def strings_of(node):
    """Return the strings in an expression."""
    if isinstance(node, ast.Name):  # most arguments are one
        return set()
    return {
        n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)
    }


@functools.cache
def codes_in_sources():
    """Return every error code, given by name or by place."""
    every = outlines().values()
    classes = {name: place for one in every for name, place in one.coded_classes.items()}
    found = set()
    for outline in every:
        found |= outline.codes
        places = {**classes, **outline.coded_functions}
        for name, arguments in outline.calls:
            if name in places and len(arguments) > places[name]:
                found |= arguments[places[name]]
    return {code for code in found if _CODE.match(code)}


def documented():
    """Return the codes that the reference explains."""
    page = (ROOT / "docs" / "reference" / "errors.md").read_text(encoding="utf-8")
    return set(re.findall(r"^### `([a-z0-9.-]+)`", page, re.MULTILINE))


def test_functions_fit_on_a_screen():
    assert not {name: outline.long for name, outline in outlines().items() if outline.long}


def test_every_public_definition_is_exported():
    missing = {
        name: outline.definitions - outline.exports
        for name, outline in outlines().items()
        if not name.endswith("__main__")
    }
    assert not {name: names for name, names in missing.items() if names}


def test_no_public_class_name_is_used_twice():
    """The classes of interchangeable methods aside, which their folder tells apart."""
    registries = {folder for folder in find_registries().values()}
    homes = {}
    for name, path in modules():
        if path.parent in registries:
            continue
        for one in outlines()[name].classes:
            homes.setdefault(one, []).append(name)
    assert not {name: found for name, found in homes.items() if len(found) > 1}


def test_json_that_is_nested_too_deeply_is_refused_like_other_json_that_cannot_be_read():
    unready = [f"{name}:{line}" for name, one in outlines().items() for line in one.unready]
    assert not unready, "load_json of provenance.digests raises ValueError"


def test_codes_and_their_headings_are_the_same_set():
    assert codes_in_sources() == documented()


def test_every_code_is_triggered_by_a_test():
    tests = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py")]
    assert not codes_in_sources() - {code for text in tests for code in _QUOTED.findall(text)}


def test_no_forbidden_phrase_in_what_people_read():
    assert not [f"{name}:{hit}" for name, one in outlines().items() for hit in one.phrases]


def test_no_forbidden_phrase_in_the_docs():
    hits = []
    for page in PAGES:
        prose = re.sub(r"```.*?```|`[^`]*`", "", page.read_text("utf-8"), flags=re.DOTALL)
        hits += [f"{page}: {found.group()}" for found in FORBIDDEN.finditer(prose)]
    assert not hits
