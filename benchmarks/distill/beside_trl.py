"""A student on the same budget as TRL's GKD: held-out KL and CPU seconds, one JSON line a seed.

Teacher, pruned start, records, steps, batch, optimizer, schedule and precision (float32) are the
same; both learn forward KL at temperature 1 on the answers' tokens alone, from records (no
rollouts), with the teacher in every step (``live``). Only the order of records differs. Both
students are then measured by one function: KL(teacher || student) and the loss on the answers of
held-out topics. ``cached`` is ours once more, from a teacher cache (top 64 and the rest).

Usage: beside_trl.py [SEED ...]
"""

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics

import torch
from benchmarks.peers import peer_python

from stillroom.checkpoints.gguf import dequantize_gguf
from stillroom.models.hub import resolve_checkpoint
from stillroom.models.local.causal_lm import load_causal_lm
from stillroom.provenance import digest_text
from stillroom.records import Message, Origin, Record, write_records

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "bench" / "distill" / "beside_trl"
WORKER = Path(__file__).with_name("trl_worker.py")
STILLROOM = str(Path(sys.executable).parent / "stillroom")
TEACHER = "hub:HuggingFaceTB/SmolLM2-135M-Instruct"
TRAIN, HELD_OUT, CHARACTERS, SAID, MAX_TOKENS = 240, 40, 600, 360, 256
STEPS, BATCH, RATE = 60, 8, 1.0e-3
RECIPE = """version: 1
kind: distill.logits
seed: {seed}
teacher: {teacher}
records: {records}
student: {student}
method: {{name: forward_kl}}
include_prompt: false
targets: {{mode: {mode}}}
train: {{steps: {steps}, batch_size: {batch}, learning_rate: {rate}, precision: float32}}
max_tokens: {max_tokens}
keep_checkpoints: 0
fidelity: {{records: 0}}
output: {{dtype: float32}}
"""


def make_records(path: Path) -> list[tuple[str, str]]:
    """Write the records, and return question and answer of the held-out ones."""
    pieces: dict[str, list[tuple[str, str]]] = {"train": [], "held_out": []}
    for name in sorted(topics):
        split = "held_out" if int(digest_text(name)[:8], 16) % 5 == 0 else "train"
        piece = ""
        for block in topics[name].split("\n\n"):
            piece = f"{piece}\n\n{block}".strip()
            if len(piece) >= CHARACTERS:
                part = 1 + sum(f'"{name}"' in asked for asked, _ in pieces[split])
                asked = f'What does the Python language reference say of "{name}" (part {part})?'
                pieces[split].append((asked, piece[:SAID]))
                piece = ""
    chosen = {
        split: sorted(found, key=lambda pair: digest_text(" ".join(pair)))[:count]
        for (split, found), count in zip(pieces.items(), (TRAIN, HELD_OUT), strict=True)
    }
    records = [
        Record(
            (Message("user", asked), Message("assistant", said)),
            {"split": split},
            Origin("human", license="PSF-2.0"),
        )
        for split, pairs in chosen.items()
        for asked, said in pairs
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_records(path, records)
    messages = [
        {"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": s}]}
        for a, s in chosen["train"]
    ]
    (WORK / "train.json").write_text(json.dumps(messages))
    return chosen["held_out"]


def timed(command: Sequence[str]) -> dict[str, float]:
    """Run a command; return wall and CPU seconds, and peak memory in MB."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.perf_counter()
    subprocess.run(command, check=True, stdout=sys.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": round(time.perf_counter() - begun, 1), "cpu_s": round(cpu, 1)}


@torch.no_grad()
def measure(folder: Path, teacher: Path, held_out: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Return KL(teacher || folder) and the folder's loss, in nats an answer token."""
    big, tokenizer = load_causal_lm(teacher, dtype="float32")
    small, _ = load_causal_lm(folder, dtype="float32")
    divergence = loss = 0.0
    count = 0
    for asked, said in held_out:
        turns = [{"role": "user", "content": asked}]
        prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        head = tokenizer(prompt, add_special_tokens=False).input_ids
        tail = tokenizer(said, add_special_tokens=False).input_ids
        ids = torch.tensor([(head + tail)[:MAX_TOKENS]])
        rows = slice(len(head) - 1, ids.shape[1] - 1)
        p = torch.log_softmax(big(ids).logits[0, rows].double(), -1)
        q = torch.log_softmax(small(ids).logits[0, rows].double(), -1)
        divergence += float((p.exp() * (p - q)).sum())
        loss -= float(q.gather(1, ids[0, len(head) :, None]).sum())
        count += len(p)
    return {"kl": round(divergence / count, 4), "loss": round(loss / count, 4), "tokens": count}


def run(seed: int, teacher: Path, start: Path, held_out: Sequence[tuple[str, str]]) -> None:
    """Train all of them with one seed and print what came of it."""
    line: dict[str, object] = {"what": "distill/beside_trl", "seed": seed}
    line["start"] = measure(start, teacher, held_out)
    for name in ("trl", "live", "top_k"):
        out = WORK / f"{name}-{seed}"
        shutil.rmtree(out, ignore_errors=True)
        if name == "trl":
            settings = {
                "teacher": str(teacher), "student": str(start), "records": str(WORK / "train.json"),
                "out": str(out), "seed": seed, "steps": STEPS, "batch": BATCH, "rate": RATE,
                "max_tokens": MAX_TOKENS,
            }  # fmt: skip
            python = peer_python("trl", "1.16.0")
            told = timed([str(python), str(WORKER), json.dumps(settings)])
            student = out
        else:
            recipe = WORK / f"{name}-{seed}.yaml"
            recipe.write_text(
                RECIPE.format(
                    seed=seed,
                    teacher=teacher,
                    student=start,
                    records=WORK / "records.jsonl",
                    mode=name,
                    steps=STEPS,
                    batch=BATCH,
                    rate=RATE,
                    max_tokens=MAX_TOKENS,
                )
            )
            told = timed([STILLROOM, "run", str(recipe), "--out", str(out), "--overwrite"])
            student = out / "output"
        line[name] = told | measure(student, teacher, held_out)
    line["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(json.dumps(line), flush=True)


def main(seeds: Sequence[int]) -> None:
    """Prune the start once, then run every seed."""
    held_out = make_records(WORK / "records.jsonl")
    found = resolve_checkpoint(TEACHER)
    teacher = dequantize_gguf(found) if found.suffix == ".gguf" else found
    start = WORK / "start"
    if not (start / "output").exists():
        command = [STILLROOM, "distill", "prune", str(teacher), "--max-parameters", "0.6"]
        command += ["--records", str(WORK / "records.jsonl"), "--out", str(start), "--overwrite"]
        subprocess.run(command, check=True, stdout=sys.stderr)
    for seed in seeds:
        run(seed, teacher, start / "output", held_out)


if __name__ == "__main__":
    main([int(given) for given in sys.argv[1:]] or [0])
