"""Does a model that is asked again, from the evidence of its answer, write the same bytes?

Questions about twelve words of an index's passages each are answered by the model, in few tokens,
and the predicate of the answer's evidence is kept as a line of ``FOLDER/asked.jsonl``. Each is
then asked again in a new process, from what its line says alone, as ``stillroom verify FILE
--within RUN`` does. Equal are the bytes of the answer's text, and of all the evidence but the time
it was made.

Both halves open the model once, and read what prompts share once (the prefix cache). Every line is
written at once: started again with the same arguments, the script goes on where it was.

``python benchmarks/rag/evidence_again.py RUN FOLDER [--answers 1000] [--tokens 24]
[--model REFERENCE] [--minutes 30]`` prints ``answers/same_again``, and every difference. RUN is a
finished run; with ``--model``, an index.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from stillroom.flow.opening import OpenedRun, find_index, find_model, open_index
from stillroom.provenance import canonical_json
from stillroom.provenance.sources import iter_passages
from stillroom.rag import ask
from stillroom.rag.generation.answer import ANSWER_SAMPLING
from stillroom.rag.generation.evidence import make_evidence, restore_question

Row = Mapping[str, Any]
_WORDS = 12


def list_questions(index: Path, count: int) -> list[str]:
    """Return questions about the first words of each passage, then about those that follow."""
    words = [row["text"].split() for row in iter_passages(index)]
    starts = range(0, max(map(len, words), default=0), _WORDS)
    parts = (some[start : start + _WORDS] for start in starts for some in words)
    asked = (f"What is said of: {' '.join(part)}?" for part in parts if len(part) == _WORDS)
    return list(islice(dict.fromkeys(asked), count))


def read_rows(path: Path) -> dict[str, Row]:
    """Return the rows of a file by their question; a line that a kill cut short is dropped."""
    rows = {}
    for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else ():
        if line.endswith(b"\n"):
            row = json.loads(line)
            rows[row["question"]] = row
    path.write_text("".join(json.dumps(row) + "\n" for row in rows.values()), encoding="utf-8")
    return rows


def write_missing(path: Path, left: list[str], make: Callable[[str], Row], until: float) -> None:
    """Append the row of each question, while there is time."""
    with path.open("a", encoding="utf-8") as file:
        for question in left:
            if time.monotonic() > until:
                return
            file.write(json.dumps(make(question)) + "\n")
            file.flush()


def answer(run: OpenedRun, question: str, tokens: int) -> Row:
    """Return the evidence of the model's answer."""
    sampling, settings = replace(ANSWER_SAMPLING, max_new_tokens=tokens), {"answering": "generate"}
    made = ask(run.index, run.model, question, sampling=sampling, **settings)
    return make_evidence(made, run.index, run.model, question, sampling=sampling, **settings)


def answer_again(run: OpenedRun, stated: Row) -> Row:
    """Return the evidence of the answer to what the evidence of an earlier one says."""
    told = restore_question(stated)
    made = ask(run.index, run.model, told.query, sampling=told.sampling, **told.settings)
    return make_evidence(
        made, run.index, run.model, told.query, sampling=told.sampling, **told.settings
    )


def list_differing(then: Row, now: Row) -> Iterator[str]:
    """Yield the fields of two predicates whose bytes differ."""
    for name in sorted({*then, *now} - {"made"}):
        if canonical_json(then.get(name)) != canonical_json(now.get(name)):
            yield name


def report(asked: Mapping[str, Row], again: Mapping[str, Row], seconds: float) -> None:
    """Print how many answers are the same, and those that are not."""
    differing = {name: list(list_differing(asked[name], again[name])) for name in again}
    for name, fields in differing.items():
        if fields:
            print(f"differs in {', '.join(fields)}: {name}", file=sys.stderr)
    texts = [asked[name]["answer"]["text"] == row["answer"]["text"] for name, row in again.items()]
    line = {
        "what": "answers/same_again",
        "value": sum(texts),
        "unit": "answers",
        "of": len(again),
        "same_evidence": sum(not fields for fields in differing.values()),
        "written_by_model": sum(row["model"]["calls"] > 0 for row in asked.values()),
        "asked": len(asked),
        "cpu_seconds": round(seconds, 1),
    }
    print(json.dumps(line), flush=True)


def main() -> None:
    """Ask, then ask again in a new process, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--answers", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--model", default="")
    parser.add_argument("--minutes", type=float, default=1e6, help="of each half")
    parser.add_argument("--again", action="store_true", help="the second half, in its own process")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    index, until = find_index(options.run), time.monotonic() + 60 * options.minutes
    places = options.folder / "asked.jsonl", options.folder / "again.jsonl"
    asked, again = map(read_rows, places)
    with open_index(index, options.model or find_model(options.run)) as opened:
        if options.again:
            left = [name for name in asked if name not in again]
            write_missing(places[1], left, lambda name: answer_again(opened, asked[name]), until)
        else:
            names = list_questions(index, options.answers)
            left = [name for name in names if name not in asked]
            write_missing(places[0], left, lambda name: answer(opened, name, options.tokens), until)
    if options.again:
        report(asked, read_rows(places[1]), time.process_time())
    else:
        print(json.dumps({"asked": len(read_rows(places[0])), "cpu_s": time.process_time()}))
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--again"], check=True)


if __name__ == "__main__":
    main()
