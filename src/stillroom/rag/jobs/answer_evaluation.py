"""Answer questions from an index and grade the answers, with the stage at fault for each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, cast

from pydantic import Field, Tag, model_validator
from typing_extensions import override

from stillroom.errors import RecipeError
from stillroom.jobs import Estimate, Job
from stillroom.jobs.kind import JobKind
from stillroom.jobs.replay import JournalReplayer
from stillroom.jobs.segments import ReplayRequest
from stillroom.provenance import Artifact
from stillroom.rag.interfaces import CHECKERS, DEFAULT_RETRIEVER, GroundednessChecker
from stillroom.rag.jobs.inputs import IndexInput, is_path
from stillroom.recipes import DISTINCT, Recipe, Reference, Settings, choose_by_key
from stillroom.registry import Method

__all__ = [
    "JOB_KIND",
    "AnswerEvaluationRecipe",
    "ModelJudge",
    "ReaderComparison",
    "TokenPrices",
    "WordJudge",
    "estimate",
    "run",
]


class ModelJudge(Settings):
    """A model grades the answers."""

    model: Reference = Field(description="text model that grades")
    mode: Literal["logprob", "json"] | None = Field(
        default=None,
        description="compare the probabilities of yes and no, or constrain to a schema; null "
        "chooses by the model",
    )
    labels: Reference | None = Field(
        default=None,
        description="human verdicts to compare with: JSON lines of question, pipeline and right",
    )


class WordJudge(Settings):
    """Word overlap decides correctness, and a checker decides support."""

    checker: Annotated[GroundednessChecker, CHECKERS.choice("overlap")] = Field(
        default="overlap", validate_default=True, description="support checker of statements"
    )


AnswerJudge = Annotated[
    Annotated[WordJudge, Tag("WordJudge")] | Annotated[ModelJudge, Tag("ModelJudge")],
    choose_by_key(
        dict.fromkeys(ModelJudge.model_fields, "ModelJudge"),
        "{checker: NAME}, or {model: REFERENCE}",
        default="WordJudge",
    ),
]
"""Who grades the answers."""


class TokenPrices(Settings):
    """Prices of a million tokens, in any currency."""

    prompt: float = Field(default=0.0, ge=0, description="price of a million tokens read")
    completion: float = Field(default=0.0, ge=0, description="price of a million tokens written")


class ReaderComparison(Settings):
    """Sentence readers that answer the same questions, and the generating model."""

    readers: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], Reference] = Field(
        min_length=1,
        description="readers by name, each with `quote`: a job of kind rag.reader, builtin:reader, "
        "or builtin:overlap (word overlap); the first is compared with the others",
    )
    model_questions: int = Field(
        default=20,
        ge=0,
        description="number of questions that the model answers, too, as the arm 'base'; half of "
        "them again without the documents that answer; 0 leaves it out",
    )
    untaught: str = Field(
        default="",
        description="name of a reader like the first one, but not trained on people's judgments; "
        "on judged questions the report compares both, which decides nothing",
    )

    @model_validator(mode="after")
    def _check_names(self) -> ReaderComparison:
        if "base" in self.readers:
            raise RecipeError(
                "a reader is called 'base'",
                code="recipe.value",
                where="compare.readers",
                expected="another name: base is the generating model",
                next="rename the reader",
            )
        return self


class AnswerEvaluationRecipe(IndexInput, Recipe):
    """Recipe that answers questions from an index and grades the answers."""

    kind: Literal["rag.answer_evaluation"] = Field(
        default="rag.answer_evaluation", description="grade answers"
    )
    questions: Reference = Field(
        description="questions with reference answers: JSON lines, SQuAD, records"
    )
    model: Reference = Field(description="text model that answers")
    pipelines: Annotated[list[str], DISTINCT] = Field(
        default=[DEFAULT_RETRIEVER],
        min_length=1,
        description="[TRANSFORM>]RETRIEVER[+RERANKER][=>ANSWERING][!drop]; ANSWERING is quote "
        "unless given, and generate lets the model write; the first is the baseline",
    )
    compare: ReaderComparison | None = Field(
        default=None,
        description="sentence readers to compare, with the retrieval of the only pipeline; decides "
        "whether the first is worth using",
    )
    judge: AnswerJudge = Field(
        default=WordJudge(),
        description="grading by words, {checker: NAME}, or by a model, {model: REFERENCE}",
    )
    k: int = Field(default=3, ge=1, description="number of passages shown to the model")
    depth: int = Field(default=100, ge=1, le=1000, description="number of ranks that are judged")
    max_questions: int = Field(
        default=0, ge=0, description="maximum number of questions, sampled by the seed; 0 for all"
    )
    max_new_tokens: int = Field(default=128, ge=1, description="maximum tokens of an answer")
    prices: TokenPrices = Field(default=TokenPrices(), description="prices of a million tokens")

    @model_validator(mode="after")
    def _check_comparison(self) -> AnswerEvaluationRecipe:
        if self.compare is not None and len(self.pipelines) > 1:
            raise RecipeError(
                f"{len(self.pipelines)} pipelines are given with a comparison of readers",
                code="rag.pipelines",
                where="pipelines",
                expected="one, whose passages all readers see",
                next="leave out compare to compare pipelines",
            )
        return self

    @property
    def model_judge(self) -> ModelJudge | None:
        """The judge, if it is a model."""
        return self.judge if isinstance(self.judge, ModelJudge) else None

    @property
    def checker(self) -> GroundednessChecker:
        """Support checker of statements, where no model judges."""
        return (self.judge if isinstance(self.judge, WordJudge) else WordJudge()).checker


def run(recipe: AnswerEvaluationRecipe, job: Job) -> Artifact:
    """Evaluate; see ``stillroom.rag.evaluation.answer_job.evaluate_answers``."""
    from stillroom.rag.evaluation.answer_job import evaluate_answers

    return evaluate_answers(recipe, job)


def estimate(recipe: AnswerEvaluationRecipe) -> Estimate:
    """Estimate the time of the answers; checks pipelines, questions and labels."""
    if not is_path(recipe.questions, recipe.model_judge.labels if recipe.model_judge else None):
        return Estimate()
    from stillroom.rag.evaluation.answer_job import estimate_answers

    return estimate_answers(recipe)


def _list_readers(recipe: AnswerEvaluationRecipe) -> list[str]:
    """Return the packaged readers that are installed: the default stands for one of them."""
    from stillroom.rag.answer_selection.reader import list_installed_readers

    return list_installed_readers()


_PATH_SETTINGS = frozenset({"reader", "checkpoint", "graph"})


class _AnswerReplayer(JournalReplayer):
    """Replays evaluations whose pipelines name files that are here."""

    @override
    def find_open(self, request: ReplayRequest) -> str:
        for text in cast("AnswerEvaluationRecipe", request.recipe).pipelines:
            for name in _list_paths(text):
                path = Path(name).expanduser()
                if not path.exists():
                    place = "there" if path.is_absolute() else "in the current folder"
                    return f"its pipeline {text} names {name}, which is not here; put it {place}"
        return super().find_open(request)


def _list_paths(pipeline: str) -> list[str]:
    """Return the files that the settings of a pipeline name; none if it cannot be read here."""
    from stillroom.rag.retrieval.pipeline import parse_rag_pipeline

    try:
        parsed = parse_rag_pipeline(pipeline)
    except RecipeError:
        return []
    pending: list[Method | None] = [parsed.retriever, parsed.reranker, parsed.answering]
    pending.append(parsed.transform)
    paths = []
    while pending:
        for name, value in pending.pop() or ():
            if isinstance(value, Method):
                pending.append(value)
            elif name in _PATH_SETTINGS and isinstance(value, str) and is_path(value):
                paths.append(value)
    return paths


JOB_KIND = JobKind(
    recipe=AnswerEvaluationRecipe,
    run=run,
    estimate=estimate,
    surroundings=_list_readers,
    replayer=_AnswerReplayer(
        ("readings", "verdicts", "silence"),
        timed=frozenset({"seconds", "search_seconds", "cpu_seconds"}),
        phases=("read", "generate", "abstention", "silence"),  # the last one of earlier versions
    ),
)
