"""What parallel writing and caches cost in quality: a small trained model, measured on truth.

The model (width 128, 3 layers) is trained by a recipe of kind diffusion.train on forms, whose right
answers are known: 28 words that never change, 16 copied ones, 4 that must agree. Writing at
temperature 1, the reference is LLaDA's algorithm as its paper gives it, one place a step, the whole
text in every step, and noise over every place; an autoregressive twin with its own cache is beside.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from peers import ROOT
from worlds import is_valid, make_forms

from stillroom.diffusion.model.loading import open_diffusion
from stillroom.diffusion.model.network import DiffusionModel
from stillroom.diffusion.sampling.sampler import generate
from stillroom.diffusion.sampling.sequence import (
    InfillRequest,
    build_prompt_request,
)
from stillroom.diffusion.sampling.settings import DecodeSettings
from stillroom.diffusion.sampling.token_sampling import draw_exponential
from stillroom.flow import run_recipe
from stillroom.models import load_causal_lm
from stillroom.models.tokenization.chat_template import render_prompt
from stillroom.recipes.loader import build_recipe
from stillroom.records import Prompt, write_records

ASKED = int(os.environ.get("STILLROOM_BENCH_TEXTS", "100"))
STEPS = int(os.environ.get("STILLROOM_BENCH_STEPS", "1500"))
KEYS = int(os.environ.get("STILLROOM_BENCH_KEYS", "16"))  # copied words; fewer are sooner learned
WIDTH = int(os.environ.get("STILLROOM_BENCH_WIDTH", "128"))
PLACES = 32 + KEYS
WORK = ROOT / "build" / "bench" / "diffusion"


def train_model(name: str, **settings: Any) -> Path:
    """Return a trained model's folder, made on first use."""
    out = WORK / f"{name}-{STEPS}-{KEYS}-{WIDTH}"
    if not (out / "artifact.json").is_file():
        WORK.mkdir(parents=True, exist_ok=True)
        records = WORK / f"forms-{KEYS}.jsonl"
        write_records(records, make_forms(20_000, seed=7, keys=KEYS))
        said = {
            "kind": "diffusion.train",
            "model": {
                "tokenizer": "builtin:words",
                "num_hidden_layers": 3,
                "hidden_size": WIDTH,
                "num_attention_heads": 4,
                "context_length": 128,
            },
            "records": str(records),
            "train": {
                "steps": STEPS,
                "batch_size": 48,
                "micro_tokens": 8192,
                "learning_rate": 2e-3,
                "threads": 1,
                "log_every": 100,
            },
            "validation": {"records": 0},
            "out": {"dtype": "float32"},
            **settings,
        }
        run_recipe(build_recipe(said, "benchmark"), out, resume=True)
    return out


@torch.inference_mode()
def reference(model: DiffusionModel, request: InfillRequest, rng: torch.Generator) -> list[int]:
    """Write as LLaDA's algorithm does: one place a step, everything read and drawn every time."""
    mask = model.metadata.mask_token_id
    x = torch.tensor([*request.ids, *[mask] * request.max_new_tokens])
    at = torch.arange(len(x))
    seen = model.attention_mask(at, at)[None]
    for _ in range(request.max_new_tokens):
        logits = model.logits(model.states(x[None], at[None], seen)[0]).double()
        logits[:, mask] = -torch.inf
        chances = logits.softmax(-1)
        tokens = (chances / draw_exponential(chances.shape, rng)).argmax(-1)
        sure = chances.gather(-1, tokens[:, None])[:, 0]
        sure[x != mask] = -torch.inf
        place = int(sure.argmax())
        x[place] = tokens[place]
    return x[len(request.ids) :].tolist()


def measure_way(
    write: Callable[[int], tuple[list[int], int]], decode: Any, truth: Any, ends: set[int]
) -> dict[str, float]:
    """Return validity, readings, processor seconds and tokens before the end of one way."""
    valid, nfe, tokens = 0, 0, 0
    write(0)  # the first call of a way pays for what is loaded
    begun = time.process_time()
    for number in range(ASKED):
        ids, readings = write(number)
        ids = list(itertools.takewhile(lambda token: token not in ends, ids))
        nfe += readings
        tokens += len(ids)
        valid += is_valid(decode(ids), truth[number])
    spent = time.process_time() - begun
    return {
        "valid": valid / ASKED,
        "nfe": nfe / ASKED,
        "cpu_s": spent / ASKED,
        "tokens_per_cpu_s": tokens / max(spent, 1e-9),
    }


def tell(what: str, value: float, unit: str, **more: object) -> None:
    """Print one figure."""
    line = {"what": what, "value": round(value, 4), "unit": unit, "n": ASKED, **more}
    line["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(json.dumps(line), flush=True)


def main() -> None:
    """Train (once) and print the figures."""
    torch.set_num_threads(1)
    forms = make_forms(ASKED, seed=99, keys=KEYS)
    truth = [form.messages[0].content.split() for form in forms]
    full = open_diffusion(str(train_model("forms")), dtype="float32")
    blocks = open_diffusion(
        str(train_model("forms-blocks", attention={"name": "block_causal", "block_size": 16})),
        dtype="float32",
    )
    twin, words = load_causal_lm(
        train_model("forms-twin", kind="diffusion.autoregressive") / "output",
        dtype="float32",
    )

    ends = set(full.metadata.end_token_ids)

    def ask(model: DiffusionModel, number: int) -> InfillRequest:
        prompt = Prompt((forms[number].messages[0],))
        return build_prompt_request(model.tokenizer, prompt, PLACES, number)

    def way(model: DiffusionModel, **settings: Any) -> dict[str, float]:
        chosen = DecodeSettings(temperature=1.0, **settings)

        def write(number: int) -> tuple[list[int], int]:
            (sample,) = generate(model, [ask(model, number)], chosen)
            return list(sample.new_ids), sample.nfe

        return measure_way(write, model.tokenizer.decode, truth, ends)

    def plain(number: int) -> tuple[list[int], int]:
        rng = torch.Generator().manual_seed(number)
        return reference(full, ask(full, number), rng), PLACES

    @torch.inference_mode()
    def autoregressive(number: int) -> tuple[list[int], int]:
        text = render_prompt(words, Prompt((forms[number].messages[0],)))
        given = twin(input_ids=torch.tensor([words(text)["input_ids"]]), use_cache=True)
        rng, found = torch.Generator().manual_seed(number), []
        for _ in range(PLACES):
            chances = given.logits[:, -1].double().softmax(-1)
            token = torch.multinomial(chances, 1, generator=rng)
            found.append(int(token))
            given = twin(input_ids=token, use_cache=True, cache=given.cache)
        return found, PLACES

    rows = {
        "reference": measure_way(plain, full.tokenizer.decode, truth, ends),
        "one a step": way(full, commit="top_k"),
        "4 a step": way(full, commit={"name": "top_k", "k": 4}),
        "threshold 0.9": way(full, commit={"name": "threshold", "threshold": 0.9}),
        "entropy bound 0.1": way(full, commit="entropy_bound"),
        "factor 1": way(full, commit="factor"),
        "threshold, prefix cache": way(
            full, commit="threshold", cache={"name": "prefix"}, block_length=16
        ),
        "threshold, dual cache": way(
            full, commit="threshold", cache={"name": "dual"}, block_length=16
        ),
        "threshold, prefix cache, refresh 2": way(
            full, commit="threshold", cache={"name": "prefix", "refresh": 2}, block_length=16
        ),
        "blocks, one a step": way(blocks, commit="top_k"),
        "blocks, threshold": way(blocks, commit="threshold"),
        "autoregressive, own cache": measure_way(autoregressive, words.decode, truth, ends),
    }
    for name, row in rows.items():
        tell(
            f"diffusion/decode/rows/{name}",
            row["cpu_s"],
            "CPU s",
            **{k: round(v, 4) for k, v in row.items()},
        )
    base, fast = rows["reference"], rows["threshold 0.9"]
    tell("diffusion/decode/threshold_nfe_ratio", base["nfe"] / fast["nfe"], "times fewer readings")
    tell(
        "diffusion/decode/quality_loss_points",
        100 * (base["valid"] - fast["valid"]),
        "points of valid forms",
    )
    cached = rows["threshold, prefix cache"]  # on the same model as the reference
    tell(
        "diffusion/decode/cache_and_threshold_speedup",
        base["cpu_s"] / cached["cpu_s"],
        "times less CPU",
        way="threshold, prefix cache",
        valid=cached["valid"],
        valid_reference=base["valid"],
    )


if __name__ == "__main__":
    main()
