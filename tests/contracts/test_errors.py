"""Every error code is documented, and every documented code exists and is tested."""

import ast
import functools
import re

from tests.contracts.sources import ROOT, modules, tree_of

_CODE = re.compile(r"[a-z]+\.[a-z0-9-]+\Z")
_QUOTED = re.compile(f'"({_CODE.pattern[:-2]})"')


@functools.cache
def codes_in_sources():
    asked = (ast.Call, ast.Assign, ast.arguments, ast.ClassDef, ast.FunctionDef)
    files = [
        [node for node in ast.walk(tree_of(path)) if isinstance(node, asked)]
        for _, path in modules()
    ]
    classes = {name: place for nodes in files for name, place in _classes_with_code(nodes)}
    found = set()
    for nodes in files:
        places = {**classes, **dict(_functions_with_code(nodes))}
        for node in nodes:
            for value in _codes_of(node, places):
                found |= _strings(value)
    return {code for code in found if _CODE.match(code)}


def _classes_with_code(nodes):
    """Yield dataclasses with a field ``code``, and its place."""
    for node in nodes:
        if isinstance(node, ast.ClassDef):
            fields = [
                field.target.id
                for field in node.body
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            ]
            if "code" in fields:
                yield node.name, fields.index("code")


def _functions_with_code(nodes):
    """Yield functions with a parameter ``code``, and its place."""
    for node in nodes:
        if isinstance(node, ast.FunctionDef):
            names = [argument.arg for argument in node.args.args]
            if "code" in names:
                yield node.name, names.index("code")


def _codes_of(node, places):
    """Yield what gives a code: arguments, defaults and variables of that name."""
    if isinstance(node, ast.Call):
        yield from (keyword.value for keyword in node.keywords if keyword.arg == "code")
        place = places.get(node.func.id) if isinstance(node.func, ast.Name) else None
        if place is not None and len(node.args) > place:
            yield node.args[place]
    elif isinstance(node, ast.Assign):
        if any(isinstance(target, ast.Name) and target.id == "code" for target in node.targets):
            yield node.value
    elif isinstance(node, ast.arguments):
        yield from (
            default
            for argument, default in zip(node.kwonlyargs, node.kw_defaults, strict=True)
            if argument.arg == "code" and default is not None
        )


def _strings(node):
    return {
        n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)
    }


def documented():
    page = (ROOT / "docs" / "reference" / "errors.md").read_text(encoding="utf-8")
    return set(re.findall(r"^### `([a-z0-9.-]+)`", page, re.MULTILINE))


def test_codes_and_their_headings_are_the_same_set():
    assert codes_in_sources() == documented()


def test_every_code_is_triggered_by_a_test():
    tests = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py")]
    assert not codes_in_sources() - {code for text in tests for code in _QUOTED.findall(text)}
