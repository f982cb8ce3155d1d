"""Near duplicates of 100,000 short texts: ours and rensa in turn, recall and precision known.

Texts are of a Zipf vocabulary, one in five a copy of an earlier one with 0 to 8 words replaced;
exact Jaccard similarities of word 5-grams are computed here by sets of tuples. Ours verifies every
pair; rensa's banded signatures (128 permutations, 16 bands) are taken as its documentation has
them, without verification. A pair counts as found where one of the two fell.

Usage: bench_dedup.py [TEXTS]
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from benchmarks.peers import peer_python

from stillroom.text.dedup.near_duplicates import find_duplicates
from stillroom.text.dedup.shingles import build_shingle_sets

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "bench" / "synth" / "dedup"
WORKER = Path(__file__).with_name("rensa_worker.py")
THRESHOLD, WORDS, REPEATS = 0.8, 30_000, 3
Pair = tuple[int, int, float]


def make_texts(count: int) -> tuple[list[str], list[Pair]]:
    """Return texts, and of each planted copy its index, the original's, and their similarity."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    vocabulary = ["".join(rng.choice(letters, size=rng.integers(3, 9))) for _ in range(WORDS)]
    weights = 1 / np.arange(1, WORDS + 1)
    sizes = rng.integers(40, 140, size=count)
    drawn = rng.choice(WORDS, size=int(sizes.sum()), p=weights / weights.sum())
    texts: list[list[int]] = []
    fresh: list[int] = []
    pairs: list[Pair] = []
    at = 0
    for index in range(count):
        if index > 1000 and rng.random() < 0.2:
            original = fresh[int(rng.integers(0, len(fresh)))]
            words = list(texts[original])
            for _ in range(int(rng.choice([0, 1, 2, 4, 8]))):
                words[int(rng.integers(0, len(words)))] = int(rng.integers(0, WORDS))
            one, other = grams(words), grams(texts[original])
            pairs.append((index, original, len(one & other) / len(one | other)))
        else:
            words = drawn[at : at + sizes[index]].tolist()
            at += int(sizes[index])
            fresh.append(index)
        texts.append(words)
    return [" ".join(vocabulary[word] for word in words) for words in texts], pairs


def grams(words: Sequence[int]) -> set[tuple[int, ...]]:
    """Return the word 5-grams."""
    return {tuple(words[at : at + 5]) for at in range(max(1, len(words) - 4))}


def run_ours(texts: Sequence[str]) -> tuple[float, set[int]]:
    """Return CPU seconds and what fell."""
    begun = time.process_time()
    found = find_duplicates(build_shingle_sets(texts), threshold=THRESHOLD)
    return time.process_time() - begun, {one.index for one in found}


def run_rensa(path: Path) -> tuple[float, set[int]]:
    """Return CPU seconds and what fell, reading the texts left out of both."""
    python = peer_python("rensa", "0.5.0")
    done = subprocess.run([python, WORKER, path], check=True, capture_output=True, text=True)
    told = json.loads(done.stdout)
    return told["cpu_s"], set(told["fell"])


def judge(fell: set[int], pairs: Sequence[Pair]) -> dict[str, float]:
    """Return recall over near pairs, exact copies aside, and how many fell that are unlike any."""
    near = [(one, other) for one, other, value in pairs if THRESHOLD <= value < 1]
    found = sum(one in fell or other in fell for one, other in near)
    alike = {index for one, other, value in pairs if value >= THRESHOLD for index in (one, other)}
    planted = {index for one, other, _ in pairs for index in (one, other)}
    return {
        "recall": round(found / len(near), 5),
        "fell": len(fell),
        "fell_unlike": len(fell & planted - alike),
        "fell_unplanted": len(fell - planted),
    }


def main(count: int) -> None:
    """Measure both in turn and print one JSON line a figure."""
    texts, pairs = make_texts(count)
    path = WORK / f"texts-{count}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(texts))
    run_ours(texts[:1000])
    ours, peer = [], []
    for _ in range(REPEATS):
        ours.append(run_ours(texts))
        peer.append(run_rensa(path))
    cpu = sorted(seconds for seconds, _ in ours)[REPEATS // 2]
    peer_cpu = sorted(seconds for seconds, _ in peer)[REPEATS // 2]
    size = sum(len(text.encode()) for text in texts)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    common = {"n": REPEATS, "texts": count, "megabytes": round(size / 1e6, 1), "machine": machine}
    lines = [
        {
            "what": "synth/dedup/docs_per_cpu_s",
            "value": round(count / cpu),
            "ours": judge(ours[0][1], pairs),
        },
        {
            "what": "synth/dedup/vs_rensa",
            "value": round(peer_cpu / cpu, 2),
            "peer": {"name": "rensa 0.5.0", "value": round(count / peer_cpu)}
            | judge(peer[0][1], pairs),
        },
    ]
    for line in lines:
        print(json.dumps(line | common), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 100_000)
