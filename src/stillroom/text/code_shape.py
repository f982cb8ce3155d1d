"""The shape of source code: what is left when names, comments and layout are taken away.

Code that was rephrased has other names, other comments, its conditions turned round, and the same
calls in much the same order. Runs of tokens are made in which every name that the code gives itself
is one and the same, and names that others gave (members after a dot, keywords) stand as they are.
Knows the outer form that languages of braces and of indentation share, and parses none.
"""

from __future__ import annotations

import re

__all__ = ["code_shape", "find_code"]

_FENCE = re.compile(r"^[ \t]*(```|~~~)[^\n]*\n(.*?)(?:^[ \t]*\1|\Z)", re.MULTILINE | re.DOTALL)
_CODE_LINE = re.compile(
    r"^\s*(?:(?:async\s+)?def\s+\w+\s*\(|class\s+\w+.*[:{]\s*$|return\b|(?:if|for|while|elif)\b.*[:{]\s*$"
    r"|(?:import|from)\s+\w+|[\w.\[\]]+\s*(?:[-+*/|&]?=)\s*\S|[\w.]+\(.*\)\s*;?\s*$|[{}]\s*;?\s*$"
    r"|(?:const|let|var|public|private|static|func|fn|function)\b|.*[;{]\s*$|@\w+|else\b.*[:{]\s*$"
    r"|(?:try|finally|else)\s*[:{]\s*$|raise\b|yield\b|#include\b)"
)
_TOKEN = re.compile(
    r"(?P<skip>\"\"\".*?\"\"\"|'''.*?'''|/\*.*?\*/|//[^\n]*|\#[^\n]*)"
    r"|(?P<text>\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|`[^`]*`)"
    r"|(?P<number>\b\d[\w.]*)|(?P<name>\.?[^\W\d]\w*)|(?P<sign>[-+*/%&|^<>=!:]=?|[\[\](){}?~@])",
    re.DOTALL,
)
_SAID = re.compile(
    r"\"\"\".*?\"\"\"|'''.*?'''|/\*.*?\*/|^\s*(?:#|//)[^\n]*", re.DOTALL | re.MULTILINE
)
_KEYWORDS = frozenset(
    str.split(
        """and as assert async await break case catch class const continue def default del do elif
        else except extends final finally fn for from func function global if import in instanceof
        interface is lambda let match new nonlocal not null none true false or pass private
        protected public raise return self static struct super switch this throw try typeof var
        void while with yield"""
    )
)
_TURNED = {">": "<", ">=": "<=", "+=": "=", "-=": "=", "*=": "="}
_RUN = 3
_LEAST_LINES, _MOSTLY = 3, 0.5


def find_code(text: str) -> str:
    """Return the code in a text: what is fenced, else all of it where most lines are code."""
    fenced = [match[2] for match in _FENCE.finditer(text)]
    if fenced:
        return "\n".join(fenced)
    bare = _SAID.sub("", text)
    lines = [line for line in bare.split("\n") if line.strip()]
    held = sum(bool(_CODE_LINE.match(line)) for line in lines)
    return text if held >= _LEAST_LINES and held >= _MOSTLY * len(lines) else ""


def code_shape(text: str) -> list[str]:
    """Return runs of three tokens of the code in a text, in order; none where there is no code."""
    tokens = [_plain(match) for match in _TOKEN.finditer(find_code(text)) if not match["skip"]]
    return [" ".join(tokens[at : at + _RUN]) for at in range(len(tokens) - _RUN + 1)]


def _plain(match: re.Match[str]) -> str:
    if match["name"]:
        name = match["name"]
        is_known = name[0] == "." or name.lower() in _KEYWORDS
        return name.lower() if is_known else "v"
    if match["text"]:
        return "s"
    return match["number"] or _TURNED.get(match["sign"], match["sign"])
