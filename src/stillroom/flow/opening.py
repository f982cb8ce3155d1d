"""Lookup of steps in a finished run, and opening of runs and indexes for answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError
from stillroom.jobs.files import hold_folder
from stillroom.models.hub import DEFAULT_TEACHER
from stillroom.provenance import ARTIFACT_FILE, Artifact, read_artifact
from stillroom.provenance.sources import describe_changes
from stillroom.records import Answer

if TYPE_CHECKING:
    from stillroom.evaluate.qa.judgments import JudgmentStore
    from stillroom.models import TextModel
    from stillroom.rag.generation.session import JudgedAnswer
    from stillroom.rag.index.searcher import Index
    from stillroom.rag.index.view import AccessContext

__all__ = [
    "OpenedRun",
    "find_checkpoint",
    "find_index",
    "find_model",
    "find_reader",
    "find_step",
    "note_changes",
    "open_index",
    "open_run",
    "recall_judged",
    "set_reader",
]


@dataclass(frozen=True)
class OpenedRun:
    """Open index and model of a run, and what people judged of its answers."""

    index: Index
    model: TextModel
    name: str
    reader: str = ""
    where: str = ""
    run: str = ""
    access: AccessContext | None = None
    judgments: JudgmentStore | None = None

    def ask(self, question: str, **settings: Any) -> Iterator[str | Answer]:
        """Yield pieces of the answer as they come, then the Answer with its citations.

        ``settings`` are fields of ``stillroom.rag.generation.answer.AnswerSettings``.
        """
        from stillroom.rag.generation.answer import ask_stream

        settings = set_reader(settings, self.reader)
        judged = recall_judged(self.judgments, self.index, question, self.access)
        for item in ask_stream(self.index, self.model, question, judged=judged, **settings):
            yield note_changes(item, self.index, self.run) if isinstance(item, Answer) else item

    def make_evidence(
        self, answer: Answer, question: str, *, asked_of: str = "", **settings: Any
    ) -> dict[str, Any]:
        """Return the predicate of the evidence of an answer of ``ask``."""
        from stillroom.rag.generation.evidence import make_evidence

        return make_evidence(
            answer,
            self.index,
            self.model,
            question,
            where=self.where,
            access=self.access,
            asked_of=asked_of,
            **settings,
        )


def recall_judged(
    judgments: JudgmentStore | None, index: Index, question: str, access: AccessContext | None
) -> JudgedAnswer | None:
    """Return what people with this access judged of a question, or None."""
    from stillroom.rag.evaluation.judging import get_scope
    from stillroom.rag.generation.judged import find_judged

    if judgments is None:
        return None
    tenant, principals = get_scope(access)
    return find_judged(judgments, index, question, (tenant, *principals))


def note_changes(answer: Answer, index: Index, run: str) -> Answer:
    """Return an answer with notices of the cited files that changed since they were indexed.

    ``run`` is the name of the run that the index is a step of, or empty.
    """
    if answer.details.get("abstained"):
        return answer
    folder = index.folder.parent
    cited = {(one.location.path, one.location.digest): None for one in answer.citations}
    command = (
        f"'stillroom make' with the same folder and '--out {run}'"
        if run
        else f"'stillroom rag update {folder.name}'"
    )
    changes = list(describe_changes(folder, cited))
    advice = f"{command} reads it again"
    if changes and read_artifact(folder).details.get("snapshot", index.snapshot) > index.snapshot:
        advice = f"this is snapshot {index.snapshot}; leave out --snapshot for the newest"
    notices = [f"{change}: {advice}" for change in changes]
    known = answer.details.get("notices", ())
    return replace(answer, details={**answer.details, "notices": [*known, *notices]})


def set_reader(settings: Mapping[str, Any], reader: str) -> dict[str, Any]:
    """Return answer settings that quote with a run's reader, unless they name another.

    ``settings`` are fields of ``AnswerSettings``; an empty ``reader`` leaves them as they are.
    """
    from stillroom.rag.answer_strategies.quote import Quote
    from stillroom.rag.interfaces import ANSWER_STRATEGIES
    from stillroom.rag.settings import AnswerSettings

    default = AnswerSettings.model_fields["answering"].default
    method = ANSWER_STRATEGIES.build(settings.get("answering") or default)
    if not reader or not isinstance(method, Quote) or "reader" in method.model_fields_set:
        return dict(settings)
    return {**settings, "answering": method.model_copy(update={"reader": reader})}


def find_step(run: Path, role: str) -> Path:
    """Return the folder of the step that answers in a finished run as index, model or reader.

    Raises:
        DataError: If the run is unfinished, its recipe names no such step, or the step was skipped.
    """
    artifact = read_artifact(run)
    answer = artifact.details.get("answer")
    if artifact.kind != "report" or not answer:
        raise DataError(
            f"{run} cannot answer questions",
            code="data.wrong-kind",
            expected="the folder of a run whose recipe has `answer:`",
            next=f"stillroom show {run}",
        )
    steps, skipped = artifact.details["steps"], artifact.details.get("skipped", {})
    name = str(answer.get(role, ""))
    if name in steps:
        return run / str(steps[name])
    why = skipped.get(name, "its recipe has no such step")
    expected, advice = "a run whose recipe has such a step", f"stillroom show {run}"
    if name in skipped:
        expected, advice = "a run with enough documents to train on", "add documents and repeat it"
    elif name.startswith("inputs."):
        why = f"it uses an input, {answer.get('fallback') or name}"
        expected, advice = f"a run that makes its {role}", f"name that {role} itself"
    raise DataError(
        f"{run} has no {role} of its own: {why}",
        code="data.wrong-kind",
        expected=expected,
        next=advice,
    )


def find_index(path: Path) -> Path:
    """Return the folder of an index: ``path`` itself, or the index step of a finished run.

    Raises:
        DataError: If the path is neither.
    """
    return path if read_artifact(path).kind == "index" else find_step(path, "index")


def find_model(run: Path) -> str:
    """Return the reference of the checkpoint that answers in a finished run.

    That is the step's folder, the input that the recipe names instead, or its fallback if the step
    was skipped.

    Raises:
        DataError: If the run is unfinished, or its recipe names no model.
    """
    details = read_artifact(run).details
    answer = details.get("answer")
    if answer and answer["model"] not in details["steps"]:
        return str(answer["fallback"])
    return str(find_step(run, "model"))


def find_reader(run: Path) -> str:
    """Return the reference of the reader that quotes in a finished run; empty for the default."""
    details = read_artifact(run).details
    reader = (details.get("answer") or {}).get("reader", "")
    steps = details.get("steps", {})
    if reader in steps:
        return str(run.absolute() / steps[reader])
    return "" if reader in details.get("skipped", {}) else str(reader)


def find_checkpoint(
    reference: str, *, say: Callable[[str], None] | None = None
) -> tuple[Path, Artifact | None]:
    """Return the folder or file of a checkpoint, and the job that produced it, if any.

    Args:
        reference: Finished run (its model is used), folder of a job (of an export, what it was
            exported from), Hugging Face folder, ``.gguf`` file, or ``hub:NAME[@revision]``.
        say: Receives the resolved reference, if it differs from the given one.

    Raises:
        CheckpointError: If none is found.
        DataError: If it is an artifact of another kind, or a run without a model.
    """
    from stillroom.models import resolve_checkpoint

    path = Path(reference)
    if (path / ARTIFACT_FILE).is_file():
        artifact = read_artifact(path)
        if artifact.kind == "report" and artifact.details.get("answer"):
            reference = find_model(path)
            path = Path(reference)
            if not (path / ARTIFACT_FILE).is_file():
                return resolve_checkpoint(reference, say=say), None
            artifact = read_artifact(path)
        if "export" in artifact.details:  # quantized: what it was exported from has all bits
            source = next(one.path for one in artifact.parents if one.role == "model")
            return find_checkpoint(str(path / source), say=say)
        return resolve_checkpoint(str(path), say=say), artifact
    return resolve_checkpoint(reference, say=say), None


@contextmanager
def open_run(run: Path, *, model: str = "", **view: Any) -> Iterator[OpenedRun]:
    """Open a finished run, or an index, with its model until the body ends.

    ``model`` is another one than the run's own (of an index ``DEFAULT_TEACHER``); ``view`` are
    further arguments of ``open_index``.

    Raises:
        DataError: If the run is unfinished or names no index and model.
        CheckpointError: If the model cannot be found.
    """
    from stillroom.evaluate.qa.judgments import find_judgments

    with ExitStack() as held:
        held.enter_context(hold_folder(run / "steps"))
        is_index = read_artifact(run).kind == "index"
        reference = model or (DEFAULT_TEACHER if is_index else find_model(run))
        opened = held.enter_context(open_index(find_index(run), reference, **view))
        reader, name = ("", "") if is_index else (find_reader(run), run.resolve().name)
        yield replace(opened, reader=reader, run=name, judgments=find_judgments(run))


@contextmanager
def open_index(
    index: Path,
    model: str,
    *,
    say: Callable[[str], None] | None = None,
    where: str = "",
    snapshot: str | None = None,
    access: AccessContext | None = None,
) -> Iterator[OpenedRun]:
    """Open an index and a model until the body ends.

    ``where`` filters documents; ``snapshot`` is an older state, by number or digest; ``say``
    receives progress messages.

    Raises:
        DataError: If the index is missing or not an index, or the filter is invalid.
        CheckpointError: If the model cannot be found.
    """
    from stillroom.models import open_text_model
    from stillroom.models.factory import DeferredModel
    from stillroom.rag.index.searcher import Index

    with Index.open(index, snapshot=snapshot, access=access) as opened:
        shown = opened.restrict(where) if where else opened
        name = (model.partition("#")[2] or Path(model).name).removesuffix(".gguf")
        with closing(DeferredModel(name, lambda: open_text_model(model, say=say))) as text_model:
            yield OpenedRun(shown, text_model, text_model.name, where=where, access=access)
