"""Every error code is documented, and every documented code exists and is tested."""

import ast
import re

from tests.contracts.sources import ROOT, modules, tree_of

_CODE = re.compile(r"[a-z]+\.[a-z0-9-]+\Z")


def codes_in_sources():
    found = set()
    for _, path in modules():
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.Call):
                continue
            for keyword in node.keywords:
                if keyword.arg == "code":
                    found |= _strings(keyword.value)
            if isinstance(node.func, ast.Name) and node.func.id == "Problem" and len(node.args) > 1:
                found |= _strings(node.args[1])
    return {code for code in found if _CODE.match(code)}


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
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    assert not {code for code in codes_in_sources() if f'"{code}"' not in tests}
