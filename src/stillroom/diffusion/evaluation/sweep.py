"""Decoding sweep: quality against forward passes and seconds for a grid of settings.

Every setting of a grid writes every record's answer; beside them stands LLaDA's own algorithm (one
place a step, nothing kept) as what nothing is lost against. Of what no other setting beats in all
three respects, the Pareto set, the cheapest that loses no more than is allowed becomes the choice.
Knows models and requests; the job around it is ``tuning_job``.

Seconds depend on the clock, so the report and the preset are no part of the artifact's digest.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stillroom.diffusion.model.network import DiffusionModel
from stillroom.diffusion.sampling.sampler import generate
from stillroom.diffusion.sampling.sequence import InfillRequest, build_prompt_request
from stillroom.diffusion.sampling.settings import (
    PRESET_FILE,
    DecodeSettings,
    DecodingPreset,
    write_preset,
)
from stillroom.errors import DataError, RecipeError
from stillroom.evaluate.metrics.bootstrap import Metric, bootstrap, paired_difference
from stillroom.evaluate.report import Report, Table
from stillroom.jobs import Job, Reporter
from stillroom.provenance import Artifact, Parent, digest_file, digest_json
from stillroom.recipes.loader import parse_group
from stillroom.recipes.yaml_text import emit_yaml
from stillroom.records import Prompt, Record, read_records
from stillroom.text.unicode import exact_match, token_f1

__all__ = [
    "QUALITY_METRICS",
    "DecodingSweepPlan",
    "DecodingSweepResult",
    "SweepCandidate",
    "SweepCase",
    "SweepTrial",
    "build_cases",
    "choose_setting",
    "expand_grid",
    "find_pareto_front",
    "run_trial",
    "sweep_decoding",
]


BASELINE_LABEL = "one place a step, nothing kept"


DEFAULT_GRID = (
    ("commit.threshold", ("0.7", "0.8", "0.9", "0.95")),
    ("block_length", ("null", "16", "32")),
    ("cache", ("null", "prefix", "dual", "delayed")),
    ("order", ("confidence", "margin")),
)


_MAX_ANSWER_TOKENS = 256


def _is_exact(found: str, wanted: str) -> float:
    return float(found.strip() == wanted.strip())


QUALITY_METRICS: Mapping[str, Callable[[str, str], float]] = {
    "f1": token_f1,
    "exact": exact_match,
    "same": _is_exact,
}


"""How a text is compared with the record's answer: words shared, equal words, equal characters."""


@dataclass(frozen=True, slots=True)
class SweepCandidate:
    """Settings that are tried, under the words that make them different."""

    label: str
    settings: DecodeSettings


@dataclass(frozen=True, slots=True)
class SweepCase:
    """A record as it is asked: the request, and the answer it should come to."""

    id: str
    request: InfillRequest
    answer: str


@dataclass(frozen=True, slots=True)
class SweepTrial:
    """What one setting came to on one record.

    Args:
        quality: By the measure, 0 to 1.
        nfe: Readings of the model.
        cpu_s: Processor seconds.
        tokens: Tokens written before the end.
        drift: How far kept states had moved when they were read again, 0 to 2; None where nothing
            was kept.
    """

    quality: float
    nfe: int
    cpu_s: float
    tokens: int
    drift: float | None

    def to_json(self) -> list[Any]:
        """Return plain values."""
        return [self.quality, self.nfe, self.cpu_s, self.tokens, self.drift]


@dataclass(frozen=True, slots=True)
class DecodingSweepResult:
    """What one setting came to on all records."""

    candidate: SweepCandidate
    trials: tuple[SweepTrial, ...]

    @property
    def quality(self) -> float:
        """Mean over the records."""
        return sum(trial.quality for trial in self.trials) / len(self.trials)

    @property
    def nfe(self) -> float:
        """Readings a text."""
        return sum(trial.nfe for trial in self.trials) / len(self.trials)

    @property
    def cpu_s(self) -> float:
        """Processor seconds a text."""
        return sum(trial.cpu_s for trial in self.trials) / len(self.trials)

    @property
    def tokens_per_s(self) -> float:
        """Tokens before the end a processor second."""
        return sum(t.tokens for t in self.trials) / max(sum(t.cpu_s for t in self.trials), 1e-9)

    @property
    def drift(self) -> float | None:
        """Mean over the records that kept something."""
        known = [trial.drift for trial in self.trials if trial.drift is not None]
        return sum(known) / len(known) if known else None

    def interval(self, seed: int = 0) -> Metric:
        """Return the quality with its interval."""
        values = [trial.quality for trial in self.trials]
        return bootstrap(values, seed=seed, name=self.candidate.label)

    def loss_against(self, other: DecodingSweepResult, seed: int = 0) -> Metric:
        """Return how much quality is lost against another, record by record."""
        return paired_difference(
            [trial.quality for trial in other.trials],
            [trial.quality for trial in self.trials],
            seed=seed,
            name=f"loss/{self.candidate.label}",
        )


def expand_grid(
    model: DiffusionModel, words: Sequence[str], fixed: Sequence[str], max_new_tokens: int
) -> tuple[list[SweepCandidate], list[str]]:
    """Return the baseline and every setting of a grid that the model can do, and what it cannot.

    Args:
        model: What will write.
        words: ``KEY=VALUE,VALUE`` each, as ``commit.threshold=0.8,0.9``; in place of the default
            grid's row of that key, or added to it.
        fixed: ``KEY=VALUE`` that all have.
        max_new_tokens: Places of every text, where ``fixed`` names none.

    Raises:
        RecipeError: If a word or value is none, or nothing is left to try.
    """
    rows = dict(DEFAULT_GRID)
    if model.metadata.block_size is not None:
        rows |= {"block_length": ("null",), "cache": ("null",)}  # exact by itself
    for word in words:
        key, _, listed = word.partition("=")
        if not key or not listed:
            raise RecipeError(
                f"--try {word!r} is not KEY=VALUE,VALUE",
                code="diffusion.tune",
                expected="as commit.threshold=0.8,0.9",
                next="see the settings in `stillroom diffusion sample --help`",
            )
        rows[key] = tuple(listed.split(","))
    base = [f"max_new_tokens={max_new_tokens}", *fixed]
    plain = [*base, "commit.name=top_k", "commit.k=1", "cache=whole"]
    found = [SweepCandidate(BASELINE_LABEL, parse_group(DecodeSettings, overrides=plain))]
    left_out: list[str] = []
    seen: set[str] = set()
    for values in itertools.product(*rows.values()):
        chosen = [f"{key}={value}" for key, value in zip(rows, values, strict=True)]
        label = _label(rows, values)
        settings = parse_group(DecodeSettings, overrides=[*base, *chosen])
        try:
            settings.check_against(model.metadata)
        except RecipeError:
            left_out.append(label)
            continue
        if _is_duplicate(settings, seen):
            continue
        found.append(SweepCandidate(label, settings))
    if len(found) == 1:
        raise RecipeError(
            "no setting of the grid goes with this model",
            code="diffusion.tune",
            expected="settings that fit its attention",
            next="give others by --try",
        )
    return found, left_out


def _label(rows: Mapping[str, Sequence[str]], values: Sequence[str]) -> str:
    """Return what makes settings different from the others of the grid."""
    pairs = [(key, value) for key, value in zip(rows, values, strict=True) if len(rows[key]) > 1]
    pairs = pairs or list(zip(rows, values, strict=True))
    return " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in pairs)


def _is_duplicate(settings: DecodeSettings, seen: set[str]) -> bool:
    """Return whether settings were met before: without blocks, caches by the block are as one."""
    text = settings.model_dump_json()
    is_known = text in seen
    seen.add(text)
    return is_known


def build_cases(
    model: DiffusionModel, records: Sequence[Record], most: int
) -> tuple[list[SweepCase], int]:
    """Return records as they are asked, and how many tokens the longest answer has.

    A record of one message is a text: its first half is given, the rest is what it should come to.
    What is longer than the model knows positions is passed over.

    Raises:
        DataError: If no record has an answer.
    """
    tokenizer, longest = model.tokenizer, 1
    cases: list[SweepCase] = []
    for record in records:
        if len(cases) == most:
            break
        if not record.messages or record.messages[-1].role != "assistant":
            continue
        answer = record.messages[-1].content
        if len(record.messages) > 1:
            request = build_prompt_request(tokenizer, Prompt(record.messages[:-1]), 0)
            after = tokenizer(answer, add_special_tokens=False)["input_ids"]
        else:
            ids = build_prompt_request(tokenizer, Prompt(text=answer), 0).ids
            half = (len(ids) + 1) // 2
            request, after = InfillRequest(ids[:half]), ids[half:]
            answer = _decode(tokenizer, after)
        if after and len(request.ids) + len(after) < model.context_length:
            longest = max(longest, len(after))
            cases.append(SweepCase(record.id, request, answer))
    if not cases:
        raise DataError(
            "no record has an answer",
            code="diffusion.tune",
            expected="records whose last message is the assistant's, within the model's positions",
            next="look at the file by `stillroom show`, and at --split",
        )
    return cases, min(longest + 1, _MAX_ANSWER_TOKENS)


def run_trial(
    model: DiffusionModel, case: SweepCase, candidate: SweepCandidate, measure: str, seed: int
) -> SweepTrial:
    """Write one record's answer by one setting."""
    request = InfillRequest(case.request.ids, candidate.settings.max_new_tokens, seed)
    begun = time.process_time()
    (sample,) = generate(model, [request], candidate.settings)
    spent = time.process_time() - begun
    text = _decode(model.tokenizer, sample.new_ids)
    quality = QUALITY_METRICS[measure](text, case.answer)
    return SweepTrial(quality, sample.nfe, spent, len(sample.new_ids), sample.drift)


def _decode(tokenizer: Any, ids: Sequence[int | None]) -> str:
    return str(
        tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    )


def find_pareto_front(outcomes: Sequence[DecodingSweepResult]) -> list[DecodingSweepResult]:
    """Return what no other beats, cheapest first.

    One beats another where it is as good, with as few readings and as little time, and better in
    one of them.
    """

    def place(one: DecodingSweepResult) -> tuple[float, float, float]:
        return -one.quality, one.nfe, one.cpu_s

    def beats(one: DecodingSweepResult, other: DecodingSweepResult) -> bool:
        pairs = list(zip(place(one), place(other), strict=True))
        return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)

    kept = [one for one in outcomes if not any(beats(other, one) for other in outcomes)]
    return sorted(kept, key=lambda one: one.cpu_s)


def choose_setting(
    outcomes: Sequence[DecodingSweepResult], most_lost: float
) -> DecodingSweepResult:
    """Return the one of least time that loses at most so much quality against the first."""
    base = outcomes[0].quality
    good = [one for one in outcomes if one.quality >= base - most_lost - 1e-12]
    return min(good, key=lambda one: one.cpu_s)


@dataclass(frozen=True, slots=True)
class DecodingSweepPlan:
    """What is tuned, on what, and what counts.

    Args:
        checkpoint: A diffusion model.
        records: A file of records with answers.
        split: Only records of this split; empty is all.
        most: Records at most.
        tried: ``KEY=VALUE,VALUE``: rows of the grid.
        fixed: ``KEY=VALUE`` that every setting has.
        measure: One of ``QUALITY_METRICS``.
        most_lost: Quality that may be lost against one place a step.
        name: Of the preset.
        seed: Of draws and intervals.
    """

    checkpoint: str
    records: Path
    split: str = ""
    most: int = 32
    tried: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    measure: str = "f1"
    most_lost: float = 0.01
    name: str = "tuned"
    seed: int = 0

    def to_text(self) -> str:
        """Return the plan as YAML."""
        said = {**asdict(self), "records": str(self.records)}
        said |= {"tried": list(self.tried), "fixed": list(self.fixed)}
        return "\n".join(["# stillroom diffusion tune", *emit_yaml(said)]) + "\n"


def sweep_decoding(
    model: DiffusionModel,
    plan: DecodingSweepPlan,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> tuple[Artifact, Report, DecodingPreset]:
    """Measure the grid, and leave report.json, report.html and preset.yaml.

    Args:
        model: The plan's checkpoint, opened.
        plan: What is tried.
        out: The folder of the report.
        resume: Go on where a killed run stopped.
        overwrite: Replace what an earlier job left at ``out``.
        reporter: What draws progress; default nothing.

    Raises:
        RecipeError: If the measure or a setting is none.
        DataError: If no record has an answer.
    """
    if plan.measure not in QUALITY_METRICS:
        raise RecipeError(
            f"measure '{plan.measure}' is not known",
            code="diffusion.tune",
            expected=f"one of: {', '.join(QUALITY_METRICS)}",
            next="choose one of them",
        )
    records = [
        record
        for record in read_records(plan.records)
        if not plan.split or record.fields.get("split") == plan.split
    ]
    cases, longest = build_cases(model, records, plan.most)
    candidates, left_out = expand_grid(model, plan.tried, plan.fixed, longest)
    job = Job.start(
        out,
        plan.to_text(),
        seed=plan.seed,
        resume=resume,
        overwrite=overwrite,
        reporter=reporter,
    )
    try:
        with job.interruptible():
            outcomes = _run_trials(model, plan, cases, candidates, job)
            chosen = choose_setting(outcomes, plan.most_lost)
            preset = _build_preset(model, plan, chosen, outcomes[0])
            report = _build_report(plan, outcomes, chosen, left_out)
            report.write(job.output)
            write_preset(job.output / PRESET_FILE, preset)
            artifact = job.finish(
                "report",
                parents=[
                    Parent("checkpoint", plan.checkpoint, model.fingerprint),
                    Parent("records", str(plan.records), digest_file(plan.records)),
                ],
                details={"preset": preset.model_dump(mode="json"), **report.to_json()},
                is_timed=lambda path: path.startswith("output/"),
            )
            return artifact, report, preset
    finally:
        job.close()


def _run_trials(
    model: DiffusionModel,
    plan: DecodingSweepPlan,
    cases: list[SweepCase],
    candidates: list[SweepCandidate],
    job: Job,
) -> list[DecodingSweepResult]:
    """Write every record by every setting, record by record, so that all meet the same load."""
    journal = job.journal("trials")

    def key(case: SweepCase, candidate: SweepCandidate) -> str:
        said = candidate.settings.model_dump(mode="json")
        return digest_json([case.id, said, plan.measure, plan.seed, model.fingerprint])

    keys = [key(case, candidate) for case in cases for candidate in candidates]
    done = sum(one in journal for one in keys)
    if done < len(keys):  # the first call of a process pays for what is loaded: not a setting
        run_trial(model, cases[0], candidates[-1], plan.measure, plan.seed)
    with job.phase("tune", len(keys), "texts", done=done) as progress:
        for number, case in enumerate(cases):
            for candidate in candidates:
                if key(case, candidate) in journal:
                    continue
                job.check_cancelled()
                trial = run_trial(model, case, candidate, plan.measure, plan.seed + number)
                journal.put(key(case, candidate), trial.to_json())
                progress.advance()
    return [
        DecodingSweepResult(
            candidate, tuple(SweepTrial(*journal[key(case, candidate)]) for case in cases)
        )
        for candidate in candidates
    ]


def _build_preset(
    model: DiffusionModel,
    plan: DecodingSweepPlan,
    chosen: DecodingSweepResult,
    base: DecodingSweepResult,
) -> DecodingPreset:
    lost = chosen.loss_against(base, plan.seed).to_json()
    measured: dict[str, float | int | str] = {
        "measure": plan.measure,
        "records": len(chosen.trials),
        "quality": round(chosen.quality, 4),
        "lost_against_one_a_step": round(base.quality - chosen.quality, 4),
        **({"lost_at_most": round(lost["high"], 4)} if lost["high"] is not None else {}),
        "nfe": round(chosen.nfe, 2),
        "times_fewer_readings": round(base.nfe / max(chosen.nfe, 1e-9), 2),
        "times_less_cpu": round(base.cpu_s / max(chosen.cpu_s, 1e-9), 2),
    }
    return DecodingPreset(
        name=plan.name,
        checkpoint=model.fingerprint,
        settings=chosen.candidate.settings,
        measured=measured,
    )


def _build_report(
    plan: DecodingSweepPlan,
    outcomes: list[DecodingSweepResult],
    chosen: DecodingSweepResult,
    left_out: list[str],
) -> Report:
    base = outcomes[0]
    lost = chosen.loss_against(base, plan.seed)
    records = len(base.trials)
    said = (
        f"{chosen.candidate.label}: {base.nfe / max(chosen.nfe, 1e-9):.1f} times fewer readings "
        f"and {base.cpu_s / max(chosen.cpu_s, 1e-9):.1f} times less processor time than one place "
        f"a step, {100 * lost.value:+.1f} points of {plan.measure} lost ({records} records)."
    )
    if not any(one.quality for one in outcomes):
        said += (
            " No setting gets anything right by this measure, so that the choice stands on time "
            "alone: compare by another measure, or on records that the model can answer."
        )
    report = Report("Decoding", f"{len(outcomes)} settings on {records} records. {said}")
    report.add(lost, is_headline=True)
    front = find_pareto_front(outcomes)
    columns = (plan.measure, "95 %", "NFE", "CPU s", "tokens/s", "drift", "setting")
    report.section(
        "Pareto set",
        "Nothing tried is as good, as short and as quick, and better in one of them. Tokens are "
        "those before the end. "
        + (f"{len(left_out)} settings do not go with this model." if left_out else ""),
        table=Table(
            "cheapest first", columns, tuple(_report_row(one, plan, chosen) for one in front)
        ),
    )
    order = sorted(outcomes, key=lambda one: (-one.quality, one.cpu_s))
    report.section(
        "All settings",
        "Quality was measured on the records that chose: expect a little less on others.",
        table=Table("best first", columns, tuple(_report_row(one, plan, chosen) for one in order)),
    )
    return report


def _report_row(
    one: DecodingSweepResult, plan: DecodingSweepPlan, chosen: DecodingSweepResult
) -> tuple[str, ...]:
    metric = one.interval(plan.seed).to_json()
    low, high = metric["low"], metric["high"]
    return (
        f"{one.quality:.3f}",
        "" if low is None else f"{low:.2f}-{high:.2f}",
        f"{one.nfe:.1f}",
        f"{one.cpu_s:.4f}",
        f"{one.tokens_per_s:.0f}",
        "" if one.drift is None else f"{one.drift:.3f}",
        one.candidate.label + (" *" if one is chosen else ""),
    )
