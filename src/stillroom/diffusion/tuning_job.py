"""Tuning as a job: every setting on every record, journalled; a report and a preset are left.

Seconds depend on the clock, so the report and the preset are no part of the artifact's digest.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from stillroom.diffusion.model import DiffusionModel
from stillroom.diffusion.presets import PRESET_FILE, Preset, write_preset
from stillroom.diffusion.tuning import (
    MEASURES,
    Candidate,
    Case,
    Outcome,
    Trial,
    choose,
    expand_grid,
    find_pareto,
    make_cases,
    measure_trial,
)
from stillroom.errors import RecipeError
from stillroom.evaluate.report import Report, Table
from stillroom.jobs import Job, Reporter
from stillroom.provenance import Artifact, Parent, digest_file, digest_json
from stillroom.recipes.emitting import emit
from stillroom.records import read_records

__all__ = ["TunePlan", "tune_decoding"]


@dataclass(frozen=True, slots=True)
class TunePlan:
    """What is tuned, on what, and what counts.

    Args:
        checkpoint: A diffusion model.
        records: A file of records with answers.
        split: Only records of this split; empty is all.
        most: Records at most.
        tried: ``KEY=VALUE,VALUE``: rows of the grid.
        fixed: ``KEY=VALUE`` that every setting has.
        measure: One of ``MEASURES``.
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
        return "\n".join(["# stillroom diffusion tune", *emit(said)]) + "\n"


def tune_decoding(
    model: DiffusionModel,
    plan: TunePlan,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> tuple[Artifact, Report, Preset]:
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
    if plan.measure not in MEASURES:
        raise RecipeError(
            f"measure '{plan.measure}' is not known",
            code="diffusion.tune",
            expected=f"one of: {', '.join(MEASURES)}",
            next="choose one of them",
        )
    records = [
        record
        for record in read_records(plan.records)
        if not plan.split or record.fields.get("split") == plan.split
    ]
    cases, longest = make_cases(model, records, plan.most)
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
            outcomes = _measure(model, plan, cases, candidates, job)
            chosen = choose(outcomes, plan.most_lost)
            preset = _preset(model, plan, chosen, outcomes[0])
            report = _report(plan, outcomes, chosen, left_out)
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


def _measure(
    model: DiffusionModel,
    plan: TunePlan,
    cases: list[Case],
    candidates: list[Candidate],
    job: Job,
) -> list[Outcome]:
    """Write every record by every setting, record by record, so that all meet the same load."""
    journal = job.journal("trials")

    def key(case: Case, candidate: Candidate) -> str:
        said = candidate.settings.model_dump(mode="json")
        return digest_json([case.id, said, plan.measure, plan.seed, model.fingerprint])

    keys = [key(case, candidate) for case in cases for candidate in candidates]
    done = sum(one in journal for one in keys)
    if done < len(keys):  # the first call of a process pays for what is loaded: not a setting
        measure_trial(model, cases[0], candidates[-1], plan.measure, plan.seed)
    with job.phase("tune", len(keys), "texts", done=done) as progress:
        for number, case in enumerate(cases):
            for candidate in candidates:
                if key(case, candidate) in journal:
                    continue
                job.check_cancelled()
                trial = measure_trial(model, case, candidate, plan.measure, plan.seed + number)
                journal.put(key(case, candidate), trial.to_json())
                progress.advance()
    return [
        Outcome(candidate, tuple(Trial(*journal[key(case, candidate)]) for case in cases))
        for candidate in candidates
    ]


def _preset(model: DiffusionModel, plan: TunePlan, chosen: Outcome, base: Outcome) -> Preset:
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
    return Preset(
        name=plan.name,
        checkpoint=model.fingerprint,
        settings=chosen.candidate.settings,
        measured=measured,
    )


def _report(
    plan: TunePlan, outcomes: list[Outcome], chosen: Outcome, left_out: list[str]
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
    front = find_pareto(outcomes)
    columns = (plan.measure, "95 %", "NFE", "CPU s", "tokens/s", "drift", "setting")
    report.section(
        "Pareto set",
        "Nothing tried is as good, as short and as quick, and better in one of them. Tokens are "
        "those before the end. "
        + (f"{len(left_out)} settings do not go with this model." if left_out else ""),
        table=Table("cheapest first", columns, tuple(_row(one, plan, chosen) for one in front)),
    )
    order = sorted(outcomes, key=lambda one: (-one.quality, one.cpu_s))
    report.section(
        "All settings",
        "Quality was measured on the records that chose: expect a little less on others.",
        table=Table("best first", columns, tuple(_row(one, plan, chosen) for one in order)),
    )
    return report


def _row(one: Outcome, plan: TunePlan, chosen: Outcome) -> tuple[str, ...]:
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
