r"""Mathematical notation as people type it, rewritten to what Math-Verify reads.

Math-Verify drops characters that it does not know: ``5²`` reads as 5, ``≤ 5`` as 5, ``3½`` as 3.
What is rewritten here it reads; ``differs_in_symbols`` compares what it would drop.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from fractions import Fraction

__all__ = [
    "Unit",
    "align_solution_sets",
    "differs_in_symbols",
    "find_unit",
    "is_same_unit",
    "rewrite_notation",
    "strip_unit",
]

Unit = tuple[tuple[str, str], ...]

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ", "0123456789+-()ni")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙ", "0123456789+-()n")
_TEXT = r"(?:\\(?:text|mathrm|textrm|mbox)\s*\{\s*)?"
_MINUS = re.compile(
    r"^\s*(?:minus|negative)\s+(?=[\d.])|(?:^|(?<=[=(,\[{]))\s*\u2013\s*(?=[\d.\\])", re.IGNORECASE
)
_SYNONYMS = (
    (re.compile(r"\^\s*(?:\\prime\b|\{\s*\\prime\s*\})"), "'"),
    (re.compile(r"\^\s*(?:\\top\b|\{\s*\\top\s*\})"), "^T"),
    (re.compile(r"\\varnothing\b"), r"\\emptyset"),
    (re.compile(r"(?:\\left\s*)?\\langle\b"), "("),
    (re.compile(r"(?:\\right\s*)?\\rangle\b"), ")"),
    (re.compile(rf"^{_TEXT}all\s+reals?(?:\s+numbers)?\s*\}}?$", re.IGNORECASE), r"\\mathbb{R}"),
    (
        re.compile(rf"^{_TEXT}no\s+(?:real\s+)?(?:solutions?|roots?)\s*\}}?$", re.IGNORECASE),
        r"\\emptyset",
    ),
)
_BASES = {"two": "2", "eight": "8", "ten": "10", "sixteen": "16"}
_WRITTEN_BASE = re.compile(
    r"\(?([\dA-F.]+)\)?\s*(?:_\s*\{?\s*|(?=[\\(\s]))"
    rf"{_TEXT}\(?\s*(in\s+)?(base[\s~}}-]*)?(\d+|{'|'.join(_BASES)})[\s)}}]*"
)
_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen"  # noqa: SIM905
    " fourteen fifteen sixteen seventeen eighteen nineteen".split()
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()  # noqa: SIM905
_NUMBER_WORDS = {
    **{word: value for value, word in enumerate(_SMALL)},
    **{
        f"{ten}{one}": 10 * tens + ones
        for tens, ten in enumerate(_TENS, start=2)
        for ones, one in enumerate(["", *(f"-{word}" for word in _SMALL[1:10])])
    },
}
_SPACE = r"(?:\\[,;:! ]|\\q?quad\b|\s|~)*"
_BUILDER = re.compile(
    rf"(?:\\left\s*)?\\\{{{_SPACE}([a-zA-Z]|\([a-z](?:,\s*[a-z])+\)){_SPACE}"
    rf"(?:\\in\s*(\\mathbb\s*\{{?\s*\w\s*\}}?|[A-Z])\^?\d?{_SPACE})?"
    rf"(?:\\middle\s*\||\\(?:mid|vert|colon)\b|[|:]){_SPACE}(.+?){_SPACE}(?:\\right\s*)?\\\}}"
)
_BAR = re.compile(r"\\\{[^{}]*(?:\\(?:mid|vert|colon|middle)\b|:)[^{}]*|\\\{[^|]*\|[^|]*\\\}")
_RELATION = re.compile(
    r"\s*(<=|>=|<|>|=|\\[lg]e(?:q|qslant)?(?![a-z])|\\neq?(?![a-z])|\\in(?![a-z]))\s*"
)
_MIRRORED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}
_OR = re.compile(r"\\text\s*\{\s*or\s*\}|\bor\b|\\(?:lor|vee)\b")
_RAISED = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ]+")
_LOWERED = re.compile(r"[₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙ]+")
_VULGAR = re.compile(r"(?:(\d)\s?)?([¼-¾⅐-⅞])")
_ROOT = re.compile(r"([√∛∜])\s*(\([^()]*\)|\{[^{}]*\}|\d+(?:\.\d+)?|\w)")
_DEGREES = {"√": "", "∛": "[3]", "∜": "[4]"}
_REPEATING = re.compile(r"(?<![\d.])(\d*)\.(\d*)\\(?:overline|bar|dot)\s*\{(\d+)\}(?!\\dot|\d)")
_COMMANDS: Mapping[str, str] = {
    "−": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "⁄": "/", "∕": "/",
    "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ",
    "±": r"\pm ", "∓": r"\mp ", "≈": r"\approx ",
    "∞": r"\infty ", "°": r"^\circ ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∉": r"\notin ",
    "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}",
    "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}",
}  # fmt: skip
_SYMBOLS = str.maketrans(dict(_COMMANDS))
_GREEK: Mapping[str, str] = {
    "π": "pi", "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "θ": "theta",
    "λ": "lambda", "μ": "mu", "ρ": "rho", "σ": "sigma", "τ": "tau", "φ": "phi", "ω": "omega",
}  # fmt: skip
_LETTER = re.compile(f"(?<![\u0370-\u03ff])[{''.join(_GREEK)}](?![\u0370-\u03ff])")  # not in words
_UNITS: Mapping[str, tuple[str, ...]] = {
    "second": ("s", "sec", "secs"), "minute": ("min", "mins"), "hour": ("h", "hr", "hrs"),
    "day": (), "week": (), "month": (), "year": ("yr", "yrs"),
    "millimeter": ("mm", "millimetre"), "centimeter": ("cm", "centimetre"),
    "meter": ("m", "metre"), "kilometer": ("km", "kilometre"), "inch": ("in", "inches"),
    "foot": ("ft", "feet"), "yard": ("yd", "yds"), "mile": ("mi",),
    "milligram": ("mg",), "gram": ("g",), "kilogram": ("kg",), "ton": ("t", "tonne"),
    "pound": ("lb", "lbs"), "ounce": ("oz",), "milliliter": ("ml", "mL", "millilitre"),
    "liter": ("l", "L", "litre"), "gallon": ("gal",), "degree": (), "radian": ("rad",),
    "cent": ("¢",), "dollar": ("\\$",), "euro": ("€",), "pound sterling": ("£", "\\pounds"),
    "yen": ("¥",), "am": (), "pm": (),
}  # fmt: skip
_NAMES = {
    form: name
    for name, others in _UNITS.items()
    for one in (name, *others)
    for form in (one, f"{one}s" if len(one) > 3 else one)
}
_POWERS = {"square": "2", "sq": "2", "squared": "2", "cubic": "3", "cu": "3", "cubed": "3"}
_SHORT = {"mph": "mi/h", "kph": "km/h", "kmh": "km/h"}
_UNIT = re.compile(
    r"(?:(?<=[\d})])|(?<=\\pi))(?:\\[ ,;:!]|~|\s)*(?:\\(?:text|mathrm|textrm|mbox)\s*\{\s*)?"
    r"((?:\\?[A-Za-z€£¥¢]+(?:\^\{?[23]\}?)?\.?(?:\s*/\s*|\s+)?){1,5}|\\\$)\s*\}?"
    r"(?:\s*\^\s*\{?([23])\}?)?[\s.$]*$"
)
_AMOUNT = re.compile(r"[\s$]*[-+]?[\d.,/ ]+")
_VARIABLES = frozenset("tshlgLdT")  # 2t is rather a variable than two tons
_STERLING = ("pound sterling", "1")
_MONEY = {"pound": "pound sterling"}
_CURRENCY = re.compile(r"\s*(\\\$|\\pounds|[€£¥])\s*[\d.,]+\s*$")
_BASE = re.compile(r"\d\s*_\s*\{?(\d+)\}?$")
_DANGLING = re.compile(r"^(?:[<>]|\\(?:[lg]eq?|neq?)\b)|[-+*/^=<>]$")
_BOTH_SIGNS = re.compile(r"^\\(?:pm|mp)\b")
_SEVERAL = re.compile(r"\\(?:pm|mp)\b|,|\bor\b|\band\b")
_MULTIPLE = re.compile(r"^\d+[a-z]\s*=")  # 2x=6 is not 6
_CELSIUS = re.compile(r"(\\circ\s*\}?)\s*(?:\\(?:text|mathrm)\s*\{\s*)?([CF])\b\s*\}?[\s.$]*$")
_NO_UNIT = re.compile(
    r"[\d})]\s*(?:(\\?%|per\s?cent|\^\s*\{?\s*\\circ)|_\s*\{?\s*(\d+))\s*\}?[\s.$]*$"
)
_ORDERED = re.compile(r"[<>]|\\[lg]e(?:q|qslant)?\b")
_CONNECTIVE = re.compile(r"\b(and|or)\b|\\(?:land|wedge|lor|vee)\b")
_NAMED = (  # where both have one, it is the same
    _BASE,
    re.compile(r"\\(?:vec|mathbf|overrightarrow)\b.*?\\(cdot|times)\b"),
    re.compile(r"\\(?:angle|overrightarrow|vec)\s*\{?\s*([A-Z]{2,})"),
    re.compile(r"\\[dt]?frac\s*\{(d\s*\^?\d?\s*\w?\s*\}\s*\{\s*d\s*\w)"),
    re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)\s*[({]?\s*[\d.]+(\s*\^?\s*\{?\s*\\circ|)"),
    re.compile(r"^([A-Za-z]\w*\s*\(\s*-?[\d.]+\s*\))\s*="),
    re.compile(r"^([A-Za-z]\w*\s*\([^()]*=[^()]*\))\s*="),
)
_SET = re.compile(r"(?:\\left\s*)?\\\{")
_PAIR = re.compile(r"(?:\\left\s*)?[(\[][^()\[\]]*[)\]]")
_PRIME = re.compile(r"(?<=[A-Za-z)'}])(?:'|\^\s*\{?\s*(?:\\?prime|\\top|T)\b)|\\prime\b")
_COMMAND = re.compile(r"\\(?!text|math)[A-Za-z]+")
_ANY_COMMAND = re.compile(r"\\[A-Za-z]+(?:\s*\{[A-Za-z ]*\})?")
_LAST_LETTER = re.compile(r"([^{]*(?:\{.*\})?[^{]*[\w})])\s*(?<![A-Za-z\\])([ghlmst])")
_RATIO = re.compile(r"\d+(?:\.\d+)?(?:\s*:\s*\d+(?:\.\d+)?)+")
_TIME = re.compile(r"\d{1,2}:[0-5]\d(?::[0-5]\d)?")


def rewrite_notation(text: str) -> str:
    r"""Return a formula with its Unicode symbols and repeating decimals as LaTeX or fractions.

    ``3½`` becomes ``3 1/2``, ``x²`` ``x^{2}``, ``√2`` ``\sqrt{2}``, ``0.\overline{3}`` ``1/3``.
    """
    text = _VULGAR.sub(_vulgar_fraction, _MINUS.sub("-", text))
    text = _RAISED.sub(lambda match: f"^{{{match[0].translate(_SUPERSCRIPTS)}}}", text)
    text = _LOWERED.sub(lambda match: f"_{{{match[0].translate(_SUBSCRIPTS)}}}", text)
    text = _LETTER.sub(lambda match: rf"\{_GREEK[match[0]]} ", _ROOT.sub(_root, text))
    for pattern, form in _SYNONYMS:
        text = pattern.sub(form, text)
    text = _REPEATING.sub(_repeating_decimal, text.translate(_SYMBOLS)).strip()
    word = "-".join(text.strip(' "*.').lower().replace("-", " ").split())
    if word in _NUMBER_WORDS:
        return str(_NUMBER_WORDS[word])
    base = _WRITTEN_BASE.fullmatch(text)
    if base is None or not ("_" in text or base[3]):
        return text
    return f"{base[1]}_{{{_BASES.get(base[4], base[4])}}}"


def align_solution_sets(answer: str, reference: str) -> tuple[str, str] | None:
    r"""Return two answers with their sets as intervals, if one names a set by a condition.

    ``\{x \mid x > 2\}`` is ``(2,\infty)``, ``x < 1`` or ``x > 2`` a union, which Math-Verify does
    not read. Without such a set both are unchanged.

    Returns:
        None if they differ in what cannot be read as intervals: a set of integers, say.
    """
    sides = (answer, reference)
    builders = [_BUILDER.fullmatch(text.strip()) for text in sides]
    unread = [
        bool(_BAR.search(text)) if found is None else "R" not in (found[2] or "R")
        for text, found in zip(sides, builders, strict=True)
    ]
    if any(unread):
        return None
    unions = [
        "\\cup" in text or "setminus" in text or (_OR.search(text) and _RELATION.search(text))
        for text in sides
    ]
    if not any(builders) and not any(unions):
        return answer, reference
    written = [
        _write_condition(found[3] if found else text.strip())
        for text, found in zip(sides, builders, strict=True)
    ]
    names = {name for (_, name), found in zip(written, builders, strict=True) if name and not found}
    return (written[0][0], written[1][0]) if len(names) < 2 else (answer, reference)


def _write_condition(text: str) -> tuple[str, str]:
    """Return the set of values that a condition allows, and its variable; else the text itself."""
    parts = [_RELATION.split(part.strip(" ,$")) for part in _OR.split(text)]
    variable = next((side for side in parts[0][::2] if re.fullmatch("[a-zA-Z]", side)), "")
    sets = [_write_interval(part, variable) for part in parts]
    if not variable or not all(sets):
        return text, ""
    points = [one[2:-2] for one in sets if one.startswith("\\{")]
    if len(points) == len(sets):
        return rf"\{{{','.join(points)}\}}", variable
    return r"\cup ".join(sets), variable


def _write_interval(part: list[str], variable: str) -> str:
    """Return the interval of a relation, split at its signs; empty if it is another relation."""
    if len(part) == 3 and part[2] == variable and part[0] != variable:
        part = [part[2], _MIRRORED.get(_short(part[1]), part[1]), part[0]]
    if len(part) == 5 and part[2] == variable:
        signs = _short(part[1]), _short(part[3])
        if not (all(sign in {"<", r"\le"} for sign in signs) and part[0] and part[4]):
            return ""
        return f"{'(['[signs[0] != '<']}{part[0]},{part[4]}{')]'[signs[1] != '<']}"
    if len(part) != 3 or part[0] != variable or not part[2]:
        return ""
    value = part[2]
    if "," in value and part[1] != r"\in":
        return ""
    return {
        "<": rf"(-\infty,{value})",
        r"\le": rf"(-\infty,{value}]",
        ">": rf"({value},\infty)",
        r"\ge": rf"[{value},\infty)",
        "=": rf"\{{{value}\}}",
        r"\ne": rf"(-\infty,{value})\cup ({value},\infty)",
        r"\in": value,
    }[_short(part[1])]


def _short(sign: str) -> str:
    return {"<=": r"\le", ">=": r"\ge"}.get(sign, re.sub(r"(\\[lgn]e).*", r"\1", sign))


def differs_in_symbols(answer: str, reference: str) -> bool:
    """Return whether two rewritten answers differ in what Math-Verify drops or does not know.

    It drops bases, primes, degrees of angles, the order of points, capitals of Greek letters, and
    symbols that it does not know.
    """
    sides = (answer, reference)
    if any(map(_has_unread_symbol, sides)) or ("?" in answer) > ("?" in reference):
        return True
    if _is_part(answer, reference) or any(
        _ends_with_variable(*pair) for pair in (sides, sides[::-1])
    ):
        return True
    for pattern in _NAMED:
        found = [pattern.search(text) for text in sides]
        if found[0] and found[1] and _write_name(found[0]) != _write_name(found[1]):
            return True
    values = sides  # f'(x)=2x gives 2x
    if ("=" in answer) != ("=" in reference):
        values = (answer.rpartition("=")[2], reference.rpartition("=")[2])
    if len(_PRIME.findall(values[0])) != len(_PRIME.findall(values[1])):
        return True
    commands = [set(_COMMAND.findall(text)) for text in sides]
    lowered = [{one.lower() for one in names} for names in commands]
    if commands[0] != commands[1] and lowered[0] == lowered[1]:
        return True
    return _differs_in_kind_of_list(answer, reference) or _differs_as_ratio(answer, reference)


def _is_part(answer: str, reference: str) -> bool:
    """Return whether an answer has a relation or sign that the reference lacks."""
    if _DANGLING.search(answer) and not _DANGLING.search(reference):
        return True
    if _MULTIPLE.search(answer) and "=" not in reference:
        return True
    return bool(_BOTH_SIGNS.search(answer)) and not _SEVERAL.search(reference)


def _ends_with_variable(text: str, other: str) -> bool:
    r"""Return whether Math-Verify would drop a variable as a unit: the h of ``\pi r^2 h``."""
    match = _LAST_LETTER.fullmatch(text.rpartition("=")[2].strip())
    if match is None or not re.search("[A-Za-z]", _ANY_COMMAND.sub("", match[1])):
        return False
    return match[2] not in _ANY_COMMAND.sub("", other)


def _write_name(match: re.Match[str]) -> str:
    name = "".join(match[1].split())
    return min(name, name[::-1]) if match[0].startswith("\\angle") else name  # ABC is CBA


def _differs_in_kind_of_list(answer: str, reference: str) -> bool:
    """Return whether a pair stands beside a set, or "and" beside "or" where that matters."""
    sides = (answer.strip(), reference.strip())
    if any(map(_SET.match, sides)) and any(map(_PAIR.fullmatch, sides)):
        return True
    joins = [{match[0] for match in _CONNECTIVE.finditer(text)} for text in sides]
    if all(joins) and joins[0] != joins[1]:  # "1 or 2" and "1 and 2" are the same set
        return any(_ORDERED.search(text) or not re.search(r"\d", text) for text in sides)
    return False


def _differs_as_ratio(answer: str, reference: str) -> bool:
    """Return whether two ratios or times differ: as divisions, 3:4:5 and 3:5:4 are equal."""
    sides = (answer.strip(), reference.strip())
    if not all(_RATIO.fullmatch(text) for text in sides):
        return False
    if all(map(_TIME.fullmatch, sides)) and any(re.search(":0", text) for text in sides):
        return sides[0].lstrip("0") != sides[1].lstrip("0")
    terms = [[Fraction(term.strip()) for term in text.split(":")] for text in sides]
    if len(terms[0]) != len(terms[1]):
        return True
    products = [
        (one * terms[1][0], other * terms[0][0])
        for one, other in zip(terms[0], terms[1], strict=True)
    ]
    return any(one != other for one, other in products)


def _has_unread_symbol(text: str) -> bool:
    """Return whether a text has symbols or numerals that Math-Verify drops: ranges, ``五``."""
    return ".." in text or any(
        (unicodedata.category(one)[0] not in "LMZ" and unicodedata.category(one) != "Sc")
        or unicodedata.numeric(one, None) is not None
        for one in text
        if not one.isascii()
    )


def find_unit(text: str) -> Unit | None:
    """Return the units of measure of a quantity with their powers, or None if one is unknown.

    ``5 m/s^2`` has ``(("meter", "1"), ("second", "2"))``.
    """
    if special := _NO_UNIT.search(text):
        degree = "degree" if special[1] and special[1].startswith("^") else "percent"
        return ((f"base {special[2]}" if special[2] else degree, "1"),)
    if scale := _CELSIUS.search(text):
        return ((f"degree {scale[2]}", "1"),)
    sign = _CURRENCY.match(text)
    match = _UNIT.search(text)
    if sign is not None or match is None:
        return ((_NAMES[sign[1]], "1"),) if sign is not None else None
    words = re.sub(r"(?<=[ap])\.\s?m\.?", "m", match[1], flags=re.IGNORECASE)
    words = _SHORT.get(words.strip().lower(), words).replace(" per ", "/").replace(".", " ")
    parts = [_read_unit(part) for part in words.split("/")]
    if match[2] and parts[-1] is not None:
        parts[-1] = (parts[-1][0], match[2])
    known = tuple(part for part in parts if part is not None)
    return known if len(known) == len(parts) else None


def is_same_unit(unit: Unit, other: Unit) -> bool:
    """Return whether two units are one; "8 pounds" may be money."""
    names = [[(_MONEY.get(name, name), power) for name, power in one] for one in (unit, other)]
    return unit == other or (_STERLING in (*unit, *other) and names[0] == names[1])


def strip_unit(text: str, other: str) -> str:
    """Return a quantity without its unit, which Math-Verify would read as variables.

    It stays if it may be a variable: a letter beside a formula, unless the other text, too, has it.
    """
    if find_unit(text) is None or _NO_UNIT.search(text):
        return text
    if _CELSIUS.search(text):
        return _CELSIUS.sub(r"\1", text)
    match = _CURRENCY.match(text)
    if match is not None:
        return f"{text[: match.start(1)]}{text[match.end(1) :]}".strip()
    match = _UNIT.search(text)
    if match is None:
        return text
    value, unit = text[: match.start()], text[match.start() :]
    letters = re.sub(r"\\[a-z]+|[^A-Za-z]", "", unit)
    is_quantity = bool(_AMOUNT.fullmatch(value)) and letters not in _VARIABLES
    is_plain = is_quantity or len(letters) > 1 or "\\text" in unit or "\\mathrm" in unit
    return value if is_plain or find_unit(other) is not None else text


def _read_unit(text: str) -> tuple[str, str] | None:
    """Return the unit and power that words name: ``square feet``, ``cm^2``."""
    name, _, power = text.replace("{", "").replace("}", "").partition("^")
    words = name.split()
    names = [_NAMES.get(one) or _NAMES.get(one.lower()) for one in words if one not in _POWERS]
    power = power.strip() or next((_POWERS[one] for one in words if one in _POWERS), "1")
    return (names[0], power) if len(names) == 1 and names[0] is not None else None


def _vulgar_fraction(match: re.Match[str]) -> str:
    value = Fraction(unicodedata.numeric(match[2])).limit_denominator(100)
    return f"{match[1]} {value}" if match[1] else str(value)


def _root(match: re.Match[str]) -> str:
    radicand = match[2][1:-1] if match[2][0] in "({" else match[2]
    return rf"\sqrt{_DEGREES[match[1]]}{{{radicand}}}"


def _repeating_decimal(match: re.Match[str]) -> str:
    period = match[3]
    fixed = match[1] + match[2]
    top = int((fixed or "0") + period) - int(fixed or "0")
    return str(Fraction(top, (10 ** len(period) - 1) * 10 ** len(match[2])))
