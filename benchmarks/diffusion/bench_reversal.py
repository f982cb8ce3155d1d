"""The reversal curse at a processor's scale: facts told one way, asked both ways.

A diffusion model and its autoregressive twin of the same shape learn the same facts by recipes of
diffusion.train: 100 told only as "A is B .", 100 only as "B is A .", 400 both ways. Asked are: the
sentence as it was told (forward), the missing name before it (infill; its twin cannot),
and the sentence that was never told (reversed). Seeds are those named on the command line;
``--plot FILE`` draws all of them.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from peers import ROOT
from worlds import make_facts

from stillroom.diffusion.model.loading import open_diffusion
from stillroom.diffusion.model.network import DiffusionModel
from stillroom.diffusion.sampling.sampler import generate
from stillroom.diffusion.sampling.sequence import InfillRequest
from stillroom.diffusion.sampling.settings import DecodeSettings
from stillroom.evaluate.charts import Plot, render_plot
from stillroom.flow import run_recipe
from stillroom.models import load_causal_lm
from stillroom.recipes.loader import build_recipe
from stillroom.records import write_records

SEEDS = (11, 12, 13)
STEPS = {"diffusion": 2400, "autoregressive": 600}
WORK = ROOT / "build" / "bench" / "diffusion"


def train_model(kind: str, seed: int) -> tuple[Path, float]:
    """Return a trained checkpoint, made on first use, and the processor minutes it took."""
    out, clock = WORK / f"facts-{kind}-{seed}", WORK / f"facts-{kind}-{seed}.minutes"
    if not (out / "artifact.json").is_file():
        WORK.mkdir(parents=True, exist_ok=True)
        records, _ = make_facts(100, 100, 400, seed)
        write_records(WORK / f"facts-{seed}.jsonl", records)
        said: dict[str, Any] = {
            "kind": "diffusion.autoregressive" if kind == "autoregressive" else "diffusion.train",
            "seed": seed,
            "model": {
                "tokenizer": "builtin:words",
                "num_hidden_layers": 2,
                "hidden_size": 128,
                "num_attention_heads": 4,
                "context_length": 16,
            },
            "records": str(WORK / f"facts-{seed}.jsonl"),
            "stage": {"name": "pretraining", "truncation_rate": 0},
            "train": {
                "steps": STEPS[kind],
                "batch_size": 256,
                "micro_tokens": 8192,
                "learning_rate": 2e-3,
                "schedule": "linear",
                "weight_decay": 0.1,
                "warmup": 0.04,
                "threads": 1,
                "log_every": 200,
            },
            "validation": {"records": 0},
            "out": {"dtype": "float32"},
        }
        begun = time.process_time()
        run_recipe(build_recipe(said, "benchmark"), out, resume=True)
        spent = float(clock.read_text()) if clock.is_file() else 0.0
        clock.write_text(f"{spent + (time.process_time() - begun) / 60:.2f}")
    return out / "output", float(clock.read_text()) if clock.is_file() else 0.0


def ask_diffusion(model: DiffusionModel, sentences: list[tuple[list[str], int]]) -> float:
    """Return how many sentences are completed rightly, the word at a place being open."""
    words = model.tokenizer
    requests, wanted = [], []
    for sentence, place in sentences:
        ids: list[int | None] = [words.bos_token_id, *words.convert_tokens_to_ids(sentence)]
        wanted.append(ids[place + 1])
        ids[place + 1] = None
        if place == 2:  # what stands behind the asked name is not told either
            ids[place + 2] = None
        requests.append(InfillRequest(tuple(ids)))
    samples = generate(model, requests, DecodeSettings(commit="top_k", rows=64))
    places = [place + 1 for _, place in sentences]
    hits = [s.ids[at] == want for s, at, want in zip(samples, places, wanted, strict=True)]
    return sum(hits) / len(hits)


@torch.inference_mode()
def ask_twin(twin: Any, words: Any, sentences: list[tuple[list[str], int]]) -> float:
    """Return how many sentences an autoregressive model completes rightly from their beginning."""
    rows = [
        [words.bos_token_id, *words.convert_tokens_to_ids(sentence)] for sentence, _ in sentences
    ]
    ids = torch.tensor(rows)
    logits = twin(input_ids=ids[:, :3]).logits[:, -1]
    return float((logits.argmax(-1) == ids[:, 3]).double().mean())


@torch.inference_mode()
def score_twin(twin: Any, words: Any, pairs: list[tuple[str, str]], every: list[str]) -> float:
    """Return how often the told sentence is likeliest when every first name is tried before it."""
    hits = 0
    for first, second in pairs:
        tried = [
            [words.bos_token_id, *words.convert_tokens_to_ids([one, "is", second])] for one in every
        ]
        ids = torch.tensor(tried)
        logprobs = twin(input_ids=ids).logits.log_softmax(-1)
        own = logprobs[:, :-1].gather(-1, ids[:, 1:, None])[..., 0].sum(-1)
        hits += every[int(own.argmax())] == first
    return hits / len(pairs)


def measure_seed(seed: int) -> dict[str, float]:
    """Return the shares of right answers of both models."""
    _, groups = make_facts(100, 100, 400, seed)
    told = [([a, "is", b, "."], 2) for a, b in groups["forward"]]
    told += [([b, "is", a, "."], 2) for a, b in groups["reverse"]]
    holes = [(sentence, 0) for sentence, _ in told]
    turned = [([s[2], "is", s[0], "."], 2) for s, _ in told]
    model = open_diffusion(str(train_model("diffusion", seed)[0]), dtype="float32")
    twin, words = load_causal_lm(train_model("autoregressive", seed)[0], dtype="float32")
    half = len(groups["forward"])
    tried = [a for group in groups.values() for a, _ in group]
    return {
        "diffusion/forward": ask_diffusion(model, told),
        "diffusion/infill": ask_diffusion(model, holes),
        "diffusion/reversed": ask_diffusion(model, turned),
        "autoregressive/forward": ask_twin(twin, words, told),
        "autoregressive/reversed": ask_twin(twin, words, turned),
        "autoregressive/reversed_by_scoring": score_twin(
            twin, words, groups["forward"][:half], tried
        ),
        "diffusion/minutes": train_model("diffusion", seed)[1],
        "autoregressive/minutes": train_model("autoregressive", seed)[1],
    }


def draw_shares(rows: list[dict[str, float]]) -> str:
    """Return an SVG of the shares of right answers: the median, and least and largest seed."""
    names = [name for name in rows[0] if not name.endswith("minutes")]
    values = [[row[name] for row in rows] for name in names]
    plot = Plot(
        f"Share of facts answered rightly: median of {len(rows)} seeds, least and largest",
        tuple(name.replace("/", ": ").replace("reversed_by_", "by ") for name in names),
        tuple(statistics.median(own) for own in values),
        tuple(min(own) for own in values),
        tuple(max(own) for own in values),
    )
    found = re.search(r"<svg.*</svg>", render_plot(plot), re.DOTALL)
    style = (
        "svg{background:#fff}text{font:13px system-ui,sans-serif;fill:#23211d}.label{text-anchor:"
        "end}.tick{text-anchor:middle;fill:#66615a;font-size:12px}.grid{stroke:#e3ded5}"
        ".whisker{stroke:#8a4b14;stroke-width:1.6;fill:none}.dot{fill:#8a4b14}"
    )
    svg = found[0] if found else "<svg></svg>"
    return svg.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1).replace(
        ">", f"><style>{style}</style>", 1
    )


def main() -> None:
    """Print one figure a measure: the median over seeds, and every seed's."""
    torch.set_num_threads(1)
    words = sys.argv[1:]
    plot = words.pop(words.index("--plot") + 1) if "--plot" in words else ""
    seeds = [int(word) for word in words if word != "--plot"] or list(SEEDS)
    rows = [measure_seed(seed) for seed in seeds]
    if plot:
        Path(plot).write_text(draw_shares(rows) + "\n", encoding="utf-8")
    for name in rows[0]:
        values = [row[name] for row in rows]
        line = {
            "what": f"diffusion/reversal/{name}",
            "value": round(statistics.median(values), 4),
            "unit": "CPU min" if name.endswith("minutes") else "share right",
            "n": len(values),
            "seeds": dict(zip(map(str, seeds), [round(v, 4) for v in values], strict=True)),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
            f"load {os.getloadavg()[0]:.1f}",
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
