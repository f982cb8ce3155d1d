"""Labels of text that speaks to a model, hides from people, or reaches out; labels only.

Nothing is refused or changed because of a label: retrieved text is data whatever it says, and a
pattern can be written around. Hits and answers carry the labels so that a person or a program can
look twice. Does not know: instructions in other words, other languages, or pictures.
"""

from __future__ import annotations

import re

from stillroom.text.normalize import count_invisible, strip_invisible

__all__ = ["FLAGS", "flag_text"]

FLAGS: dict[str, str] = {
    "control-tokens": "text that a chat template could read as its own",
    "hidden-text": "characters or markup that a person does not see",
    "instruction": "an order to whoever answers, rather than a statement",
    "planted-citation": "tells which passage is to be cited or trusted",
    "remote-content": "a picture or link in Markdown or HTML that reaches out with data",
    "role-play": "a turn of a conversation, as if system, user or assistant spoke",
    "secrets": "asks for prompts, keys, passwords, or other people's documents",
}
"""Every label, with what it means."""

_VERBS = (
    r"(?:ignore|disregard|forget|override|bypass|skip|discard|drop|set aside|pay no attention to)"
)
_BEFORE = (
    r"(?:previous|prior|above|preceding|earlier|foregoing|other|all|any|every|the|your|these|those"
    r"|system|original|initial)"
)
_ORDERS = r"(?:instructions?|prompts?|rules?|directions?|guidelines?|orders?|commands?|passages?)"
_PATTERNS: dict[str, re.Pattern[str]] = {
    "control-tokens": re.compile(
        r"<\s*[|｜][^<>\n]{0,64}[|｜]\s*>|\[\s*/?\s*(?:INST|SYS|SYSTEM_PROMPT)\s*\]|<<\s*/?\s*SYS\s*>>"
        r"|<\s*/?\s*(?:s|start_of_turn|end_of_turn|system|assistant|tool_call)\s*>"
        r"|<\s*/\s*(?:passage|document|context|data|source)[\w-]*\s*>",
        re.IGNORECASE,
    ),
    "hidden-text": re.compile(
        r"<!--|display\s*:\s*none|visibility\s*:\s*hidden|font-size\s*:\s*0|opacity\s*:\s*0(?!\.)",
        re.IGNORECASE,
    ),
    "instruction": re.compile(
        rf"\b{_VERBS}\s+(?:\w+\s+){{0,3}}?{_BEFORE}\s+(?:\w+\s+){{0,3}}?{_ORDERS}\b"
        r"|\b(?:you\s+(?:must|should|will|shall|are\s+to)|always|instead,?|please)\s+(?:now\s+|only\s+)?"
        r"(?:answer|respond|reply|say|output|write|print|repeat|tell\s+the\s+user)\b"
        r"|\b(?:answer|respond|reply|say|output|print|repeat)\s+(?:only\s+|exactly\s+|with\s+){1,3}"
        r"(?:the\s+)?(?:word|phrase|text|sentence|following|[\"'“‘])"
        r"|\bnew\s+(?:instructions?|rules?|task)\s*:|\byou\s+are\s+now\b|\bfrom\s+now\s+on\b"
        r"|\b(?:note|message|instructions?|attention)\s+(?:to|for)\s+(?:the\s+)?"
        r"(?:ai|assistant|model|language\s+model|chatbot|reader\s+model)\b"
        r"|\bif\s+you\s+are\s+an?\s+(?:ai|assistant|language\s+model)\b",
        re.IGNORECASE,
    ),
    "planted-citation": re.compile(
        r"\b(?:cite|trust|quote|use|prefer|rely\s+on|refer\s+to|believe)\s+(?:only\s+)?(?:this\s+|the\s+)?"
        r"(?:passage|source|document|citation)?\s*(?:number\s+)?[\[【［(]\s*\d{1,3}\s*[\])】］]"
        r"|\b(?:all|every)\s+other\s+(?:passages?|sources?|documents?)\s+"
        r"(?:is|are)\s+(?:\w+\s+)?(?:wrong|false|outdated|obsolete|incorrect|retracted)",
        re.IGNORECASE,
    ),
    "remote-content": re.compile(
        r"!\[[^\]]{0,200}\]\s*(?:\(|\[)|\]\(\s*(?:https?:)?//[^)\s]*\?[^)\s]*"
        r"|<\s*(?:img|iframe|script|object|embed|video|audio|link|form)\b[^>]{0,400}"
        r"(?:src|href|data|action)\s*=|javascript:|data:text/html",
        re.IGNORECASE,
    ),
    "role-play": re.compile(
        r"(?:\A|\n)[ \t#>*-]*(?:system|assistant|user|human|ai|developer)\s*(?:prompt\s*)?:\s*\S",
        re.IGNORECASE,
    ),
    "secrets": re.compile(
        r"\b(?:reveal|print|show|repeat|output|send|leak|give|list|disclose|forward)\s+(?:\w+\s+){0,4}?"
        r"(?:system\s+prompt|hidden\s+prompt|initial\s+prompt|passwords?|api\s+keys?|secrets?"
        r"|credentials?|other\s+(?:tenants?|users?|customers?)['’]?s?)\b",
        re.IGNORECASE,
    ),
}


def flag_text(text: str) -> tuple[str, ...]:
    """Return the labels of ``FLAGS`` that hold for a text, sorted.

    Patterns are looked for in the text as people see it, so that a word cut by invisible characters
    is found as well; invisible characters are themselves a label.
    """
    seen = strip_invisible(text)
    found = {name for name, pattern in _PATTERNS.items() if pattern.search(seen)}
    if count_invisible(text):
        found.add("hidden-text")
    return tuple(sorted(found))
