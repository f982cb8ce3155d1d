"""Planted edits (synthetic hallucinations): supported claims of a passage, and unsupported ones.

The latter are perturbations (synthetic negatives). From each sentence of a passage one supported
and one unsupported claim are made. Supported ones are the sentence after light paraphrases by rule:
an adjunct, list item, parenthesis or clause is left out, clauses change places, a pronoun becomes
the noun of the sentence before, words become synonyms, two sentences are joined, an active clause
becomes passive. Unsupported ones are paraphrased alike, so that a paraphrase tells nothing, and
then edited: a number, name, noun or verb is exchanged for another of the passage or of its class,
roles, clauses or comparisons are turned, a negation, quantifier or modal is changed, or the subject
of one sentence is joined to the predicate of another.

Source: Kryscinski et al. 2020, "FactCC", arXiv:1910.12840 (training data by rule from sentences);
Tang et al. 2024, "MiniCheck", arXiv:2404.10774 (claims checked against several sentences). Differs:
no back-translation and no language model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from stillroom.rag.claim_checking.word_groups import (
    find_opposites,
    find_strangers,
    find_synonyms,
)
from stillroom.rag.groundedness.substitutions import NUMBER_WORDS
from stillroom.text.language import split_sentences

if TYPE_CHECKING:
    from numpy.random import Generator

__all__ = ["PlantedClaim", "plant_claims"]

Span = tuple[int, int]
_MIN_CHARACTERS, _MAX_CHARACTERS, _MIN_WORDS = 30, 260, 6
_RARE_SHARE = 0.6
_SENTENCE = re.compile(r"[A-Z“\"][^\n]*[.!]\Z")
_WORD = re.compile(r"[A-Za-z][\w'’-]*")
_NUMBER = re.compile(r"(?<![\w.])\d+(?:[.,]\d+)*(?![\w])")
_CODE = re.compile(
    r"(?<!\S)(?:--?\w[\w-]*|\w+(?:[_./:]\w+)+(?:\(\))?|/\w[\w/.-]*|[A-Z]{2,}\w*)(?=[\s,.;)]|$)"
)
_NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]+(?: [A-Z][a-z]+)*")
_VERBS = "is|are|was|were|can|will|must|has|have|does|may|should"
_LINKS = "However|For example|For instance|In addition|Also|Additionally|Therefore|Thus|Note that"
_PHRASE = re.compile(
    r"\b(?:the|a|an) ((?:[a-z][\w-]+ )?[a-z][\w-]+)"
    r"(?= (?:is|are|of|to|in|from|by|with|and|or|that|can|will|must|has|on|for)\b|[,.;)])"
)
_FIRST_CLAUSE = re.compile(
    r"\A(?:While|Although|After|Before|Since|As|Because|With|By|To|On|During|Throughout|Like|Given)"
    r" [^,;]{8,90}, (?=\w)"
)
_APPOSITION = re.compile(
    r"(?<=\w), (?:also|or|known as|called|which|who|such as|including|in particular|if any)"
    r" [^,;]{5,80},(?= \w)"
)
_PARENTHESIS = re.compile(r" \([^()]{2,80}\)")
_LEAD = re.compile(
    rf"(?:{_LINKS}|Then|Finally|Instead|In this case|In general|By default|Usually"
    r"|In (?:the|this|that|most|some) [\w ]{3,40}|On [\w ]{3,30}"
    r"|For (?:this|the|most|some) [\w ]{3,40}),? (?=\w)"
    r"|(?:However|For example|Note that|Also),? "
)
_SAFE_LEAD = re.compile(rf"(?:{_LINKS}|Then|Finally),? (?=\w)")
_TAIL = re.compile(
    r",? (?:which|because|since|so that|although|though|while|whereas|for example|such as"
    r"|as well as|even if|but)\b[^,;]{12,}(?=\.\Z)"
)
_SWAP = re.compile(
    r"\A(?P<main>[^,;]{15,}?) (?P<word>if|when|because|before|after|unless|until|while|since)"
    r" (?P<side>[^,;]{10,})\.\Z"
)
_LEADING = re.compile(
    r"\A(?P<word>If|When|Because|Before|After|Unless|Until|While|Since|Although)"
    r" (?P<side>[^,;]{10,}), (?P<main>(?:the |a |an |it |you |this )?[^,;]{15,})\.\Z"
)
_LIST = re.compile(r"\b([\w-]+), ([\w-]+),? (and|or) ([\w-]+)\b")
_PAIR = re.compile(r"\b([a-z][\w-]+) (?:and) ([a-z][\w-]+)(?=[,.]| (?:are|is|in|of|to|for)\b)")
_PRONOUN = re.compile(
    r"\A(?:It|This|They|He|She) "
    r"(?=(?:is|are|was|were|can|will|must|has|have|does|also|may|should|[a-z]+s)\b)"
)
_SUBJECT = re.compile(
    r"\A((?:The|A|An|This|These) (?:[\w-]+ ){1,3}?|[A-Z][\w-]+ (?:[A-Z][\w-]+ )?)"
    rf"(?=(?:{_VERBS})\b)"
)
_PREDICATE = re.compile(rf"\A(?P<subject>[^,;]{{4,60}}?) (?P<rest>(?:{_VERBS})\b.{{12,}})\Z")
_PARTICIPLES = {
    "use": "used", "set": "set", "specify": "specified", "add": "added", "remove": "removed",
    "change": "changed", "define": "defined", "enable": "enabled", "disable": "disabled",
    "configure": "configured", "create": "created", "delete": "deleted", "install": "installed",
    "call": "called", "select": "selected", "insert": "inserted", "check": "checked",
    "store": "stored",
}  # fmt: skip
_PASSIVE = re.compile(
    rf"\A(?:You|One|Users|We) (can|may|must|should|could) ({'|'.join(_PARTICIPLES)})"
    r" ((?:the|a|an|this|any) (?:[\w-]+ ){0,2}?[\w-]+)"
    r"(?= (?:to|in|with|by|from|for|on|when|if|at)\b|\.)"
)
_COMPARISON = re.compile(
    r"\A(?P<one>[^,;]{3,50}) (?P<verb>(?:is|are|was|were|runs|has|uses)\b[^,;]{0,30}?"
    r"(?:\w+er|more [\w-]+|less [\w-]+|better|worse) than)"
    r" (?P<other>[^,;.]{3,50})(?P<rest>.*)\Z"
)
_REWORDINGS = (
    ("do not", "don't"), ("does not", "doesn't"), ("is not", "isn't"), ("are not", "aren't"),
    ("cannot", "can't"), ("must", "has to"), ("in order to", "to"),
    ("it is possible to", "you can"), ("you can", "it is possible to"), ("such as", "like"),
    ("as well as", "and also"), ("a number of", "several"), ("at least", "no fewer than"),
    ("more than", "over"), ("is used to", "serves to"), ("allows you to", "lets you"),
    ("if", "in case"), ("when", "whenever"), ("by default", "unless told otherwise"),
    ("for example", "for instance"), ("is called", "is named"),
    ("known as", "called"), ("consists of", "is made up of"), ("because of", "due to"),
    ("because", "since"), ("in addition to", "besides"), ("each", "every"),
    ("will be", "is going to be"), ("no longer", "not any more"),
    ("makes sure that", "ensures that"), ("instead of", "rather than"),
)  # fmt: skip
_QUANTIFIERS = (
    ("some", "all"), ("may", "must"), ("can", "must"), ("usually", "always"), ("most", "all"),
    ("often", "always"), ("should", "need not"), ("must", "need not"), ("a", "no"),
    ("sometimes", "always"), ("one of the", "the only"), ("many", "all"), ("any", "no"),
    ("all", "few"), ("every", "no"), ("only", "not only"), ("several", "no"),
)  # fmt: skip
_FILLERS = re.compile(
    r" (?:also|simply|just|then|however|actually|really|still|therefore|already)(?= )"
)
_OPENINGS = (
    "According to the documentation, ",
    "The passage says that ",
    "The text states that ",
    "As described, ",
)
_AUXILIARY = re.compile(
    r"\b(is|are|was|were|can|will|must|should|may|would|could|does|do|has|have)\b(?! not\b|n['’]t)"
)


@dataclass(frozen=True, slots=True)
class PlantedClaim:
    """A claim about a passage.

    Args:
        text: The claim.
        is_supported: Whether the passage supports it.
        kind: Name of the edit, or ``paraphrase``.
    """

    text: str
    is_supported: bool
    kind: str


@dataclass(frozen=True, slots=True)
class _Place:
    """A sentence, the one before it, and the passage."""

    sentence: str
    before: str
    passage: str
    others: tuple[str, ...]


def plant_claims(passage: str, rng: Generator, most: int) -> list[PlantedClaim]:
    """Return as many supported as unsupported claims about a passage.

    Args:
        passage: Text of the passage.
        rng: Source of every choice.
        most: Maximum number of sentences from which two claims each are made.
    """
    sentences = [passage[start:end] for start, end in split_sentences(passage)]
    usable = [place for place, sentence in enumerate(sentences) if _is_usable(sentence)]
    claims: list[PlantedClaim] = []
    for chosen in rng.permutation(len(usable)).tolist()[:most]:
        place = usable[chosen]
        others = tuple(sentences[i] for i in usable if i != place)
        here = _Place(
            " ".join(sentences[place].split()),
            sentences[place - 1] if place else "",
            passage,
            others,
        )
        supported = PlantedClaim(_paraphrase(here, rng), True, "paraphrase")
        if unsupported := _plant(here, rng):
            claims += [supported, unsupported]
    return claims


def _is_usable(sentence: str) -> bool:
    sentence = " ".join(sentence.split())
    words = _WORD.findall(sentence)
    return (
        _MIN_CHARACTERS <= len(sentence) <= _MAX_CHARACTERS
        and len(words) >= _MIN_WORDS
        and bool(_SENTENCE.match(sentence))
        and sum(map(str.isalpha, sentence)) > 0.7 * len(sentence)
    )


def _paraphrase(
    place: _Place, rng: Generator, rules: Sequence[Callable[..., str]] | None = None
) -> str:
    """Return the sentence after up to three rules, or unchanged in one case of eight."""
    text = place.sentence
    if rng.random() < 1 / 8:
        return text
    rules = _PARAPHRASES if rules is None else rules
    order = [rules[i] for i in rng.permutation(len(rules)).tolist()]
    for rule in order[: int(rng.integers(2, 6))]:
        text = rule(text, place, rng)
    return text


def _plant(place: _Place, rng: Generator) -> PlantedClaim | None:
    """Return an edited sentence, paraphrased before the edit; None if no edit fits."""
    plain = replace(place, sentence=_paraphrase(place, rng, _BEFORE_EDITS))
    order = list(rng.permutation(len(_RARE_EDITS))) if rng.random() < _RARE_SHARE else []
    rules = [_RARE_EDITS[i] for i in order]
    rules += [_COMMON_EDITS[i] for i in rng.permutation(len(_COMMON_EDITS)).tolist()]
    for rule in rules:
        text = rule(plain, rng)
        if text and " ".join(text.split()).casefold() not in place.passage.casefold():
            if rng.random() < 1 / 8:
                opening = _OPENINGS[int(rng.integers(len(_OPENINGS)))]
                text = opening + text[0].lower() + text[1:]
            return PlantedClaim(text, False, rule.__name__.strip("_"))
    return None


def _draw(rng: Generator, items: Sequence[str]) -> str:
    return items[int(rng.integers(len(items)))]


def _pick(rng: Generator, matches: Sequence[re.Match[str]]) -> re.Match[str] | None:
    return matches[int(rng.integers(len(matches)))] if matches else None


def _put(text: str, span: Span, new: str) -> str:
    """Put words in place of a span, in its case; an empty string takes a space with it."""
    start, end = span
    if text[start : start + 1].isupper() and not new[:1].isupper():
        new = new[:1].upper() + new[1:]
    if not new:
        end += text[end : end + 1] == " "
    return text[:start] + new + text[end:]


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _lower(text: str) -> str:
    first = text.split(" ", 1)[0]
    return text if first[1:] != first[1:].lower() or first == "I" else text[:1].lower() + text[1:]


# Paraphrases: each returns the text unchanged if it does not apply.


def _drop_lead(text: str, place: _Place, rng: Generator) -> str:
    match = _SAFE_LEAD.match(text)
    return _upper(text[match.end() :]) if match else text


def _drop_adjunct(text: str, place: _Place, rng: Generator) -> str:
    match = _LEAD.match(text)
    return _upper(text[match.end() :]) if match else text


def _drop_clause(text: str, place: _Place, rng: Generator) -> str:
    match = _FIRST_CLAUSE.match(text)
    return (
        _upper(text[match.end() :]) if match and len(text) - match.end() > _MIN_CHARACTERS else text
    )


def _drop_apposition(text: str, place: _Place, rng: Generator) -> str:
    return _APPOSITION.sub("", text)


def _drop_parenthesis(text: str, place: _Place, rng: Generator) -> str:
    return _PARENTHESIS.sub("", text)


def _drop_tail(text: str, place: _Place, rng: Generator) -> str:
    match = _TAIL.search(text)
    return text[: match.start()] + "." if match and match.start() > _MIN_CHARACTERS else text


def _drop_fillers(text: str, place: _Place, rng: Generator) -> str:
    return _FILLERS.sub("", text)


def _shorten_list(text: str, place: _Place, rng: Generator) -> str:
    match = _LIST.search(text)
    if not match or re.search(r"\b(?:only|between|exactly)\b", text):
        return text
    kept = [match[1], match[2], match[4]]
    del kept[int(rng.integers(3))]
    return text[: match.start()] + f" {match[3]} ".join(kept) + text[match.end() :]


def _turn_pair(text: str, place: _Place, rng: Generator) -> str:
    match = _PAIR.search(text)
    if not match:
        return text
    return f"{text[: match.start()]}{match[2]} and {match[1]}{text[match.end() :]}"


def _move_clause(text: str, place: _Place, rng: Generator) -> str:
    if match := _SWAP.match(text):
        return f"{_upper(match['word'])} {match['side']}, {_lower(match['main'])}."
    if (match := _LEADING.match(text)) and match["word"] != "Since":
        return f"{_upper(match['main'])} {match['word'].lower()} {match['side']}."
    return text


def _name_subject(text: str, place: _Place, rng: Generator) -> str:
    match, subject = _PRONOUN.match(text), _SUBJECT.match(" ".join(place.before.split()))
    return subject[1] + text[match.end() :] if match and subject else text


def _use_synonyms(text: str, place: _Place, rng: Generator) -> str:
    words = [match for match in _WORD.finditer(text) if find_synonyms(match.group())]
    for number in sorted(rng.permutation(len(words)).tolist()[:3], reverse=True):
        match = words[number]
        text = _put(text, match.span(), _draw(rng, find_synonyms(match.group())))
    return text


def _reword(text: str, place: _Place, rng: Generator) -> str:
    fitting = [pair for pair in _REWORDINGS if re.search(rf"\b{pair[0]}\b(?! be\b)", text)]
    if not fitting:
        return text
    old, new = fitting[int(rng.integers(len(fitting)))]
    return re.sub(rf"\b{old}\b", new, text, count=1)


def _spell_number(text: str, place: _Place, rng: Generator) -> str:
    for word, digits in NUMBER_WORDS.items():
        if re.search(rf"\b{word}\b", text):
            return re.sub(rf"\b{word}\b", digits, text)
        if re.search(rf"(?<![\w.,]){digits}(?![\w.,])", text):
            return re.sub(rf"(?<![\w.,]){digits}(?![\w.,])", word, text)
    return text


def _make_passive(text: str, place: _Place, rng: Generator) -> str:
    match = _PASSIVE.match(text)
    if not match:
        return text
    return f"{_upper(match[3])} {match[1]} be {_PARTICIPLES[match[2]]}{text[match.end() :]}"


def _join(text: str, place: _Place, rng: Generator) -> str:
    before = " ".join(place.before.split())
    if not _is_usable(before) or len(before) + len(text) > _MAX_CHARACTERS or rng.random() < 0.6:
        return text
    return f"{before[:-1]}, and {_lower(text)}"


def _open(text: str, place: _Place, rng: Generator) -> str:
    return _draw(rng, _OPENINGS) + _lower(text) if rng.random() < 0.3 else text


_BEFORE_EDITS = (
    _drop_lead, _drop_adjunct, _drop_clause, _drop_apposition, _drop_parenthesis, _drop_tail,
    _drop_fillers, _shorten_list, _turn_pair, _move_clause, _name_subject, _use_synonyms,
    _use_synonyms, _reword, _reword, _spell_number, _make_passive, _join,
)  # fmt: skip
_PARAPHRASES = (*_BEFORE_EDITS, _open)


# Edits: each returns None if it does not apply.


def _exchange(
    place: _Place, pattern: re.Pattern[str], rng: Generator, group: int = 0
) -> str | None:
    """Put another match of the passage in place of one of the sentence's."""
    own = list(pattern.finditer(place.sentence))
    known = {match[group].casefold() for match in own}
    rivals = sorted({match[group] for match in pattern.finditer(place.passage)})
    rivals = [rival for rival in rivals if rival.casefold() not in known]
    match = _pick(rng, own)
    if match is None or not rivals:
        return None
    return _put(place.sentence, match.span(group), _draw(rng, rivals))


def _number(place: _Place, rng: Generator) -> str | None:
    if rng.random() < 0.5 and (edit := _exchange(place, _NUMBER, rng)):
        return edit
    match = _pick(rng, list(_NUMBER.finditer(place.sentence)))
    if match is None:
        return None
    digits = [i for i, one in enumerate(match.group()) if one.isdigit()]
    at = digits[int(rng.integers(len(digits)))]
    old = match.group()
    new = old[:at] + str((int(old[at]) + int(rng.integers(1, 9))) % 10) + old[at + 1 :]
    return _put(place.sentence, match.span(), new)


def _code(place: _Place, rng: Generator) -> str | None:
    return _exchange(place, _CODE, rng)


def _name(place: _Place, rng: Generator) -> str | None:
    return _exchange(place, _NAME, rng)


def _phrase(place: _Place, rng: Generator) -> str | None:
    return _exchange(place, _PHRASE, rng, 1)


def _roles(place: _Place, rng: Generator) -> str | None:
    """Exchange two phrases, names, codes or numbers of the sentence."""
    pattern, group = (
        (_PHRASE, 1) if rng.random() < 0.6 else ((_NAME, _CODE, _NUMBER)[int(rng.integers(3))], 0)
    )
    found = list(pattern.finditer(place.sentence))
    if len(found) < 2 or re.search(
        r"\b(?:and|or)\b", place.sentence[found[0].end() : found[-1].start()]
    ):
        return None
    first, last = found[0], found[-1]
    if first[group].casefold() == last[group].casefold():
        return None
    text = place.sentence
    middle = text[first.end(group) : last.start(group)]
    return (
        text[: first.start(group)] + last[group] + middle + first[group] + text[last.end(group) :]
    )


def _negation(place: _Place, rng: Generator) -> str | None:
    match = _pick(rng, list(_AUXILIARY.finditer(place.sentence)))
    gone = re.search(r"(?<=\w) (?:not|never)\b|n['’]t\b", place.sentence)
    if gone and rng.random() < 0.7:
        return place.sentence[: gone.start()] + place.sentence[gone.end() :]
    if match is None:
        return None
    return _put(place.sentence, match.span(), f"{match.group()} not")


def _opposite(place: _Place, rng: Generator) -> str | None:
    found = [
        match
        for match in re.finditer(r"\b(?:at (?:least|most)|[A-Za-z]+)\b", place.sentence)
        if find_opposites(match.group())
    ]
    found = [match for match in found if " not" not in "".join(find_opposites(match.group()))]
    match = _pick(rng, found)
    return (
        _put(place.sentence, match.span(), _draw(rng, find_opposites(match.group())))
        if match
        else None
    )


def _stranger(place: _Place, rng: Generator) -> str | None:
    match = _pick(
        rng, [match for match in _WORD.finditer(place.sentence) if find_strangers(match.group())]
    )
    if match is None:
        return None
    known = [
        word for word in find_strangers(match.group()) if re.search(rf"\b{word}\b", place.passage)
    ]
    return _put(place.sentence, match.span(), _draw(rng, known or find_strangers(match.group())))


def _quantifier(place: _Place, rng: Generator) -> str | None:
    fitting = [(old, new) for old, new in _QUANTIFIERS if re.search(rf"\b{old}\b", place.sentence)]
    if not fitting:
        return None
    old, new = fitting[int(rng.integers(len(fitting)))]
    match = re.search(rf"\b{old}\b", place.sentence)
    return _put(place.sentence, match.span(), new) if match else None


def _cause(place: _Place, rng: Generator) -> str | None:
    """Exchange a clause and what it depends on."""
    if match := _SWAP.match(place.sentence):
        return f"{_upper(match['side'])} {match['word']} {_lower(match['main'])}."
    if match := _LEADING.match(place.sentence):
        return f"{match['word']} {_lower(match['main'])}, {match['side']}."
    return None


def _comparison(place: _Place, rng: Generator) -> str | None:
    match = _COMPARISON.match(place.sentence)
    if not match:
        return None
    return f"{_upper(match['other'])} {match['verb']} {_lower(match['one'])}{match['rest']}"


def _mixture(place: _Place, rng: Generator) -> str | None:
    """Join the subject of the sentence to what another sentence says of its own."""
    own = _PREDICATE.match(place.sentence)
    others = [match for match in map(_PREDICATE.match, place.others) if match]
    if own is None or not others:
        return None
    other = others[int(rng.integers(len(others)))]
    pronouns = ("it", "this", "they", "he", "she", "you", "there", "these", "that")
    if (
        own["subject"].casefold() == other["subject"].casefold()
        or own["subject"].casefold() in pronouns
        or other["subject"].casefold() in pronouns
    ):
        return None
    return f"{own['subject']} {' '.join(other['rest'].split())}"


_RARE_EDITS = (_number, _code, _name, _roles, _cause, _comparison, _mixture, _mixture)
"""Edits that fit few sentences, and are therefore tried before the others in a share of them."""
_COMMON_EDITS = (_phrase, _negation, _opposite, _stranger, _quantifier)
