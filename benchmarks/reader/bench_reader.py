"""Is a reader worth it? The figures of ``rag.answer_evaluation`` on sets of people's questions.

``make bench WHAT=reader SETS="NAME=INDEX,QUESTIONS ..." RUN=build/demo/run`` asks every set's
questions of the arms ``owned`` (the reader of RUN), ``packaged``, ``sentence`` and ``base`` (MODEL,
on MODEL_QUESTIONS of them), by the path that serves. Without SETS the set is the demo's ten
questions about the Python language reference, indexed below ``build/bench``. Quotes are verified by
``benchmarks/rag/verbatim_quotes.py``. Figures whose arm is not here are listed as left out.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.rag import verbatim_quotes

from stillroom.errors import StillroomError
from stillroom.flow import run_recipe
from stillroom.flow.opening import find_reader, find_step
from stillroom.models import resolve_checkpoint
from stillroom.provenance import find_output, read_artifact
from stillroom.rag.answer_selection.reader import BUILTIN_READER, OVERLAP_READER
from stillroom.rag.jobs.answer_evaluation import AnswerEvaluationRecipe
from stillroom.rag.jobs.index import IndexRecipe

ROOT = Path(__file__).resolve().parents[2]
ARMS = ("owned", "base", "sentence", "sft", "small")
FIGURES = ("holds", "silent_unanswerable", "silent_answerable", "cited")
OTHERS = ("reader/cpu_s_a_question", "reader/verbatim_share", "reader/records/yield",
          "reader/records/poor_share")  # fmt: skip
REASONS = {
    "owned": "no run has a reader of its own (RUN=FOLDER)",
    "base": "the model is not here (MODEL=REFERENCE)",
    "sft": "no arm of plain fine-tuning was run",
    "small": "no small variant was run",
    "reader/records/poor_share": "people have to read the records",
    "reader/records/yield": "no run has records (RUN=FOLDER)",
}


def main() -> None:
    """Print one JSON line a figure, and one for each that was left out."""
    run = Path(os.environ.get("RUN") or ROOT / "build/demo/run")
    readers = find_readers(run)
    model = os.environ.get("MODEL", "hub:HuggingFaceTB/SmolLM2-135M-Instruct")
    told: set[str] = set()
    for text in os.environ.get("SETS", "").split() or [make_demo_set()]:
        name, _, paths = text.partition("=")
        index, _, questions = paths.partition(",")
        for metric in evaluate(Path(index), Path(questions), readers, model):
            for key, value in rename(metric):
                told.add(key)
                show(key, value, n=metric["n"], set=name)
    options = argparse.Namespace(
        answers=int(os.environ.get("ANSWERS", "600")), documents=[], reader=BUILTIN_READER,
        embedder="static", seed=0,
    )  # fmt: skip
    figure = verbatim_quotes.measure(options)
    told.add(figure["name"])
    print(json.dumps(figure), flush=True)
    if counts := count_records(run):
        told.add("reader/records/yield")
        show("reader/records/yield", counts[0] / counts[1], n=counts[1])
    wanted = [f"reader/{arm}/{figure}" for arm in ARMS for figure in FIGURES]
    wanted += ["reader/owned_minus_sentence/value", "reader/owned_minus_sentence/low", *OTHERS]
    for key in wanted:
        if key not in told:
            parts = key.split("/")
            arm = parts[1].partition("_minus")[0]
            why = REASONS.get(key) or REASONS.get("/".join(parts[:2])) or REASONS.get(arm, "")
            if f"reader/{arm}/holds" in told:  # the arm was run
                why = ""
            print(json.dumps({"name": key, "left_out": why or "not measured on these questions"}))


def find_readers(run: Path) -> dict[str, str]:
    """Return the readers to compare; the first is the one that is measured."""
    known = {"packaged": BUILTIN_READER, "sentence": OVERLAP_READER}
    owned = find_reader(run) if (run / "artifact.json").is_file() else ""
    return {"owned": owned, **known} if Path(owned).is_dir() and owned else known


def make_demo_set() -> str:
    """Index the demo's documents, once, and return the set of its ten questions."""
    place = ROOT / "build/bench/reader"
    if not (place / "index/artifact.json").is_file():
        writer = [sys.executable, str(ROOT / "scripts/write_demo_documents.py")]
        subprocess.run([*writer, str(place / "documents")], check=True, stdout=sys.stderr)
        recipe = IndexRecipe(
            documents=str(place / "documents"), chunker={"name": "heading", "size": 160}
        )
        run_recipe(recipe, place / "index", resume=True)
    return f"demo={place / 'index'},{ROOT / 'scripts/demo_questions.jsonl'}"


def evaluate(
    index: Path, questions: Path, readers: dict[str, str], model: str
) -> list[dict[str, Any]]:
    """Return the figures of a comparison of the readers and the model."""
    count = int(os.environ.get("MODEL_QUESTIONS", "10"))
    try:
        resolve_checkpoint(model)
    except StillroomError as error:
        print(f"left out the arm base: {error}", file=sys.stderr)
        count = 0
    recipe = AnswerEvaluationRecipe(
        index=str(find_step(index, "index") if (index / "steps").is_dir() else index),
        questions=str(questions),
        model=model,
        pipelines=["convex=>generate"],
        compare={"readers": readers, "model_questions": count},
    )
    with tempfile.TemporaryDirectory() as folder:
        run_recipe(recipe, Path(folder) / "report")
        report = find_output(Path(folder) / "report", "report") / "report.json"
        metrics = json.loads(report.read_text(encoding="utf-8"))["metrics"]
    return [metric for metric in metrics if metric["name"].startswith("reader/")]


def rename(metric: dict[str, Any]) -> list[tuple[str, float]]:
    """Return the figures of a metric; a difference has its value and the ends of its interval."""
    if "_minus_" not in metric["name"]:
        return [(metric["name"], metric["value"])]
    return [(f"{metric['name']}/{end}", metric[end]) for end in ("value", "low", "high")]


def count_records(run: Path) -> tuple[int, int] | None:
    """Return the kept records of a run and the requests that were made for them."""
    try:
        step = run / read_artifact(run).details["steps"]["records"]
        text = (find_output(step, "records") / "report.json").read_text(encoding="utf-8")
    except (StillroomError, OSError, KeyError):
        return None
    counts = json.loads(text)
    return counts["splits"]["train"]["kept"], counts["spent"]["asks"]


def show(name: str, value: float | None, **more: Any) -> None:
    """Print a figure as one line of JSON."""
    print(json.dumps({"name": name, "value": value, **more}), flush=True)


if __name__ == "__main__":
    main()
