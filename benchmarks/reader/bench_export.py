"""Do adapter, merged checkpoint and GGUF files answer alike? The figures of ``models.gguf``.

``make bench WHAT=reader MODEL=FOLDER QUESTIONS=FILE`` asks questions of people of all forms of a
checkpoint. Without MODEL, MODEL_BASE (SmolLM2-135M-Instruct) is tuned with LoRA for 20 steps on
every fifth question of QUESTIONS with its answer, below ``build/bench``; every fifth with an offset
of 2 is asked, COUNT (200) at most. ``reader/export/{greedy_equal,kl}`` are those of the
worst gated form (adapter or float16 export); ``reader/export/q8_0/*`` is what quantization costs.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from stillroom.evaluate.qa.questions import read_question_set
from stillroom.flow import run_recipe
from stillroom.models.gguf.agreement import FormComparison, compare_export
from stillroom.models.gguf.export import export_gguf
from stillroom.provenance import find_output
from stillroom.recipes import parse_recipe
from stillroom.records import Message, Record, write_records

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS = Path(os.environ.get("QUESTIONS") or ROOT / "scripts/demo_questions.jsonl")
EVERY, ASKED, TAUGHT = 5, 2, 120


def main() -> None:
    """Print one JSON line a figure."""
    asked = read_question_set(QUESTIONS)
    given = os.environ.get("MODEL", "")
    model = Path(given) if given else tune()
    texts = [one.text for one in (asked if len(asked) < 100 else asked[ASKED::EVERY])]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "student.gguf"
        count = int(os.environ.get("COUNT", "200"))
        found: list[FormComparison] = []

        def prove(file: Path, kind: str) -> None:
            found.append(
                compare_export(find_output(model, "checkpoint"), file, kind, texts[:count])
            )

        export_gguf(find_output(model, "checkpoint"), path, type="q8_0", prove=prove)
    show(found[0])


def tune() -> Path:
    """Tune the base with LoRA, once, and return the job's folder."""
    place = ROOT / "build/bench/export"
    place.mkdir(parents=True, exist_ok=True)
    base = os.environ.get("MODEL_BASE", "hub:HuggingFaceTB/SmolLM2-135M-Instruct")
    taught = [one for one in read_question_set(QUESTIONS)[::EVERY] if one.answers][:TAUGHT]
    records = place / "records.jsonl"
    write_records(
        records,
        [
            Record((Message("user", one.text), Message("assistant", one.answers[0])),
                   {"split": "train"})
            for one in taught
        ],
    )  # fmt: skip
    recipe = parse_recipe(
        f"""\
version: 1
kind: distill.supervised
teacher: {base}
student: {base}
records: {records}
train: {{steps: 20, batch_size: 4, learning_rate: 0.0005, lora: {{rank: 16, keep_adapter: true}}}}
fidelity: {{records: 0, baseline: false, answers: 0, speed: false}}
keep_checkpoints: 0
"""
    )
    run_recipe(recipe, place / "lora", resume=True)
    return place / "lora"


def show(found: FormComparison) -> None:
    """Print the figures."""
    print(found.describe("student.gguf"), file=sys.stderr)
    rows = {form.form: form for form in found.forms}
    gated = [form for form in found.forms if form.is_gated]
    worst = {
        "greedy_equal": min(gated, key=lambda form: form.equal_answers / form.questions),
        "kl": max(gated, key=lambda form: form.kl),
    }
    for name, form in (*((f"/{name}", form) for name, form in rows.items()), ("", worst)):
        equal, divergence = (form["greedy_equal"], form["kl"]) if form is worst else (form, form)
        figures = (
            ("greedy_equal", equal.equal_answers / equal.questions, equal.questions, "share"),
            ("kl", divergence.kl, divergence.positions, "nats"),
        )
        for figure, value, n, unit in figures:
            print(json.dumps({"name": f"reader/export{name}/{figure}", "value": value, "unit": unit,
                              "n": n}), flush=True)  # fmt: skip
    sizes = {"checkpoint": found.size_bytes} | {
        name: form.size_bytes for name, form in rows.items()
    }
    for name, size in sizes.items():
        print(json.dumps({"name": f"reader/export/{name}/bytes", "value": size, "unit": "bytes"}))


if __name__ == "__main__":
    main()
