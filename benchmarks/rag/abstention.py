"""How often ways of answering abstain before anything is written, where they should and should not.

Half of the questions have no answer in the index: the passages that answer them were left out, so
that what is near is still about the same things. No model is asked: a method that abstains does so
before the model would write, and what it does not refuse counts as answered. Prints precision and
recall of abstention with bootstrap intervals.

    python benchmarks/rag/abstention.py docs-qa corrective corrective:strip=2
    python benchmarks/rag/abstention.py squad corrective --words
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.rag.question_sets import build_index, hold_out, read_docs_qa, read_squad

from stillroom.evaluate.metrics.answers import abstention_scores
from stillroom.models.backends.scripted import ScriptedModel
from stillroom.rag.generation.answer import ask
from stillroom.rag.index.searcher import Index
from stillroom.rag.interfaces import ANSWER_STRATEGIES
from stillroom.rag.retrieval.pipeline import parse_method


def main() -> None:
    """Measure the ways that are named on one set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set", choices=["docs-qa", "squad"])
    parser.add_argument("ways", nargs="+", help="methods of answering that ask no model")
    parser.add_argument("--k", type=int, default=3)
    parser.add_argument("--every", type=int, default=5, help="of squad: which paragraphs are asked")
    parser.add_argument("--words", action="store_true", help="hashed words in place of MiniLM")
    given = parser.parse_args()
    sets = read_docs_qa() if given.set == "docs-qa" else read_squad(every=given.every)
    texts, questions = hold_out(*sets)
    name = f"{given.set}-held-{given.every}" + ("-words" if given.words else "")
    with Index.open(build_index(name, texts, embedder="static" if given.words else "")) as index:
        for way in given.ways:
            method = parse_method(ANSWER_STRATEGIES, way)
            did, why = [], []
            for one in questions:
                answer = ask(
                    index,
                    ScriptedModel(lambda prompt: "(an answer)"),
                    one.text,
                    answering=method,
                    k=given.k,
                )
                did.append(bool(answer.details["refusal"]))
                why.append(answer.details["trace"][-1]["step"])
            should = [not one.is_answerable for one in questions]
            for metric in abstention_scores(should, did, way, seed=0):
                line = {
                    "set": given.set,
                    "embedder": "words" if given.words else "MiniLM",
                    "figure": metric.name,
                    "value": round(metric.value, 3),
                    "interval": [metric.low, metric.high],
                    "n": len(questions),
                    "unanswerable": sum(should),
                    "abstained": sum(did),
                    "wrongly": sum(a and not b for a, b in zip(did, should, strict=True)),
                }
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
