"""The spread of a preference score's estimate, by how its samples are spent.

The model has learned forms (``worlds``); the policy is that model some steps of VRPO later. The
score of one pair is estimated again and again, always by eight readings of each answer: several
masks at one time and a reference read under other masks (as DPO on bounds begins), a time for each
mask, the same masks for the reference, and exactly as many masks as the time says. Told are the
variance of the score over draws and that of the gradient's direction.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from worlds import VALUES, make_forms

from stillroom.diffusion.jobs.preference import DiffusionPreferenceRecipe
from stillroom.diffusion.jobs.train import DiffusionTrainRecipe
from stillroom.diffusion.model.loading import open_diffusion
from stillroom.diffusion.training.data import TrainingContext
from stillroom.diffusion.training.loss import DiffusionLoss
from stillroom.diffusion.training.preferences import PreferenceOptimization
from stillroom.flow import run_recipe
from stillroom.records import Message, Record, write_records
from stillroom.train.distributed import ProcessGroup

PLAIN = {"stratified": False, "fixed_mask_count": False}
WAYS: dict[str, dict[str, Any]] = {
    "one_time": {"num_times": 1, "masks_per_time": 8, "antithetic": False, **PLAIN},
    "many_times": {"num_times": 8, "antithetic": False, **PLAIN},
    "shared_masks": {"num_times": 8, **PLAIN},
    "counted_masks": {"num_times": 8},
}
DRAWS = int(os.environ.get("STILLROOM_BENCH_REPEATS", "32"))
EVERY = 4  # draws a gradient
STEPS = int(os.environ.get("STILLROOM_BENCH_STEPS", "250"))
PAIRS = int(os.environ.get("STILLROOM_BENCH_PAIRS", "4"))


def make_pairs(count: int, seed: int) -> list[Record]:
    """Return records of pairs: the right form, and one with two values changed."""
    found = []
    for number, record in enumerate(make_forms(count, seed)):
        asked, told = record.messages
        words = told.content.split()
        for at in (14, 20):
            words[at] = f"v{(int(words[at][1:]) + 1) % VALUES}"
        fields = {"chosen": told.content, "rejected": " ".join(words), "number": number}
        found.append(Record((Message("user", asked.content), told), {**fields, "split": "train"}))
    return found


def train_models(work: Path) -> tuple[Path, Path, dict[str, Any]]:
    """Return the folder of the model, that of the policy, and the recipe of the latter."""
    write_records(work / "forms.jsonl", make_forms(512, 1))
    write_records(work / "pairs.jsonl", make_pairs(128, 2))
    said: dict[str, Any] = {
        "model": {
            "tokenizer": "builtin:words",
            "num_hidden_layers": 2,
            "hidden_size": 96,
            "num_attention_heads": 4,
        },
        "records": str(work / "forms.jsonl"),
        "validation": {"records": 0},
        "out": {"dtype": "float32"},
        "train": {"steps": STEPS, "batch_size": 32, "micro_tokens": 8192, "threads": 1},
    }
    run_recipe(DiffusionTrainRecipe.model_validate(said), work / "model")
    later = {
        **said,
        "model": str(work / "model"),
        "records": str(work / "pairs.jsonl"),
        "train": {**said["train"], "steps": 10, "batch_size": 8, "learning_rate": 1e-4},
    }
    run_recipe(DiffusionPreferenceRecipe.model_validate(later), work / "policy")
    return work / "model", work / "policy", later


def measure_way(start: Path, policy: Path, said: dict[str, Any]) -> dict[str, float]:
    """Return the variance of the score and of the gradient over draws, averaged over pairs."""
    said = {**said, "train": {**said["train"], "batch_size": 1}}
    method = PreferenceOptimization(DiffusionPreferenceRecipe.model_validate(said))
    base, model = (open_diffusion(str(folder), dtype="float32") for folder in (start, policy))
    pairs = method.tokenize(model, make_pairs(PAIRS, 3)).items
    objective = DiffusionLoss(model, has_times=False)
    scores, spreads = [], []
    for pair in pairs:
        values, gradients = [], []
        source: Any = method.open_source(TrainingContext(model, [pair], DRAWS, None))  # type: ignore[arg-type]
        source.reference._copy = base.network
        for step in range(DRAWS):
            values.append(
                source.begin(step, model.network, ProcessGroup(alone=True))["preference/margin"]
            )
            if step % EVERY == 0:
                model.network.zero_grad()
                for group in source.plan(step):
                    objective(model.network, source.load(group)).total.backward()  # type: ignore[no-untyped-call]
                every = [p.grad.flatten() for p in model.network.parameters() if p.grad is not None]
                gradients.append(torch.cat(every).clone())
        scores.append(float(torch.tensor(values, dtype=torch.float64).var()))
        stacked = torch.stack(gradients).double()
        spreads.append(float(stacked.var(0).sum() / stacked.mean(0).square().sum()))
    return {"score": sum(scores) / len(scores), "gradient": sum(spreads) / len(spreads)}


def main() -> None:
    """Print the variance of every way, and by how much it is below the first."""
    if DRAWS <= EVERY:
        raise SystemExit(f"STILLROOM_BENCH_REPEATS is {DRAWS}; two gradients need {EVERY + 1}")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        start, policy, said = train_models(Path(work))
        found = {}
        for name, settings in WAYS.items():
            found[name] = measure_way(start, policy, {**said, **settings})
    for name, own in found.items():
        for what, value in own.items():
            line = {
                "what": f"diffusion/preference/{what}_variance/{name}",
                "value": float(f"{value:.4g}"),
                "unit": "score squared" if what == "score" else "of the mean gradient's square",
                "times_less": round(found["one_time"][what] / value, 2),
                "readings_an_answer": 8,
                "pairs": PAIRS,
                "n": DRAWS if what == "score" else -(-DRAWS // EVERY),
                "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
                f"load {os.getloadavg()[0]:.1f}",
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
