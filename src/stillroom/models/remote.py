"""RemoteModel: a TextModel whose answers come from the workers of an engine.

Every worker opens the model by its reference and is asked a call at a time. Prompts, caches and
journals stay where the job runs: what was answered before a worker died is kept there, and only
what it had in hand is asked again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from stillroom.errors import StillroomError
from stillroom.jobs.engines import Engine, Opened
from stillroom.models.behind import ModelBefore
from stillroom.models.choosing import Chosen, weigh_given
from stillroom.models.opening import open_text_model
from stillroom.models.protocols import ConcurrentModel, Score, TemplatedModel, TextModel
from stillroom.models.requests import spread_sampling
from stillroom.records import Completion, Message, Prompt, Sampling

__all__ = ["RemoteModel"]

_Ask = tuple[Literal["generate", "score", "choose"], Prompt, Any]


@dataclass(frozen=True)
class _Answering:
    """The work of a worker: answer asks with a model opened by its reference."""

    reference: str
    settings: str
    concurrency: int

    def open(self) -> Opened[_Ask, Any]:
        model = open_text_model(self.reference, **json.loads(self.settings))

        def answer(asks: Sequence[_Ask]) -> list[Any]:
            kind = asks[0][0] if asks else "generate"
            prompts, others = [ask[1] for ask in asks], [ask[2] for ask in asks]
            if kind == "generate":
                return _generate(model, prompts, others)
            if kind == "score":
                return list(model.score(prompts, others))
            return weigh_given(model, prompts, others[0])

        return Opened(answer, (model.close,))


def _generate(
    model: TextModel, prompts: Sequence[Prompt], samplings: Sequence[Sampling]
) -> list[Completion | StillroomError]:
    """Return the completions, and the error in the place of those that it kept from coming."""
    found: dict[int, Completion] = {}
    try:
        return list(model.generate(prompts, samplings, on_done=found.__setitem__))
    except StillroomError as error:
        return [found.get(at, error) for at in range(len(prompts))]


class RemoteModel(ModelBefore):
    """Asks workers for what a model here would answer.

    It has ``render`` where the model's chat template can be seen. It has no ``submit``: a call to a
    worker keeps a thread waiting whoever makes it, and all prompts of one go there together.
    """

    render: Callable[[Sequence[Message]], str]
    """See ``TemplatedModel``."""

    def __init__(
        self, model: TextModel, engine: Engine, reference: str, settings: Mapping[str, Any]
    ) -> None:
        """Stand before a model that every worker can open.

        Args:
            model: The same, opened here, for what needs no answer: its name, its tokens.
            engine: Whose workers are asked.
            reference: By which they open it.
            settings: Of ``open_text_model``.
        """
        super().__init__(model)
        self.engine = engine
        if isinstance(model, TemplatedModel):
            self.render = model.render
        each = model.concurrency if isinstance(model, ConcurrentModel) else 1
        self._work = _Answering(reference, json.dumps(dict(settings), sort_keys=True), each)

    @property
    def concurrency(self) -> int:
        """How many calls the workers take at once, together."""
        return self.engine.num_workers * self._work.concurrency

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | Sequence[Sampling],
        *,
        on_done: Callable[[int, Completion], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> list[Completion]:
        """Complete every prompt on one worker; see ``TextModel.generate``.

        A call that was sent out is waited for; ``is_cancelled`` is asked before.
        """
        if is_cancelled is not None and is_cancelled():
            return [Completion("", "cancelled", model=self.fingerprint) for _ in prompts]
        samplings = spread_sampling(prompts, sampling)
        asks: list[_Ask] = [("generate", *one) for one in zip(prompts, samplings, strict=True)]
        answers = self.engine.call(self._work, asks) if asks else []
        failed = None
        for index, answer in enumerate(answers):
            if isinstance(answer, StillroomError):
                failed = failed or answer
            elif on_done is not None:
                on_done(index, answer)
        if failed is not None:
            raise failed
        return answers

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[str, None, Completion]:
        """Yield the completion's text as it comes from the model here."""
        return self.model.stream(prompt, sampling)

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Score]:
        """Return the log-probabilities of each completion's tokens."""
        asks: list[_Ask] = [("score", *one) for one in zip(prompts, completions, strict=True)]
        return self.engine.call(self._work, asks) if asks else []

    def choose(self, prompts: Sequence[Prompt], options: Sequence[str]) -> list[Chosen]:
        """Weigh options by the model's own chances.

        Raises:
            BackendError: If its engine tells none.
        """
        asks: list[_Ask] = [("choose", prompt, tuple(options)) for prompt in prompts]
        return self.engine.call(self._work, asks) if asks else []

    def count_tokens(self, text: str) -> int:
        """Count with the model here."""
        return self.model.count_tokens(text)

    def close(self) -> None:
        """Close the model here; the workers' go with the engine."""
        self.model.close()
