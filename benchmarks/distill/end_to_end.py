"""A student of SmolLM2-135M on a public text, beside the equal-budget baseline: KL and wall clock.

The text is Python's language reference, which every Python carries; whole topics are held out.
Prints one JSON line a seed. Usage: end_to_end.py [SEED ...]
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from pydoc_data.topics import topics

from stillroom.provenance import digest_text
from stillroom.records import Message, Origin, Record, write_records

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "bench" / "distill" / "end_to_end"
STILLROOM = str(Path(sys.executable).parent / "stillroom")
TRAIN, HELD_OUT = 240, 40
CHARACTERS = 600
RECIPE = """version: 1
kind: distill.logits
seed: {seed}
teacher: hub:HuggingFaceTB/SmolLM2-135M-Instruct
records: {records}
student: {{max_parameters: 0.6, prune: inner}}
method: {{name: forward_kl}}
train: {{steps: 60, batch_size: 8, learning_rate: 1.0e-3}}
max_tokens: 192
keep_checkpoints: 0
fidelity: {{records: {held_out}, answers: 0, speed: false}}
"""


def make_records(path: Path) -> None:
    """Cut the topics into pieces at blank lines; a fifth of the topics is held out."""
    pieces: dict[str, list[Record]] = {"train": [], "held_out": []}
    for name in sorted(topics):
        split = "held_out" if int(digest_text(name)[:8], 16) % 5 == 0 else "train"
        piece = ""
        for block in topics[name].split("\n\n"):
            piece = f"{piece}\n\n{block}".strip()
            if len(piece) >= CHARACTERS:
                origin = Origin("human", license="PSF-2.0")
                said = (Message("assistant", piece[: 2 * CHARACTERS]),)
                pieces[split].append(Record(said, {"split": split, "topic": name}, origin))
                piece = ""
    chosen = []
    for split, count in (("train", TRAIN), ("held_out", HELD_OUT)):
        ordered = sorted(pieces[split], key=lambda record: digest_text(record.id))
        chosen += ordered[:count]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_records(path, chosen)


def run(seed: int) -> None:
    """Distill with the baseline, and print what came of it."""
    records = WORK / "records.jsonl"
    make_records(records)
    recipe, out = WORK / f"recipe-{seed}.yaml", WORK / f"student-{seed}"
    recipe.write_text(RECIPE.format(seed=seed, records=records, held_out=HELD_OUT))
    shutil.rmtree(out, ignore_errors=True)
    begun = time.perf_counter()
    subprocess.run(
        [STILLROOM, "run", str(recipe), "--out", str(out), "--overwrite"],
        check=True,
        stdout=sys.stderr,
    )
    wall = time.perf_counter() - begun
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    phases = {event["name"]: event["seconds"] for event in events if event.get("event") == "phase"}
    artifact = json.loads((out / "artifact.json").read_text())
    details = artifact["details"]
    line = {
        "what": "distill/end_to_end",
        "seed": seed,
        "wall_s": round(wall, 1),
        "phases_s": phases,
        "share_of_parameters": round(details["parameters"] / details["teacher_parameters"], 4),
        "fidelity": details["fidelity"]["summary"],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    for given in sys.argv[1:] or ["0"]:
        run(int(given))
