"""What does a reader gain from questions about the folder that it reads? A curve over their number.

For each set ``NAME=INDEX,QUESTIONS[,RECORDS]`` the pages are split: test questions are about other
pages than the judged questions that train. QUESTIONS is JSON lines that name their page in
``file``; RECORDS is a job of ``grounded_qa`` about the whole folder. A cell trains the packaged
reader by the job ``rag.reader`` with the settings of ``stillroom make``, and ``--train`` in place
of some, on COUNT questions drawn by a seed; nothing is held out of them and the result is kept
whether better or not, since the test questions judge. They are asked as ``ask`` does. ``holds``:
the quotes hold an accepted answer; ``served``: and are given, at the reader's own threshold;
``matched``: at the threshold that leaves as many open questions (those without an answer)
unanswered as the packaged reader does at its own. Silence: ``silent`` on questions with an answer,
``silent_open`` without, ``silent_foreign`` about something else (``--foreign``). ``--share`` goes
only a part of the way from the packaged weights to the trained ones.

``python -m benchmarks.reader.owning SETS ... --work FOLDER [--kind judged] [--counts 300 100 30]
[--seeds 0] [--train KEY=VALUE ...] [--share 1] [--foreign QUESTIONS]``. Cells that FOLDER has are
not run again; the table at the end has all of them, as differences from the untouched reader,
paired, with 95 % intervals by questions (of the mean over seeds: without the variance of seeds).
"""

import argparse
import json
import shutil
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from safetensors.numpy import load_file, save_file

from stillroom.evaluate import Metric, bootstrap, paired_difference
from stillroom.evaluate.metrics.answers import contains_answer
from stillroom.evaluate.qa.questions import JudgedQuestion, read_question_set
from stillroom.flow import run_recipe
from stillroom.flow.make import read_make_recipe
from stillroom.provenance import digest_text, find_output
from stillroom.rag import Index, ask
from stillroom.rag.answer_selection import training_run
from stillroom.rag.answer_selection.reader import (
    BUILTIN_READER,
    WEIGHTS_FILE,
    find_reader,
    open_reader,
)
from stillroom.rag.jobs.reader import ReaderRecipe
from stillroom.testing import scripted_model

SILENT = scripted_model(["a reader asks no model"])
FIGURES = ("holds", "served", "matched", "silent", "silent_open", "silent_foreign")
FOREIGN_QUESTIONS = 40


def main() -> None:
    """Run the cells that are not there, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="+")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--kind", choices=("judged", "synthetic"), default="judged")
    parser.add_argument("--counts", type=int, nargs="*", default=[300, 100, 30])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--train", nargs="*", default=[])
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--test", type=int, default=220, help="test questions of a set")
    parser.add_argument("--foreign", type=Path, help="questions that none of the sets answers")
    options = parser.parse_args()
    foreign = read_question_set(options.foreign)[:FOREIGN_QUESTIONS] if options.foreign else []
    asked = [replace(one, id=f"foreign:{one.id}", answers=()) for one in foreign]
    options.work.mkdir(parents=True, exist_ok=True)
    for text in options.sets:
        name, _, paths = text.partition("=")
        index, questions, *records = map(Path, paths.split(","))
        test, judged = split_pages(questions, options.test)
        pool = judged if options.kind == "judged" else None
        if pool is None:
            pool = read_question_set(records[0], every=True) if records else []
        untouched = {"set": name, "kind": "packaged"}
        run_cell(options.work, untouched, BUILTIN_READER, index, [*test, *asked])
        for seed in options.seeds:
            order = sorted(pool, key=lambda one: digest_text(f"{seed}:{one.id}"))
            for count in options.counts:
                if count > len(order):
                    print(f"left out: {name} has {len(order)} {options.kind} questions")
                    continue
                train = " ".join(options.train)
                key = {
                    "set": name,
                    "kind": options.kind,
                    "count": count,
                    "train": train,
                    "seed": seed,
                }
                reader = tune(options.work, key, index, order[:count], options.train)
                if options.share != 1:
                    key["share"] = options.share
                    reader = mix(reader, options.share)
                run_cell(options.work, key, str(reader), index, [*test, *asked])
    show_table(options.work)


def split_pages(path: Path, most: int) -> tuple[list[JudgedQuestion], list[JudgedQuestion]]:
    """Return the questions of test pages, at least ``most`` of them, and those of the others."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    pages = {str(row["id"]): row["file"] for row in rows}
    groups: dict[str, list[JudgedQuestion]] = defaultdict(list)
    for question in read_question_set(path):
        groups[pages[question.id]].append(question)
    test: list[JudgedQuestion] = []
    names = sorted(groups, key=digest_text)
    while len(test) < most:
        test += groups[names.pop(0)]
    return test, [question for name in names for question in groups[name]]


def tune(
    work: Path, key: dict[str, Any], index: Path, questions: list[JudgedQuestion], train: list[str]
) -> Path:
    """Return the folder of a reader that was trained on all the questions."""
    folder = work / "-".join(str(value).replace(" ", ",") for value in key.values() if value != "")
    if (folder / "artifact.json").is_file():
        return find_output(folder, "checkpoint")
    rows = work / f"{folder.name}.jsonl"
    rows.write_text("".join(json.dumps(one.to_json()) + "\n" for one in questions), "utf-8")
    made: Any = read_make_recipe(work).steps["reader"].recipe
    changed = {name: float(value) for name, _, value in (text.partition("=") for text in train)}
    settings = made.train.model_dump() | {"threads": 1, "states_mb": 0} | changed
    filled = {"index": str(index), "questions": [str(rows)], "seed": key["seed"], "train": settings}
    recipe = ReaderRecipe.model_validate(made.model_dump() | filled)
    with (
        mock.patch.object(training_run, "_split", lambda retrieved, *_: (retrieved, [])),
        mock.patch.object(training_run, "_choose", return_value={"kept": "trained"}),
    ):
        run_recipe(recipe, folder, overwrite=True)
    return find_output(folder, "checkpoint")


def mix(reader: Path, share: float) -> Path:
    """Return a reader whose factors lie between the packaged ones and the trained ones."""
    folder = reader.parent.with_name(f"{reader.parent.name}@{share}")
    shutil.copytree(reader, folder, dirs_exist_ok=True)
    start, end = (load_file(one / WEIGHTS_FILE) for one in (find_reader(BUILTIN_READER), reader))
    mixed = {
        name: (start[name] + share * (end[name].astype(np.float32) - start[name])).astype("float16")
        for name in end
    }
    save_file(mixed, folder / WEIGHTS_FILE)
    return folder


def run_cell(
    work: Path, key: dict[str, Any], reader: str, index: Path, test: list[JudgedQuestion]
) -> None:
    """Ask the questions that the cell has not, and add the answers to the file of cells."""
    known = {row[0] for cell in read_cells(work) if cell["key"] == key for row in cell["answers"]}
    if not (new := [one for one in test if one.id not in known]):
        return
    started = time.process_time()
    settings = {"name": "quote", "reader": reader, "min_probability": 0.0}
    threshold = open_reader(reader).threshold
    rows = []
    with Index.open(index) as opened:
        for question in new:
            answer = ask(opened, SILENT, question.text, answering=settings)
            text = "\n".join(part["text"] for part in answer.details.get("quotes", ()))
            steps = [step for step in answer.details["trace"] if step["step"] == "select"]
            chance = steps[0]["probability"] if steps else 0.0
            holds = contains_answer(text, question.answers) if question.answers else None
            rows.append([question.id, holds, chance >= threshold, chance])
    line = json.dumps({"key": key, "cpu_s": time.process_time() - started, "answers": rows})
    with (work / "cells.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def read_cells(work: Path) -> list[dict[str, Any]]:
    """Return the cells that were run, the untouched readers first."""
    path = work / "cells.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    cells: dict[str, dict[str, Any]] = {}
    for cell in sorted(map(json.loads, lines), key=lambda one: one["key"]["kind"] != "packaged"):
        known = cells.setdefault(json.dumps(cell["key"]), {"key": cell["key"], "answers": []})
        known["answers"] += cell["answers"]
    return list(cells.values())


def read_figures(cell: dict[str, Any], silent: int | None) -> dict[str, dict[str, float]]:
    """Return a value of each question that a figure is about.

    ``silent`` is the number of open questions that ``matched`` leaves unanswered; None stands for
    as many as the cell does.
    """
    figures: dict[str, dict[str, float]] = {figure: {} for figure in FIGURES}
    without = [row for row in cell["answers"] if row[1] is None and row[0][:8] != "foreign:"]
    if silent is None:
        silent = sum(not spoken for _, _, spoken, _ in without)
    least = sorted([0.0, *(chance for *_, chance in without)])[silent]
    for name, holds, spoken, chance in cell["answers"]:
        if holds is None:
            kind = "silent_foreign" if name.startswith("foreign:") else "silent_open"
            figures[kind][name] = float(not spoken)
        else:
            figures["holds"][name] = float(holds)
            figures["served"][name] = float(holds and spoken)
            figures["matched"][name] = float(holds and chance > least)
            figures["silent"][name] = float(not spoken)
    return figures


def show_table(work: Path) -> None:
    """Print one JSON line a figure: of each set, and of all sets that a setting was tried on."""
    before: dict[str, dict[str, dict[str, float]]] = {}
    groups: dict[tuple[str, str], list[dict[str, dict[str, float]]]] = defaultdict(list)
    for cell in read_cells(work):
        name = cell["key"].pop("set")
        if cell["key"]["kind"] == "packaged":
            before[name] = read_figures(cell, None)
            for figure, values in before[name].items():
                show(f"{name}/packaged/{figure}", bootstrap(list(values.values()), name=figure))
            continue
        cell["key"].pop("seed")
        label = " ".join(str(value) for value in cell["key"].values() if value != "")
        silent = round(sum(before[name]["silent_open"].values()))
        groups[label, name].append(read_figures(cell, silent))
    for label in dict.fromkeys(label for label, _ in groups):
        sets = [name for known, name in groups if known == label]
        for figure in FIGURES:
            ours, theirs, pooled = [], [], []
            for name in sets:
                cells, start = groups[label, name], before[name][figure]
                found = [one for one in start if all(one in cell[figure] for cell in cells)]
                means = [float(np.mean([cell[figure][one] for cell in cells])) for one in found]
                starts = [start[one] for one in found]
                show(f"{name}/{label}/{figure}", paired_difference(means, starts), len(cells))
                ours, theirs = ours + means, theirs + starts
                pooled += [name] if found else []
            if len(pooled) > 1:
                show(f"{'+'.join(pooled)}/{label}/{figure}", paired_difference(ours, theirs))


def show(name: str, metric: Metric, seeds: int | None = None) -> None:
    """Print a figure as one line of JSON; nothing of no question."""
    if metric.n:
        row = {key: round(getattr(metric, key), 3) for key in ("value", "low", "high")}
        told = {"name": name, **row, "n": metric.n, **({"seeds": seeds} if seeds else {})}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
