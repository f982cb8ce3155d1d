"""Does influence tell what leaving records out does? Linear datamodeling scores on a small student.

    python benchmarks/distill/influence_lds.py --base stories260K.bin --texts gsm8k-train.jsonl

A student of 260 thousand parameters is fine-tuned on 128 texts, and again on random halves of them.
For each of 24 other texts, the loss of each of these students is ranked against the sum of a
method's scores over the half that it learned from: the mean Spearman correlation is the method's
linear datamodeling score (Park et al. 2023, arXiv:2303.14186), with an interval over the 24 texts.
The ceiling is the correlation of the same halves trained again in another order. The base is a
llama2.c file (with tok512.bin beside it); a text is a row with question and answer.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from benchmarks.merge.gain import convert
from numpy.typing import NDArray

from stillroom.distill.data.tokenized import TokenizedRecord
from stillroom.distill.evaluation.influence import read_scores, run_ekfac
from stillroom.models import load_causal_lm
from stillroom.models.local.causal_lm import load_tokenizer
from stillroom.text import split_words

TRAIN, ASKED, TOKENS, EPOCHS, BATCH, RATE = 128, 24, 96, 4, 8, 1e-3
Array = NDArray[np.float64]


def main() -> None:
    """Print one JSON line a method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--retrainings", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        measure(arguments, Path(scratch))


def measure(arguments: argparse.Namespace, scratch: Path) -> None:
    base = scratch / "base"
    base.mkdir()
    convert(arguments.base, base)
    tokenizer = load_tokenizer(base)
    rows = [json.loads(line) for line in arguments.texts.read_text().splitlines()[:400]]
    np.random.default_rng(0).shuffle(rows)
    texts = [f"{row['question']} {row['answer'].split('####')[0]}" for row in rows]
    ids = [tokenizer(text)["input_ids"][:TOKENS] for text in texts]
    ids = [some for some in ids if len(some) == TOKENS]
    learned, asked = torch.tensor(ids[:TRAIN]), torch.tensor(ids[TRAIN : TRAIN + ASKED])
    student = scratch / "student"
    fit(base, learned, np.ones(TRAIN, bool), 0, save=student)
    tokenizer.save_pretrained(student)
    started = time.perf_counter()
    scores = {"EK-FAC (bergson)": run_ekfac(
        student, tokenizer, tokenized(learned), tokenized(asked), scratch / "ekfac"
    )}  # fmt: skip
    seconds = time.perf_counter() - started
    scores["TrackStar (bergson)"] = run_trackstar(student, scratch)
    gradients = [collect_gradients(student, texts) for texts in (asked, learned)]
    scores["gradient dot product"] = gradients[0] @ gradients[1].T
    unit = [some / np.linalg.norm(some, axis=1, keepdims=True) for some in gradients]
    scores["gradient cosine"] = unit[0] @ unit[1].T
    said = [[tokenizer.decode(row, skip_special_tokens=True) for row in part.tolist()]
            for part in (asked, learned)]  # fmt: skip
    scores["BM25 overlap"] = match_words(*said)
    scores["random"] = np.random.default_rng(3).normal(size=(ASKED, TRAIN))
    rng = np.random.default_rng(7)
    halves = np.zeros((arguments.retrainings, TRAIN), bool)
    for half in halves:
        half[rng.permutation(TRAIN)[: TRAIN // 2]] = True
    losses = np.stack([measure_loss(fit(base, learned, half, 0), asked) for half in halves])
    again = len(halves) * 3 // 10
    other = np.stack([measure_loss(fit(base, learned, half, 1), asked) for half in halves[:again]])
    ceiling = [correlate(losses[:again, i], other[:, i]) for i in range(ASKED)]
    say("ceiling: the same halves in another order", ceiling, retrainings=again)
    for name, values in scores.items():
        predicted = halves @ values.T
        found = [correlate(predicted[:, i], -losses[:, i]) for i in range(ASKED)]
        more = {"seconds": round(seconds, 1)} if name.startswith("EK-FAC") else {}
        say(name, found, retrainings=len(halves), **more)


def say(name: str, values: list[float], **more: object) -> None:
    rng = np.random.default_rng(0)
    means = [float(np.mean(rng.choice(values, len(values)))) for _ in range(2000)]
    low, high = np.percentile(means, [2.5, 97.5]).round(3).tolist()
    line = {"what": f"influence/lds/{name}", "value": round(float(np.mean(values)), 3),
            "low": low, "high": high, "n": len(values), **more}  # fmt: skip
    print(json.dumps(line), flush=True)


def fit(base: Path, learned: torch.Tensor, kept: NDArray[np.bool_], seed: int, *,
        save: Path | None = None) -> torch.nn.Module:  # fmt: skip
    """Return the base fine-tuned on the kept texts, in an order drawn by a seed."""
    model, _ = load_causal_lm(base, dtype="float32", device="cpu")
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    rng = np.random.default_rng(seed)
    for _ in range(EPOCHS):
        order = [i for i in rng.permutation(TRAIN) if kept[i]]
        for start in range(0, len(order), BATCH):
            batch = learned[order[start : start + BATCH]]
            optimizer.zero_grad()
            model(input_ids=batch, labels=batch).loss.backward()
            optimizer.step()
    model.eval()
    if save is not None:
        model.save_pretrained(save)
    return model


@torch.no_grad()
def measure_loss(model: torch.nn.Module, texts: torch.Tensor) -> Array:
    likelihood = model(input_ids=texts).logits[:, :-1].log_softmax(-1)
    chosen: Array = likelihood.gather(-1, texts[:, 1:, None])[..., 0].mean(1).numpy()
    return -chosen


def tokenized(texts: torch.Tensor) -> list[TokenizedRecord]:
    positions = np.arange(TOKENS - 1)
    return [TokenizedRecord(str(i), row.numpy(), positions) for i, row in enumerate(texts)]


def run_trackstar(student: Path, scratch: Path) -> Array:
    command = [sys.executable, "-m", "bergson", "trackstar", str(scratch / "trackstar")]
    command += ["--model", str(student), "--token_batch_size", "512"]
    command += ["--data.dataset", str(scratch / "ekfac/records.jsonl")]
    command += ["--query.dataset", str(scratch / "ekfac/answers.jsonl")]
    subprocess.run([*command, "--query.aggregation", "none"], check=True, capture_output=True)
    return read_scores(scratch / "trackstar/scores", ASKED, TRAIN)


def collect_gradients(student: Path, texts: torch.Tensor) -> Array:
    model, _ = load_causal_lm(student, dtype="float32", device="cpu")
    rows = []
    for text in texts:
        model.zero_grad()
        model(input_ids=text[None], labels=text[None]).loss.backward()
        rows.append(torch.cat([p.grad.flatten() for p in model.parameters()]).numpy())
    return np.stack(rows)


def match_words(asked: list[str], learned: list[str]) -> Array:
    """Return BM25 of each text for each question."""
    texts = [Counter(split_words(text)) for text in learned]
    seen = Counter(word for text in texts for word in text)
    mean = float(np.mean([text.total() for text in texts]))

    def weigh(word: str, text: Counter[str]) -> float:
        rare = math.log(1 + (len(texts) - seen[word] + 0.5) / (seen[word] + 0.5))
        return rare * text[word] * 1.9 / (text[word] + 0.9 * (0.6 + 0.4 * text.total() / mean))

    return np.array(
        [[sum(weigh(w, text) for w in set(split_words(a))) for text in texts] for a in asked]
    )


def correlate(first: Array, second: Array) -> float:
    """Return Spearman's correlation; there are no ties among sums of scores and losses."""
    ranks = [np.argsort(np.argsort(values)) for values in (first, second)]
    return float(np.corrcoef(*ranks)[0, 1])


if __name__ == "__main__":
    main()
