"""Decoding sweep: quality against forward passes and processor time for a grid of settings.

Every setting of the grid answers every record; the baseline is LLaDA's algorithm (one token per
step, no cache). Of the Pareto set in all three measures, the fastest setting whose loss of quality
is within the limit is chosen.

Times are not reproducible, so the report and the preset are not part of the artifact's digest.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

from stillroom.diffusion.model.loading import open_diffusion
from stillroom.diffusion.model.network import DiffusionModel
from stillroom.diffusion.sampling.sampler import generate
from stillroom.diffusion.sampling.sequence import InfillRequest, build_prompt_request, decode_text
from stillroom.diffusion.sampling.settings import (
    PRESET_FILE,
    DecodeSettings,
    DecodingPreset,
    write_preset,
)
from stillroom.errors import DataError, RecipeError
from stillroom.evaluate.metrics.bootstrap import Metric, bootstrap, paired_difference
from stillroom.evaluate.report import Report, Table
from stillroom.jobs import Job
from stillroom.objects import resolve_local
from stillroom.provenance import Artifact, Parent, digest_json, make_parent
from stillroom.recipes.loader import parse_group
from stillroom.recipes.yaml_text import emit_scalar, emit_yaml
from stillroom.records import Prompt, Record, read_records
from stillroom.text.unicode import exact_match, token_f1
from stillroom.train.data import order_records

if TYPE_CHECKING:
    from stillroom.diffusion.jobs.tune import DecodingTuneRecipe, GridValue

__all__ = [
    "DecodingSweepResult",
    "SweepCandidate",
    "SweepCase",
    "SweepTrial",
    "choose_setting",
    "expand_grid",
    "find_pareto_front",
    "run_trial",
    "sweep_decoding",
]

BASELINE_LABEL = "one place a step, nothing kept"

DEFAULT_GRID: Mapping[str, tuple[GridValue, ...]] = {
    "commit.threshold": (0.7, 0.8, 0.9, 0.95),
    "block_length": (None, 16, 32),
    "cache": (None, "prefix", "dual", "delayed"),
    "order": ("confidence", "margin"),
}

_MAX_ANSWER_TOKENS = 256


_QUALITY_METRICS: Mapping[str, Callable[[str, str], float]] = {
    "f1": token_f1,
    "exact": exact_match,
    "same": lambda text, answer: float(text.strip() == answer.strip()),
}
"""Metrics of a text against the record's answer: token F1, normalized match, exact match."""


@dataclass(frozen=True, slots=True)
class SweepCandidate:
    """Decoding settings and a label of what distinguishes them."""

    label: str
    settings: DecodeSettings


@dataclass(frozen=True, slots=True)
class SweepCase:
    """A record as a request with its reference answer."""

    id: str
    request: InfillRequest
    answer: str


@dataclass(frozen=True, slots=True)
class SweepTrial:
    """Result of one setting on one record.

    Args:
        quality: Metric value, 0 to 1.
        nfe: Forward passes.
        cpu_s: Processor seconds.
        tokens: Tokens generated before the end token.
        drift: Cosine distance of cached values from recomputed ones, 0 to 2; None without stale
            entries.
    """

    quality: float
    nfe: int
    cpu_s: float
    tokens: int
    drift: float | None


@dataclass(frozen=True, slots=True)
class DecodingSweepResult:
    """Results of one setting on all records."""

    candidate: SweepCandidate
    trials: tuple[SweepTrial, ...]

    @property
    def quality(self) -> float:
        """Mean metric over the records."""
        return sum(trial.quality for trial in self.trials) / len(self.trials)

    @property
    def nfe(self) -> float:
        """Mean forward passes per record."""
        return sum(trial.nfe for trial in self.trials) / len(self.trials)

    @property
    def cpu_s(self) -> float:
        """Mean processor seconds per record."""
        return sum(trial.cpu_s for trial in self.trials) / len(self.trials)

    @property
    def tokens_per_s(self) -> float:
        """Tokens before the end token per processor second."""
        return sum(t.tokens for t in self.trials) / max(sum(t.cpu_s for t in self.trials), 1e-9)

    @property
    def drift(self) -> float | None:
        """Mean over the records with stale cache entries."""
        known = [trial.drift for trial in self.trials if trial.drift is not None]
        return sum(known) / len(known) if known else None

    def interval(self, seed: int = 0) -> Metric:
        """Return the mean quality with its bootstrap interval."""
        values = [trial.quality for trial in self.trials]
        return bootstrap(values, seed=seed, name=self.candidate.label)

    def loss_against(self, baseline: DecodingSweepResult, seed: int = 0) -> Metric:
        """Return the paired loss of quality against another setting."""
        return paired_difference(
            [trial.quality for trial in baseline.trials],
            [trial.quality for trial in self.trials],
            seed=seed,
            name=f"loss/{self.candidate.label}",
        )


def expand_grid(
    model: DiffusionModel,
    grid: Mapping[str, Sequence[GridValue]],
    decode: Mapping[str, Any],
    max_new_tokens: int,
) -> tuple[list[SweepCandidate], list[str]]:
    """Return the baseline and the settings of a grid that suit the model, and labels of the rest.

    Args:
        model: Diffusion model.
        grid: Values by dotted name of a decoding setting; each row replaces the default row of its
            name, or adds one.
        decode: Decoding settings that all share.
        max_new_tokens: Length of every answer, unless ``decode`` sets it.

    Raises:
        RecipeError: If a name or value is invalid, or no setting suits the model.
    """
    rows = dict(DEFAULT_GRID)
    if model.metadata.block_size is not None:
        rows |= {"block_length": (None,), "cache": (None,)}  # exact by itself
    texts = {
        key: [value if isinstance(value, str) else emit_scalar(value) for value in row]
        for key, row in {**rows, **grid}.items()
    }
    base = "\n".join(emit_yaml({"max_new_tokens": max_new_tokens, **decode}))
    plain = ["commit.name=top_k", "commit.k=1", "cache=whole"]
    baseline = parse_group(DecodeSettings, base, "decode", plain)
    candidates = [SweepCandidate(BASELINE_LABEL, baseline)]
    left_out: list[str] = []
    known: set[str] = set()
    valid, refused = set[str](), dict[str, RecipeError]()
    for values in itertools.product(*texts.values()):
        overrides = [f"{key}={value}" for key, value in zip(texts, values, strict=True)]
        label = _label(texts, values)
        try:
            settings = parse_group(DecodeSettings, base, "decode", overrides)
            valid.update(overrides)
            settings.check_against(model.metadata)
        except RecipeError as error:
            refused |= dict.fromkeys(set(overrides) - refused.keys(), error)
            left_out.append(label)
            continue
        if set(settings.describe_unused()) - set(baseline.describe_unused()):
            left_out.append(label)  # another row of the grid has the same effect
        elif (text := settings.model_dump_json()) not in known:
            known.add(text)  # without blocks, block-wise caches are the same
            candidates.append(SweepCandidate(label, settings))
    if wrong := refused.keys() - valid:  # a value that is valid with no others
        raise refused[min(wrong)]
    if len(candidates) == 1:
        raise RecipeError(
            "no setting of the grid suits this model",
            code="diffusion.tune",
            expected="settings that fit the model's attention",
            next="set other values in grid",
        )
    return candidates, left_out


def _label(rows: Mapping[str, Sequence[str]], values: Sequence[str]) -> str:
    """Return the keys and values in which a setting differs from the others of the grid."""
    pairs = [(key, value) for key, value in zip(rows, values, strict=True) if len(rows[key]) > 1]
    pairs = pairs or list(zip(rows, values, strict=True))
    return " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in pairs)


def _build_cases(
    model: DiffusionModel, records: Sequence[Record], most: int
) -> tuple[list[SweepCase], int]:
    """Return requests with reference answers, and the length of the longest answer in tokens.

    A record of one message is split: its first half is the prompt, the rest the answer. Records
    beyond the context length are skipped.

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
            prompt = Prompt(record.messages[:-1])
            request = build_prompt_request(tokenizer, prompt, 0, tools=record.tools)
            after = tokenizer(answer, add_special_tokens=False)["input_ids"]
        else:
            ids = build_prompt_request(tokenizer, Prompt(text=answer), 0).ids
            half = (len(ids) + 1) // 2
            request, after = InfillRequest(ids[:half]), ids[half:]
            answer = decode_text(tokenizer, after)
        if after and len(request.ids) + len(after) < model.context_length:
            longest = max(longest, len(after))
            cases.append(SweepCase(record.id, request, answer))
    if not cases:
        raise DataError(
            "no record has an answer",
            code="diffusion.tune",
            expected="records whose last message is the assistant's, within the context length",
            next="inspect the file with `stillroom show`, and check the split",
        )
    return cases, min(longest + 1, _MAX_ANSWER_TOKENS)


def run_trial(
    model: DiffusionModel, case: SweepCase, candidate: SweepCandidate, measure: str, seed: int
) -> SweepTrial:
    """Answer one record with one setting."""
    request = InfillRequest(case.request.ids, candidate.settings.max_new_tokens, seed)
    begun = time.process_time()
    (sample,) = generate(model, [request], candidate.settings)
    spent = time.process_time() - begun
    text = decode_text(model.tokenizer, sample.new_ids)
    quality = _QUALITY_METRICS[measure](text, case.answer)
    return SweepTrial(quality, sample.nfe, spent, len(sample.new_ids), sample.drift)


def find_pareto_front(outcomes: Sequence[DecodingSweepResult]) -> list[DecodingSweepResult]:
    """Return the Pareto-optimal results, fastest first.

    A result dominates another if it is at least as good in quality, forward passes and processor
    time, and better in one.
    """

    def costs(result: DecodingSweepResult) -> tuple[float, float, float]:
        return -result.quality, result.nfe, result.cpu_s

    def beats(result: DecodingSweepResult, rival: DecodingSweepResult) -> bool:
        pairs = list(zip(costs(result), costs(rival), strict=True))
        return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)

    front = [result for result in outcomes if not any(beats(rival, result) for rival in outcomes)]
    return sorted(front, key=lambda result: result.cpu_s)


def choose_setting(outcomes: Sequence[DecodingSweepResult], max_loss: float) -> DecodingSweepResult:
    """Return the fastest result within ``max_loss`` of the first result's quality."""
    base = outcomes[0].quality
    good = [result for result in outcomes if result.quality >= base - max_loss - 1e-12]
    return min(good, key=lambda result: result.cpu_s)


def sweep_decoding(recipe: DecodingTuneRecipe, job: Job) -> Artifact:
    """Run the sweep and write report.json, report.html and preset.yaml.

    Raises:
        CheckpointError: If the model is no diffusion model, or has no tokenizer.
        RecipeError: If a setting is invalid.
        DataError: If no record has an answer.
    """
    model = open_diffusion(recipe.model, overrides=recipe.metadata, needs_tokenizer=True)
    path = resolve_local(recipe.records)
    records = [
        record
        for record in read_records(path)
        if not recipe.split or record.fields.get("split") == recipe.split
    ]
    if not records:
        raise DataError(
            f"no record has fields.split {recipe.split!r}" if recipe.split else "no record",
            code="diffusion.tune",
            where=recipe.records,
            expected="records of that split" if recipe.split else "at least one record",
            next="name another split, or '' for all records",
        )
    cases, longest = _build_cases(model, order_records(records), recipe.max_records)
    candidates, left_out = expand_grid(model, recipe.grid, recipe.decode, longest)
    outcomes = _run_trials(model, recipe, cases, candidates, job)
    choice = choose_setting(outcomes, recipe.max_loss)
    preset = _build_preset(model, recipe, choice, outcomes[0])
    report = _build_report(recipe, outcomes, choice, left_out)
    report.write(job.output)
    write_preset(job.output / PRESET_FILE, preset)
    return job.finish(
        "report",
        parents=[
            Parent("model", recipe.model, model.fingerprint, "checkpoint"),
            make_parent("records", path, job.out),
        ],
        details={"preset": preset.model_dump(mode="json"), **report.to_json()},
        is_timed=lambda path: path.startswith("output/"),
    )


def _run_trials(
    model: DiffusionModel,
    recipe: DecodingTuneRecipe,
    cases: list[SweepCase],
    candidates: list[SweepCandidate],
    job: Job,
) -> list[DecodingSweepResult]:
    """Run all trials, record by record, so that every setting meets the same system load."""
    journal = job.journal("trials")

    def key(case: SweepCase, candidate: SweepCandidate) -> str:
        settings = candidate.settings.model_dump(mode="json")
        return digest_json([case.id, settings, recipe.metric, recipe.seed, model.fingerprint])

    keys = [key(case, candidate) for case in cases for candidate in candidates]
    done = sum(trial_key in journal for trial_key in keys)
    if done < len(keys):  # warm-up: the first call of a process includes loading
        run_trial(model, cases[0], candidates[-1], recipe.metric, recipe.seed)
    with job.phase("tune", len(keys), "texts", done=done) as progress:
        for number, case in enumerate(cases):
            for candidate in candidates:
                if key(case, candidate) in journal:
                    continue
                job.check_cancelled()
                trial = run_trial(model, case, candidate, recipe.metric, recipe.seed + number)
                journal.put(key(case, candidate), astuple(trial))
                progress.advance()
    return [
        DecodingSweepResult(
            candidate, tuple(SweepTrial(*journal[key(case, candidate)]) for case in cases)
        )
        for candidate in candidates
    ]


def _build_preset(
    model: DiffusionModel,
    recipe: DecodingTuneRecipe,
    choice: DecodingSweepResult,
    base: DecodingSweepResult,
) -> DecodingPreset:
    lost = choice.loss_against(base, recipe.seed).to_json()
    measured: dict[str, float | int | str] = {
        "measure": recipe.metric,
        "records": len(choice.trials),
        "quality": round(choice.quality, 4),
        "lost_against_one_a_step": round(base.quality - choice.quality, 4),
        **({"lost_at_most": round(lost["high"], 4)} if lost["high"] is not None else {}),
        "nfe": round(choice.nfe, 2),
        "times_fewer_readings": round(base.nfe / max(choice.nfe, 1e-9), 2),
        "times_less_cpu": round(base.cpu_s / max(choice.cpu_s, 1e-9), 2),
    }
    return DecodingPreset(
        name=recipe.name,
        checkpoint=model.fingerprint,
        settings=choice.candidate.settings,
        measured=measured,
    )


def _build_report(
    recipe: DecodingTuneRecipe,
    outcomes: list[DecodingSweepResult],
    choice: DecodingSweepResult,
    left_out: list[str],
) -> Report:
    base = outcomes[0]
    lost = choice.loss_against(base, recipe.seed)
    records = len(base.trials)
    summary = (
        f"{choice.candidate.label}: {base.nfe / max(choice.nfe, 1e-9):.1f} times fewer forward "
        "passes "
        f"and {base.cpu_s / max(choice.cpu_s, 1e-9):.1f} times less processor time than one token "
        "per "
        f"step, {100 * lost.value:+.1f} points of {recipe.metric} lost ({records} records)."
    )
    if not any(result.quality for result in outcomes):
        summary += (
            " No setting scores above 0 by this measure, so that the choice rests on time alone: "
            "use another measure, or records that the model can answer."
        )
    report = Report("Decoding", f"{len(outcomes)} settings on {records} records. {summary}")
    report.add(lost, is_headline=True)
    front = find_pareto_front(outcomes)
    columns = (recipe.metric, "95 %", "NFE", "CPU s", "tokens/s", "drift", "setting")
    report.section(
        "Pareto set",
        "No other setting is at least as good in quality, forward passes and time, and better in "
        "one of them. Tokens are those before the end token. "
        + (f"{len(left_out)} settings do not suit this model." if left_out else ""),
        table=Table(
            "cheapest first",
            columns,
            tuple(_report_row(result, recipe, choice) for result in front),
        ),
    )
    order = sorted(outcomes, key=lambda result: (-result.quality, result.cpu_s))
    report.section(
        "All settings",
        "Quality was measured on the records used for the choice: expect slightly less on others.",
        table=Table(
            "best first", columns, tuple(_report_row(result, recipe, choice) for result in order)
        ),
    )
    return report


def _report_row(
    result: DecodingSweepResult, recipe: DecodingTuneRecipe, choice: DecodingSweepResult
) -> tuple[str, ...]:
    metric = result.interval(recipe.seed).to_json()
    low, high = metric["low"], metric["high"]
    return (
        f"{result.quality:.3f}",
        "" if low is None else f"{low:.2f}-{high:.2f}",
        f"{result.nfe:.1f}",
        f"{result.cpu_s:.4f}",
        f"{result.tokens_per_s:.0f}",
        "" if result.drift is None else f"{result.drift:.3f}",
        result.candidate.label + (" *" if result is choice else ""),
    )
