"""Planted faults among human records: is a student of kept records better than one of unfiltered?

Human questions with the sentence that answers them are learned; half of the records get a fault
(another record's answer, its words shuffled, a refusal); a job of kind ``synth.data_value``
says what a student loses without each kind and learns from it alone, on held-out human records. A
planted experiment shows that the measure sees what is there; it is no claim about what a teacher
writes.

With ``--raw`` nothing is planted: the lines of a text as they stand (headings, fragments and
paragraphs of WikiText-2, say) go through the room's filters at their defaults, and a student of
kept lines is compared with one of as many unfiltered ones, and of as many tokens of unfiltered
ones, on paragraphs of the SQuAD file.

With ``--written`` the records of a synth run are compared: as many kept as unfiltered ones teach a
low-rank student of SmolLM2-135M, which is measured on human questions of the SQuAD file about other
articles. The run's documents are to be the paragraphs of all articles but the last five.

Usage: bench_worth.py [SQUAD.json] [SEEDS] [--raw TEXT.txt | --written RUN]
"""

import argparse
import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.synth.engine_runs import ROOT, say

from stillroom.jobs import Job
from stillroom.recipes import dump_recipe
from stillroom.records import Message, Origin, Record, write_records
from stillroom.synth.experiments.ablations import DataValueResults
from stillroom.synth.experiments.data_value import make_leaderboard, run_data_value_study
from stillroom.synth.jobs.data_value import DataValueRecipe
from stillroom.synth.settings import CheckpointStudent, FreshStudent

WORK = ROOT / "build" / "bench" / "synth" / "worth"
LEARNED, HELD_OUT = 600, 150
FAULTS = ("other", "shuffled", "refusal")
FILTERS = ("gopher_quality", "repetition", "length", "duplicate")
STUDENT = FreshStudent.model_validate(
    {"train": {"steps": 80, "batch_size": 8, "threads": 1, "log_every": 80}}
)
TUNED = CheckpointStudent.model_validate(
    {
        "checkpoint": "hub:HuggingFaceTB/SmolLM2-135M-Instruct",
        "max_tokens": 160,
        "train": {
            "steps": None,
            "batch_size": 8,
            "micro_tokens": 4096,
            "learning_rate": 5e-4,
            "lora": {"rank": 8},
            "precision": "float32",
            "threads": 2,
            "log_every": 10,
        },
    }
)
LAST_ARTICLES = 5


def read_pairs(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield question, answering sentence and article of each human question."""
    for article in json.loads(path.read_text())["data"]:
        for paragraph in article["paragraphs"]:
            text = paragraph["context"]
            for asked in paragraph["qas"]:
                if asked["answers"]:
                    at = asked["answers"][0]["answer_start"]
                    yield asked["question"].strip(), sentence_at(text, at), article["title"]


def sentence_at(text: str, at: int) -> str:
    """Return the sentence that holds a place."""
    begin = max((one.end() for one in re.finditer(r"(?<=[.!?])\s+(?=[A-Z])", text[:at])), default=0)
    found = re.search(r"[.!?](?=\s+[A-Z]|\s*$)", text[at:])
    return text[begin : at + found.end() if found else len(text)].strip()


def plant(record: Record, others: Sequence[Record], fault: str, rng: random.Random) -> Record:
    """Return the record with a fault in its answer."""
    answer = record.messages[1].content
    if fault == "other":
        answer = rng.choice(others).messages[1].content
    elif fault == "shuffled":
        told = answer.split()
        answer = " ".join(rng.sample(told, len(told)))
    else:
        answer = "I am sorry, but as a language model I cannot answer that."
    turns = (record.messages[0], Message("assistant", answer))
    return replace(record, messages=turns, fields={**record.fields, "fault": fault})


def main(path: Path, seeds: int) -> None:
    """Plant, judge, and measure what the judging was worth."""
    rng = random.Random(0)
    pairs = list(read_pairs(path))
    rng.shuffle(pairs)
    records = [
        Record(
            (Message("user", question), Message("assistant", answer)),
            {"document_id": title, "fault": "none"},
            Origin("human"),
        )
        for question, answer, title in pairs
    ]
    held_out, rest = records[:HELD_OUT], records[HELD_OUT : HELD_OUT + LEARNED]
    mixed = [
        plant(one, rest, FAULTS[at % len(FAULTS)], rng) if at % 2 else one
        for at, one in enumerate(rest)
    ]
    WORK.mkdir(parents=True, exist_ok=True)
    write_records(WORK / "human.jsonl", held_out)
    write_records(WORK / "mixed.jsonl", mixed)
    recipe = DataValueRecipe(
        records=(str(WORK / "mixed.jsonl"),),
        human=str(WORK / "human.jsonl"),
        by="fault",
        num_seeds=seeds,
        num_held_out=HELD_OUT,
        student=STUDENT,
    )
    measured = measure(recipe, WORK / "report")
    for row in make_leaderboard(measured):
        say(
            f"synth/worth/planted/{row.family}/{row.group}",
            row.worth.value,
            low=round(row.worth.low, 4),
            high=round(row.worth.high, 4),
            verdict=row.verdict,
            unit="nats a token at equal tokens",
            seeds=seeds,
            n=HELD_OUT,
        )


def filter_lines(raw: Path) -> Path:
    """Put the lines of a text through the filters; return the folder of what was kept."""
    lines = [line.strip() for line in raw.read_text().splitlines()]
    records = [
        Record((Message("assistant", line),), {"document_id": str(at)}, Origin("human"))
        for at, line in enumerate(lines)
        if line
    ]
    write_records(WORK / "raw.jsonl", records)
    recipe = {
        "version": 1,
        "kind": "synth.records",
        "seeds": str(WORK / "raw.jsonl"),
        "held_out": 0,
        "pipeline": {"steps": {"clean": {"filters": list(FILTERS)}}},
    }
    path, out = WORK / "filters.yaml", WORK / "filtered"
    path.write_text(json.dumps(recipe))
    words = [sys.executable, "-m", "stillroom", "run", str(path), "--out", str(out), "--quiet"]
    subprocess.run([*words, "--overwrite"], check=True, stdout=subprocess.DEVNULL)
    return out


def measure_filters(squad: Path, raw: Path, seeds: int) -> None:
    """Filter a text as it stands, and measure what that was worth."""
    WORK.mkdir(parents=True, exist_ok=True)
    contexts = [
        paragraph["context"]
        for article in json.loads(squad.read_text())["data"]
        for paragraph in article["paragraphs"]
    ]
    random.Random(0).shuffle(contexts)
    human = [Record((Message("assistant", one),), {}, Origin("human")) for one in contexts]
    write_records(WORK / "paragraphs.jsonl", human[:HELD_OUT])
    run = filter_lines(raw)
    compare_kept("filters", run, WORK / "paragraphs.jsonl", seeds, STUDENT, filters=FILTERS)


def measure(recipe: DataValueRecipe, out: Path) -> DataValueResults:
    """Return what the groups of a recipe are worth."""
    job = Job.start(out, dump_recipe(recipe), seed=recipe.seed, overwrite=True)
    try:
        return run_data_value_study(recipe, job)[2]
    finally:
        job.close()


def compare_kept(
    name: str,
    run: Path,
    human: Path,
    seeds: int,
    student: FreshStudent | CheckpointStudent,
    **told: object,
) -> None:
    """Say what is lost by what a run dropped, at equal records and at equal tokens."""
    for equal in ("records", "tokens"):
        recipe = DataValueRecipe(
            records=(str(run),),
            human=str(human),
            by="filter",
            num_seeds=seeds,
            num_records=LEARNED,
            num_held_out=HELD_OUT,
            equal=equal,
            student=student,
            groups=("all filters",),
        )
        measured = measure(recipe, WORK / f"{name}-{equal}")
        for row in make_leaderboard(measured):
            say(
                f"synth/worth/{name}/{equal}/{row.group}",
                row.worth.value,
                low=round(row.worth.low, 4),
                high=round(row.worth.high, 4),
                verdict=row.verdict,
                unit=f"nats a token at equal {equal}",
                seeds=seeds,
                n=HELD_OUT,
                **told,
            )


def measure_written(squad: Path, run: Path, seeds: int) -> None:
    """Compare what a run kept with as much of all that it wrote."""
    WORK.mkdir(parents=True, exist_ok=True)
    articles = [article["title"] for article in json.loads(squad.read_text())["data"]]
    apart = set(articles[-LAST_ARTICLES:])
    pairs = [pair for pair in read_pairs(squad) if pair[2] in apart]
    random.Random(0).shuffle(pairs)
    human = [
        Record(
            (Message("user", question), Message("assistant", answer)),
            {"document_id": title},
            Origin("human"),
        )
        for question, answer, title in pairs
    ]
    write_records(WORK / "asked.jsonl", human)
    compare_kept("written", run, WORK / "asked.jsonl", seeds, TUNED)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What filters are worth to a student.")
    parser.add_argument("squad", nargs="?", type=Path)
    parser.add_argument("seeds", nargs="?", type=int, default=3)
    parser.add_argument("--raw", type=Path)
    parser.add_argument("--written", type=Path)
    told = parser.parse_args()
    if told.squad is None:
        print("no figures of worth: name a file in SQuAD's format", file=sys.stderr)
    elif told.written is not None:
        measure_written(told.squad, told.written, told.seeds)
    elif told.raw is not None:
        measure_filters(told.squad, told.raw, told.seeds)
    else:
        main(told.squad, told.seeds)
