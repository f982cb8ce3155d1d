"""Evaluation run of models and an index: drives ``evaluate.qa`` and ``evaluate.lm``, one report.

Figures that depend on the clock are in timings.json beside the output, so that the artifact is
reproducible; the flow merges both into the run's report.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stillroom.checkpoints import Checkpoint
from stillroom.checkpoints.digests import describe_equal_models
from stillroom.errors import count_noun
from stillroom.evaluate.charts import Plot
from stillroom.evaluate.interfaces import has_weights, open_rag_system
from stillroom.evaluate.lm.fidelity import measure_fidelity, read_initial_fidelity
from stillroom.evaluate.metrics.bootstrap import Metric, warn_small_sample
from stillroom.evaluate.qa.answers import (
    AnsweredQuestion,
    ask_models,
    measure_answers,
    measure_retrieval,
    measure_speed,
    retrieve_all,
)
from stillroom.evaluate.qa.questions import find_records, select_questions
from stillroom.evaluate.report import Report, Table
from stillroom.jobs import Job, atomic_write
from stillroom.models import resolve_checkpoint
from stillroom.objects import is_store_address, resolve_local
from stillroom.provenance import (
    ARTIFACT_FILE,
    Artifact,
    Parent,
    digest_file,
    find_artifact,
    make_parent,
)
from stillroom.records import read_records

if TYPE_CHECKING:
    from stillroom.evaluate.jobs.report import EvaluateRecipe, RetrievalSettings

__all__ = ["TIMINGS", "evaluate_models", "read_local_size"]

TIMINGS = "timings.json"
_WEIGHTS = (".safetensors", ".gguf")


def evaluate_models(recipe: EvaluateRecipe, job: Job) -> Artifact:
    """Evaluate an index and models on held-out questions, and write the report.

    Raises:
        DataError: If there is nothing to ask and the recipe does not allow that, or an input is
            invalid.
        RecipeError: If the index's plug-in is not installed.
        Cancelled: If the user stopped it; ``--resume`` continues.
    """
    if len(recipe.models) > 1:  # a fingerprint reads the whole of a .gguf file
        named = {name: _fingerprint(reference) for name, reference in recipe.models.items()}
        for line in describe_equal_models(named.items()):
            job.warn(line)
    bad_rows: list[str] = []
    records = read_records(
        find_records(resolve_local(recipe.records)),
        on_drop=lambda row, why: bad_rows.append(f"row {row}: {why}"),
    )
    questions, passed_over = select_questions(
        records,
        limit=recipe.max_questions,
        seed=recipe.seed,
        may_be_none=recipe.on_too_few == "continue",
        unread=bad_rows,
    )
    report = Report("Held-out questions", _describe_questions(len(questions), len(recipe.models)))
    if not questions:
        job.warn(f"{report.summary}")
    answerer, retrieved, retrieval = None, {}, recipe.retrieval
    if retrieval and questions:
        answerer = open_rag_system(Path(retrieval.index), retrieval.system)
        retrieved = retrieve_all(
            answerer, questions, depth=retrieval.depth, k=retrieval.top_k, job=job
        )
        metrics, unjudged = measure_retrieval(questions, retrieved, seed=recipe.seed)
        _add_retrieval(report, metrics, retrieval)
        if unjudged:
            passed_over["no evidence named, not counted in retrieval"] = unjudged
    answers = ask_models(recipe, questions, answerer, retrieved, job)
    if answers:
        _add_answers(report, answers, recipe)
    if recipe.fidelity and questions:
        before, missing = read_initial_fidelity(recipe, recipe.fidelity)
        metrics, notes = measure_fidelity(recipe, recipe.fidelity, questions, job)
        passed_over.update({**missing, **notes})
        _add_fidelity(report, [*before, *metrics], recipe)
    _add_sizes(report, recipe)
    passed_over.update(_count_truncations(answers))
    _add_omissions(report, passed_over, job)
    with atomic_write(job.output / "answers.jsonl") as file:
        file.writelines(
            json.dumps(answer.to_json(), ensure_ascii=False) + "\n" for answer in answers
        )
    report.write(job.output)
    if answers:
        _write_timings(recipe, job)
    return job.finish(
        "report",
        parents=_parents(recipe, job),
        details={"questions": len(questions), "left_out": passed_over},
    )


def _fingerprint(reference: str) -> str:
    """Return the fingerprint of a model's weights; of an endpoint, its reference."""
    if not has_weights(reference):
        return reference
    path = resolve_checkpoint(reference)
    return Checkpoint.open(path).fingerprint if path.is_dir() else digest_file(path)


def _describe_questions(questions: int, models: int) -> str:
    if not questions:
        return (
            "No held-out question could be asked: nothing here says what the models know. "
            "More documents give records that can be held out."
        )
    shown = f"{questions} held-out question{'s were' if questions > 1 else ' was'} asked"
    sentence = f"{shown} of {count_noun(models, 'model')}."
    return f"{sentence} {warn_small_sample(questions, 'question')}".rstrip()


def _add_retrieval(report: Report, metrics: Sequence[Metric], retrieval: RetrievalSettings) -> None:
    report.section(
        "Retrieval",
        f"Each question was put to the index, {count_noun(retrieval.depth, 'passage')} deep. A "
        "passage is "
        "relevant if it is the one the question was made from, or holds most of it. Measures are "
        "trec_eval's; a question for which nothing is found counts as 0.",
        metrics=metrics,
        plot=Plot.of("Is the evidence found, and how far up?", metrics),
    )
    report.add(metrics[1], is_headline=True)


def _add_answers(
    report: Report, answers: Sequence[AnsweredQuestion], recipe: EvaluateRecipe
) -> None:
    metrics = measure_answers(answers, seed=recipe.seed)
    shown = [metric for metric in metrics if metric.name.endswith("/f1")]
    retrieved = (
        f"Retrieved: the question with the {recipe.retrieval.top_k} best passages. "
        if recipe.retrieval
        else ""
    )
    report.section(
        "Answers",
        f"Closed: the question alone. {retrieved}F1 is the overlap of words with the expected "
        "answer, em says whether they are equal, both after SQuAD's normalization and without "
        "citation marks.",
        metrics=metrics,
        plot=Plot.of(
            "F1 by model and mode",
            shown,
            labels=[metric.name.split("/", 1)[1].removesuffix("/f1") for metric in shown],
        ),
    )
    report.add(shown[-1], is_headline=True)


def _add_fidelity(report: Report, metrics: Sequence[Metric], recipe: EvaluateRecipe) -> None:
    if not metrics:
        return
    first = next(iter(recipe.models))
    kl = [metric for metric in metrics if f"/kl_to_{first}/" in metric.name]
    report.section(
        "Fidelity",
        "On the assistant's tokens of the same records, fed the true text so far. Perplexity says "
        f"how surprised a model is; KL how far its beliefs are from those of {first}, in nats a "
        "token; agreement how often both think the same token likeliest. Means are over all tokens "
        "together, intervals over records.",
        metrics=metrics,
        plot=Plot.of(f"Divergence from {first}", kl) if kl else None,
    )
    for metric in kl[-1:]:
        report.add(metric, is_headline=True)


def _add_sizes(report: Report, recipe: EvaluateRecipe) -> None:
    sizes, counts = [], []
    for name, reference in recipe.models.items():
        if not has_weights(reference):
            continue
        path = resolve_checkpoint(reference)
        checkpoint = Checkpoint.open(path)
        note = "counted, not sampled"
        sizes.append(Metric(f"{name}/size_bytes", float(_weight_bytes(path)), unit="B", note=note))
        counts.append(Metric(f"{name}/parameters", float(checkpoint.parameters), note=note))
    if sizes:
        report.section(
            "Size",
            "Bytes are those of the files as they stand: weights kept in four bits take less than "
            "their number suggests. Parameters that are tied count once.",
            metrics=[*sizes, *counts],
            plot=Plot.of("Weights on disk", sizes, labels=list(recipe.models), kind="bars")
            if len(sizes) == len(recipe.models)
            else None,
        )
        report.add(sizes[-1], is_headline=True)


def _add_omissions(report: Report, counts: Mapping[str, int], job: Job) -> None:
    for reason, count in counts.items():
        if reason != "not held out":
            job.warn(f"left out or cut: {count} x {reason}")
    rows = tuple((reason, str(count)) for reason, count in counts.items())
    report.section(
        "Left out",
        "" if rows else "Nothing was left out, cut or passed over.",
        table=Table("What was left out, cut or passed over", ("reason", "count"), rows)
        if rows
        else None,
    )


def _count_truncations(answers: Sequence[AnsweredQuestion]) -> dict[str, int]:
    """Count answers truncated at the token limit, and passages that did not fit."""
    counts: dict[str, int] = {}
    for answer in answers:
        given = "with passages" if answer.mode == "retrieved" else "without passages"
        if answer.finish_reason == "length":
            reason = f"{answer.model}, {given}: answer ended at max_new_tokens"
            counts[reason] = counts.get(reason, 0) + 1
        if answer.not_shown:
            reason = f"{answer.model}, {given}: passage did not fit the context"
            counts[reason] = counts.get(reason, 0) + answer.not_shown
    return counts


def _write_timings(recipe: EvaluateRecipe, job: Job) -> None:
    metrics = measure_speed(recipe.models, job, seed=recipe.seed)
    report = Report("Timings").section(
        "Speed",
        "Tokens written per second of waiting, reading the prompt included; n counts blocks of "
        "questions that were answered side by side. These figures change from run to run.",
        metrics=metrics,
        plot=Plot.of("Speed", metrics, kind="bars"),
    )
    with atomic_write(job.work / TIMINGS) as file:
        json.dump(report.to_json(), file, ensure_ascii=False, indent=1)


def _parents(recipe: EvaluateRecipe, job: Job) -> list[Parent]:
    parents = [make_parent("records", resolve_local(recipe.records), job.out)]
    if recipe.retrieval:
        parents.append(make_parent("index", Path(recipe.retrieval.index), job.out))
    for name, reference in recipe.models.items():
        path = Path(reference)
        is_artifact = path.is_file() or (path / ARTIFACT_FILE).is_file()
        published = find_artifact(reference) if is_store_address(reference) else None
        if published is not None:
            parents.append(
                Parent(name, reference, published.digest, published.kind, published.claim)
            )
        elif is_artifact:
            parents.append(make_parent(name, path, job.out))
        elif has_weights(reference):
            parents.append(Parent(name, reference, _fingerprint(reference), "checkpoint"))
        else:
            parents.append(Parent(name, reference, "", ""))
    return parents


def _weight_bytes(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.iterdir() if file.suffix in _WEIGHTS)


def read_local_size(reference: str) -> int:
    """Return the bytes of a checkpoint's weights; 0 if it is not on this machine."""
    path = Path(reference)
    if not has_weights(reference) or not path.exists():
        return 0
    if (path / "output").is_dir():
        path = path / "output"
    return _weight_bytes(path)
