"""Fit the weights of the filter ``quality`` to graded questions, and measure it by folder.

    python scripts/fit_quality.py

Each row of ``recipes/quality/graded.csv`` is a question: its folder, how often it counts, the share
of its readers who did not call it poor, and its features. Every folder of those that count twice is
scored by a model of all others; the table printed tells the share of poor ones among those above
each threshold. The weights are then fitted to all rows and written into the package.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np

from stillroom.evaluate.metrics.calibration import fit_logistic_weights
from stillroom.models import open_embedder

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "src/stillroom/synth/filters/quality.json"
EMBEDDER = "hub:sentence-transformers/all-MiniLM-L6-v2"
MOST, DIRECTIONS, PENALTY, CONSTANT = 4.0, 24, 60.0, 100.0


def fit(rows: np.ndarray, good: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the weights and the intercept; the column's size leaves it almost unpenalized."""
    design = np.hstack([rows, np.full((len(rows), 1), CONSTANT)])
    weights = fit_logistic_weights(design, good, ridge=PENALTY, counts=counts)
    return weights[:-1], float(weights[-1]) * CONSTANT


def scale(rows: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Return standardized features, clipped as the filter clips them."""
    return np.clip((rows - mean) / deviation, -MOST, MOST)


def report(rows: np.ndarray, good: np.ndarray, counts: np.ndarray, folders: np.ndarray) -> None:
    """Print the share kept and the share of poor ones above each threshold."""
    judged = counts > 1
    scores = np.zeros(len(rows))
    for folder in np.unique(folders[judged]):
        held = folders == folder
        mean, deviation = rows[~held].mean(0), rows[~held].std(0) + 1e-6
        weights, intercept = fit(scale(rows[~held], mean, deviation), good[~held], counts[~held])
        scores[held] = 1 / (1 + np.exp(-scale(rows[held], mean, deviation) @ weights - intercept))
    print(f"{judged.sum()} questions, {1 - good[judged].mean():.3f} poor")
    for limit in np.arange(0.5, 0.9, 0.05):
        kept = judged & (scores >= limit)
        print(
            f"  {limit:.2f}: {kept.sum() / judged.sum():.3f} kept, {1 - good[kept].mean():.3f} poor"
        )


def main() -> None:
    """Fit, measure and write."""
    with (ROOT / "recipes/quality/graded.csv").open(encoding="utf-8") as lines:
        table = list(csv.DictReader(lines))
    names = [name for name in table[0] if name not in {"folder", "count", "good", "question"}]
    measured = np.array([[float(row[name]) for name in names] for row in table])
    good, counts = (np.array([float(row[name]) for row in table]) for name in ("good", "count"))
    vectors = open_embedder(EMBEDDER).embed([row["question"] for row in table], kind="passage")
    center = vectors.mean(0)
    directions = np.linalg.svd(vectors - center, full_matrices=False)[2][:DIRECTIONS].T
    rows = np.hstack([measured, (vectors - center) @ directions])
    report(rows, good, counts, np.array([row["folder"] for row in table]))
    mean, deviation = rows.mean(0), rows.std(0) + 1e-6
    weights, intercept = fit(scale(rows, mean, deviation), good, counts)
    k = len(names)
    direction = directions @ (weights[k:] / deviation[k:])
    intercept -= float(mean[k:] @ (weights[k:] / deviation[k:]) + center @ direction)
    features = {
        name: [round(float(value), 5) for value in values]
        for name, *values in zip(names, mean[:k], deviation[:k], weights[:k], strict=True)
        if values[1] > 1e-4  # the others are the same in every row
    }
    model = {
        "intercept": round(intercept, 5),
        "features": features,
        "direction": [round(float(value), 4) for value in direction],
    }
    TARGET.write_text(json.dumps(model) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
