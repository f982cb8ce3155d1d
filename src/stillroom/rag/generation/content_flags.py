"""Flags of text in passages that may address the model: prompt injection, hidden text.

Content flags never refuse or change anything: retrieved text is data, whatever its content, and
patterns can be evaded. Hits and answers carry the flags so that a person or a program can inspect
them. Not detected: paraphrased instructions, other languages, and instructions in pictures.
"""

from __future__ import annotations

import re

from stillroom.text.unicode import count_invisible, strip_invisible

__all__ = ["CONTENT_FLAGS", "flag_text"]

CONTENT_FLAGS: dict[str, str] = {
    "control-tokens": "control tokens of a chat template",
    "hidden-text": "characters or markup that no reader sees",
    "instruction": "an instruction to a language model",
    "planted-citation": "a demand that a certain passage be cited or trusted",
    "remote-content": "a picture or link that could send data out",
    "role-play": "a made-up turn of a chat with a language model",
    "secrets": "a request for prompts, keys, passwords, or other people's documents",
}
"""What a text with each flag may hold."""
_INJECTION_VERBS = (
    r"(?:ignore|disregard|forget|override|bypass|skip|discard|drop|set aside|pay no attention to)"
)
_INJECTION_QUALIFIERS = (
    r"(?:previous|prior|above|preceding|earlier|foregoing|other|all|any|every|the|your|these|those"
    r"|system|original|initial)"
)
_INJECTION_OBJECTS = (
    r"(?:instructions?|prompts?|rules?|directions?|guidelines?|orders?|commands?|passages?)"
)
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
        rf"\b{_INJECTION_VERBS}\s+(?:\w+\s+){{0,3}}?{_INJECTION_QUALIFIERS}\s+(?:\w+\s+){{0,3}}?{_INJECTION_OBJECTS}\b"
        r"|\b(?:you\s+(?:must|should|will|shall|are\s+to)|always|instead,?|please)\s+(?:now\s+|only\s+)?"
        r"(?:(?:answer|respond|reply|say|tell\s+the\s+user)\b"
        # people are told to print and to write, too; a model is told the words
        r"|(?:output|write|print|repeat)\s+(?:only|exactly|nothing|the\s+(?:following|words?)"
        r"|[\"'“‘]|(?-i:[A-Z]{2})))"
        r"|(?<!\bthe\s)\b(?:answer|respond|reply|say|output|print|repeat)\s+(?:only\s+|exactly\s+|with\s+){1,3}"
        r"(?:the\s+)?(?:word|phrase|text|sentence|following|[\"'“‘])"
        r"|\bnew\s+(?:instructions?|rules?|task)\s*:"
        r"|\byou\s+are\s+now\s+(?:an?|the|called|named|no\s+longer|in\s+\w+\s+mode|(?-i:[A-Z]\w+))\b"
        r"|\bfrom\s+now\s+on,?\s+(?:you|your|always|never|only|every|all|answer|respond|reply|say|speak"
        r"|act|pretend|ignore|write|output)\b"
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
        # a path without scheme or root stays on the page's host; [&\\] may hide either
        r"!\[(?:[^\]\\]|\\.|\](?!\s*[(\[])){0,300}\]\s*"
        r"(?:\[|\([\s\x00-\x1f<]*+(?:[/\\]|[a-z\d.+\t-]*[:&\\]))|\]\(\s*(?:https?:)?//[^)\s?]{0,1000}\?"
        r"|<\s*(?:base|ima?ge?|iframe|script|object|embed|video|audio|source|input|link|form)\b[^>]{0,400}"
        r"(?:src(?:set)?|href|data|action|poster)\s*=|javascript:|data:text/html",
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
_SHORT_PICTURE = re.compile(r"!\[([^\[\]]{1,200})\](?![(\[])")
_DEFINITION = re.compile(r"^[ \t>]*\[([^\[\]]{1,200})\]:", re.MULTILINE)
_SOFT_HYPHEN = re.compile(r"(?<=\w)\u00ad(?=\w)")  # where a line may break: usual in print


def flag_text(text: str) -> tuple[str, ...]:
    """Return the keys of ``CONTENT_FLAGS`` that match a text, sorted.

    Patterns are matched after invisible characters are stripped, so that words split by them are
    detected; the invisible characters themselves are flagged too.
    """
    visible = strip_invisible(text)
    flags = {name for name, pattern in _PATTERNS.items() if pattern.search(visible)}
    if count_invisible(_SOFT_HYPHEN.sub("", text)):
        flags.add("hidden-text")
    defined = {label.casefold() for label in _DEFINITION.findall(visible)}
    if any(label.casefold() in defined for label in _SHORT_PICTURE.findall(visible)):
        flags.add("remote-content")
    return tuple(sorted(flags))
