"""Magpie: an aligned model writes the user's turn too, when only the turn's opening is given.

Source: Xu et al. 2024, arXiv:2406.08464. Differs: the opening may carry a system turn with the
passage, so that the questions are about it; the paper's is free of any topic. Wants a larger
teacher: of 16 questions by SmolLM2-135M none came to a kept record.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from pydantic import Field
from typing_extensions import override

from stillroom.records import Link, Message, Prompt, Record, Sampling
from stillroom.synth.asking import Ask, Asking, fence, is_cut
from stillroom.synth.evidence import best_quote
from stillroom.synth.method import Draft, Generator, Seed
from stillroom.synth.replies import clean_question
from stillroom.synth.wording import collapse

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = ["Magpie"]


class _Template(NamedTuple):
    system: str
    user: str
    end: str


_TEMPLATES = {
    "chatml": _Template("<|im_start|>system\n{}<|im_end|>\n", "<|im_start|>user\n", "<|im_end|>"),
    "llama3": _Template(
        "<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>",
        "<|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|>",
    ),
    "zephyr": _Template("<|system|>\n{}</s>\n", "<|user|>\n", "</s>"),
}
_SYSTEM = "You answer questions about this text.\n"


class Magpie(Generator):
    """Lets the teacher write a user's question after the bare template, then answer it."""

    paper: ClassVar[str] = "arXiv:2406.08464"
    status: ClassVar[str] = "experimental"

    template: Literal["chatml", "llama3", "zephyr"] = Field(
        "chatml", description="the chat template the teacher was trained on (SmolLM2: chatml)"
    )
    with_passage: bool = Field(True, description="show the passage in the system turn")
    questions: int = Field(1, ge=1, le=20, description="questions per passage and attempt")
    max_question_tokens: int = Field(64, ge=8, le=1024, description="longest question")
    max_answer_tokens: int = Field(128, ge=8, le=4096, description="longest answer")
    temperature: float = Field(0.7, gt=0, le=2, description="of the question; answers are greedy")
    top_p: float = Field(1.0, gt=0, le=1, description="share of the probability drawn from")

    @property
    @override
    def asks(self) -> int:
        return 2 * self.questions

    @property
    @override
    def longest(self) -> int:
        return max(self.max_question_tokens, self.max_answer_tokens)

    @override
    def generate(self, seeds: Sequence[Seed], model: TextModel) -> Iterator[Draft]:
        asking = Asking(seeds, model)
        asks = [
            self._ask_user(place, seed, index)
            for place, seed in enumerate(seeds)
            for index in range(self.questions)
        ]
        found: list[tuple[int, str]] = []
        for ask, completion in zip(asks, asking.ask(asks), strict=True):
            if completion is None:
                continue
            question = clean_question(completion.text)
            if is_cut(completion) and "?" not in completion.text:
                asking.fail(ask.seed, "question cut at the token limit", completion.text)
            elif not question:
                asking.fail(ask.seed, "no question", completion.text)
            else:
                found.append((ask.seed, question))
        replies = [self._ask_assistant(place, seeds[place], question) for place, question in found]
        for (place, question), completion in zip(found, asking.ask(replies), strict=True):
            if completion is None:
                continue
            answer = collapse(completion.text)
            if is_cut(completion) or not answer:
                reason = "answer cut at the token limit" if answer else "no answer"
                asking.fail(place, reason, f"{question} | {answer}")
            else:
                asking.keep(place, _record(seeds[place], question, answer, model.fingerprint))
        return asking.drafts()

    def _ask_user(self, place: int, seed: Seed, index: int) -> Ask:
        template = _TEMPLATES[self.template]
        opening = template.system.format(self._system(seed)) if self.with_passage else ""
        drawn = Sampling(
            max_new_tokens=self.max_question_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            stop=(template.end, "\n"),
            seed=seed.derive("user", index),
        )
        return Ask(place, Prompt(text=opening + template.user), drawn)

    def _ask_assistant(self, place: int, seed: Seed, question: str) -> Ask:
        system = (Message("system", self._system(seed)),) if self.with_passage else ()
        drawn = Sampling(max_new_tokens=self.max_answer_tokens, seed=seed.derive(question))
        return Ask(place, Prompt((*system, Message("user", question))), drawn)

    def _system(self, seed: Seed) -> str:
        return _SYSTEM + fence(seed.passage.text)


def _record(seed: Seed, question: str, answer: str, fingerprint: str) -> Record:
    link = Link("synth.generators.magpie", fingerprint, (seed.passage.id,))
    return Record(
        (Message("user", question), Message("assistant", answer)),
        {
            "question": question,
            "answer": answer,
            "evidence": best_quote(seed.passage, answer).to_json(),
            "split": seed.split,
            "document_id": seed.passage.document_id,
        },
        seed.passage.origin.then(link, kind="synthetic"),
    )
