"""Spelling: what two usual spellings of one word have in common.

``1,234`` is ``1234``, ``e-mail`` is ``email``, ``getUserName`` is ``getusername``, ``café`` may be
written ``cafe``, ``Müller`` ``Mueller``. Hyphens, apostrophes and digits have many code points, and
some characters are never seen.

Does not know: words that are written apart in one place and together in another (``data base``),
unless a hyphen or a capital letter shows the joint; British and American spelling; abbreviations.
"""

from __future__ import annotations

import re
import unicodedata

__all__ = ["fold_marks", "join_parts", "normalize", "plain_numbers", "spell_out"]

_SEEN_AS = str.maketrans(
    dict.fromkeys("\u2018\u2019\u02bc\u02bb\uff07", "'")
    | dict.fromkeys("\u2010\u2011\ufe63\uff0d", "-")
    | dict.fromkeys("\u00ad\u200c\u200d\u2060\ufeff")
)
_SPACED_GROUPS = re.compile(
    r"(?<![\d.,'])[0-9]{1,3}(?:[\u00a0\u2007\u2009\u202f][0-9]{3})+(?![0-9])"
)
_NUMBER = re.compile(r"(?<![\w.,'])[0-9][0-9.,'_]*[0-9]")
_COMMAS = re.compile(r"[0-9]{1,3}(?:,[0-9]{2,3})*,[0-9]{3}(?:\.[0-9]+)?")
_MARKED = re.compile(r"[0-9]{1,3}(?:'[0-9]{3})+(?:[.,][0-9]+)?|[0-9]{1,3}(?:_[0-9]{3})+")
_DOTS = re.compile(r"[0-9]{1,3}(?:\.[0-9]{3}){2,}|[0-9]{1,3}(?:\.[0-9]{3})+,[0-9]+")
_ONE_DOT = re.compile(r"[0-9]{1,3}\.[0-9]{3}")
_DECIMAL = re.compile(r"[0-9]+,[0-9]+")
_JOINT = re.compile(r"(?<![0-9])[_\-.']|[_\-.'](?![0-9])")
_NO_MARKS = str.maketrans(
    dict(zip("øłđðħıŧþ", ("o", "l", "d", "d", "h", "i", "t", "th"), strict=True))
    | {"æ": "ae", "œ": "oe", "ё": "е", "ـ": ""}
)
_SPELLED = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ø": "oe", "å": "aa"})
_MARKED_SCRIPTS = ("LATIN", "GREEK", "ARABIC", "HEBREW")
_STRESS = "\u0301"


def normalize(text: str) -> str:
    """Return text in NFKC, with one hyphen, one apostrophe, ASCII digits and nothing unseen."""
    if text.isascii():
        return text
    text = _SPACED_GROUPS.sub(lambda found: re.sub(r"\D", "", found.group()), text)
    text = unicodedata.normalize("NFKC", text.translate(_SEEN_AS)).translate(_SEEN_AS)
    return re.sub(r"[^\x00-\x7f]", _ascii_digit, text) if re.search(r"(?![0-9])\d", text) else text


def plain_numbers(text: str, *, has_dots: bool = False) -> str:
    """Return text with its numbers written without marks between thousands, and a decimal point.

    Args:
        text: After ``normalize``.
        has_dots: Whether its language puts a point between thousands, so that ``1.234`` is 1234.
    """
    return _NUMBER.sub(lambda found: _plain_number(found.group(), has_dots), text)


def join_parts(word: str) -> str:
    """Return a case-folded compound without the marks that join it, but for those of digits."""
    return word if word.startswith("_") or word.endswith("_") else _JOINT.sub("", word)


def fold_marks(word: str) -> str:
    """Return a case-folded word as it is written without accents; scripts keep what they need.

    Vowel signs of Indian scripts stay, and so does the breve of the Cyrillic short i.
    """
    if word.isascii():
        return word
    kept: list[str] = []
    base = ""
    for one in unicodedata.normalize("NFD", word.translate(_NO_MARKS)):
        if unicodedata.category(one) != "Mn":
            base = one
        elif one == _STRESS or unicodedata.name(base or one, "").startswith(_MARKED_SCRIPTS):
            continue
        kept.append(one)
    return unicodedata.normalize("NFC", "".join(kept))


def spell_out(word: str) -> str:
    """Return a case-folded word as it is written where a keyboard has no umlauts."""
    return word.translate(_SPELLED)


def _ascii_digit(found: re.Match[str]) -> str:
    value = unicodedata.decimal(found.group(), None)
    return found.group() if value is None else str(value)


def _plain_number(number: str, has_dots: bool) -> str:
    if _COMMAS.fullmatch(number):
        return number.replace(",", "")
    if _MARKED.fullmatch(number):
        return re.sub("['_]", "", number).replace(",", ".")
    if _DOTS.fullmatch(number) or (has_dots and _ONE_DOT.fullmatch(number)):
        return number.replace(".", "").replace(",", ".")
    return number.replace(",", ".") if _DECIMAL.fullmatch(number) else number
