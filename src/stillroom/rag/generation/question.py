"""What is read of a question: its content, what asks, its spelling, what came before a follow-up.

No model is used. A follow-up is recognized by rules for English (an anaphor without an antecedent,
or an ellipsis); in German, French and Spanish only one that begins with a conjunction.

A misspelt word is looked for among all words within one edit of it, as by Norvig
("How to Write a Spelling Corrector"), so that the cost does not grow with the index; in place of a
dictionary there are the passages of the index, and what more than one of their words may mean
stays as it is written. Edits put in letters of the Latin alphabet without accents alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from string import ascii_lowercase
from typing import TYPE_CHECKING

from stillroom.rag.analysis.phrases import parse_query
from stillroom.rag.analysis.stop_words import QUESTION_WORDS, STOP_WORDS
from stillroom.text.language import detect_language, split_sentences

if TYPE_CHECKING:
    from stillroom.rag.index.searcher import Index
    from stillroom.records import Message

__all__ = [
    "add_subject",
    "correct_spelling",
    "has_content",
    "is_follow_up",
    "list_antecedents",
    "list_missing_words",
    "may_lean",
    "read_in_turn",
    "select_asking",
]

_ADDRESS = re.compile(r"\b[a-z][a-z\d+.-]{0,20}://\S+|\bwww\.\S+", re.IGNORECASE)
_NAME = re.compile(r"\b[A-Z]{2,}\b|`[^`]*\w")  # in capitals, or written as code
_LONG_QUESTION, _SHORT_QUESTION = 40, 6  # words
_ASKING = re.compile(r"[?？؟][\"'”’»)\]]*$")
# Asks for help, and does not say with what.
_PLEA = re.compile(
    r"\b(?:help|ideas?|thoughts|suggestions|any(?:one|body)|some(?:one|body)|hilfe|\w*helfen"
    r"|jemand|ideen?|aider?|quelqu.un|idées?|ayud\w+|alguien)\b",
    re.IGNORECASE,
)
_COURTESY = re.compile(
    r"\b(?:hello|hi|ok(?:ay)?|great|thanks?(?: you)?|danke|merci|gracias)\b", re.IGNORECASE
)
# English words whose meaning stands in a sentence before.
_PRONOUN = re.compile(r"\b(?:it|its|this|that|these|those|they|them)\b", re.IGNORECASE)
_CONJUNCTION = re.compile(
    r"\W*(?:and|but|or|so|then|also|what (?:about|else|if)|how about|why not"
    r"|und|oder|aber|et|mais|y|pero)\b(?!-)",
    re.IGNORECASE,
)
# Its last word lacks what it is of ("the default?", "Which port?"); "What is a port?" does not.
_ELLIPSIS = re.compile(
    r"\b(?:the|any|other|which|whose|what|how|why|when|where|who|many|much|about|as|at|by|for|from|in"
    r"|of|on|since|with|without) \w+\W*$",
    re.IGNORECASE,
)
# A thing or a case that was named before.
_ANAPHOR = re.compile(
    r"\b(?:it|its|they|them|their|these|those|this|that|another one|one(?=\W*$)"
    r"|which ones?(?! of\b)"
    r"|the (?:other|same|first|second|third|last) ones?|the (?:others|same|opposite|latter|former)"
    r"|(?:do|does|did|can) the (?:first|second|third|last)(?= \w+\W*$)"
    r"|(?:others|afterwards|as well|instead|otherwise|then|too)(?=\W*$))\b",
    re.IGNORECASE,
)
_EXPLETIVE = re.compile(
    r"\bit(?= (?:costs?|takes?)\b.* to\b| costs?\b)|\b(?:is|was|isn't) \bit (?:[\w']+ ){0,3}"
    r"(?:for|if|that|to)\b|\bit(?:['’]s| is| was) (?:[\w']+ ){0,2}(?:for|if|that|to)\b"
    r"|\bthis (?:documentation|manual|package|program|project|software|tool)\b",
    re.IGNORECASE,
)
# "What is the most it can have?": what stands before the pronoun is not what it stands for.
_CLAUSE = re.compile(
    r"\b(?:is|are|was|were) the (?:(?-i:[a-z]+est)|first|last|least|maximum|minimum|most|only)\b"
    r"(?: (?!(?:at|by|for|in|of|on|to|when\w*|with\w*)\b)(?-i:[a-z][a-z-]*)){0,2}"
    r" it (?!is\b|rains?\b|costs?\b|takes?\b.* to\b)\w",
    re.IGNORECASE,
)
# What a question after a conjunction begins with if it has a verb of its own.
_WHOLE = re.compile(
    r"\W*(?:and|but|or|so|then|also)\b,? (?P<whole>"
    r"(?:(?:at|by|for|from|in|on|to|under|with) (?=what|which|whom|how))?"
    r"(?:whom?|whose|what|which|where|when|why|how|is|are|do|does|did|can|may|must|should)\b"
    r"(?! (?:about|if|not)\b).+)",
    re.IGNORECASE | re.DOTALL,
)
# "What values are allowed?": of what, stands in a question before.
_VALUES = re.compile(
    r"\W*(?:what|which) (?:arguments|choices|formats|limits|options|ranges?|units?|values)"
    r" (?:is|are) (?:there|accepted|allowed|available|permitted|possible|supported|valid)\W*",
    re.IGNORECASE,
)
_RELATIVE = re.compile(r"that(?!\s+(?:limit|now|off|on|option|setting|too)\b|\W*$)", re.IGNORECASE)
_ARTICLE = re.compile(r"\b(?:a|all|an|any|each|every|my|no|our|some|the|your)\b", re.IGNORECASE)
_SPEAKER = re.compile(r"\b(?:I|one|we|you)\b", re.IGNORECASE)
_NAME_OR_CODE = re.compile(r"[\d_`\"]|[A-Z]{2}|\w[-.]\w")
_EMPTY = STOP_WORDS["english"] | QUESTION_WORDS
_FUNCTION_WORD = re.compile(
    r"also|am|any|been|being|can|could|did|didn|do|does|doesn|don|even|"
    r"ever|from|get|had|has|have|i|isn|its|just|may|me|might|must|my|one|"
    r"our|really|should|since|so|still|t|them|those|under|us|we|were|would|you|your"
)
_KIND = r"(?:command|directive|option|parameter|setting)"
# "And of Y?", "What about the option Y?", "And Y?"
_OTHER = re.compile(
    r"\W*(?:(?:and|or|but|also|und|oder|et|ou|y|o) +)?(?:(?:what|how) about +)?"
    r"(?:(?P<preposition>at|by|for|from|in|of|on|to|under|with|without|auf|bei|für|unter|von|avec|de"
    r"|pour|sous|sur|con|en|para) +)?"
    rf"(?:(?:the +)?{_KIND} +)?(?P<thing>[^\s?!,;]+(?: +[^\s?!,;]+){{0,3}}?)(?: +{_KIND})?[\s?!.]*",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"[^\s?!,;:()\"'“”]*[^\s?!,;:.()\"'“”]")
# Names of settings, options, files and versions, in whatever way their words are joined.
_JOINED = re.compile(r"-{1,2}\w[\w-]*|`[^`\s]+`|\w*(?:\w[._/-]\w|[a-z][A-Z]|\d)[\w./-]*|[A-Z]{2,}")
_SIGNS = re.compile(r"^-+|[._/`-]|(?<=[a-z])[A-Z]")
_ABOUT = re.compile(
    r"(\W*what (?:are|do|does|is) )(?!the )(.+?)((?: +(?:do|mean))?\W*)", re.IGNORECASE
)
_INDEFINITE = re.compile(r"\b(an?) +$")
_COMMON = re.compile(r"\b(?:are|can|did|does|how|I|is|should|that|the|was|what|which)\b", re.I)
_VOWEL = re.compile(r"(?!uni|us[eu]|eu|one)[aeiou]|hour|honest|heir", re.IGNORECASE)
_SPELT_VOWEL = re.compile(r"[AEFHILMNORSX8]")  # as its first letter is said
_LINK = (
    r"(?:as|at|by|for|from|how|if|in|into|of|on|that|to|up|what|when|where|which|with|without)\b"
)
# "How do I get exchange rates?" is about what the verb is done to.
_OBJECT = re.compile(
    rf"\W*how (?:can|do|may|must|should) (?:I|one|we|you) \w+((?: (?!{_LINK})[\w'’-]+){{1,4}})\W*",
    re.IGNORECASE,
)
_OF = frozenset(("de", "for", "für", "of", "von"))
_MAX_FOLLOW_UP, _MAX_ELLIPSIS = 16, 4  # words
_MIN_WHOLE = 2  # words with content, as a verb and what it is done to
_MAX_EARLIER, _MAX_CHARACTERS = 3, 1000
_MAX_LOOKED_AT, _MAX_MESSAGE = 10, 10_000  # messages, and characters of one
_WORD = re.compile(r"(?<![\w./:@#$%&+-])[^\W\d_]+(?![\w/:@#$%&+'’-]|\.\w)")
_MIN_MISSPELT, _MAX_MISSPELT, _MAX_CORRECTED = 4, 24, 8  # letters of a word, and words
_MIN_PASSAGES, _MIN_RATIO = 5, 10


def has_content(text: str, index: Index) -> bool:
    """Return whether a text has anything to ask: not stop words, signs or addresses alone.

    Quoted words are exact words to search for, and a stop word in capitals or between backticks
    may be a name (``IN``).
    """
    plain, clauses = parse_query(_ADDRESS.sub(" ", text))
    if clauses or _NAME.search(plain):
        return True
    return index.analyzer.has_content(plain, index.languages)


def select_asking(text: str) -> str:
    """Return the sentences of a long text that ask, if they are its smaller part; else all of it.

    It is read whole, too, if they only ask for help, or in a few words ("Why?"). Before a question
    with a pronoun (in English) stands the sentence before it.
    """
    sentences = [text[start:end] for start, end in split_sentences(text)]
    asking = [n for n, sentence in enumerate(sentences) if _ASKING.search(sentence)]
    size = len(text.split())
    if size <= _LONG_QUESTION or all(_PLEA.search(sentences[n]) for n in asking):
        return text
    chosen = {n for n in asking if n and _PRONOUN.search(sentences[n])}
    selected = " ".join(sentences[n] for n in sorted({*asking, *(n - 1 for n in chosen)}))
    return selected if _SHORT_QUESTION <= len(selected.split()) <= size / 2 else text


def is_follow_up(text: str) -> bool:
    """Return whether a short question has its meaning from one before it in a conversation.

    So has one that begins with a conjunction ("And for downloads?") unless what follows is a
    question of its own ("And who counts the cash?"), one of few words ("Why?", "the
    default?"), and one whose anaphor has nothing before it that it may stand for: no article, and
    no more words with content than a verb ("does it", "can I set it").
    """
    words = text.split()
    is_long = len(words) > _MAX_FOLLOW_UP or len(text) > _MAX_CHARACTERS
    if is_long or not any(map(str.isalnum, text)):
        return False
    if whole := _WHOLE.match(text):
        asked = whole["whole"]
        return _has_little(asked) or is_follow_up(asked)
    clause = _CLAUSE.search(text)
    before = text[: clause.start()] if clause else ""
    is_clause = bool(clause) and not (_ARTICLE.search(before) or _NAME_OR_CODE.search(before))
    if is_clause or _CONJUNCTION.match(text) or _VALUES.fullmatch(text):
        return True
    if len(words) <= _MAX_ELLIPSIS and not _NAME_OR_CODE.search(text):
        content = _count_content(text)
        if not content or (content == 1 and _ELLIPSIS.search(text)):
            return True
    expletives = [match.span() for match in _EXPLETIVE.finditer(text)]
    for match in _ANAPHOR.finditer(text):
        before, place = text[: match.start()], match.start()
        is_expletive = any(start <= place < end for start, end in expletives)
        if is_expletive or _ARTICLE.search(before) or _NAME_OR_CODE.search(before):
            continue
        content = _count_content(before)
        is_relative = bool(content) and bool(_RELATIVE.match(text, place))
        if not is_relative and content <= (2 if _SPEAKER.search(before) else 1):
            return True
    return False


def may_lean(text: str) -> bool:
    """Return whether a question may have a part of its meaning from one before it.

    More may than are follow-ups: those with a pronoun anywhere, with little content, or in another
    language than English, whose pronouns are not known.
    """
    is_english = any(word in STOP_WORDS["english"] for word in text.lower().split())
    return not is_english or _has_little(text) or bool(_ANAPHOR.search(_EXPLETIVE.sub(" ", text)))


def _has_little(text: str) -> bool:
    """Return whether a text has one word with content at most, and no name of a setting."""
    rest = re.sub(r"\b\d+\b", " ", text)  # a number is no subject
    return _count_content(rest) < _MIN_WHOLE and not _JOINED.search(rest)


def _count_content(text: str) -> int:
    """Return the number of words that are no function words of English."""
    words = re.findall(r"\w[\w.-]*", re.sub("['’]", " ", text.lower()))
    return sum(word not in _EMPTY and not _FUNCTION_WORD.fullmatch(word) for word in words)


def list_antecedents(text: str, history: Sequence[Message], index: Index) -> list[str]:
    """Return the earlier questions that a follow-up goes on from, oldest first; else none.

    Those are the nearest one with content, and, while that is a follow-up too, the one before; of
    many the first and the nearest.
    """
    found = list[str]()
    asked = [message.content for message in history if message.role == "user"][-_MAX_LOOKED_AT:]
    while asked and is_follow_up(found[0] if found else text):
        earlier, whole = asked.pop()[-_MAX_MESSAGE:], ""
        while earlier != whole:  # until it selects itself: evidence has it in the message's place
            earlier, whole = select_asking(earlier)[:_MAX_CHARACTERS], earlier
        if has_content(_COURTESY.sub(" ", earlier), index):
            found.insert(0, earlier)
    return found[:1] + found[1:][1 - _MAX_EARLIER :]


def read_in_turn(questions: Sequence[str]) -> list[str]:
    """Return questions of a conversation as they are read, each after those before it.

    One that only names another thing ("And of Y?", "What about Y?", "And Y?") is the one before
    with that in place of what it is about: a name in place of a name, what follows a preposition
    in place of what follows it there at the end, or what "What is X?" asks about.
    """
    read = list[str]()
    for question in questions:
        other = _OTHER.fullmatch(question) if read and _CONJUNCTION.match(question) else None
        places = reversed(range(len(read))) if other else ()
        changed = ((place, _exchange(read[place], other)) for place in places if other)
        place, text = next(filter(lambda change: change[1], changed), (len(read), question))
        read[place : place + 1] = [text]
    return read


def add_subject(text: str, antecedents: Sequence[str]) -> str:
    """Return a follow-up after the names in the first question that it goes on from.

    If that has none, they are what "What is X?" or "How do I set X?" asks about. The whole
    question is not put before it: what answers that would answer all that goes on from it.
    """
    for question in antecedents[:1]:
        names = [name for name in _TOKEN.findall(question) if _JOINED.fullmatch(name)]
        names = [name for name in names if not name.isdigit()]  # no year
        match = _ABOUT.fullmatch(question)
        about = match[2] if match else _find_object(question)
        if subject := " ".join(names) or about:
            return f"{subject}: {text}"
    return text


def _find_object(question: str) -> str:
    match = _OBJECT.fullmatch(question)
    return match[1].strip() if match else ""


def _exchange(question: str, other: re.Match[str]) -> str:
    """Return a question about another thing than the one that it names; empty if it names none."""
    thing, preposition = other["thing"], (other["preposition"] or "").lower()
    first, _, rest = thing.partition(" ")
    if _JOINED.fullmatch(rest) and first.lower() == "the":
        thing = rest
    has_article = bool(_ARTICLE.match(thing))
    is_name = bool(_JOINED.fullmatch(thing))
    if not (is_name or _count_content(rest if has_article else first)) or _ANAPHOR.search(thing):
        return ""
    names = [match for match in _TOKEN.finditer(question) if _JOINED.fullmatch(match[0])]
    is_proper = thing[0].isupper() and any(name[0][0].isupper() for name in names)
    is_of = preposition in _OF
    if names and " " not in thing and (is_of or (not preposition and (is_name or is_proper))):
        names = [name for name in names if name[0][0].isdigit() == thing[0].isdigit()]
        alike = [name for name in names if _find_signs(name[0]) == _find_signs(thing)] or names
        if len(alike) != 1 or alike[0][0] == thing:
            return ""
        return _join(question[: alike[0].start()], thing, question[alike[0].end() :])
    if preposition:
        more = thing.count(" ")  # as many words as are put there
        called = rf"(?:the +(?:(?:\S+ +){{0,2}}{_KIND} +|(?=\S+ +{_KIND}\W*$)))?"
        pattern = rf"(.*\b{preposition} +{called})\S+?(?: +\S+?){{0,{more}}}?((?: +{_KIND})?\W*)"
        match = re.fullmatch(pattern, question, re.IGNORECASE)
    else:
        match = _ABOUT.fullmatch(question)
        asked = match[2] if match and not names else ""
        match = match if asked and bool(_ARTICLE.match(asked)) == has_article else None
    return _join(match[1], thing, match[match.re.groups]) if match else ""


def _join(before: str, thing: str, after: str) -> str:
    """Return a question with a thing put into it, after the English article that suits it."""
    if (article := _INDEFINITE.search(before)) and _COMMON.search(before):
        vowel = _SPELT_VOWEL if thing[:2].isupper() else _VOWEL
        before = before[: article.start(1)] + ("an" if vowel.match(thing) else "a") + " "
    return before + thing + after


def _find_signs(name: str) -> set[str]:
    """Return the signs that join the parts of a name, "A" for a capital within."""
    return {"A" if sign.isalpha() else sign for sign in _SIGNS.findall(name)}


def correct_spelling(text: str, index: Index) -> tuple[str, dict[str, str]]:
    """Return a question with words that no passage has replaced by the one that was meant.

    Such a word is replaced if within one edit of it there is one word in several passages, and in
    many more than any other. Usual words stay, as do names (capitalized words, but the first),
    words with digits or signs, and all words of a text in another language than the passages, or
    most of whose words are in none.

    Returns:
        The text, and the replacements by word.
    """
    words = list(_WORD.finditer(text))
    unknown = [match for match in words if not _count_passages(match.group(), index)]
    if not unknown or 2 * len(unknown) > len(words):
        return text, {}
    replaced = dict[str, str]()
    for match in unknown[:_MAX_CORRECTED]:
        word = match.group()
        is_name = not word.islower() and bool(text[: match.start()].strip())
        is_long = _MIN_MISSPELT <= len(word) <= _MAX_MISSPELT
        if is_long and not is_name and (meant := _find_meant(word, index)):
            replaced[word] = meant
    if not replaced or detect_language(text) not in {"", *index.languages}:
        return text, {}
    return _WORD.sub(lambda match: replaced.get(match.group(), match.group()), text), replaced


def _find_meant(word: str, index: Index) -> str:
    """Return the word that a misspelt one stands for; empty if none or several may be meant."""
    # An endpoint's embedder has no tokenizer: its count is an estimate by length.
    if _is_word(word, index) or not _is_word("information", index):
        return ""
    found = dict[str, tuple[int, str]]()  # by term: inflections are one word
    for other in _edit(word):  # few are words, and tokens cost less than terms
        is_short = len(other) < _MIN_MISSPELT  # "stub" is no misspelt "sub"
        if not is_short and _is_word(other, index) and (count := _count_passages(other, index)):
            found.setdefault(index.analyzer.terms(other)[0], (count, other))
    (most, meant), (second, _) = (*sorted(found.values(), reverse=True), (0, ""), (0, ""))[:2]
    is_clear = most >= max(_MIN_PASSAGES, _MIN_RATIO * second)
    return meant if is_clear and not _FUNCTION_WORD.fullmatch(meant) else ""


def _is_word(text: str, index: Index) -> bool:
    """Return whether the embedder's tokenizer has a text as one token, as it has usual words.

    Terms are stems, which are no words to read, and not in an index is many a word.
    """
    return index.embedder.count_tokens(text) <= index.embedder.count_tokens("a")


def _edit(word: str) -> Iterator[str]:
    """Yield the words within one edit, two letters swapped being one.

    The first letter stays, and so does the last unless it is swapped: words that differ there are
    mostly other words or forms (``login`` and ``logic``, ``router`` and ``route``).
    """
    for at in range(1, len(word) - 1):
        before, letter, after = word[:at], word[at], word[at + 1 :]
        yield before + after
        yield before + after[0] + letter + after[1:]
        for other in ascii_lowercase:
            yield before + other + after
            yield before + other + letter + after
    for other in ascii_lowercase:
        yield word[:-1] + other + word[-1]


def list_missing_words(text: str, index: Index) -> list[str]:
    """Return the words of a text that no passage of the index has, in any inflection."""
    return [
        word
        for word in dict.fromkeys(match.group() for match in _WORD.finditer(text))
        if index.analyzer.has_content(word, index.languages)
        and not _FUNCTION_WORD.fullmatch(word.lower())
        and not _count_passages(word, index)
    ]


def _count_passages(word: str, index: Index) -> int:
    """Return how many passages have a word, in any language of the index."""
    terms = index.analyzer.query_terms(word)
    return max(map(index.lexicon.document_frequency, terms), default=1)
