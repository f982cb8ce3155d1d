"""Pseudonyms: what stands in place of a personal value, the same for the same value.

A pseudonym is cut from an HMAC of the value: without the key it can neither be turned back nor be
tested against a guess. Surrogates have the value's form and lie in ranges that belong to nobody
(RFC 2606 domains, RFC 5737 and 3849 networks, 555-01xx numbers, check digits that are wrong).

Source: ISO/IEC 20889:2018, section 8.4 (pseudonymization by keyed functions).
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Literal

from stillroom.text.personal import Personal, PersonalKind

__all__ = ["Pseudonyms"]

_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Pseudonyms:
    """Makes pseudonyms with one key, as tags or as surrogates."""

    key: str
    style: Literal["tag", "surrogate"] = "tag"

    def name(self, kind: PersonalKind, value: str) -> str:
        """Return the pseudonym of a value; spaces, dashes and case do not make another one."""
        plain = "".join(letter for letter in value.casefold() if letter.isalnum() or letter in "@.")
        if kind in {"phone", "card", "iban", "ssn"}:
            plain = "".join(letter for letter in plain if letter.isalnum())
        told = f"{kind}\0{plain}".encode("utf-8", "surrogatepass")
        mark = hmac.new(self.key.encode(), told, hashlib.sha256).hexdigest()
        if self.style == "tag" or kind == "secret":
            return f"[{kind}-{mark[:_DIGITS]}]"
        return _surrogate(kind, mark)

    def mask(self, text: str, found: list[Personal]) -> str:
        """Return the text with each find replaced by its pseudonym."""
        parts, at = [], 0
        for one in found:
            parts += [text[at : one.start], self.name(one.kind, text[one.start : one.end])]
            at = one.end
        return "".join([*parts, text[at:]])


def _surrogate(kind: PersonalKind, mark: str) -> str:
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
