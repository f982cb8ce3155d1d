"""How well graders tell passages that answer from those that do not, and questions likewise.

Prints for each grader the area under the ROC curve over passages (of the ten that hybrid search
finds, those that answer against the others) and over questions (the best grade of five passages:
answerable against unanswerable), with bootstrap intervals over questions, and the threshold with
the best balanced accuracy on the even half of the questions, measured on the odd half.

    python benchmarks/rag/graders.py docs-qa overlap
    python benchmarks/rag/graders.py squad '{"name": "cross_encoder", "checkpoint": "./one"}'
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.rag.question_sets import (
    BUILD,
    Asked,
    build_index,
    hold_out,
    read_docs_qa,
    read_squad,
)

from stillroom.rag.index.searcher import Index
from stillroom.rag.interfaces import GRADERS, Query, RelevanceGrader
from stillroom.rag.retrieval.pipeline import retrieve

FOUND, READ, DRAWS = 10, 5, 2_000


def auroc(good: NDArray[np.float64], bad: NDArray[np.float64]) -> float:
    """Return how often a good one scores above a bad one, ties counted half."""
    if not len(good) or not len(bad):
        return float("nan")
    differences = good[:, None] - bad[None, :]
    return float((differences > 0).mean() + (differences == 0).mean() / 2)


def interval(grades: list[float], labels: list[bool]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the area, questions drawn anew."""
    rng = np.random.default_rng(0)
    values, kinds = np.array(grades), np.array(labels)
    areas = []
    for _ in range(DRAWS):
        drawn = rng.integers(0, len(values), len(values))
        one, kind = values[drawn], kinds[drawn]
        if kind.any() and not kind.all():
            areas.append(auroc(one[kind], one[~kind]))
    low, high = np.quantile(areas, [0.025, 0.975])
    return float(low), float(high)


def best_threshold(grades: NDArray[np.float64], labels: NDArray[np.bool_]) -> float:
    """Return the grade from which calling a question answerable is right most evenly."""
    options = np.unique(grades)
    middles = np.concatenate([options[:1] - 0.01, (options[1:] + options[:-1]) / 2])
    scores = [((grades >= t)[labels].mean() + (grades < t)[~labels].mean()) / 2 for t in middles]
    return float(middles[int(np.argmax(scores))])


def grade(one: Asked, index: Index, grader: RelevanceGrader) -> tuple[list[float], list[bool]]:
    """Return the grades of what is found for a question, and whether each passage answers it."""
    query = Query(one.text)
    hits = retrieve(index, query, FOUND)
    shown = ["\n".join([*hit.passage.headings, hit.passage.text]) for hit in hits]
    right = [Path(hit.passage.location.path).stem in one.right for hit in hits]
    return grader.grade(query, shown, index), right


def main() -> None:
    """Measure the graders that are named on one set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set", choices=["docs-qa", "squad"])
    parser.add_argument("graders", nargs="+")
    parser.add_argument("--most", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=1e9, help="then what is graded is told")
    given = parser.parse_args()
    read = read_docs_qa if given.set == "docs-qa" else lambda: read_squad(every=5)
    texts, questions = hold_out(*read())
    questions = questions[: given.most]
    end = time.monotonic() + given.seconds
    with Index.open(build_index(given.set, texts)) as index:
        for name in given.graders:
            grader = GRADERS.build(json.loads(name) if name.startswith("{") else name)
            best, labels, rows = [], [], []
            begun = time.process_time()
            kept = BUILD / f"grades-{given.set}-{name.split(':')[0]}-{index.digest[:12]}.jsonl"
            rows_kept = kept.read_text(encoding="utf-8").splitlines() if kept.is_file() else []
            known = dict(json.loads(row) for row in rows_kept)
            for one in questions:
                if one.id not in known:
                    if time.monotonic() > end:
                        break
                    known[one.id] = grade(one, index, grader)
                    with kept.open("a", encoding="utf-8") as file:
                        file.write(json.dumps([one.id, known[one.id]]) + "\n")
                grades, right = known[one.id]
                rows += [(grade, ok) for grade, ok in zip(grades, right, strict=True) if one.right]
                best.append(max(grades[:READ], default=0.0))
                labels.append(one.is_answerable)
            spent = time.process_time() - begun
            values, kinds = np.array(best), np.array(labels)
            even = np.arange(len(values)) // 2 % 2 == 0
            threshold = best_threshold(values[even], kinds[even])
            held, right_half = values[~even] >= threshold, kinds[~even]
            passages = np.array(rows)
            flags = passages[:, 1] > 0.5
            print(
                json.dumps(
                    {
                        "set": given.set,
                        "grader": name,
                        "questions": len(best),
                        "answerable": int(kinds.sum()),
                        "passage_auroc": round(auroc(passages[flags, 0], passages[~flags, 0]), 3),
                        "question_auroc": round(auroc(values[kinds], values[~kinds]), 3),
                        "interval": [round(v, 3) for v in interval(best, labels)],
                        "threshold": round(threshold, 3),
                        "kept_answerable": round(float(held[right_half].mean()), 3),
                        "kept_unanswerable": round(float(held[~right_half].mean()), 3),
                        "quantiles_answerable": np.quantile(values[kinds], [0.1, 0.25, 0.5, 0.75])
                        .round(3)
                        .tolist(),
                        "quantiles_unanswerable": np.quantile(
                            values[~kinds], [0.25, 0.5, 0.75, 0.9]
                        )
                        .round(3)
                        .tolist(),
                        "cpu_s_a_question": round(spent / len(best), 3),
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
