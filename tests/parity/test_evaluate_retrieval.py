"""Our measures against trec_eval's definitions written out in a few lines."""

import math
import random

import pytest

from stillroom.evaluate.metrics.retrieval import retrieval_metrics


def reference(ranking, grades):
    order = sorted(ranking, key=lambda pair: (pair[1], pair[0].encode()), reverse=True)
    gains = [max(grades.get(name, 0), 0) for name, _ in order]
    ideal = sorted((grade for grade in grades.values() if grade > 0), reverse=True)

    def dcg(values):
        return sum(gain / math.log2(at + 2) for at, gain in enumerate(values[:10]))

    first = next((at for at, gain in enumerate(gains, 1) if gain), 0)
    return {
        "ndcg@10": dcg(gains) / dcg(ideal) if ideal else 0.0,
        "recall@5": sum(gain > 0 for gain in gains[:5]) / len(ideal) if ideal else 0.0,
        "recip_rank": 1 / first if first else 0.0,
    }


@pytest.mark.parametrize("seed", range(5))
def test_equal_to_the_definitions_on_random_runs(seed):
    rng = random.Random(seed)
    names = [f"d{at}" for at in range(40)]
    qrels = {
        f"q{at}": {name: rng.choice([-1, 0, 1, 1, 2, 3]) for name in rng.sample(names, 8)}
        for at in range(200)
    }
    run = {
        query: [
            (name, rng.choice([rng.random(), round(rng.random(), 1), 1 + 1e-9 * rng.random()]))
            for name in rng.sample(names, rng.randint(1, 30))
        ]
        for query in qrels
        if rng.random() > 0.1
    }
    found = retrieval_metrics(run, qrels)
    for query, grades in qrels.items():
        expected = reference(run.get(query, []), grades)
        for measure, value in expected.items():
            assert found[measure][query] == pytest.approx(value, abs=1e-9), (query, measure)
