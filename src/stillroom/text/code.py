"""Source code: language detection, definitions and identifier-free token n-grams.

Definitions of some twenty languages are found by the pattern of their first line, without a parser,
so one inside a string or a comment may be matched too.

Token n-grams find rephrased code, which has other names and comments and inverted conditions, but
mostly the same calls in the same order: all names defined by the code become one token, while
keywords and members after a dot stay. What one language writes in several ways gives the same
tokens: braces and declaring words are left out, an arrow function is the function that returns its
expression. They cover languages with braces and with indentation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stillroom.records import Heading

__all__ = [
    "CODE_SUFFIXES",
    "detect_code_language",
    "extract_token_trigrams",
    "find_code",
    "find_definitions",
    "is_code",
    "is_mostly_code",
]


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

_OTHER_SUFFIXES = (
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
_MAX_DEFINITIONS = 20_000
_TAB_WIDTH = 4
_MAX_LEAD_LINES = 40
_LEAD_MARKS = ("@", "#", "//", "/*", "*", "--")
_FILE_NAMES = ("makefile", "dockerfile", "rakefile", "gemfile", "jenkinsfile", "cmakelists.txt")
CODE_SUFFIXES = (*_LANGUAGES, *_OTHER_SUFFIXES.split())
"""Suffixes of source code and code-like files."""


def is_code(path: str, text: str) -> bool:
    """Return whether a file is source code, by its name or its first line."""
    name = path.rsplit("/", 1)[-1].lower()
    return name.endswith(CODE_SUFFIXES) or name in _FILE_NAMES or bool(_read_shebang(text))


def detect_code_language(path: str, text: str) -> str:
    """Return the programming language of a file, or an empty string."""
    suffix = "." + path.rsplit(".", 1)[-1].lower()
    return _LANGUAGES.get(suffix, "") or _read_shebang(text)


def find_definitions(text: str, language: str) -> Iterator[Heading]:
    """Yield functions, classes and similar definitions, nested by indentation."""
    pattern = _PATTERNS.get(language)
    if pattern is None:
        return
    flags = re.MULTILINE | (re.IGNORECASE if language == "sql" else 0)
    indents: list[int] = []
    for number, match in enumerate(re.finditer(pattern, text, flags)):
        if number >= _MAX_DEFINITIONS:
            return
        indent, name = len(match.group(1).expandtabs(_TAB_WIDTH)), match.group(2)
        if name in _NOT_NAMES:
            continue
        while indents and indents[-1] >= indent:
            indents.pop()
        indents.append(indent)
        yield Heading(_extend_to_lead(text, match.start()), min(len(indents), 6), name)


def _extend_to_lead(text: str, start: int) -> int:
    """Return the start of a definition including decorators and comments right above it."""
    for _ in range(_MAX_LEAD_LINES):
        line = text.rfind("\n", 0, max(start - 1, 0)) + 1
        if line >= start or not text[line:start].lstrip().startswith(_LEAD_MARKS):
            break
        if text.startswith("#!", line):
            break
        start = line
    return start


def _read_shebang(text: str) -> str:
    if not text.startswith("#!"):
        return ""
    line = text[:200].split("\n", 1)[0]
    return next((language for pattern, language in _SHEBANGS if pattern.search(line)), "")


_FENCE = re.compile(r"^[ \t]*(```|~~~)[^\n]*\n(.*?)(?:^[ \t]*\1|\Z)", re.MULTILINE | re.DOTALL)

_CODE_LINE = re.compile(
    r"^\s*(?:(?:async\s+)?def\s+\w+\s*\(|class\s+\w+.*[:{]\s*$|return\b|(?:if|for|while|elif)\b.*[:{]\s*$"
    r"|(?:import|from)\s+\w+|[\w.\[\]]+\s*(?:[-+*/|&]?=)\s*\S|[\w.]+\(.*\)\s*;?\s*$|[{}]\s*;?\s*$"
    r"|(?:const|let|var|public|private|static|func|fn|function)\b|.*[;{]\s*$|@\w+|else\b.*[:{]\s*$"
    r"|(?:try|finally|else)\s*[:{]\s*$|raise\b|yield\b|#include\b)"
)

_SKIPPED = r"\"\"\".*?\"\"\"|'''.*?'''|/\*.*?\*/|\#[^\n]*"
_KEPT = (
    r"|(?P<text>\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|`[^`]*`)"
    r"|(?P<number>\b\d[\w.]*)|(?P<name>\.?[^\W\d]\w*)"
    r"|(?P<sign>//=?|[=!]==|[-+*/%&|^<>=!:]=?|[\[\]()?~@])"
)
_TOKEN = re.compile(rf"(?P<skip>{_SKIPPED}|//[^\n]*){_KEPT}", re.DOTALL)
_PYTHON_TOKEN = re.compile(rf"(?P<skip>{_SKIPPED}){_KEPT}", re.DOTALL)
_PYTHON_LINE = re.compile(
    r"^[ \t]*(?:(?:async\s+)?def|class|if|elif|else|for|while|with|try)\b[^{;\n]*:[ \t]*(?:#.*)?$",
    re.MULTILINE,
)
_FUNCTION = re.compile(
    r"(?:\b([\w$]+)\s*=\s*)?(?:\basync\s+)?"
    r"(?:\bfunction\b\s*\*?\s*(\([^()]*\))\s*\{|(\([^()]*\)|[\w$]+)\s*=>\s*(\{)?)"
)
"""A nameless function of JavaScript, with the name that it is assigned to."""

_COMMENT = re.compile(
    r"\"\"\".*?\"\"\"|'''.*?'''|/\*.*?\*/|^\s*(?:#|//)[^\n]*", re.DOTALL | re.MULTILINE
)

_KEYWORDS = frozenset(
    str.split(
        """and as assert async await break case catch class const continue def default del do elif
        else except extends final finally fn for from func function global if import in instanceof
        interface is lambda let match new nonlocal not null none true false or pass private
        protected public raise return static struct super switch throw try typeof var
        void while with yield"""
    )
)

_MIRRORED_OPERATORS = {">": "<", ">=": "<=", "+=": "=", "-=": "=", "*=": "="} | {
    "===": "==",
    "!==": "!=",
}
_DECLARING = frozenset("const let var export default async".split())  # noqa: SIM905
_NGRAM = 3
_MIN_CODE_LINES, _MIN_CODE_SHARE = 3, 0.5


def find_code(text: str) -> str:
    """Return the code in a text: its fenced blocks, else all of it where most lines are code."""
    fenced = [match[2] for match in _FENCE.finditer(text)]
    if fenced:
        return "\n".join(fenced)
    bare = _COMMENT.sub("", text)
    lines = [line for line in bare.split("\n") if line.strip()]
    held = sum(bool(_CODE_LINE.match(line)) for line in lines)
    return text if held >= _MIN_CODE_LINES and held >= _MIN_CODE_SHARE * len(lines) else ""


def extract_token_trigrams(text: str) -> list[str]:
    """Return token trigrams of the code in a text, in order; none without code."""
    code = find_code(text)
    pattern = _PYTHON_TOKEN if _PYTHON_LINE.search(code) else _TOKEN  # "//" divides, or comments
    tokens = [
        _normalize_token(match)
        for match in pattern.finditer(_FUNCTION.sub(_write_function, code))
        if not match["skip"] and match["name"] not in _DECLARING
    ]
    return [" ".join(tokens[index : index + _NGRAM]) for index in range(len(tokens) - _NGRAM + 1)]


def is_mostly_code(text: str) -> bool:
    """Return whether most words of a text are code, without its comments and docstrings."""
    code = _COMMENT.sub("", find_code(text))
    return bool(code) and len(code.split()) > len(text.split()) / 2


def _write_function(match: re.Match[str]) -> str:
    """Return a nameless function as a declared one that returns its value."""
    name, listed, arguments, brace = match.groups()
    arguments = listed or (arguments if arguments[0] == "(" else f"({arguments})")
    return f"function {name or ''}{arguments} {'' if listed or brace else 'return '}"


def _normalize_token(match: re.Match[str]) -> str:
    if match["name"]:
        name = match["name"]
        is_known = name[0] == "." or name.lower() in _KEYWORDS
        return name.lower() if is_known else "v"
    if match["text"]:
        return "s"
    return match["number"] or _MIRRORED_OPERATORS.get(match["sign"], match["sign"])
