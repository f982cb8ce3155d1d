"""LLM calls of RAG methods: generated queries and their parsing, call counts, shared rerankers.

Output that cannot be parsed (an engine without a grammar, an answer cut off at its limit) adds a
warning, and the caller falls back to the query itself.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError, StillroomError
from stillroom.models.requests import stream_with_completion
from stillroom.provenance import digest_json
from stillroom.provenance.digests import load_json
from stillroom.rag.interfaces import Query
from stillroom.rag.observability import add_warning
from stillroom.records import Completion, Message, Prompt, Sampling
from stillroom.text.unicode import strip_invisible

if TYPE_CHECKING:
    from pathlib import Path

    from stillroom.models import TextModel
    from stillroom.models.encoders.sequence_classifiers import NLIModel
    from stillroom.models.interfaces import RerankerModel, Score

__all__ = [
    "CallCounter",
    "drop_duplicate_texts",
    "generate_queries",
    "generate_texts",
    "make_fence",
    "open_entailment",
    "open_optional_model",
    "open_shared_model",
    "quote_text",
    "read_fingerprint",
    "require_model",
]


_MAX_TEXT_LENGTH = 160
_MIN_TEXT_LENGTH = 4

_JSON_RULES = (
    'You write search queries. You answer in JSON, as a list of texts under the key "queries".'
)


def require_model(model: TextModel | None, method: str, without: str) -> TextModel:
    """Return the model, or raise an error that names an alternative.

    ``without`` is a method of the same registry that needs no model.

    Raises:
        DataError: If the model is None.
    """
    if model is None:
        raise DataError(
            f"{method} asks a model, but no model is given",
            code="rag.no-model",
            expected="a model",
            next=f"pass model=..., or use {without}, which needs none",
        )
    return model


def generate_texts(
    model: TextModel, request: str, *, most: int, max_new_tokens: int, method: str
) -> list[str]:
    """Return 1 to ``most`` generated texts of one line, or an empty list if none can be searched.

    Texts without a letter (numbers of a list, dots) are left out.

    The model is held to a schema where its engine can; ``method`` names the caller in warnings.
    """
    text = {"type": "string", "minLength": _MIN_TEXT_LENGTH, "maxLength": _MAX_TEXT_LENGTH}
    items = {"type": "array", "items": text, "minItems": 1, "maxItems": most}
    schema = {
        "type": "object",
        "properties": {"queries": items},
        "required": ["queries"],
        "additionalProperties": False,
    }
    # The format comes first and has no example: small models copy the end of a prompt, or examples.
    messages = Message("system", _JSON_RULES), Message("user", request)
    prompt = Prompt(messages, schema=schema)
    seed = int(digest_json([method, request])[:8], 16)
    completion = model.generate([prompt], Sampling(max_new_tokens=max_new_tokens, seed=seed))[0]
    texts = _parse_texts(completion.text)[:most]
    if not texts:
        add_warning(
            f"{method}: the model's answer could not be read; the query is searched as it is"
        )
    return texts


def generate_queries(
    model: TextModel | None,
    query: Query,
    request: str,
    *,
    most: int,
    max_new_tokens: int,
    method: str,
) -> list[Query]:
    """Return the query, followed by distinct queries that a model generates from it.

    ``{count}`` and ``{query}`` in ``request`` are filled in; ``method`` names the transform in
    warnings and errors.

    Raises:
        DataError: If no model was given.
    """
    generated = generate_texts(
        require_model(model, f"the transform {method}", "the transform expand"),
        request.format(count=most, query=query.text),
        most=most,
        max_new_tokens=max_new_tokens,
        method=method,
    )
    texts = drop_duplicate_texts([query.text, *generated])
    return [query, *(replace(query, text=text, terms={}, drafts=()) for text in texts[1:])]


def drop_duplicate_texts(texts: list[str]) -> list[str]:
    """Return the texts without repeats, ignoring case and spacing; the first is kept."""
    distinct: dict[str, str] = {}
    for text in texts:
        distinct.setdefault(" ".join(text.casefold().split()), text)
    return list(distinct.values())


def _parse_texts(answer: str) -> list[str]:
    """Return the texts of a JSON answer, from its first brace to its last, or an empty list."""
    try:
        value = load_json(answer[answer.index("{") : answer.rindex("}") + 1])
        texts = value["queries"]
    except (ValueError, KeyError, TypeError):
        return []
    if not isinstance(texts, list):
        return []
    lines = [" ".join(strip_invisible(text).split()) for text in texts if isinstance(text, str)]
    return drop_duplicate_texts(
        [line[:_MAX_TEXT_LENGTH] for line in lines if any(map(str.isalpha, line))]
    )


class CallCounter:
    """Text model that forwards every call; ``calls`` counts completed or scored prompts.

    ``prompt_tokens`` and ``completion_tokens`` count tokens read and written, by the engine or its
    tokenizer.
    """

    def __init__(self, model: TextModel) -> None:
        self._model = model
        self.calls = self.prompt_tokens = self.completion_tokens = 0

    @property
    def name(self) -> str:
        """Display name."""
        return self._model.name

    @property
    def fingerprint(self) -> str:
        """Identifier of the weights."""
        return self._model.fingerprint

    @property
    def context_length(self) -> int:
        """Maximum tokens of prompt and completion together."""
        return self._model.context_length

    @property
    def tokens(self) -> int:
        """Number of tokens read and written."""
        return self.prompt_tokens + self.completion_tokens

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | Sequence[Sampling],
        *,
        on_done: Callable[[int, Completion], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> list[Completion]:
        """Complete every prompt; see ``TextModel.generate``."""
        self.calls += len(prompts)
        completions = self._model.generate(
            prompts, sampling, on_done=on_done, is_cancelled=is_cancelled
        )
        self.prompt_tokens += sum(completion.prompt_tokens for completion in completions)
        self.completion_tokens += sum(completion.completion_tokens for completion in completions)
        return completions

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[str, None, Completion]:
        """Yield the completion's text in pieces; tokens of an abandoned stream are counted, too."""
        self.calls += 1
        stream, pieces = self._model.stream(prompt, sampling), list[str]()
        completion = Completion("", model=self.fingerprint)
        try:
            for item in stream_with_completion(stream):
                if isinstance(item, Completion):
                    completion = item
                else:
                    pieces.append(item)
                    yield item
        finally:
            stream.close()
            self.prompt_tokens += completion.prompt_tokens or self._measure(prompt)
            written = completion.completion_tokens or self.count_tokens("".join(pieces))
            self.completion_tokens += written
        return completion

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Score]:
        """Return the log-probabilities of each completion's tokens, given its prompt."""
        distinct = {id(prompt): prompt for prompt in prompts}
        self.calls += len(distinct)
        self.prompt_tokens += sum(map(self._measure, distinct.values()))
        return self._model.score(prompts, completions)

    def count_tokens(self, text: str) -> int:
        """Return how many tokens the text has, without special tokens."""
        return self._model.count_tokens(text)

    def _measure(self, prompt: Prompt) -> int:
        texts = [message.content for message in prompt.messages] or [prompt.text]
        return sum(map(self.count_tokens, texts))

    def close(self) -> None:
        """Leave the model open: the owner closes it."""


_LOCK = threading.Lock()
_MAX_OPEN_MODELS = 2


def open_shared_model(reference: str, **settings: Any) -> RerankerModel:
    """Return a shared model of a reference; the last two are kept open.

    Arguments are those of ``stillroom.models.open_reranker``; other settings open another model.

    Raises:
        CheckpointError: If the reference leads to no cross-encoder.
        BackendError: If an address cannot be one.
    """
    with _LOCK:
        return _open_model(reference, tuple(sorted(settings.items())), read_fingerprint(reference))


@contextmanager
def open_optional_model(
    reference: str | None, model: TextModel | None = None
) -> Iterator[TextModel | None]:
    """Yield the given model, or the named one, closed afterwards; None without either."""
    if model is not None or not reference:
        yield model
        return
    from stillroom.models import open_text_model

    with closing(open_text_model(reference)) as opened:
        yield opened


def open_entailment(reference: str, *, device: str = "cpu") -> NLIModel:
    """Return a shared model of natural language inference; the last two are kept open.

    Raises:
        CheckpointError: If the reference leads to no such checkpoint.
    """
    with _LOCK:
        return _open_entailment(reference, device, read_fingerprint(reference))


def read_fingerprint(reference: str) -> str:
    """Return the fingerprint of an encoder, without loading it; empty if it cannot be opened.

    Called for each question: a hub name or an address is resolved once per process, so that no
    question waits for a network; a folder's weights are read again only if its files have changed.
    """
    from stillroom.models.encoders.text_encoder import fingerprint_encoder
    from stillroom.models.hub import resolve_checkpoint
    from stillroom.objects import is_address

    is_remote = reference.startswith("hub:") or is_address(reference)
    try:
        path = _resolve_once(reference) if is_remote else resolve_checkpoint(reference)
        return digest_json(fingerprint_encoder(path))
    except (StillroomError, OSError):
        return ""


@lru_cache(maxsize=64)
def _resolve_once(reference: str) -> Path:
    """Resolve a reference that may ask a network; a failure is not kept."""
    from stillroom.models.hub import resolve_checkpoint

    return resolve_checkpoint(reference)


@lru_cache(maxsize=_MAX_OPEN_MODELS)
def _open_entailment(reference: str, device: str, fingerprint: str) -> NLIModel:
    """Open a model; ``fingerprint`` tells apart what a reference leads to at different times."""
    from stillroom.models.encoders.sequence_classifiers import NLIModel
    from stillroom.models.hub import resolve_checkpoint

    return NLIModel(resolve_checkpoint(reference), device=device)


@lru_cache(maxsize=_MAX_OPEN_MODELS)
def _open_model(
    reference: str, settings: tuple[tuple[str, Any], ...], fingerprint: str
) -> RerankerModel:
    """Open a model; ``fingerprint`` as in ``_open_entailment``."""
    from stillroom.models import open_reranker

    return open_reranker(reference, **dict(settings))


_CONTROL_TOKENS = re.compile(
    r"<\s*[|｜][^<>\n]{0,64}[|｜]\s*>"
    r"|<\s*/?\s*(?:s|bos|eos|pad|unk|mask|start_of_turn|end_of_turn|system|user|assistant|think|"
    r"tool_call|tool_response|instructions?)\b[^<>\n]{0,64}>"
    r"|\[\s*/?\s*(?:INST|SYS|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\s*\]"
    r"|<<\s*/?\s*SYS\s*>>",
    re.IGNORECASE,
)

_CITATION_NUMBERS = re.compile(r"[\[【［]+(\s*\^?\d{1,3}(?:[\s,;\-–]+\d{1,3})*\s*)[\]】］]+")


def make_fence(name: str, identity: Sequence[Any], text: str) -> str:
    """Return a delimiter that does not occur in a text; the same for the same ``identity``."""
    folded = text.casefold()
    fences = (f"{name}-{digest_json([attempt, *identity])[:6]}" for attempt in count())
    return next(fence for fence in fences if fence not in folded)


def quote_text(text: str) -> str:
    """Return text that is safe in a prompt: visible, without control tokens and citations."""
    text = _CONTROL_TOKENS.sub(lambda match: _defuse_token(match.group()), strip_invisible(text))
    return _CITATION_NUMBERS.sub(r"(\1)", text)


def _defuse_token(token: str) -> str:
    """Return a control token as words, so that no tokenizer reads it as one."""
    return "(" + re.sub(r"[<>\[\]|｜]", " ", token).strip() + ")"
