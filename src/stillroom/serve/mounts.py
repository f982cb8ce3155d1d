"""Served models (deployments): runs, indexes and checkpoints loaded under the names of requests.

``NAME=PATH`` mounts a path under a name, ``PATH`` alone under the folder's name,
``NAME=INDEX+MODEL`` an index with another model than its default. The type is detected: a run, an
index, a checkpoint of any backend (diffusion included), an embedder, or a reranker.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from stillroom.checkpoints.config_file import read_config
from stillroom.errors import DataError, RecipeError
from stillroom.evaluate.qa.judgments import JUDGMENTS_SUFFIX, find_judgments
from stillroom.flow.opening import (
    find_index,
    find_model,
    find_reader,
    note_changes,
    recall_judged,
    set_reader,
)
from stillroom.jobs.files import hold_folder
from stillroom.models import (
    ConcurrentModel,
    Embedder,
    TextModel,
    open_text_model,
    resolve_checkpoint,
)
from stillroom.models.hub import DEFAULT_TEACHER
from stillroom.models.interfaces import (
    BatchingModel,
    DenoisingModel,
    OpenAIPassthroughModel,
    RerankerModel,
)
from stillroom.provenance import ARTIFACT_FILE, find_output, read_artifact
from stillroom.provenance.artifact import refuse_unfinished
from stillroom.records import Answer, Message, Sampling
from stillroom.serve.evidence import AnswerEvidence

if TYPE_CHECKING:
    from stillroom.evaluate.qa.judgments import AskedAnswer, Judgment, JudgmentStore, Verdict
    from stillroom.rag.index.searcher import Index
    from stillroom.rag.index.user_cache import PerUserIndexCache
    from stillroom.rag.index.view import AccessContext
    from stillroom.rag.interfaces import Query
    from stillroom.text.verbatim import VerbatimTrace

__all__ = [
    "AnswerFunction",
    "Mount",
    "ServedModel",
    "StoredJudgments",
    "open_mount",
    "open_mounts",
    "open_run",
    "parse_mount",
]


class AnswerFunction(Protocol):
    """Answers from documents: yields pieces of text, then the Answer."""

    def __call__(
        self,
        messages: Sequence[Message],
        sampling: Sampling,
        k: int,
        *,
        settings: Mapping[str, Any],
        access: AccessContext | None,
        is_cancelled: Callable[[], bool],
    ) -> Iterator[str | Answer | AnswerEvidence]:
        """Answer the last message, then state what it was made from; the model sees ``k`` passages.

        Messages before the last are read only if the pipeline starts with the transform last_turn,
        and where quotes answer a follow-up: passages are searched with the questions before it.
        ``settings`` are those that the client overrides; ``access`` is that of its key, None if
        that names none.

        Raises:
            RecipeError: If the client names an unknown method.
            DataError: If the index has tenants and no access is given.
        """


@dataclass(frozen=True)
class ServedModel:
    """One mount: a model, an embedder, a reranker, and an answer function over documents.

    Clients choose by name: ``name`` answers from documents if there are any, ``model_name`` is the
    model alone, ``embedder_name`` embeds; without a model the name is that of the embedder or the
    reranker.
    """

    name: str
    model: TextModel | None = None
    ask: AnswerFunction | None = None
    embedder: Embedder | None = None
    embedder_name: str = "embedder"
    reranker: RerankerModel | None = None
    k: int = 3
    trace: Callable[[str, Sequence[int], int], VerbatimTrace] | None = None
    judgments: StoredJudgments | None = None
    is_ready: Callable[[], bool] = lambda: True
    """Whether its documents are in their place, rather than being indexed again."""
    access_rule: str = "open"
    """Who sees the index: ``open`` (everyone sees all) or ``tenants`` (each tenant its own)."""

    @property
    def text_model(self) -> TextModel:
        """The text model of a mount that has one; a mount without writes no text."""
        if self.model is None:
            raise TypeError(f"{self.name} has no text model")
        return self.model

    @property
    def model_name(self) -> str:
        """Name under which the model answers without documents."""
        return f"{self.name}-bare" if self.ask else self.name

    @property
    def names(self) -> list[str]:
        """All names that a client may request."""
        names = [self.name, self.model_name] if self.ask else [self.name]
        if self.embedder is not None and self.embedder_name not in names:
            names.append(self.embedder_name)
        return names

    def capabilities(self, name: str) -> list[str]:
        """Return the endpoints that answer to a name."""
        if name == self.embedder_name and self.embedder is not None:
            return ["embeddings", "rerank"]
        if self.reranker is not None:
            return ["rerank"]
        if self.model is None:
            return []
        endpoints = ["chat.completions", "responses", "completions"]
        if self.ask is not None and name == self.name:
            return [*endpoints, "citations"]
        if isinstance(self.model, DenoisingModel):
            endpoints.append("canvas")
        if isinstance(self.model, OpenAIPassthroughModel):
            endpoints.append("tools")
        return endpoints

    @property
    def concurrency(self) -> int:
        """Number of answers that the engine generates at once."""
        if isinstance(self.model, ConcurrentModel):
            return self.model.concurrency
        return self.model.lanes if isinstance(self.model, BatchingModel) else 1


@contextmanager
def open_run(
    run: Path,
    *,
    name: str = "",
    model: str = "",
    settings: Mapping[str, Any] | None = None,
    access: AccessContext | None = None,
    say: Callable[[str], None] | None = None,
) -> Iterator[ServedModel]:
    """Open the index and the model of a finished run, or an index, until the body ends.

    ``model`` is another one than the run's own (of an index ``DEFAULT_TEACHER``).

    Raises:
        DataError: If the run is unfinished or names no index and model.
        CheckpointError: If the model cannot be found.
    """
    from stillroom.rag.generation.answer import ask_stream
    from stillroom.rag.index.user_cache import PerUserIndexCache
    from stillroom.rag.interfaces import Query
    from stillroom.rag.retrieval.pipeline import parse_answer_settings

    is_index = read_artifact(run).kind == "index"
    reference = model or (DEFAULT_TEACHER if is_index else find_model(run))
    parts = _RunParts(run, "" if is_index else find_reader(run), "" if model else reference)
    defaults = settings or {}
    index_path, locate = find_index(run), partial(find_index, run)
    with PerUserIndexCache(index_path, default=access, locate=locate) as audience:
        text_model = open_text_model(reference, say=_tell_use(say, defaults))
        store = find_judgments(run)

        def ask(
            messages: Sequence[Message],
            sampling: Sampling,
            k: int,
            *,
            settings: Mapping[str, Any],
            access: AccessContext | None = None,
            is_cancelled: Callable[[], bool],
        ) -> Iterator[str | Answer | AnswerEvidence]:
            seen = access or audience.default
            # The current state: what is deleted or not visible any more is in no later answer.
            with hold_folder(run / "steps"), audience.seen_by(access) as index:
                if not is_index:
                    parts.follow()
                query = Query(messages[-1].content, history=tuple(messages[:-1]))
                options = {**defaults, **parse_answer_settings(settings), "k": k}
                items = ask_stream(
                    index,
                    text_model,
                    query,
                    sampling=sampling,
                    is_cancelled=is_cancelled,
                    judged=recall_judged(store, index, query.text, seen),
                    **set_reader(options, parts.reader),
                )
                shown = _note_changes(items, index, "" if is_index else run.resolve().name)
                yield from _with_evidence(shown, index, text_model, query, sampling, seen, options)

        try:
            yield ServedModel(
                name or run.resolve().name,
                text_model,
                ask,
                audience.embedder,
                k=defaults.get("k", ServedModel.k),
                trace=partial(_trace, run, audience) if audience.rule == "open" else None,
                judgments=StoredJudgments(store, audience),
                is_ready=lambda: audience.is_present,
                access_rule=audience.rule,
            )
        finally:
            text_model.close()


def _tell_use(
    say: Callable[[str], None] | None, settings: Mapping[str, Any]
) -> Callable[[str], None] | None:
    """Append to a message about the model when it is used, if answers are quotes by default."""
    from stillroom.rag.interfaces import ANSWER_STRATEGIES
    from stillroom.rag.settings import AnswerSettings

    default = AnswerSettings.model_fields["answering"].default
    method = ANSWER_STRATEGIES.build(settings.get("answering") or default)
    if say is None or method.method_name() != "quote":
        return say
    return lambda line: say(f"{line}; quotes need no model: it is used only on request")


@dataclass(slots=True)
class _RunParts:
    """Present reader of a run, and its model's reference; that is empty where another answers."""

    run: Path
    reader: str
    model: str

    def follow(self) -> None:
        """Take the reader of the run as it is now; the last one while the run is made again."""
        with suppress(DataError):
            self.reader, model = find_reader(self.run), find_model(self.run)
            if self.model and model != self.model:
                self.model = model
                _LOG.warning("%s has another model now: restart the server to use it", self.run)


def _trace(
    run: Path, audience: PerUserIndexCache, text: str, cited: Sequence[int], min_words: int
) -> VerbatimTrace:
    """Trace a text in all that clients may read: no client reads what people judged."""
    from stillroom.text.verbatim.trace import find_texts, trace_text

    texts = find_texts(run, audience.folder.parent)
    shown = [
        entry
        for entry in texts.records
        if not any(part.endswith(JUDGMENTS_SUFFIX) for part in entry[0].parts)
    ]
    return trace_text(text, replace(texts, records=tuple(shown)), cited=cited, min_words=min_words)


def _note_changes(items: Iterator[str | Answer], index: Index, run: str) -> Iterator[str | Answer]:
    """Yield the items of an answer, the Answer with notices of cited files that changed."""
    for item in items:
        yield note_changes(item, index, run) if isinstance(item, Answer) else item


def _with_evidence(
    items: Iterator[str | Answer],
    index: Index,
    model: TextModel,
    query: Query,
    sampling: Sampling,
    access: AccessContext | None,
    options: Mapping[str, Any],
) -> Iterator[str | Answer | AnswerEvidence]:
    """Yield the items of an answer, and after the Answer what it was made from."""
    from stillroom.rag.generation.evidence import make_evidence

    for item in items:
        yield item
        if isinstance(item, Answer):
            stated = make_evidence(
                item,
                index,
                model,
                query,
                sampling=sampling,
                access=access,
                withholds=True,
                **options,
            )
            yield AnswerEvidence(stated)


@dataclass(frozen=True, slots=True)
class StoredJudgments:
    """Judgments of a client: of its tenant and principals, if it has any."""

    store: JudgmentStore
    audience: PerUserIndexCache

    def judge(
        self, asked: AskedAnswer, verdict: Verdict, quote: str, access: AccessContext | None
    ) -> Judgment:
        """Find the evidence of a verdict in the documents, store both, and return them.

        Raises:
            DataError: If no visible passage holds the text, or the index has tenants and no access
                is given.
            ResourceError: If the judgment cannot be stored.
        """
        from stillroom.rag.evaluation.judging import record_judgment

        seen = access or self.audience.default
        with self.audience.seen_by(access) as index:
            return record_judgment(self.store, index, asked, verdict, quote, access=seen)

    def read(self, access: AccessContext | None) -> list[tuple[Judgment, bool | None]]:
        """Return the judgments that count, oldest first, and whether their evidence still stands.

        Raises:
            DataError: If a stored line is no judgment, or the index has tenants and no access is
                given.
        """
        from stillroom.rag.evaluation.judging import find_gone

        with self._open(access) as (index, scope):
            judgments = [found for found in self.store.read() if found.asked.scope == scope]
            gone = find_gone(index, judgments)
        return [(found, found.id not in gone if found.evidence else None) for found in judgments]

    def delete(self, name: str, access: AccessContext | None) -> int:
        """Delete all that is stored on the question of a judgment, and return how many lines.

        Raises:
            DataError: If no judgment that the client may see has this id.
            ResourceError: If the folder cannot be written.
        """
        with self._open(access) as (_, scope):
            return self.store.delete(name, scope)

    @contextmanager
    def _open(self, access: AccessContext | None) -> Iterator[tuple[Index, tuple[str, ...]]]:
        """Give the index as the client sees it, and the scope of its judgments."""
        from stillroom.rag.evaluation.judging import get_scope

        tenant, principals = get_scope(access or self.audience.default)
        with self.audience.seen_by(access) as index:
            yield index, (tenant, *principals)


_LOG = logging.getLogger("stillroom.serve")
_NAMED_MOUNT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._/-]{0,127})=(.+)", re.DOTALL)
_MODEL_FILE = re.compile(r"(?:config|modules)\.json|.*\.(?:safetensors|gguf|bin|pth?|onnx)")
_REFERENCE_SCHEME = re.compile(r"[a-z][a-z0-9.-]+:")


@dataclass(frozen=True, slots=True)
class Mount:
    """Mount: a reference, its name, and the model that answers from an index."""

    name: str
    reference: str
    model: str = ""


def parse_mount(text: str, model: str = "") -> Mount:
    """Parse ``[NAME=]PATH[+MODEL]``; an existing path is never split.

    Raises:
        RecipeError: If no name is given and the path has none.
    """
    named = None if Path(text).exists() else _NAMED_MOUNT.fullmatch(text)
    name, reference = (named[1], named[2]) if named else ("", text)
    if not Path(reference).exists() and not _REFERENCE_SCHEME.match(reference):
        path, plus, own_model = reference.partition("+")
        reference, model = (path, own_model) if plus else (reference, model)
    if not name:
        name = reference.rpartition("#")[2] if "#" in reference else Path(reference).resolve().name
        name = name.removesuffix(".gguf")
    if not name:
        raise RecipeError(
            f"{text!r:.80} has no name for clients",
            code="serve.mount",
            where="stillroom serve",
            expected="NAME=PATH",
            next=f"stillroom serve NAME={text}",
        )
    return Mount(name, reference, model)


@contextmanager
def open_mounts(
    mounts: Sequence[Mount],
    *,
    settings: Mapping[str, Any] | None = None,
    access: AccessContext | None = None,
    say: Callable[[str], None] | None = None,
) -> Iterator[list[ServedModel]]:
    """Open all mounts until the body ends.

    Raises:
        RecipeError: If two mounts have one name.
        DataError: If a run is unfinished.
        CheckpointError: If a checkpoint cannot be found or opened.
    """
    with ExitStack() as opened:
        models: list[ServedModel] = []
        for mount in mounts:
            served = opened.enter_context(
                open_mount(mount, settings=settings, access=access, say=say)
            )
            if len(mounts) > 1 and served.embedder is not None and served.model is not None:
                served = replace(served, embedder_name=f"{served.name}-embedder")
            models.append(served)
        names = [name for served in models for name in served.names]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise RecipeError(
                f"two mounts have the name {twice[0]!r}",
                code="serve.mount",
                where="stillroom serve",
                expected="a different name for each",
                next=f"stillroom serve {twice[0]}=PATH other-name=PATH",
            )
        yield models


@contextmanager
def open_mount(
    mount: Mount,
    *,
    settings: Mapping[str, Any] | None = None,
    access: AccessContext | None = None,
    say: Callable[[str], None] | None = None,
) -> Iterator[ServedModel]:
    """Open one mount until the body ends, by the type of its target.

    Raises:
        RecipeError: If another model is named but the target has no documents.
        DataError: If a run is unfinished, or the target is a folder of documents.
        CheckpointError: If a checkpoint cannot be found or opened.
    """
    path = Path(mount.reference)
    kind = read_artifact(path).kind if (path / ARTIFACT_FILE).is_file() else ""
    if kind in {"report", "index"}:
        with open_run(
            path, name=mount.name, model=mount.model, settings=settings, access=access, say=say
        ) as served:
            yield served
        return
    if mount.model:
        raise RecipeError(
            f"{mount.reference} is not an index, so no other model can answer from it",
            code="serve.mount",
            where="stillroom serve",
            expected="a model together with an index or a run",
            next=f"stillroom serve {mount.name}={mount.reference}",
        )
    if not kind:
        _refuse_other_folder(path)
    folder = find_output(path, "checkpoint") if kind else path
    with _open_checkpoint(mount, folder, say) as served:
        yield served


def _refuse_other_folder(path: Path) -> None:
    """Refuse an unfinished run, and a folder of documents.

    Raises:
        DataError: Naming the next step.
    """
    if not path.exists():
        refuse_unfinished(path)
    if (path / "recipe.yaml").is_file() and not (path / "config.json").is_file():
        raise DataError(
            f"an unfinished run lies in {path}",
            code="data.unfinished",
            where="stillroom serve",
            expected="a finished run or index",
            next="finish it by the command that started it, with --resume",
        )
    if not path.is_dir() or any(_MODEL_FILE.fullmatch(entry.name) for entry in path.iterdir()):
        return
    if any(entry.is_dir() or entry.is_file() for entry in path.iterdir()):
        raise DataError(
            f"{path} is a folder of documents, or of other files: no model and no index",
            code="serve.mount",
            where="stillroom serve",
            expected="a run, an index, or a model",
            next=f"of documents: stillroom make {path} --out run, and then stillroom serve run",
        )


@contextmanager
def _open_checkpoint(
    mount: Mount, folder: Path, say: Callable[[str], None] | None
) -> Iterator[ServedModel]:
    """Open a checkpoint by its type; a reference that is not a folder is a language model."""
    from stillroom.models import open_embedder
    from stillroom.models.factory import open_reranker

    if mount.reference.startswith("hub:"):
        folder = resolve_checkpoint(mount.reference, say=say)
    model_type = _detect_model_type(folder)
    if model_type == "embedder":
        embedder = open_embedder(str(folder), say=say)
        yield ServedModel(mount.name, embedder=embedder, embedder_name=mount.name)
        return
    if model_type == "reranker":
        with closing(open_reranker(str(folder), say=say)) as reranker:
            yield ServedModel(mount.name, reranker=reranker)
        return
    is_said = folder != Path(mount.reference)
    with closing(open_text_model(mount.reference, say=None if is_said else say)) as model:
        yield ServedModel(mount.name, model)


def _detect_model_type(folder: Path) -> str:
    if (folder / "modules.json").is_file():
        return "embedder"
    try:
        config = read_config(folder / "config.json")
        heads = config.get("architectures") or []
    except (OSError, ValueError, AttributeError):
        return "model"
    is_judge = any("ForSequenceClassification" in str(head) for head in heads)
    return "reranker" if is_judge else "model"
