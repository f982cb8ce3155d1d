"""Where definitions begin in source code, so that it can be cut by function and class.

Knows the lines that begin a definition in some twenty languages, by pattern; it parses none of
them, so a definition within a string or a comment may be taken for one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stillroom.records import Heading

__all__ = ["CODE_SUFFIXES", "find_definitions", "is_code", "language_of"]

_INDENT = r"^([ \t]*)"
_MODIFIERS = (
    r"(?:(?:export|default|public|private|protected|internal|static|final|abstract|async|open"
    r"|override|sealed|data|partial|virtual|unsafe|extern|inline|const|pub(?:\([^)\n]{0,40}\))?)"
    r"[ \t]+)*"
)
_TYPES = "class|interface|enum|record|struct|object|trait|fun|func|def|namespace|extension|protocol"
_PATTERNS = {
    "python": rf"{_INDENT}(?:async[ \t]+)?(?:def|class)[ \t]+(\w+)",
    "javascript": (
        rf"{_INDENT}{_MODIFIERS}(?:function\*?|class|interface|enum|namespace)[ \t]+(\w+)"
    ),
    "go": r"^()(?:func[ \t]+(?:\([^)\n]{0,200}\)[ \t]*)?|type[ \t]+)(\w+)",
    "rust": (
        rf"{_INDENT}{_MODIFIERS}(?:fn|struct|enum|trait|impl(?:<[^>\n]{{0,200}}>)?|mod"
        r"|macro_rules!)[ \t]+(\w+)"
    ),
    "java": rf"{_INDENT}{_MODIFIERS}(?:{_TYPES})[ \t]+(\w+)",
    "c": (
        r"^()(?:(?:static|inline|extern|const|unsigned|struct|enum|union)[ \t]+)*"
        r"[A-Za-z_][\w:<>,*&]{0,100}[ \t*&]+(~?\w+(?:::~?\w+)*)[ \t]*\([^;{}]{0,400}?\)"
        r"[ \t]*(?:const|noexcept)?\s*?\{"
    ),
    "ruby": rf"{_INDENT}(?:def|class|module)[ \t]+([\w.:?!]+)",
    "php": rf"{_INDENT}{_MODIFIERS}(?:function|class|interface|trait)[ \t]+(\w+)",
    "shell": r"^()(?:function[ \t]+)?(\w[\w-]*)[ \t]*\(\)",
    "sql": (
        r"^()(?:CREATE|ALTER)[ \t]+(?:OR[ \t]+REPLACE[ \t]+)?"
        r"(?:(?:TEMP|TEMPORARY|UNIQUE|MATERIALIZED)[ \t]+)*"
        r"(?:TABLE|VIEW|FUNCTION|PROCEDURE|TRIGGER|INDEX|TYPE|SCHEMA)[ \t]+"
        r"(?:IF[ \t]+NOT[ \t]+EXISTS[ \t]+)?([\w.\"`\[\]]+)"
    ),
    "lua": rf"{_INDENT}(?:local[ \t]+)?function[ \t]+([\w.:]+)",
    "r": r"^()([\w.]+)[ \t]*(?:<-|=)[ \t]*function\b",
    "perl": rf"{_INDENT}(?:sub|package)[ \t]+([\w:]+)",
    "julia": rf"{_INDENT}(?:function|struct|mutable[ \t]+struct|module|macro)[ \t]+([\w.!]+)",
}
_BY_SUFFIX = {
    "python": ".py .pyi",
    "javascript": ".js .mjs .ts .tsx .jsx",
    "go": ".go",
    "rust": ".rs",
    "java": ".java .kt .cs .scala .swift",
    "c": ".c .h .cc .cpp .hpp",
    "ruby": ".rb",
    "php": ".php",
    "shell": ".sh .bash",
    "sql": ".sql",
    "lua": ".lua",
    "r": ".r",
    "perl": ".pl",
    "julia": ".jl",
}
_OTHER = (
    ".css .scss .yaml .yml .toml .ini .cfg .conf .xml .xsl .svg .tex .bib .proto .graphql .cmake"
    " .mk .diff .patch"
)
_LANGUAGES = {
    suffix: language for language, suffixes in _BY_SUFFIX.items() for suffix in suffixes.split()
}
_SHEBANGS = (
    (re.compile(r"python[\d.]*\b"), "python"),
    (re.compile(r"(?:ba|da|z|k)?sh\b"), "shell"),
    (re.compile(r"node\b|deno\b|bun\b"), "javascript"),
    (re.compile(r"ruby\b"), "ruby"),
    (re.compile(r"perl\b"), "perl"),
    (re.compile(r"php\b"), "php"),
    (re.compile(r"lua\b"), "lua"),
    (re.compile(r"Rscript\b"), "r"),
)
_NOT_NAMES = frozenset({"if", "for", "while", "switch", "return", "else", "sizeof", "catch"})
_MOST = 20_000
_TAB = 4
_MOST_LEAD = 40
_LEADS = ("@", "#", "//", "/*", "*", "--")
_NAMES = ("makefile", "dockerfile", "rakefile", "gemfile", "jenkinsfile", "cmakelists.txt")

CODE_SUFFIXES = (*_LANGUAGES, *_OTHER.split())
"""The suffixes of files that are code, or written like it."""


def is_code(path: str, text: str) -> bool:
    """Say whether a file is code: by its name, or by its first line."""
    name = path.rsplit("/", 1)[-1].lower()
    return name.endswith(CODE_SUFFIXES) or name in _NAMES or bool(_shebang(text))


def language_of(path: str, text: str) -> str:
    """Return the programming language of a file, or an empty string."""
    suffix = "." + path.rsplit(".", 1)[-1].lower()
    return _LANGUAGES.get(suffix, "") or _shebang(text)


def find_definitions(text: str, language: str) -> Iterator[Heading]:
    """Yield where functions, classes and their like begin, nested by their indentation."""
    pattern = _PATTERNS.get(language)
    if pattern is None:
        return
    flags = re.MULTILINE | (re.IGNORECASE if language == "sql" else 0)
    indents: list[int] = []
    for number, match in enumerate(re.finditer(pattern, text, flags)):
        if number >= _MOST:
            return
        indent, name = len(match.group(1).expandtabs(_TAB)), match.group(2)
        if name in _NOT_NAMES:
            continue
        while indents and indents[-1] >= indent:
            indents.pop()
        indents.append(indent)
        yield Heading(_with_lead(text, match.start()), min(len(indents), 6), name)


def _with_lead(text: str, start: int) -> int:
    """Return where a definition begins with the decorators and comments right above it."""
    for _ in range(_MOST_LEAD):
        line = text.rfind("\n", 0, max(start - 1, 0)) + 1
        if line >= start or not text[line:start].lstrip().startswith(_LEADS):
            break
        if text.startswith("#!", line):
            break
        start = line
    return start


def _shebang(text: str) -> str:
    if not text.startswith("#!"):
        return ""
    line = text[:200].split("\n", 1)[0]
    return next((language for pattern, language in _SHEBANGS if pattern.search(line)), "")
