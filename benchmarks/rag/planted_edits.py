"""Which sentences made of a passage's words the support check lets pass, and which it should.

Edits are planted in the sentences of a file in SQuAD's format (XQuAD's English one by default),
each held against its own paragraph and two others of its article. Wrong ones: a number or name
replaced by the paragraph's own or by a foreign one, two exchanged, a negation, an opposite, a word
from elsewhere in the paragraph, a question with the answer of another. Right ones: word for word, a
part left out or moved, a synonym, digits for a number word, a question with its own answer.
Articles go to two halves by turns, so that what was changed by one can be judged by the other.
Prints how many of each kind are supported.

    python benchmarks/rag/planted_edits.py 0                  even articles
    python benchmarks/rag/planted_edits.py 1 file.json        odd articles of another file
    python benchmarks/rag/planted_edits.py 1 file.json trained 8    every eighth, another checker

The packaged reader learned from XQuAD's odd articles: read what it says of their questions with
care.
"""

import itertools
import json
import math
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.rag.question_sets import DATA

from stillroom.rag.analysis.analyzer import Analyzer
from stillroom.rag.groundedness.score import SourceTexts
from stillroom.rag.interfaces import CHECKERS
from stillroom.text.language import split_sentences

NAME = re.compile(r"\b[A-Z][\w'’-]+(?:\s+(?:of\s+)?[A-Z][\w'’-]+)*")
NUMBER = re.compile(r"\b\d+(?:[.,:]\d+)*\b")
PLAIN = re.compile(r"(?<![\w'-])[a-z]{5,}(?![\w'-])")
AUXILIARY = re.compile(
    r"\b(?:is|was|are|were|has|have|had|can|could|will|would|did|may|must|should)\b"
)
DIGITS = {
    "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8",
    "nine": "9", "ten": "10",
}  # fmt: skip
SYNONYMS = {
    "large": "big", "began": "started", "built": "constructed", "constructed": "built",
    "important": "significant", "various": "different", "often": "frequently", "near": "close to",
    "many": "numerous", "several": "a number of", "stated": "said", "said": "stated",
    "located": "situated", "about": "roughly", "main": "principal", "famous": "well-known",
    "help": "aid", "show": "demonstrate", "showed": "demonstrated", "received": "got",
    "created": "made", "used": "employed", "established": "founded", "founded": "established",
    "usually": "generally", "area": "region", "region": "area", "major": "significant",
}  # fmt: skip
OPPOSITES = {
    "first": "last", "last": "first", "larger": "smaller", "largest": "smallest", "more": "less",
    "higher": "lower", "lower": "higher", "less": "more", "most": "least", "north": "south",
    "south": "north", "east": "west", "west": "east", "northern": "southern", "after": "before",
    "southern": "northern", "eastern": "western", "western": "eastern", "before": "after",
    "increase": "decrease", "increased": "decreased", "early": "late", "late": "early",
    "later": "earlier", "earlier": "later", "old": "new", "new": "old", "high": "low",
    "low": "high", "private": "public", "public": "private", "won": "lost", "lost": "won",
    "best": "worst", "strong": "weak", "positive": "negative", "long": "short", "short": "long",
    "rich": "poor", "poor": "rich", "upper": "lower", "young": "old", "began": "ended",
    "accepted": "rejected",
    "common": "rare", "rare": "common", "modern": "ancient", "ancient": "modern",
    "same": "different", "different": "same", "simple": "complex", "success": "failure",
    "supported": "opposed",
}  # fmt: skip
Edit = tuple[str, str]
"""Its kind, and what it makes of a sentence."""


@dataclass(frozen=True)
class Case:
    """A sentence that is right or wrong before some passages; and what was asked, if anything."""

    kind: str
    is_right: bool
    text: str
    shown: tuple[str, ...]
    question: str = ""


def sentences_of(text: str) -> list[str]:
    """Return the sentences of at least six words that are no quotations."""
    parts = [text[start:end] for start, end in split_sentences(text)]
    whole = [part for part in parts if len(part.split()) >= 6 and part.endswith(".")]
    return [part for part in whole if not re.search(r'["“”]', part)]


def within(pattern: re.Pattern[str], sentence: str) -> list[re.Match[str]]:
    """Return what a pattern finds behind a sentence's first word."""
    return [found for found in pattern.finditer(sentence) if found.start() > sentence.find(" ")]


def replace(sentence: str, found: re.Match[str], other: str) -> str:
    return sentence[: found.start()] + other + sentence[found.end() :]


def exchange(sentence: str, pattern: re.Pattern[str], rng: random.Random) -> str | None:
    """Return a sentence with two of its names or numbers exchanged that a verb may part."""
    found = list(pattern.finditer(sentence)) if pattern is NUMBER else within(pattern, sentence)
    pairs = [
        (one, two)
        for at, one in enumerate(found)
        for two in found[at + 1 :]
        if not set(one[0].split()) & set(two[0].split())
        and re.search(r"\b[a-z]{4,}\b", sentence[one.end() : two.start()])
        and not re.search(r"\band\b", sentence[one.end() : two.start()])
    ]
    if not pairs:
        return None
    one, two = rng.choice(pairs)
    between = sentence[one.end() : two.start()]
    return sentence[: one.start()] + two[0] + between + one[0] + sentence[two.end() :]


def put_elsewhere(
    sentence: str, pattern: re.Pattern[str], others: list[str], rng: random.Random
) -> str | None:
    """Return a sentence with one of its names or numbers replaced by one that it has not."""
    found = list(pattern.finditer(sentence)) if pattern is NUMBER else within(pattern, sentence)
    if not found:
        return None
    chosen = rng.choice(found)
    parts = set(chosen[0].split())
    left = [one for one in others if one not in sentence and not parts & set(one.split())]
    return replace(sentence, chosen, rng.choice(left)) if left else None


def put_word(sentence: str, words: dict[str, str], rng: random.Random) -> str | None:
    """Return a sentence with one of its words replaced by what a table has for it."""
    found = [one for one in re.finditer(r"\b[a-z]+\b", sentence) if one[0] in words]
    if not found:
        return None
    chosen = rng.choice(found)
    return replace(sentence, chosen, words[chosen[0]])


def put_plain_word(sentence: str, paragraph: str, rng: random.Random) -> str | None:
    """Return a sentence with a plain word replaced by one of the paragraph that ends alike."""
    others = sorted({one for one in PLAIN.findall(paragraph) if one not in sentence})
    pairs = [
        (found, other)
        for found in PLAIN.finditer(sentence)
        for other in others
        if other[-2:] == found[0][-2:] and other[:4] != found[0][:4]
    ]
    return replace(sentence, *rng.choice(pairs)) if pairs else None


def negate(sentence: str) -> str | None:
    if re.search(r"\bnot\b", sentence):
        return re.sub(r"\s*\bnot\b", "", sentence, count=1)
    found = AUXILIARY.search(sentence)
    return replace(sentence, found, f"{found[0]} not") if found else None


def spoil(sentence: str, paragraph: str, foreign: str, rng: random.Random) -> Iterator[Edit]:
    """Yield what edits make of a sentence that is then wrong."""
    names = sorted({one[0] for part in sentences_of(paragraph) for one in within(NAME, part)})
    abroad = [one[0] for part in sentences_of(foreign) for one in within(NAME, part)]
    abroad = [name for name in abroad if name not in paragraph]
    numbers = sorted(set(NUMBER.findall(paragraph)))
    found = {
        "number-own": put_elsewhere(sentence, NUMBER, numbers, rng),
        "number-other": put_elsewhere(
            sentence, NUMBER, [str(rng.randrange(3000, 9000)) for _ in range(3)], rng
        ),
        "number-exchanged": exchange(sentence, NUMBER, rng),
        "name-own": put_elsewhere(sentence, NAME, names, rng),
        "name-other": put_elsewhere(sentence, NAME, abroad, rng),
        "name-exchanged": exchange(sentence, NAME, rng),
        "negation": negate(sentence),
        "opposite": put_word(sentence, OPPOSITES, rng),
        "plain-word": put_plain_word(sentence, paragraph, rng),
    }
    first = NAME.match(sentence)
    if first is not None and first[0] in names:
        others = [one for one in names if one not in sentence]
        found["name-first"] = replace(sentence, first, rng.choice(others)) if others else None
    yield from ((kind, text) for kind, text in found.items() if text)


def keep(sentence: str, rng: random.Random) -> Iterator[Edit]:
    """Yield a sentence and what is as right."""
    yield "verbatim", sentence
    moved = re.match(r"^(In|On|At|After|By|During|Since|From) ([^,]{3,40}), (.*)\.$", sentence)
    if moved:
        yield "moved", f"{capitalize(moved[3])} {moved[1].lower()} {moved[2]}."
    less = re.sub(r", which [^,]+,", "", re.sub(r"\s\([^)]*\)", "", sentence))
    if less != sentence:
        yield "part-left-out", less
    half = re.match(r"^(.{40,}?)(?:, (?:and|but|while|although|with|including)|;) ", sentence)
    if half and AUXILIARY.search(half[1]):
        yield "half", f"{half[1]}."
    bare = re.sub(r",? ?\b(?:also|however|then|thus|therefore|generally)\b,?", "", sentence)
    if bare != sentence:
        yield "adverb-left-out", capitalize(bare.strip())
    for kind, words in (("synonym", SYNONYMS), ("digits", DIGITS)):
        if text := put_word(sentence, words, rng):
            yield kind, text


def capitalize(text: str) -> str:
    return text[:1].upper() + text[1:]


def declare(question: str, answer: str) -> str | None:
    """Return a question and an answer as one statement, where the question's form allows it."""
    asked, answer = question.strip().removesuffix("?").strip(), answer.strip().rstrip(".")
    dangling = r"\b(?:known|called|named|used|born|made|found|by|for|in|to|of|as|at|on|from|with)$"
    when = answer if re.match(r"(?:in|on|at|from|by|after|before)\b", answer) else f"in {answer}"
    forms = [
        (r"(?:Who|What|Which) (is|was|are|were) (?P<rest>.+)", "{rest} {1} {answer}."),
        (r"Who (?!did|does|do\b|is|was|are|were)(?P<rest>\w+.*)", "{answer} {rest}."),
        (r"(?:When|In what year|What year|Where) did (?P<rest>.+)", "{rest} {when}."),
        (r"How many (.+?) (?:did|does|do) (?P<rest>.+)", "{rest} {answer} {1}."),
        (r"How many (.+?) (are|were|is|was) (?P<rest>.+)", "{answer} {1} {2} {rest}."),
    ]
    for form, said in forms:
        found = re.fullmatch(form, asked)
        if found and not re.search(dangling, found["rest"]):
            rest, groups = found["rest"], found.groups()
            text = said.format(asked, *groups, rest=rest, answer=answer, when=when)
            return capitalize(text) if len(text.split()) >= 4 else None
    return None


def ask(
    paragraph: dict[str, list[dict[str, object]]], rng: random.Random
) -> Iterator[tuple[str, bool, str, str]]:
    """Yield questions as statements with their own answers, and with those of others."""
    rows = [(str(one["question"]), str(one["answers"][0]["text"])) for one in paragraph["qas"]]  # type: ignore[index]
    for question, answer in rows:
        said = declare(question, answer)
        if said is None:
            continue
        yield "question", True, said, question
        own = set(re.findall(r"\w+", f"{answer} {question}".lower()))
        others = [
            other
            for _, other in rows
            if bool(re.search(r"\d", other)) == bool(re.search(r"\d", answer))
            and other[:1].isupper() == answer[:1].isupper()
            and not set(re.findall(r"\w+", other.lower())) & own
        ]
        wrong = declare(question, rng.choice(others)) if others else None
        if wrong:
            yield "question", False, wrong, question


def make_cases(path: Path, half: int) -> Iterator[Case]:
    articles = json.loads(path.read_text(encoding="utf-8"))["data"]
    for at, article in enumerate(articles):
        if at % 2 != half:
            continue
        foreign = articles[(at + 7) % len(articles)]["paragraphs"][0]["context"]
        texts = [paragraph["context"] for paragraph in article["paragraphs"]]
        for number, paragraph in enumerate(article["paragraphs"]):
            own = paragraph["context"]
            rng = random.Random(f"{at}.{number}")
            others = [text for text in texts if text != own]
            shown = (own, *rng.sample(others, min(2, len(others))))
            for sentence in sentences_of(own):
                for kind, text in keep(sentence, rng):
                    yield Case(kind, True, text, shown)
                for kind, text in spoil(sentence, own, foreign, rng):
                    yield Case(kind, False, text, shown)
            for kind, is_right, text, question in ask(paragraph, rng):
                yield Case(kind, is_right, text, shown, question)


class Lexicon:
    """How rare a term is among a file's paragraphs."""

    def __init__(self, path: Path, analyzer: Analyzer) -> None:
        articles = json.loads(path.read_text(encoding="utf-8"))["data"]
        texts = [one["context"] for article in articles for one in article["paragraphs"]]
        self._size = len(texts)
        self._counts = Counter(term for text in texts for term in set(analyzer.index_terms(text)))

    def idf(self, term: str) -> float:
        count = self._counts[term]
        return math.log(1 + (self._size - count + 0.5) / (count + 0.5))


def main() -> None:
    """Print what is supported of each kind."""
    half = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    path = Path(sys.argv[2]) if len(sys.argv) > 2 else DATA / "qa/xquad.en.json"
    analyzer = Analyzer()
    lexicon = Lexicon(path, analyzer)
    told: dict[tuple[bool, str], list[bool]] = defaultdict(list)
    method = sys.argv[3] if len(sys.argv) > 3 else "overlap"
    step = int(sys.argv[4]) if len(sys.argv) > 4 else 1
    checker, index = CHECKERS.build(method), SimpleNamespace(analyzer=analyzer, lexicon=lexicon)
    evidence, held = SourceTexts([], analyzer, lexicon), ()  # type: ignore[arg-type]
    for case in itertools.islice(make_cases(path, half), 0, None, step):
        if held != case.shown:
            evidence, held = checker.hold(case.shown, index), case.shown  # type: ignore[arg-type,assignment]
        evidence.set_question(case.question)
        is_supported = evidence.find(case.text).score >= evidence.threshold
        told[case.is_right, case.kind].append(is_supported)
        told[case.is_right, "all"].append(is_supported)
    for (is_right, kind), supported in sorted(told.items()):
        line = {
            "right": is_right,
            "kind": kind,
            "n": len(supported),
            "supported": round(sum(supported) / len(supported), 3),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
