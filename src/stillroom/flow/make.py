"""The main job: ``make.yaml`` for a folder of documents, with people's questions and judgments.

``make.yaml`` has the steps ``index``, ``records``, ``reader`` and ``report``, as ``stillroom new
flow/make`` prints it. What people asked or judged adds steps to it and sources to its reader.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stillroom.errors import DataError, RecipeError, count_noun
from stillroom.evaluate.metrics.bootstrap import MIN_UNITS
from stillroom.evaluate.qa.questions import read_question_set
from stillroom.flow.recipe import FlowRecipe
from stillroom.flow.run import run_recipe
from stillroom.jobs import Reporter, choose_reporter
from stillroom.provenance import Artifact
from stillroom.recipes import build_recipe
from stillroom.recipes.yaml_text import read_yaml

__all__ = ["read_make_recipe", "run_make"]

_RECIPE = Path(__file__).with_name("make.yaml")
_READER, _CONTROL = "reader", "untaught"
_MIN_TO_LEARN_FROM = 60
"""Questions with evidence of which half are trained on: fewer would be too few to evaluate."""
Steps = dict[str, dict[str, Any]]
"""Settings of the steps of a flow, by name."""


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
    recipe = read_make_recipe(folder, overrides, questions=questions, out=out)
    if questions is not None and (few := _describe_few(questions)):
        (reporter or choose_reporter()).warn(few)
    return run_recipe(
        recipe,
        out,
        resume=resume,
        overwrite=overwrite,
        reporter=reporter,
    )


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
    data = read_yaml(_RECIPE.read_text(encoding="utf-8"), _RECIPE.name).data
    inputs: dict[str, str] = data["inputs"]
    steps: Steps = data["steps"]
    inputs["documents"] = str(folder.absolute())
    if questions is not None:
        _refuse_indexed(folder, questions)
        inputs["questions"] = str(questions.absolute())
        steps = _judge_by_questions(steps, _count_teaching(questions))
    if out is not None:
        steps = _learn_from_judgments(steps, inputs, out)
    data["steps"] = steps
    if _CONTROL in steps:  # the control differs in the judgments alone
        overrides = [*_repeat_for_control(overrides), *overrides]
    recipe = build_recipe(data, _RECIPE.name, overrides, folder=Path.cwd())
    if not isinstance(recipe, FlowRecipe):
        raise RecipeError("the recipe of the main job is not a flow", code="recipe.wrong-kind")
    return recipe


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


def _describe_few(questions: Path) -> str:
    """Return a warning if the questions are too few to decide by, else an empty string."""
    count = sum(question.is_answerable for question in read_question_set(questions))
    if count >= MIN_UNITS:
        return ""
    return (
        f"{questions} has {count_noun(count, 'question')} with an answer: {MIN_UNITS} are "
        "required to decide what to use"
    )


def _count_teaching(questions: Path) -> int:
    """Return the number of answerable questions that name their evidence."""
    return sum(
        question.is_answerable and bool(question.evidence)
        for question in read_question_set(questions)
    )


def _judge_by_questions(steps: Steps, teaching: int) -> Steps:
    """Let people's questions judge; where many can teach, the reader learns from half of them."""
    source = {"from": "inputs.questions"}
    if teaching < _MIN_TO_LEARN_FROM:
        steps["report"]["questions"] = source
        return steps
    steps["report"]["questions"] = {"from": "judged"}
    steps[_READER]["questions"].append({"from": "learned"})
    halves = {
        half: {"kind": "evaluate.questions", "questions": source, "part": half}
        for half in ("learned", "judged")
    }
    return _insert_steps(steps, list(steps).index(_READER), halves)


def _learn_from_judgments(steps: Steps, inputs: dict[str, str], out: Path) -> Steps:
    """Let the reader learn from the judgments beside a run that are to train, if there are any.

    Where others with an answer are held out, a control is trained without the judgments, and both
    readers answer those: the step ``judgments`` measures what the judgments bought.
    """
    from stillroom.evaluate.qa.judgments import find_judgments

    store = find_judgments(out)
    judgments = store.read()
    if not any(judgment.evidence and judgment.side == "train" for judgment in judgments):
        return steps
    reader, held_out = steps[_READER], {"from": "inputs.judged_test"}
    is_tested = any(judgment.answers and judgment.side == "test" for judgment in judgments)
    # People's questions may have been asked and judged, and a held-out one in other words would
    # be learned from and judge.
    judging = steps["report"]["questions"]
    without = [judging] if judging != {"from": _READER} else []
    without += [held_out] if is_tested else []
    if without:
        reader["without"] = without
    control = {**reader, "questions": [*reader["questions"]]}
    inputs["judged"] = str(store.path_of("train").absolute())
    reader["questions"].append({"from": "inputs.judged"})
    if not is_tested:
        return steps
    inputs["judged_test"] = str(store.path_of("test").absolute())
    steps = _insert_steps(steps, list(steps).index(_READER) + 1, {_CONTROL: control})
    return {**steps, "judgments": _compare_with_control(steps["report"], held_out)}


def _insert_steps(steps: Steps, place: int, new: Steps) -> Steps:
    """Return the steps with others at a place; a step follows those that it takes from."""
    ordered = list(steps.items())
    return dict([*ordered[:place], *new.items(), *ordered[place:]])


def _compare_with_control(
    report: Mapping[str, Any], questions: Mapping[str, str]
) -> dict[str, Any]:
    """Return the report of questions that the readers with and without the judgments answer."""
    (first, trained), *others = report["compare"]["readers"].items()
    readers = {first: trained, _CONTROL: {"from": _CONTROL}, **dict(others)}
    compare = {"readers": readers, "model_questions": 0, "untaught": _CONTROL}
    return {**report, "questions": questions, "compare": compare}


def _repeat_for_control(overrides: Sequence[str]) -> list[str]:
    """Return the settings of the reader again, for its control."""
    head = f"steps.{_READER}."
    return [
        f"steps.{_CONTROL}.{setting.removeprefix(head)}"
        for setting in overrides
        if setting.startswith(head)
    ]
