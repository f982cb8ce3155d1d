"""How far a diffusion model's bound is from an autoregressive loss, on real text, at equal steps.

Two cases: a model of characters from nothing, beside its twin of the same network, batches and
steps; and SmolLM2-135M taken on (shifted, seeing both ways at once), beside what it was and a twin
that was trained on as many tokens. The text is tiny Shakespeare, its last tenth held out;
``STILLROOM_BENCH_TEXT`` names another plain text. A bound is at least the loss that it bounds:
the gap is of what can be said, and not of two perplexities.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from peers import ROOT

from stillroom.flow import run_recipe
from stillroom.provenance import read_artifact
from stillroom.recipes.loader import build_recipe
from stillroom.records import Message, Record, write_records

TEXT = Path(
    os.environ.get("STILLROOM_BENCH_TEXT", ROOT.parent / "shared/data/text/tinyshakespeare.txt")
)
WORK = ROOT / "build" / "bench" / "diffusion"
TWIN = {"kind": "diffusion.autoregressive", "validation": {"records": 64}}
BITS = 1 / 0.6931471805599453


def cut_text(window: int, name: str) -> Path:
    """Return a file of records, a window of characters each; the last tenth is held out."""
    path = WORK / f"gap-{name}.jsonl"
    text = TEXT.read_text(encoding="utf-8")
    edge = len(text) * 9 // 10
    records = [
        Record(
            (Message("assistant", text[at : at + window]),),
            {"split": "train" if at + window <= edge else "held_out", "at": at},
        )
        for at in range(0, len(text) - window, window)
        if at + window <= edge or at >= edge
    ]
    WORK.mkdir(parents=True, exist_ok=True)
    write_records(path, records)
    return path


def train_model(name: str, said: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """Return what a run tells of itself, and its processor minutes; a finished run is kept."""
    out, clock = WORK / f"gap-{name}", WORK / f"gap-{name}.minutes"
    if not (out / "artifact.json").is_file():
        begun = time.process_time()
        run_recipe(build_recipe(said, "benchmark"), out, resume=True)
        spent = float(clock.read_text()) if clock.is_file() else 0.0
        clock.write_text(f"{spent + (time.process_time() - begun) / 60:.2f}")
    return dict(read_artifact(out).details), float(clock.read_text()) if clock.is_file() else 0.0


def tell(what: str, details: dict[str, Any], minutes: float, *, when: str, per: float) -> None:
    """Print one figure, in bits a character or nats a token."""
    found = details[when]
    line = {
        "what": f"diffusion/gap/{what}",
        "value": round(found["nats_per_token"] * per, 4),
        "unit": "bits a character" if per != 1 else "nats a token",
        "error": round(found["error"] * per, 4),
        "is_bound": found["is_bound"],
        "windows": found["records"],
        "tokens_trained": details["train"]["tokens"] if when == "after" else 0,
        "minutes": minutes,
        "n": 1,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
    }
    print(json.dumps(line), flush=True)


def measure_characters() -> None:
    """Train both models of characters and print both figures."""
    steps = int(os.environ.get("STILLROOM_BENCH_STEPS", "1000"))
    said: dict[str, Any] = {
        "kind": "diffusion.train",
        "model": {
            "num_hidden_layers": 4,
            "hidden_size": 128,
            "num_attention_heads": 4,
            "context_length": 256,
        },
        "records": str(cut_text(128, "characters")),
        "stage": "pretraining",
        "train": {
            "steps": steps,
            "batch_size": 16,
            "micro_tokens": 4096,
            "learning_rate": 2e-3,
            "weight_decay": 0.1,
            "threads": 1,
            "log_every": 100,
        },
        "validation": {"records": 64, "samples": 8},
        "out": {"dtype": "float32"},
    }
    for name, more in (("autoregressive", TWIN), ("diffusion", {})):
        details, minutes = train_model(f"characters-{name}-{steps}", {**said, **more})
        tell(f"characters/{name}", details, minutes, when="after", per=BITS)


def measure_smollm2() -> None:
    """Take SmolLM2-135M on, and print the bound before and after beside the exact losses."""
    said: dict[str, Any] = {
        "kind": "diffusion.train",
        "model": "hub:HuggingFaceTB/SmolLM2-135M-Instruct",
        "records": str(cut_text(256, "smollm2")),
        "stage": "pretraining",
        "max_tokens": 64,
        "train": {
            "steps": int(os.environ.get("STILLROOM_BENCH_CONVERT_STEPS", "60")),
            "batch_size": 4,
            "micro_tokens": 512,
            "learning_rate": 2e-4,
            "threads": 1,
            "log_every": 10,
        },
        "validation": {"records": 64, "samples": 8},
        "out": {"dtype": "float32"},
    }
    twin, minutes = train_model("smollm2-autoregressive", {**said, **TWIN})
    tell("smollm2/autoregressive_before", twin, minutes, when="before", per=1)
    tell("smollm2/autoregressive_after", twin, minutes, when="after", per=1)
    bound, minutes = train_model("smollm2-diffusion", said)
    tell("smollm2/diffusion_before", bound, minutes, when="before", per=1)
    tell("smollm2/diffusion_after", bound, minutes, when="after", per=1)


def main() -> None:
    """Measure the cases named on the command line, or both."""
    torch.set_num_threads(1)
    cases = {"characters": measure_characters, "smollm2": measure_smollm2}
    for name in sys.argv[1:] or list(cases):
        cases[name]()


if __name__ == "__main__":
    main()
