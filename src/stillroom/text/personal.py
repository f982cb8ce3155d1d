"""What identifies or exposes a person in a text: addresses, numbers with check digits, secrets.

By form and check digit, no model: mail addresses, telephone numbers, payment cards (Luhn), IBANs
(ISO 7064 mod 97), US social security numbers, public IP addresses, keys and tokens of well-known
forms. What documentation uses as an example (RFC 2606 domains, RFC 5737 and private networks, the
card numbers of payment test sites) is left out. Names and postal addresses are not looked for: they
cannot be told by their form.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

__all__ = ["Personal", "PersonalKind", "find_personal", "mask_personal"]

PersonalKind = Literal["email", "phone", "card", "iban", "ssn", "ip", "secret"]


@dataclass(frozen=True, slots=True)
class Personal:
    """A stretch of text, and what it is."""

    kind: PersonalKind
    start: int
    end: int


_EXAMPLE_MAIL = re.compile(
    r"(?:^|[.@])(?:example(?:\.(?:com|org|net|edu))?|test|invalid|localhost|local)$", re.IGNORECASE
)
_VERSION_PART = 32
"""Four numbers that are all below this are taken for a version, as 3.11.0.1."""
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


def find_personal(text: str) -> list[Personal]:
    """Return what is found, in order; a stretch is one thing only, the surest."""
    found: list[Personal] = []
    for kind, pattern, holds in _KINDS:
        for match in pattern.finditer(text):
            start, end = match.span()
            taken = any(start < one.end and one.start < end for one in found)
            if not taken and holds(match.group()):
                found.append(Personal(kind, start, end))
    return sorted(found, key=lambda one: one.start)


def mask_personal(text: str) -> tuple[str, list[Personal]]:
    """Return the text with each find replaced by its kind in brackets, and the finds."""
    found = find_personal(text)
    return "".join(_pieces(text, found)), found


def _pieces(text: str, found: list[Personal]) -> Iterator[str]:
    at = 0
    for one in found:
        yield text[at : one.start]
        yield f"[{one.kind}]"
        at = one.end
    yield text[at:]


def _is_mail(text: str) -> bool:
    return not _EXAMPLE_MAIL.search(text.rpartition("@")[2])


def _is_card(text: str) -> bool:
    digits = [int(one) for one in text if one.isdigit()]
    if not 13 <= len(digits) <= 19 or len(set(digits)) < 3:
        return False
    if "".join(map(str, digits)) in _TEST_CARDS:
        return False
    doubled = [
        digit * 2 - 9 * (digit > 4) if at % 2 else digit for at, digit in enumerate(digits[::-1])
    ]
    return sum(doubled) % 10 == 0


def _is_iban(text: str) -> bool:
    plain = "".join(text.split()).upper()
    if not 15 <= len(plain) <= 34:
        return False
    turned = plain[4:] + plain[:4]
    return int("".join(str(int(one, 36)) for one in turned)) % 97 == 1


def _is_ssn(text: str) -> bool:
    area, group, serial = text.split("-")
    return area not in {"000", "666"} and area < "900" and group != "00" and serial != "0000"


def _is_address(text: str) -> bool:
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
    digits = sum(one.isdigit() for one in text)
    return 9 <= digits <= 15 and "555-01" not in text


def _always(text: str) -> bool:
    return True


_SECRETS = (
    r"AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{22,}|glpat-[\w-]{20,}|"
    r"sk-(?:[a-z]+-)*[A-Za-z0-9_-]{20,}|sk_live_[A-Za-z0-9]{16,}|xox[abprs]-[A-Za-z0-9-]{10,}|"
    r"AIza[0-9A-Za-z_-]{35}|hf_[A-Za-z0-9]{30,}|npm_[A-Za-z0-9]{36}|"
    r"eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}|"
    r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----(?:[\s\S]*?-----END (?:[A-Z]+ )?PRIVATE KEY-----)?"
)
_KINDS: tuple[tuple[PersonalKind, re.Pattern[str], Callable[[str], bool]], ...] = (
    ("secret", re.compile(rf"(?<![\w-])(?:{_SECRETS})"), _always),
    (
        "email",
        re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.)+[^\W\d_]{2,24}(?![\w-])"),
        _is_mail,
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
        _is_address,
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
