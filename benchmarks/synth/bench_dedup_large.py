"""A job of kind `synth.dedup` on a million records and more: CPU, memory, recall, in one process.

Texts are of a Zipf vocabulary, 15 to 60 words, one in five a copy of an earlier one with up to
three words replaced. Memory is the process's own (anonymous) at its peak, at a quarter of the size
and at the whole; what five million take follows from the slope where fewer are compared, and is
marked as extrapolated.

Usage: bench_dedup_large.py [RECORDS]
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
from benchmarks.commands import compile_package, run_command
from benchmarks.synth.engine_runs import ROOT, say

WORK = ROOT / "build" / "bench" / "synth" / "dedup-large"
WORDS, THRESHOLD, WANTED = 30_000, 0.8, 5_000_000
_BLOCK = 50_000


def write_texts(path: Path, count: int) -> list[tuple[int, int, float]]:
    """Write records; return of each copy its row, the original's, and their similarity."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    vocabulary = ["".join(rng.choice(letters, size=rng.integers(3, 9))) for _ in range(WORDS)]
    weights = 1 / np.arange(1, WORDS + 1)
    weights /= weights.sum()
    kept: list[list[int]] = []
    places: list[int] = []
    pairs = []
    with path.open("w") as file:
        for start in range(0, count, _BLOCK):
            size = min(_BLOCK, count - start)
            lengths = rng.integers(15, 61, size=size)
            drawn = rng.choice(WORDS, size=int(lengths.sum()), p=weights).tolist()
            is_copy = (rng.random(size) < 0.2) & (start > 0)
            at = 0
            for row in range(size):
                words = drawn[at : at + int(lengths[row])]
                at += int(lengths[row])
                if is_copy[row]:
                    chosen = int(rng.integers(0, len(kept)))
                    words = list(kept[chosen])
                    for _ in range(int(rng.integers(0, 4))):
                        words[int(rng.integers(0, len(words)))] = int(rng.integers(0, WORDS))
                    pairs.append((start + row, places[chosen], jaccard(words, kept[chosen])))
                elif len(kept) < 200_000:
                    kept.append(words)
                    places.append(start + row)
                text = " ".join(vocabulary[word] for word in words)
                said = [{"role": "assistant", "content": text}]
                file.write(json.dumps({"messages": said, "row": start + row}) + "\n")
    return pairs


def jaccard(one: list[int], other: list[int]) -> float:
    """Return the similarity of two texts' word 5-grams."""
    left, right = (
        {tuple(words[at : at + 5]) for at in range(max(1, len(words) - 4))}
        for words in (one, other)
    )
    return len(left & right) / len(left | right)


def main(count: int) -> None:
    """Measure both sizes."""
    WORK.mkdir(parents=True, exist_ok=True)
    compile_package("stillroom")
    peaks, costs = [], []
    sizes = (count // 4, count)
    for size in sizes:
        path, out = WORK / f"{size}.jsonl", WORK / f"out-{size}"
        pairs = write_texts(path, size)
        shutil.rmtree(out, ignore_errors=True)
        words = [sys.executable, "-m", "stillroom", "run", "synth.dedup", f"records=[{path}]"]
        cost = run_command([*words, "--out", str(out), "--quiet", "--overwrite"])
        kept = {json.loads(line)["fields"]["row"] for line in (out / "output/records.jsonl").open()}
        near = [(one, other) for one, other, value in pairs if THRESHOLD <= value < 1]
        found = sum(not (one in kept and other in kept) for one, other in near)
        peaks.append(cost.anon_mb)
        costs.append(cost.cpu)
        say(
            f"synth/dedup/large/{size}",
            size / cost.cpu,
            unit="records a CPU second, reading and writing included",
            anon_mb=round(cost.anon_mb, 1),
            wall_s=round(cost.wall, 1),
            recall=round(found / len(near), 5) if near else None,
            kept=len(kept),
        )
        path.unlink()
        shutil.rmtree(out)
    slope = (peaks[1] - peaks[0]) / (sizes[1] - sizes[0])
    say(
        "synth/dedup/large/memory_mb_at_5m",
        peaks[1] + slope * (WANTED - sizes[1]),
        extrapolated_from=sizes if count < WANTED else None,
        bytes_per_record=round(1e6 * slope, 1),
        cpu_s=round(costs[1] * WANTED / sizes[1], 1),
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 1_000_000)
