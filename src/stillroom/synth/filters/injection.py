"""Injection: no prompt injection in the record.

Source: Greshake et al. 2023, arXiv:2302.12173 (instructions hidden in documents); Perez and Ribeiro
2022, arXiv:2211.09527 (goal hijacking and prompt leaking). Differs: patterns, not a model; they
catch the plain forms, and prompts treat every document as data anyway.

The patterns match, mostly at the start of a clause, as commands: overriding or revealing earlier
instructions; addressing a model by name; a new role or task; instructions for when this text is
read; forged turns; permission to break rules. In user requests without a document, only overriding
and revealing instructions counts: "respond only with the number" is a legitimate task.
"""

from __future__ import annotations

import re
from typing import ClassVar

from typing_extensions import override

from stillroom.records import Record
from stillroom.synth.interfaces import Filter, FilterResult
from stillroom.text.unicode import count_invisible, strip_invisible

__all__ = ["Injection"]

_CLAUSE = (
    r"(?:^|[.!?:;,\n\"“”'(\[\]>*-][ \t]{0,4}|\b(?:please|kindly|now|just|and|then|must|should|to|"
    r"will) )(?:please |kindly |now |just |so |also )?"
)
"""Positions where a command may start."""
_UP_TO = r"[^.!?\n]{0,40}?"
_NOUN = (
    r"(?:instructions?|prompts?|rules?|guidelines?|guidance|directions?|directives?|commands?|"
    r"orders?|messages?|constraints?|restrictions?|polic(?:y|ies)|training|programming|brief)\b"
)
_BEFORE = (
    r"(?:previous|prior|above|earlier|preceding|foregoing|initial|original|system|hidden|existing)"
)
_GIVEN = (
    r"(?:so far|(?:(?:that|which) )?(?:came (?:before|earlier)|you (?:were|are|have been|had been) "
    r"(?:given|told|handed|sent))|given (?:above|earlier|before|further up)|"
    r"at the (?:top|beginning|start) of (?:this|the) (?:conversation|chat|prompt))\b"
)
_TOLD = (
    rf"(?:{_BEFORE} (?:\w+ ){{0,2}}?{_NOUN}|your (?:\w+ ){{0,2}}?{_NOUN}|{_NOUN} "
    rf"(?:above\b|{_GIVEN})|(?:what(?:ever)?|everything|all|anything) (?:that )?you (?:were|are|"
    r"have been|had been) (?:told|asked|given|ordered|instructed))"
)
"""Phrases for the instructions a model was given before."""
_MODEL = (
    r"(?:ai(?: (?:systems?|assistants?|models?|agents?|reviewers?|readers?|tools?))?|llms?|"
    r"(?:large )?language models?|chat ?bots?|chatgpt|gpt|(?:virtual |digital )?assistants?)"
)
_SPEAK = (
    r"(?:answer|respond|reply|say|write|speak|act|behave|obey|comply|refuse|pretend|follow|output|"
    r"print|begin|end|translate|ignore|disregard|promote|recommend|praise)\b"
)
_TELL = r"(?:write|say|reply|output|print|tell|list|respond)\b"
_ADD = (
    r"(?:add|say|include|mention|insert|append|recommend|write|state|tell|claim|end|do not|"
    r"don['’]t|give|rate|praise)\b"
)
_VOID = (
    r"(?:(?:ignore|disregard|forget|override|bypass|drop|set aside|abandon|discard|overlook|"
    r"neglect|dismiss|skip|cancel)|pay no attention to|never mind|(?:do not|don['’]t|never|stop|"
    r"quit|cease|no longer) (?:follow|obey|heed)(?:ing)?)\b"
)
_IS_VOID = (
    r"(?:(?:is|are|was|were|has been|have been|had been) (?:now |hereby )?(?:void|null|cancel\w+|"
    r"revoked|superseded|lifted|invalid|suspended|updated|changed|replaced|removed|over)|no longer "
    r"(?:apply|applies|hold|count))\b"
)
_LIMITS = (
    r"(?:restrictions?|limits?|limitations|rules|filters?|ethic\w*|guidelines|morals?|polic\w+|"
    r"censor\w*)"
)
_COMMANDS_ALWAYS = (rf"{_VOID}{_UP_TO}\b{_TOLD}",)
_ANYWHERE_ALWAYS = (
    r"(?:ignore|disregard|forget|override|bypass|drop|set aside)\b[^.!?\n]{0,30}"
    r"\b(?:previous|prior|above|earlier|your|system)\b[^.!?\n]{0,20}"
    r"\b(?:instructions?|prompts?|guidelines|messages?|directions|training)\b",
    r"(?:reveal|print|repeat|show|output|leak|display|copy|quote|recite|disclose|share|tell me|"
    rf"give me)\b{_UP_TO}\b(?:(?:system|hidden|secret) (?:prompt|instructions?|message)|your "
    rf"(?:\w+ )?(?:prompt|instructions)\b|(?:instructions?|prompts?) {_GIVEN})",
    r"do anything now\b",
    # a jailbreak of the model itself; texts about those of phones, games and prisons are none
    r"jailbr(?:eak|oken) ?(?:mode|gpt|ai|model|assistant|persona|sequence|protocol)\b|"
    r"jailbr\w+ (?:yourself\b|you[.!:;,])|your jailbreak\b|to jailbreak[.!]|"
    r"(?:accept|apply|execute|follow|obey|run|use) (?:this|my|the following) jailbreak\b|"
    r"jailbreak(?: \w+)? (?:activated?|active|complete|enabled|engaged|successful)[.!:,] ?"
    rf"(?:you have no\b|you are free\b|{_SPEAK})|"
    r"(?:consider yourself|(?<!if )(?<!once )(?<!when )you(?:(?: are|['’]re)(?: now)?(?: in)?|"
    r"(?: have|['’]ve)(?: now)? been(?: in)?)|"
    r"(?:act|answer|respond|behave|pretend)\b[^.!?\n]{0,30}?) (?:an? )?jailbr(?:eak|oken)\b|"
    r"(?:enable|activate|enter|start|begin|initiate|(?:switch|turn) on|go into) (?:the |this |a )?"
    r"jailbreak(?: now)?(?:[.,:;!]| and (?:stay|answer|respond|say|tell)\b)|"
    rf"jailbreak(?:\]| ?:| prompt\W)\W{{0,6}}(?:you (?:are|will|must|have)|on\b|{_SPEAK})",
)
"""Overriding earlier instructions, and asking for the prompt itself."""
_COMMANDS = (
    *_COMMANDS_ALWAYS,
    # overriding all instructions
    rf"{_VOID} (?:all|any|every|each) (?:\w+ ){{0,3}}?{_NOUN}",
    r"(?:stop|drop|forget|discard|ignore) (?:what(?:ever)?|everything) (?:you (?:are|were|have "
    r"been)|above|before)\b",
    # addressing a model
    rf"(?:note|attention|message|notice|reminder|instructions?|dear|hey|hello|hi|to)\b,?"
    rf"(?: \w+){{0,2}}? {_MODEL}(?:[,:]| (?:that|who|which|reads?|reading)\b[^.!?\n:,]{{0,30}}"
    r"[,:])",
    rf"(?:{_MODEL}[,:] ?(?:please )?|{_MODEL} (?:instructions?|directives?): ?)"
    r"(?:reply|respond|answer|say|output|ignore|print|write|tell|give|send|list|repeat|rank|rate|"
    r"recommend|forget|disregard|follow|add|include)\b",
    rf"{_MODEL} (?:must|shall|please) (?:reply|respond|answer|say|output|ignore) "
    r"(?!to\b|in\b|with(?:in)?\b)",
    # another role
    rf"(?:pretend|act|behave|role-?play|respond|answer|speak|assume|adopt|imagine|become)"
    rf"\b[^.!?\n]{{0,50}}\b(?:(?:no|without|free (?:of|from))(?: any)?(?: \w+)? {_LIMITS}|"
    r"(?:filters?|restrictions|safety \w+|guidelines) (?:do not|don['’]t|did not|are|were|had|have)"
    r" (?:exist|apply|off|been|switched|turned|lifted)|unrestricted|evil)\b",
    r"(?:pretend to be|act as if you)\b",
    # another task instead
    r"(?:stop|quit|cease|discontinue) (?:summari[sz]ing|translating|answering|replying|(?:the|your)"
    rf" (?:present|current) task)\b[^.!?\n]{{0,20}}(?: and|;) ?(?:just )?(?:{_TELL}|the new\b)",
)
_ANYWHERE = (
    *_ANYWHERE_ALWAYS,
    # overriding all instructions
    rf"(?:{_BEFORE} (?:\w+ )?(?:instructions?|prompts?|messages?)|(?:instructions?|prompts?) above|"
    rf"{_NOUN} {_GIVEN}|your (?:\w+ )?{_NOUN}|everything you (?:were|have been) told(?: so far)?) "
    rf"{_IS_VOID}",
    rf"{_BEFORE} {_NOUN} {_IS_VOID}(?:,? so you|;| from (?:here|now) on| now\b)",
    # addressing a model
    rf"if you(?:['’]re| are) (?:an? )?{_MODEL}\b",
    rf"{_MODEL}\b[^.!?\n]{{0,30}}\b(?:read|process|summari[sz]|index|see|pars|crawl|scrap)"
    r"(?:s|es|e|ed|ing)?\b[^.!?\n]{0,12}\bthis\b[^.!?\n]{0,25}\b(?:must|should|shall|please|has to|"
    r"have to|need to|has permission|may)\b",
    rf"{_MODEL} (?:must|should|shall|please|have to)\b[^.!?\n]{{0,50}}\bthis (?:paper|page|text|"
    r"document|site|article|product|author|company)\b",
    # another role, or a new task
    r"you (?:are|must|will) now (?:act|be|behave|respond|answer|pretend|obey)\b",
    r"you are (?:now (?:in )?(?:god|dan|jailbreak|sudo|(?:an )?unrestricted)\b|no longer (?:an? "
    r"|the )?(?:ai|assistant|chatbot|language model|bound|restricted|limited)\b)",
    r"from (?:now on|(?:this|that) (?:point|moment)(?: on| onwards?| forward)?|here on|here),? "
    rf"(?:you (?:will|must|shall|should|are to) )?(?:only |always )?{_SPEAK}",
    r"your (?:new|only|sole|real|true|actual) (?:task|role|goal|job|purpose|objective|mission|"
    r"directive|instructions?)\b(?: now| from (?:now on|this moment))? (?:is|are) (?:now )?to\b",
    rf"your (?:task|role|goal|job|purpose|objective|{_NOUN}) (?:has|have) (?:been )?"
    r"(?:changed|updated|replaced)\b",
    r"(?:the model|the assistant|you) (?:has|have) no (?:limits|restrictions|rules)\b",
    r"new (?:system )?instructions?\s?:",
    # instructions for when this text is read
    r"(?:when(?:ever)?|if|while|before|after|once) (?:you(?: are)? |asked to )?(?:summari[sz]|"
    r"answer|translat|respond|reply|read|process|quot|describe?|review|rat)\w*(?: about| to)? "
    rf"this\b[^.!?\n]{{0,25}}, (?:also |always |please )?{_ADD}",
    rf"in your (?:summary|reply|translation|output),? (?:also |always )?{_ADD}",
    r"(?:do not|don['’]t|never) (?:tell|mention|reveal|disclose|show)\b[^.!?\n]{0,30}\bthis (?:"
    r"note|paragraph|instruction|message|text|line|prompt)\b",
    r"instead of (?:answering|summari[sz]ing|translating|replying)[^.!?\n,]{0,30}, (?:just )?"
    rf"{_TELL}",
    r"respond only with\b",
    # permission to break rules
    r"(?:permission|authori[sz]ation|allowed|free) to (?:ignore|skip|bypass|override|disregard) "
    r"(?:\w+ ){0,2}?(?:safety|polic\w+|rules|guidelines|filters?|restrictions|instructions)\b",
)
_TURN = re.compile(
    r"\bSYSTEM(?: \w+)?: ?(?:[Tt]he (?:user|reader|assistant|model)|[Yy]ou\b|[Gg]rant|[Oo]bey|"
    r"[Oo]verride|[Ii]gnore|[Dd]isregard|[Nn]ew\b|[Aa]ll (?:filters|rules|restrictions))|"
    r"(?:^|(?<=[.!?\n] )|(?<=\n))(?:\[/?(?:system|SYSTEM|INST)\][ \t]*\w|"
    r"<{1,2}/?(?:system|SYSTEM|SYS|sys)>{1,2}[ \t]*\w|"
    r"#{2,}[ \t]*(?:Instruction|System|Human|Assistant):)"
)
"""Forged turns."""
_SPACE = re.compile(r"[^\S\n]*\n[^\S\n]*(?=[a-z])|[^\S\n]+")


def _join(commands: tuple[str, ...], anywhere: tuple[str, ...]) -> re.Pattern[str]:
    """Return one pattern for lowercase text; the common prefix of all forms is matched once."""
    return re.compile(rf"{_CLAUSE}(?:{'|'.join(commands)})|\b(?:{'|'.join(anywhere)})")


_AGAINST = _join(_COMMANDS_ALWAYS, _ANYWHERE_ALWAYS)
_ORDER = _join(_COMMANDS, _ANYWHERE)


def _flatten(text: str) -> str:
    """Return a text in lowercase, with single spaces and wrapped lines joined."""
    return _SPACE.sub(" ", text).lower()


class Injection(Filter):
    """Drop records and passages that give instructions to a model.

    A record with a ``question`` field is dropped for invisible characters as well.
    """

    paper: ClassVar[str] = "arXiv:2302.12173"
    accepts_passages: ClassVar[bool] = True

    @override
    def judge(self, record: Record) -> FilterResult:
        is_about = "evidence" in record.fields
        for message in record.messages:
            is_task = message.role in {"user", "system"} and not is_about
            shown = strip_invisible(message.content)
            is_order = (_AGAINST if is_task else _ORDER).search(_flatten(shown))
            if is_order or (not is_task and _TURN.search(shown)):
                return FilterResult(False, "gives orders to a model", 0.0)
            if "question" in record.fields and count_invisible(message.content):
                return FilterResult(False, "hides characters", 0.0)
        return FilterResult(True)
