"""A training step beside the autoregressive one of the same model, and what an error costs.

The step is timed whole: noise, layout, forward, backward. The likelihood's spread is that of
repeated estimates: how many readings ``low_variance`` takes to reach the standard error of 128
samples of ``inverse_t``.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from measuring import measure
from worlds import make_forms

from stillroom.diffusion.evaluation.likelihood import score_text
from stillroom.diffusion.interfaces import ESTIMATORS
from stillroom.diffusion.jobs.autoregressive import AutoregressiveRecipe
from stillroom.diffusion.jobs.train import DiffusionTrainRecipe
from stillroom.diffusion.model.initialization import prepare_initial_checkpoint
from stillroom.diffusion.model.loading import load_prepared
from stillroom.diffusion.model.network import DiffusionModel
from stillroom.diffusion.training.data import TrainingContext, TrainingObjective, tokenize_records
from stillroom.diffusion.training.loss import DiffusionLoss
from stillroom.diffusion.training.masked import MaskedDenoising, NextTokenPrediction

SETTINGS: dict[str, Any] = {
    "model": {
        "tokenizer": "builtin:words",
        "num_hidden_layers": 4,
        "hidden_size": 256,
        "num_attention_heads": 4,
    },
    "records": "unused",
    "stage": "pretraining",
    "train": {"steps": 1000, "batch_size": 32, "micro_tokens": 8192, "threads": 1},
}
REPEATS = int(os.environ.get("STILLROOM_BENCH_REPEATS", "15"))


class Step:
    """One optimizer step's work, without the optimizer, which is the same for both."""

    def __init__(self, folder: Path, objective: TrainingObjective[Any]) -> None:
        records = make_forms(256, seed=1)
        texts = [m.content for record in records for m in record.messages]
        texts += [f"w{at}" for at in range(8000)]  # a vocabulary like that of a small real model
        prepare_initial_checkpoint(
            objective.recipe.model, objective.target, lambda: texts, folder, seed=0
        )
        self.model: DiffusionModel = load_prepared(folder)
        lessons, _ = tokenize_records(
            self.model.tokenizer, records, max_tokens=128, include_prompt=True, first=1
        )
        self.source: Any = objective.open_source(TrainingContext(self.model, lessons, 1000, None))  # type: ignore[arg-type]
        self.objective = DiffusionLoss(self.model, has_times=objective.has_times)
        self.number = 0

    def __call__(self) -> None:
        self.source.begin(self.number, self.model.network, None)  # type: ignore[arg-type]
        for group in self.source.plan(self.number):
            self.objective(self.model.network, self.source.load(group)).total.backward()
        self.model.network.zero_grad()
        self.number += 1


def tell_forwards(step: Step) -> None:
    """Print how many readings reach the error of 128 plain samples, by repeated estimates."""
    lesson = step.source.examples[0]
    places = lesson.noised.nonzero()[0].tolist()[:48]

    def spread(name: str, samples: int, repeats: int, **more: object) -> float:
        estimator = ESTIMATORS.build({"name": name, "samples": samples, **more})
        values = [
            score_text(step.model, lesson.ids.tolist(), places, estimator, seed=at, rows=16).value
            for at in range(repeats)
        ]
        return statistics.stdev(values)

    wanted = spread("inverse_t", 128, REPEATS)
    found = {samples: spread("low_variance", samples, 2 * REPEATS) for samples in (8, 16, 24)}
    enough = [samples for samples, value in found.items() if value <= wanted]
    line = {
        "what": "diffusion/likelihood/forwards_for_se128",
        "value": min(enough) if enough else None,
        "unit": "readings",
        "n": REPEATS,
        "se_of_128_plain": round(wanted, 4),
        "se_of_low_variance": {str(k): round(v, 4) for k, v in found.items()},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
    }
    print(json.dumps(line), flush=True)


def main() -> None:
    """Print both figures."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        ours = Step(Path(work) / "diffusion", MaskedDenoising(DiffusionTrainRecipe(**SETTINGS)))
        twin = Step(Path(work) / "twin", NextTokenPrediction(AutoregressiveRecipe(**SETTINGS)))
        measure(
            "diffusion/train/step_over_ar",
            ours,
            ("autoregressive step of the same model", twin),
            twin,
            repeats=REPEATS,
        )
        tell_forwards(ours)


if __name__ == "__main__":
    main()
