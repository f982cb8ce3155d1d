"""Model collapse: students that learn from texts of students, generation by generation.

Generation 0 learns a person's text in pieces of as many tokens as a student reads; every later one
learns, by a rule, what the students before it wrote at temperature 1. All students of a seed start
from the same weights and read what they learn equally often (``--epochs``) or take equally many
steps (``--steps``). Printed are the rises of the loss on pieces that nobody learned, and what the
monitor (``synth.diversity``) says of the data that a generation learned. The results stand in
docs/explanation/model-collapse.md.

Usage: bench_collapse.py TEXT.txt [--rules replace accumulate] [--seeds 3] [--epochs 4] ...
"""

import argparse
import json
from collections.abc import Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.synth.engine_runs import ROOT, say

from stillroom.evaluate.lm.loss import EncodedConversation
from stillroom.evaluate.metrics.bootstrap import bootstrap_two_way
from stillroom.jobs import Job
from stillroom.models.local.generation import complete_prompts
from stillroom.synth.experiments.diversity_monitor import (
    DiversityReference,
    compute_word_budget,
    find_warnings,
)
from stillroom.synth.experiments.students import StudentTrainer
from stillroom.synth.settings import FreshStudent
from stillroom.synth.types import derive_seed
from stillroom.train.precision import limit_threads

RULES = ("replace", "accumulate", "accumulate_subsample")
TOLERANCE = 0.05
Pieces = list[tuple[int, ...]]
"""Token ids of texts: the first token in front, the last one behind if the text ended."""


class Study:
    """Students of one text."""

    def __init__(self, lines: list[str], settings: argparse.Namespace, job: Job) -> None:
        """Cut the text into pieces to learn and pieces to measure on."""
        train = {"steps": settings.steps, "epochs": settings.epochs, "threads": 1}
        student = FreshStudent.model_validate({"train": train})
        np.random.default_rng(settings.seed).shuffle(lines)
        half = len(lines) * settings.pieces // (settings.pieces + settings.held_out)
        self.settings, self.room = settings, student.max_tokens - 1
        self.students = StudentTrainer(student, lines[:half], job)
        self.tokenizer = self.students.tokenizer
        self.human = self.cut(lines[:half])[: settings.pieces]
        self.held_out = self.cut(lines[half:])[: settings.held_out]
        budget = compute_word_budget([self.texts(self.held_out), self.texts(self.human)])
        self.reference = DiversityReference(
            self.texts(self.held_out), budget=min(budget, 6000), seed=settings.seed
        )

    def cut(self, lines: Sequence[str]) -> Pieces:
        """Return pieces that fit a student; only the last of a line has the end token."""
        first, last = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        pieces: Pieces = []
        for line in lines:
            ids = [*self.tokenizer(line, add_special_tokens=False)["input_ids"], last]
            pieces += [
                (last if first is None else first, *ids[start : start + self.room])
                for start in range(0, len(ids), self.room)
            ]
        return pieces

    def texts(self, pieces: Pieces) -> list[str]:
        """Return the pieces as text."""
        return [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in pieces]

    def encode(self, pieces: Pieces) -> list[EncodedConversation]:
        """Mark all but the first token as to be learned."""
        return [EncodedConversation(ids, (False, *[True] * (len(ids) - 1))) for ids in pieces]

    def mix(self, rule: str, written: Sequence[Pieces], seed: int) -> Pieces:
        """Return what a generation learns, in random order; ``written`` is the oldest first."""
        rng = np.random.default_rng(derive_seed(seed, rule, len(written)))
        pool = written[-1] if rule == "replace" else [*self.human, *chain(*written)]
        size = len(pool) if rule == "accumulate" else len(self.human)
        return [pool[index] for index in rng.permutation(len(pool))[:size].tolist()]

    def run_student(self, name: str, data: Pieces, seed: int) -> tuple[list[Any], Any, Pieces]:
        """Return a student's losses on the held-out pieces, figures of its data, its texts."""
        sample = self.texts(data[: len(self.held_out)])  # figures depend on the number of texts
        figures = self.reference.measure(sample, learned=self.texts(data))
        model = self.students.train(self.encode(data), seed, name)
        losses = self.students.losses(model, self.encode(self.held_out))
        prompts = [list(self.human[0][:1])] * len(self.human)
        draws = derive_seed(seed, name, "write")
        written = complete_prompts(
            model,
            self.tokenizer,
            prompts,
            max_new_tokens=self.room,
            temperature=1.0,
            seed=draws,
            batch_size=256,
        )
        return losses, figures, [(*prompts[0], *text.ids) for text in written if text.ids]

    def run(self) -> dict[str, Any]:
        """Train all students; return losses by name and seed, and the monitor's warnings."""
        losses: dict[str, list[list[float]]] = {}
        warned: dict[str, list[dict[str, float]]] = {}
        tokens: list[int] = []
        for number in range(self.settings.seeds):
            seed = derive_seed(self.settings.seed, number)
            found, base, first = self.run_student(f"human-{number}", self.human, seed)
            tokens = [count for _, count in found]
            losses.setdefault("human 0", []).append([nats for nats, _ in found])
            for rule in self.settings.rules:
                written = [first]
                for generation in range(1, self.settings.generations + 1):
                    data, name = self.mix(rule, written, seed), f"{rule} {generation}"
                    found, figures, texts = self.run_student(f"{name}-{number}", data, seed)
                    losses.setdefault(name, []).append([nats for nats, _ in found])
                    alarms = find_warnings(name, figures, base, TOLERANCE)
                    changes = {alarm.figure: round(alarm.change, 3) for alarm in alarms}
                    warned.setdefault(name, []).append(changes)
                    written.append(texts)
                    say(f"warnings, {name}, seed {number}", len(changes), changes=changes)
        return {"losses": losses, "tokens": tokens, "warned": warned}


def main() -> None:
    """Run the study and print how much worse each generation is than generation 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path, help="text of people, a line each")
    parser.add_argument("--rules", nargs="+", choices=RULES, default=RULES[:2])
    for name, default in (("generations", 5), ("seeds", 3), ("pieces", 96), ("held-out", 200)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--steps", type=int, help="steps of a student; instead of epochs")
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--seed", type=int, default=0)
    settings = parser.parse_args()
    out = ROOT / "build" / "bench" / "synth" / "collapse"
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = [line.strip() for line in settings.text.read_text().splitlines() if line.strip()]
    with closing(Job.start(out, "kind: bench.collapse\n", overwrite=True)) as job, limit_threads(1):
        result = Study(lines, settings, job).run()
    out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    start, weights = np.array(result["losses"].pop("human 0")), np.array(result["tokens"], float)
    base = start.sum() / (len(start) * weights.sum())
    for name, losses in result["losses"].items():
        rise = bootstrap_two_way(np.array(losses) - start, weights)
        ends = {"low": round(rise.low / base, 4), "high": round(rise.high / base, 4)}
        times = sum(map(bool, result["warned"][name]))
        say(f"rise of held-out loss, {name}", rise.value / base, **ends, seeds_warned_of=times)


if __name__ == "__main__":
    main()
