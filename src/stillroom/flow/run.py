"""Entry points that run, estimate, outline and preflight a recipe of any kind.

A flow's folder contains ``steps/NAME-KEY`` (one job folder each), ``report.json``, ``report.html``
and ``artifact.json``, the single commit point: readers open the steps that it names, and unnamed
steps are removed after it is written.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stillroom.errors import DataError, RecipeError
from stillroom.flow.job import estimate_job, find_job_kind, require_job_extras, run_job
from stillroom.flow.recipe import FlowRecipe, engine_of
from stillroom.jobs import Estimate, Job, Reporter, check_fits, describe_machine
from stillroom.jobs.engines import require_engine
from stillroom.jobs.preflight import PreflightReport, count_processes, require_single_process
from stillroom.provenance import Artifact, digest_text, read_artifact
from stillroom.recipes import Recipe, dump_recipe, parse_recipe
from stillroom.recipes.yaml_text import emit_yaml, read_yaml

__all__ = [
    "estimate_recipe",
    "outline_recipe",
    "preflight_recipe",
    "read_make_recipe",
    "require_recipe_extras",
    "run_make",
    "run_recipe",
]

_MAKE_RECIPE = Path(__file__).with_name("make.yaml")
_UNTAUGHT = "untaught"
_MIN_TO_LEARN_FROM = 60
"""Questions with evidence from which half are learned from: fewer would be too few to judge."""


def run_recipe(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> Artifact:
    """Run a recipe of any kind.

    Raises:
        StillroomError: From the ``run`` function of the kind.
    """
    if (
        count_processes() > 1
        and not isinstance(recipe, FlowRecipe)
        and find_job_kind(recipe.kind).is_distributed
    ):
        return _run_distributed(recipe, out, resume=resume, overwrite=overwrite, reporter=reporter)
    require_single_process(f"a recipe of kind {recipe.kind}")
    for part in _list_recipes(recipe):
        require_engine(engine_of(part))
    if isinstance(recipe, FlowRecipe):
        from stillroom.flow.pipeline import FlowRun  # a single job need not import the flow modules

        return FlowRun(recipe, out, reporter).run(resume=resume, overwrite=overwrite)
    job = _start_job(recipe, out, resume=resume, overwrite=overwrite, reporter=reporter)
    return run_job(recipe, job) if job is not None else read_artifact(out)


def _list_recipes(recipe: Recipe) -> list[Recipe]:
    """Return a recipe, or the recipes of a flow's steps."""
    if isinstance(recipe, FlowRecipe):
        return [recipe, *(step.recipe for step in recipe.steps.values())]
    return [recipe]


def _start_job(
    recipe: Recipe, out: Path, *, resume: bool, overwrite: bool, reporter: Reporter | None
) -> Job | None:
    """Start a job if the machine's resources suffice; return None if it was already finished."""
    text = dump_recipe(recipe)
    if resume and Job.recover(out) and read_artifact(out).recipe_digest == digest_text(text):
        return None
    require_recipe_extras(recipe)
    check_fits(estimate_recipe(recipe), describe_machine(out), recipe.kind)
    return Job.start(
        out, text, seed=recipe.seed, resume=resume, overwrite=overwrite, reporter=reporter
    )


def _run_distributed(
    recipe: Recipe, out: Path, *, resume: bool, overwrite: bool, reporter: Reporter | None
) -> Artifact:
    """Run a job as one of several processes.

    The first one writes; the others write their own logs to a temporary folder.
    """
    from stillroom.train.distributed import ProcessGroup

    with ProcessGroup() as ranks:
        jobs: list[Job] = []

        def begin() -> bool:
            job = _start_job(recipe, out, resume=resume, overwrite=overwrite, reporter=reporter)
            jobs.extend([job] if job is not None else [])
            return job is not None

        if not ranks.on_main(begin):
            return read_artifact(out)
        if ranks.is_main:
            return run_job(recipe, jobs[0])
        with tempfile.TemporaryDirectory() as folder:
            text = dump_recipe(recipe)
            return run_job(recipe, Job.start(Path(folder) / "job", text, seed=recipe.seed))


def require_recipe_extras(recipe: Recipe) -> None:
    """Refuse a recipe whose job, or a step, needs a package that is not installed.

    Raises:
        MissingExtraError: Naming the extra.
    """
    for part in _list_recipes(recipe):
        if not isinstance(part, FlowRecipe):
            require_job_extras(part)


def estimate_recipe(recipe: Recipe) -> Estimate:
    """Return the estimate of a recipe; for a flow, of the steps whose inputs exist already."""
    if isinstance(recipe, FlowRecipe):
        from stillroom.flow.pipeline import FlowRun

        return FlowRun(recipe, Path("run"), None).estimate()
    return estimate_job(recipe)


def outline_recipe(recipe: Recipe) -> list[str]:
    """Return lines that draw the steps inside a job, for kinds whose recipes have some."""
    if isinstance(recipe, FlowRecipe):
        return []
    outline = find_job_kind(recipe.kind).outline
    return outline(recipe) if outline is not None else []


def preflight_recipe(
    recipe: Recipe,
    out: Path,
    *,
    loads: bool = False,
    fetch: bool = False,
    machine: bool = True,
) -> PreflightReport | None:
    """Return the problems of a job before it starts; None for kinds without a check.

    Args:
        recipe: Recipe of one job; the steps of a flow are checked when each starts.
        out: Planned output folder.
        loads: Whether models are loaded and compared.
        fetch: Whether checkpoints on a hub are downloaded for the check.
        machine: Whether memory and disk are compared with the free amounts.
    """
    preflight = None if isinstance(recipe, FlowRecipe) else find_job_kind(recipe.kind).preflight
    if preflight is None:
        return None
    return preflight(recipe, out, fetch=fetch, loads=loads, machine=machine)


def read_make_recipe(
    folder: Path,
    overrides: Sequence[str] = (),
    *,
    questions: Path | None = None,
    out: Path | None = None,
) -> FlowRecipe:
    """Return the main job's recipe for a folder of documents, relative to the current one.

    Args:
        folder: The documents.
        overrides: Settings as ``KEY=VALUE``.
        questions: Questions of people; they judge in place of the generated ones. If many name
            their evidence, the reader learns from half of those.
        out: The run; if answers of an earlier one in its place were judged, the reader learns
            from those, too, and the report says what that bought, by the judged questions that
            were held out.

    Raises:
        DataError: If the questions or judgments cannot be read, or the questions lie among the
            documents.
        RecipeError: If a setting is invalid.
    """
    placed = [_place("documents", folder)]
    text = _MAKE_RECIPE.read_text(encoding="utf-8")
    if questions is not None:
        _refuse_indexed(folder, questions)
        placed.append(
            f"inputs.questions={json.dumps(str(questions.absolute()), ensure_ascii=False)}"
        )
        text = _add_questions(text, questions)
    if out is not None:
        text = _add_judgments(text, out)
        if f"\n  {_UNTAUGHT}:" in text:  # the control differs in the judgments alone
            placed += _repeat_for_control(overrides)
    recipe = parse_recipe(text, str(_MAKE_RECIPE.name), [*placed, *overrides], folder=Path.cwd())
    if not isinstance(recipe, FlowRecipe):
        raise RecipeError("the recipe of the main job is not a flow", code="recipe.wrong-kind")
    return recipe


def _place(name: str, path: Path) -> str:
    return f"inputs.{name}={json.dumps(str(path.absolute()), ensure_ascii=False)}"


def _refuse_indexed(folder: Path, questions: Path) -> None:
    """Refuse questions among the documents: their file would be indexed and answer itself."""
    if questions.resolve().is_relative_to(folder.resolve()):
        raise DataError(
            "the questions lie in the folder of documents, so their own file would answer them",
            code="data.question-set",
            where=str(questions),
            expected=f"a file outside {folder}",
            next="move it out of the folder",
        )


def _add_questions(text: str, questions: Path) -> str:
    """Return the recipe with people's questions as the judge."""
    from stillroom.evaluate.qa.questions import read_question_set

    data = read_yaml(text, _MAKE_RECIPE.name).data
    data["inputs"]["questions"] = str(questions)
    source: dict[str, str] = {"from": "inputs.questions"}
    named = sum(
        question.is_answerable and bool(question.evidence)
        for question in read_question_set(questions)
    )
    steps = data["steps"]
    if named >= _MIN_TO_LEARN_FROM:
        parts = {
            part: {"kind": "evaluate.questions", "questions": dict(source), "part": part}
            for part in ("learned", "judged")
        }
        steps["reader"]["questions"].append({"from": "learned"})
        at = list(steps).index("reader")
        data["steps"] = dict([*list(steps.items())[:at], *parts.items(), *list(steps.items())[at:]])
        source = {"from": "judged"}
    steps["report"]["questions"] = source
    return "\n".join(emit_yaml(data))


def _add_judgments(text: str, out: Path) -> str:
    """Return the recipe with the judgments beside a run that are to train, if there are any.

    Where others with an answer are held out, a control is trained without the judgments, and both
    readers answer those: the step ``judgments`` tells what the judgments bought.
    """
    from stillroom.evaluate.qa.judgments import find_judgments

    store = find_judgments(out)
    judged = store.read()
    if not any(one.evidence and one.side == "train" for one in judged):
        return text
    data = read_yaml(text, _MAKE_RECIPE.name).data
    steps = data["steps"]
    judges = steps["report"]["questions"]
    if judges != {"from": "reader"}:  # people's questions, which may have been asked and judged
        steps["reader"]["without"] = [judges]
    is_tested = any(one.answers and one.side == "test" for one in judged)
    if is_tested:  # the same question in other words would be learned from and judge
        judged_test = {"from": "inputs.judged_test"}
        steps["reader"]["without"] = [*steps["reader"].get("without", ()), judged_test]
    control = {**steps["reader"], "questions": [*steps["reader"]["questions"]]}
    data["inputs"]["judged"] = str(store.path_of("train").absolute())
    steps["reader"]["questions"].append({"from": "inputs.judged"})
    if not is_tested:
        return "\n".join(emit_yaml(data))
    data["inputs"]["judged_test"] = str(store.path_of("test").absolute())
    names = list(steps)
    at = names.index("reader") + 1
    data["steps"] = (
        {name: steps[name] for name in names[:at]}
        | {_UNTAUGHT: control}
        | {name: steps[name] for name in names[at:]}
        | {"judgments": _compare_judged(steps["report"])}
    )
    return "\n".join(emit_yaml(data))


def _compare_judged(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the step that asks the judged questions of the readers with and without the others."""
    readers = dict(report["compare"]["readers"])
    first = next(iter(readers))
    readers = {first: readers.pop(first), _UNTAUGHT: {"from": _UNTAUGHT}, **readers}
    compare = {"readers": readers, "model_questions": 0, "untaught": _UNTAUGHT}
    return {**report, "questions": {"from": "inputs.judged_test"}, "compare": compare}


def _repeat_for_control(overrides: Sequence[str]) -> list[str]:
    """Return the settings of the reader again, for its control."""
    head = "steps.reader."
    return [
        f"steps.{_UNTAUGHT}.{one.removeprefix(head)}" for one in overrides if one.startswith(head)
    ]


def run_make(
    folder: Path,
    out: Path,
    *,
    questions: Path | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> Artifact:
    """Run the main job: documents to an index, a reader that quotes them, and its report.

    ``questions`` are of people, and judge; see ``read_make_recipe``.

    Raises:
        DataError: If the folder is missing, or the questions cannot be read.
        StillroomError: From the steps.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder} is not a folder" if folder.exists() else f"{folder} does not exist",
            code="data.missing",
            expected="a folder of documents",
            next=f"pass the folder: {folder.parent}" if folder.is_file() else "check the path",
        )
    return run_recipe(
        read_make_recipe(folder, overrides, questions=questions, out=out),
        out,
        resume=resume,
        overwrite=overwrite,
        reporter=reporter,
    )
