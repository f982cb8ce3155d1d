"""Personal data (PII), secrets and toxic language: detection, redaction, pseudonyms.

Detection by pattern and check digit, without a model: mail addresses, telephone numbers, payment
cards (Luhn), IBANs (ISO 7064 mod 97), US social security numbers, public IP addresses, keys and
tokens of well-known forms. Documentation examples (RFC 2606 domains, RFC 5737 and private networks,
the card numbers of payment test sites) are ignored. Names and postal addresses are not detected:
they have no fixed form.

A pseudonym is derived from an HMAC of the value: without the key it can be neither inverted nor
tested against a guess. Surrogates have the value's form and lie in reserved ranges
(RFC 2606 domains, RFC 5737 and 3849 networks, 555-01xx numbers, wrong check digits).

Source: ISO/IEC 20889:2018, section 8.4 (pseudonymization by keyed functions).

Toxic language is matched after obfuscation (digits or signs for letters, stretched words, dots
between letters) is undone. Kinds: ``profanity`` (words that are always rude), ``insult`` (rude
words next to a reference to a person), ``threat`` (harm announced or wished to a person) and
``slur``. Limitations: no irony, no contempt in clean words, English only, no context of quotations.
A fallback: a classifier is better.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from stillroom.text.unicode import fold_text

__all__ = ["PiiKind", "PiiSpan", "Pseudonymizer", "ToxicSpan", "find_pii", "find_toxic_spans"]


PiiKind = Literal["email", "phone", "card", "iban", "ssn", "ip", "secret"]


@dataclass(frozen=True, slots=True)
class PiiSpan:
    """A span of text with personal data, and its kind."""

    kind: PiiKind
    start: int
    end: int


_EXAMPLE_EMAIL = re.compile(
    r"(?:^|[.@])(?:example(?:\.(?:com|org|net|edu))?|test|invalid|localhost|local)$", re.IGNORECASE
)

_VERSION_PART = 32
"""Four numbers all below this are a version, such as 3.11.0.1."""

_TEST_CARDS = frozenset(
    {
        "4111111111111111",
        "4242424242424242",
        "5555555555554444",
        "378282246310005",
        "4012888888881881",
        "5105105105105100",
        "6011111111111117",
    }
)

_EXAMPLE_NETWORKS = tuple(
    map(
        ipaddress.ip_network,
        ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32", "8.8.8.0/24"),
    )
)


def find_pii(text: str) -> list[PiiSpan]:
    """Return the matches in order; overlapping ones are resolved by certainty."""
    spans: list[PiiSpan] = []
    for kind, pattern, holds in _PII_PATTERNS:
        for match in pattern.finditer(text):
            start, end = match.span()
            overlaps = any(start < span.end and span.start < end for span in spans)
            if not overlaps and holds(match.group()):
                spans.append(PiiSpan(kind, start, end))
    return sorted(spans, key=lambda span: span.start)


def _is_email(text: str) -> bool:
    return not _EXAMPLE_EMAIL.search(text.rpartition("@")[2])


def _is_card(text: str) -> bool:
    digits = [int(character) for character in text if character.isdigit()]
    if not 13 <= len(digits) <= 19 or len(set(digits)) < 3:
        return False
    if "".join(map(str, digits)) in _TEST_CARDS:
        return False
    doubled = [
        digit * 2 - 9 * (digit > 4) if index % 2 else digit
        for index, digit in enumerate(digits[::-1])
    ]
    return sum(doubled) % 10 == 0


def _is_iban(text: str) -> bool:
    plain = "".join(text.split()).upper()
    if not 15 <= len(plain) <= 34:
        return False
    turned = plain[4:] + plain[:4]
    return int("".join(str(int(character, 36)) for character in turned)) % 97 == 1


def _is_ssn(text: str) -> bool:
    area, group, serial = text.split("-")
    return area not in {"000", "666"} and area < "900" and group != "00" and serial != "0000"


def _is_ip_address(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if address.version == 4 and max(address.packed) < _VERSION_PART:
        return False
    return address.is_global and not any(
        address in network for network in _EXAMPLE_NETWORKS if network.version == address.version
    )


def _is_phone(text: str) -> bool:
    digits = sum(character.isdigit() for character in text)
    return 9 <= digits <= 15 and "555-01" not in text


def _accept_any(text: str) -> bool:
    return True


_SECRETS = (
    r"AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{22,}|glpat-[\w-]{20,}|"
    r"sk-(?:[a-z]+-)*[A-Za-z0-9_-]{20,}|sk_live_[A-Za-z0-9]{16,}|xox[abprs]-[A-Za-z0-9-]{10,}|"
    r"AIza[0-9A-Za-z_-]{35}|hf_[A-Za-z0-9]{30,}|npm_[A-Za-z0-9]{36}|"
    r"eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}|"
    r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----(?:[\s\S]*?-----END (?:[A-Z]+ )?PRIVATE KEY-----)?"
)

_PII_PATTERNS: tuple[tuple[PiiKind, re.Pattern[str], Callable[[str], bool]], ...] = (
    ("secret", re.compile(rf"(?<![\w-])(?:{_SECRETS})"), _accept_any),
    (
        "email",
        re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.)+[^\W\d_]{2,24}(?![\w-])"),
        _is_email,
    ),
    ("iban", re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"), _is_iban),
    (
        "card",
        re.compile(
            r"(?<![\d.-])(?<!\d )(?:(?:\d{4}[ -]?){3}\d{4}(?:[ -]?\d{3})?"
            r"|\d{4}[ -]?\d{6}[ -]?\d{5}|\d{13,19})(?![\d-]| \d)"
        ),
        _is_card,
    ),
    ("ssn", re.compile(r"(?<![\d-])\d{3}-\d{2}-\d{4}(?![\d-])"), _is_ssn),
    (
        "ip",
        re.compile(
            r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|(?:[0-9A-Fa-f]{1,4}:){2,7}[0-9A-Fa-f:]{1,30})"
            r"(?![\w:]|\.\d)"
        ),
        _is_ip_address,
    ),
    (
        "phone",
        re.compile(
            r"(?<![\w.+-])(?<!\d )(?:\+[1-9]\d{0,2}[ .-]?(?:\(?\d{1,4}\)?[ .-]?){2,5}\d{2,4}"
            r"|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4}|0\d{2,4}[ /-]\d{3,4}[ -]?\d{3,5})"
            r"(?![\w-]|\.\d| \d)"
        ),
        _is_phone,
    ),
)

_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Pseudonymizer:
    """Keyed pseudonyms, as tags or as surrogates."""

    key: str
    style: Literal["tag", "surrogate"] = "tag"

    def name(self, kind: PiiKind, value: str) -> str:
        """Return the pseudonym of a value, ignoring spaces, dashes and case."""
        plain = "".join(letter for letter in value.casefold() if letter.isalnum() or letter in "@.")
        if kind in {"phone", "card", "iban", "ssn"}:
            plain = "".join(letter for letter in plain if letter.isalnum())
        message = f"{kind}\0{plain}".encode("utf-8", "surrogatepass")
        mark = hmac.new(self.key.encode(), message, hashlib.sha256).hexdigest()
        if self.style == "tag" or kind == "secret":
            return f"[{kind}-{mark[:_DIGITS]}]"
        return _make_surrogate(kind, mark)

    def mask(self, text: str, spans: list[PiiSpan]) -> str:
        """Return the text with each match replaced by its pseudonym."""
        parts, position = [], 0
        for span in spans:
            parts += [
                text[position : span.start],
                self.name(span.kind, text[span.start : span.end]),
            ]
            position = span.end
        return "".join([*parts, text[position:]])


def _make_surrogate(kind: PiiKind, mark: str) -> str:
    number = int(mark[:15], 16)
    digits = f"{number:018d}"
    match kind:
        case "email":
            return f"person-{mark[:8]}@example.org"
        case "phone":
            return f"+1 {200 + number % 700}-555-01{number // 700 % 100:02d}"
        case "card":
            return f"0000 {digits[:4]} {digits[4:8]} {digits[8:12]}"
        case "iban":
            return f"XX00 {digits[:4]} {digits[4:8]} {digits[8:12]} {digits[12:16]}"
        case "ssn":
            return f"000-{digits[:2]}-{digits[2:6]}"
        case "ip":
            return f"198.51.100.{number % 254 + 1}"
    return f"[{kind}-{mark[:_DIGITS]}]"


ToxicityKind = Literal["profanity", "insult", "threat", "slur"]


@dataclass(frozen=True, slots=True)
class ToxicSpan:
    """A span of toxic language, and its kind."""

    kind: ToxicityKind
    text: str


_LEET = str.maketrans(
    {"0": "o", "1": "i", "3": "e", "4": "a", "5": "s", "7": "t", "@": "a", "$": "s", "!": "i"}
)

_LEET_WORD = re.compile(r"(?=[\w@$!]*[a-z])(?=[\w@$!]*[0-9@$!])[\w@$!]{3,}")
_SPACED_WORD = re.compile(r"\b(?:[a-z][.\-*_ ]){2,}[a-z]\b")
_STRETCHED_LETTER = re.compile(r"([a-z])\1{2,}")

_PERSON = (
    r"(?:you(?:'?re| are)?|your|ur|u|he(?:'?s| is)?|she(?:'?s| is)?|they(?:'?re| are)?|him|her|"
    r"them|those|these|that|this|people|man|woman|guy|kid|boss|teacher|neighbo?u?r)"
)

_THREAT = (
    r"\b(?:i|we|someone|somebody)(?:'?ll| will| am going to|'?m going to| gonna|'?m gonna| should|"
    r" ought to| want to| wanna)?\s(?:kill|murder|stab|shoot|strangle|beat|burn|hurt|slit|gut|bury|"
    r"break)\b[^.!?\n]{0,20}\b(?:you|him|her|them|your|his|their|u)\b|"
    r"\b(?:kill|hang|shoot|drown) (?:your|him|her|them)sel(?:f|ves)\b|"
    r"\b(?:hope|wish) (?:you|he|she|they)(?:'d| would)? (?:all )?(?:die|get (?:killed|shot|raped|"
    r"cancer)|burn|rot|suffer)\b|\bgo (?:and )?die\b|\bdrop dead\b|"
    r"\byou(?:'?re| are) (?:a )?dead (?:man|woman|meat)\b|"
    r"\b(?:should|deserves? to) (?:all )?be (?:shot|hanged|killed|exterminated|gassed|lynched)\b"
)

_SLUR = (
    r"\b(?:nigg(?:er|a)s?|kikes?|spics?|chinks?|gooks?|wetbacks?|ragheads?|towelheads?|fagg?ots?|"
    r"fags|dykes?|trann(?:y|ies)|retards?)\b"
)

_PROFANITY = (
    r"\b(?:(?:mother)?fuck\w*|(?:bull|horse|dip)?shit(?:s|ty|ter|head|hole|bag)?|assholes?|"
    r"arseholes?|c[u]nts?|twats?|wankers?|bitch(?:es|y)?|bastards?|dickheads?|douche(?:bag)?s?|"
    r"cocksuckers?|sluts?|whores?|jackass(?:es)?|dumbass(?:es)?)\b"
)

_INSULT_WORDS = (
    r"(?:idiots?|morons?|imbeciles?|cretins?|dimwits?|stupid|dumb|worthless|pathetic|disgusting|"
    r"subhuman|scum|vermin|filth|trash|garbage|losers?|freaks?|pigs?|cockroach(?:es)?|brainless|"
    r"ugly|fat (?:cow|pig|slob)|parasites?)"
)

_INSULT = (
    rf"\b{_PERSON}\b[^.!?\n]{{0,30}}\b{_INSULT_WORDS}\b|"
    r"\b(?:shut up|shut your mouth|get lost|go to hell|screw you|piss off),? "
    r"(?:you|idiot|moron|loser)\b|\b(?:stupid|dumb|worthless|pathetic|filthy|brainless) "
    r"(?:idiot|moron|fool|loser|animal|pig|cow|bitch|people|woman|women|man|men)\b"
)

_TOXICITY_PATTERNS: tuple[tuple[ToxicityKind, re.Pattern[str]], ...] = (
    ("threat", re.compile(_THREAT)),
    ("slur", re.compile(_SLUR)),
    ("profanity", re.compile(_PROFANITY)),
    ("insult", re.compile(_INSULT)),
)


def find_toxic_spans(text: str) -> list[ToxicSpan]:
    """Return the matches, threats first, at most one of each kind."""
    plain = _undo_obfuscation(text)
    spans = []
    for kind, pattern in _TOXICITY_PATTERNS:
        match = pattern.search(plain)
        if match is not None:
            spans.append(ToxicSpan(kind, match.group()))
    return spans


def _undo_obfuscation(text: str) -> str:
    """Undo obfuscation: signs for letters, separated and stretched words."""
    plain = fold_text(text).replace("’", "'")
    plain = _LEET_WORD.sub(lambda match: match.group().translate(_LEET), plain)
    plain = _SPACED_WORD.sub(lambda match: re.sub(r"[.\-*_ ]", "", match.group()), plain)
    return _STRETCHED_LETTER.sub(r"\1", plain)
