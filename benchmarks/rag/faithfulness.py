"""Whether the support check tells a sentence from what small edits make of it.

Two hundred pairs: a sentence that the passage says, and the same sentence with a number swapped, a
negation put in or taken out, or a name swapped. Half of the sentences stand in the passage word for
word (SQuAD's paragraphs); the other half say it in other words (docs-qa's reference answers,
against the passages that are judged right). Prints the area under the ROC curve by kind of edit
with its bootstrap interval (pairs drawn anew), how many of each are called supported, and how many
scores there are: every sentence gets one.

    python benchmarks/rag/faithfulness.py
    python benchmarks/rag/faithfulness.py overlap 7           other pairs
    python benchmarks/rag/faithfulness.py '{"name": "entailment", "checkpoint": "./nli"}'
"""

import json
import random
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.rag.question_sets import build_index, read_docs_qa, read_squad

from stillroom.rag.index.searcher import Index
from stillroom.rag.interfaces import CHECKERS
from stillroom.text.language import split_sentences

PAIRS, DRAWS = 100, 2_000
KINDS = ("number", "negation", "name")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
AUXILIARY = re.compile(
    r"\b(is|are|was|were|can|could|should|will|would|must|may|might|has|have|had|does|do|did)\b"
    r"(\s+not\b)?"
)
NAME = re.compile(r"(?<=[a-z,;] )[A-Z][\w-]*(?: [A-Z][\w-]*)*")


@dataclass(frozen=True)
class Pair:
    """A sentence, what an edit made of it, and the passages that say the first."""

    kind: str
    true: str
    edited: str
    passages: tuple[str, ...]


def edit(kind: str, sentence: str, names: Sequence[str], rng: random.Random) -> str | None:
    """Return the sentence with one edit, or None where there is nothing to edit."""
    if kind == "number":
        found = NUMBER.search(sentence)
        if found is None:
            return None
        value = found.group()
        other = value
        while other == value:
            other = re.sub(r"\d", lambda _: str(rng.randrange(10)), value)
        return sentence[: found.start()] + other + sentence[found.end() :]
    if kind == "negation":
        found = AUXILIARY.search(sentence)
        if found is None:
            return None
        said = found[1] if found[2] else f"{found[1]} not"
        return sentence[: found.start()] + said + sentence[found.end() :]
    found = NAME.search(sentence)
    others = [name for name in names if found and name.casefold() not in sentence.casefold()]
    if found is None or not others:
        return None
    return sentence[: found.start()] + rng.choice(others) + sentence[found.end() :]


def make_pairs(rows: Sequence[tuple[str, tuple[str, ...]]], rng: random.Random) -> list[Pair]:
    """Return pairs from (sentence, passages), the kinds in turn, each sentence once."""
    names = sorted({name for sentence, _ in rows for name in NAME.findall(sentence)})
    pairs: list[Pair] = []
    for sentence, passages in rows:
        if len(pairs) == PAIRS:
            break
        counts = {kind: sum(one.kind == kind for one in pairs) for kind in KINDS}
        for kind in sorted(KINDS, key=counts.__getitem__):
            edited = edit(kind, sentence, names, rng)
            if edited and edited != sentence:
                pairs.append(Pair(kind, sentence, edited, passages))
                break
    return pairs


def sentences_of(text: str) -> list[str]:
    """Return the sentences of a text that have at least six words."""
    parts = [text[start:end] for start, end in split_sentences(text)]
    return [part for part in parts if len(part.split()) >= 6]


def auroc(good: NDArray[np.float64], bad: NDArray[np.float64]) -> float:
    """Return how often a good one scores above a bad one, ties counted half."""
    differences = good[:, None] - bad[None, :]
    return float((differences > 0).mean() + (differences == 0).mean() / 2)


def report(name: str, kind: str, scores: NDArray[np.float64], threshold: float) -> None:
    """Print one line about pairs of (true, edited) scores, (N, 2)."""
    rng = np.random.default_rng(0)
    drawn = [rng.integers(0, len(scores), len(scores)) for _ in range(DRAWS)]
    areas = [auroc(scores[at, 0], scores[at, 1]) for at in drawn]
    low, high = np.quantile(areas, [0.025, 0.975])
    line = {
        "set": name,
        "edit": kind,
        "n": len(scores),
        "n_valid": int(np.isfinite(scores).all(axis=1).sum()),
        "auroc": round(auroc(scores[:, 0], scores[:, 1]), 3),
        "interval": [round(float(low), 3), round(float(high), 3)],
        "true_supported": round(float((scores[:, 0] >= threshold).mean()), 3),
        "edited_supported": round(float((scores[:, 1] >= threshold).mean()), 3),
    }
    print(json.dumps(line), flush=True)


def main() -> None:
    """Measure the checker that is named, or the default one."""
    told = sys.argv[1] if len(sys.argv) > 1 else "overlap"
    checker = CHECKERS.build(json.loads(told) if told.startswith("{") else told)
    docs, asked = read_docs_qa()
    squad, _ = read_squad()
    rng = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    paraphrased = [
        (sentence, tuple(docs[name] for name in one.right))
        for one in asked
        for sentence in sentences_of(one.answer)
    ]
    rng.shuffle(paraphrased)
    verbatim = [(s, (text,)) for text in squad.values() for s in sentences_of(text)]
    rng.shuffle(verbatim)
    everything: list[NDArray[np.float64]] = []
    with Index.open(build_index("docs-qa-words", docs, embedder="static")) as index:
        for name, rows in (("verbatim", verbatim), ("paraphrased", paraphrased)):
            pairs = make_pairs(rows, rng)
            scores, threshold = [], 0.0
            for pair in pairs:
                evidence = checker.hold(pair.passages, index)
                threshold = evidence.threshold
                scores.append([evidence.find(one).score for one in (pair.true, pair.edited)])
            table = np.array(scores)
            everything.append(table)
            for kind in KINDS:
                chosen = np.array([pair.kind == kind for pair in pairs])
                if chosen.any():
                    report(name, kind, table[chosen], threshold)
            report(name, "all", table, threshold)
    report("both", "all", np.concatenate(everything), threshold)


if __name__ == "__main__":
    main()
