"""Rewrite: the passage in other words, as training text.

Source: Maini et al. 2024, arXiv:2401.16380 (rephrasing in a named style). Differs: one passage at a
time, in its own language, and the ``grounded`` filter refuses names and numbers that are new. Wants
a larger teacher: of 16 rewritings by SmolLM2-135M none passed that filter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.records import Link, Message, Prompt, Record, Sampling
from stillroom.synth.asking import Ask, Asking, fence, is_cut, topic_of
from stillroom.synth.evidence import Quote
from stillroom.synth.method import Draft, Generator, Seed

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = ["Rewrite"]

_STYLES = {
    "plain": "in plain words that a beginner understands",
    "brief": "as a summary of two or three sentences",
    "encyclopedia": "in the sober style of an encyclopedia",
}
_SYSTEM = "You rewrite texts and add nothing to them."


class Rewrite(Generator):
    """Asks for the passage in another style; the record is one assistant message."""

    paper: ClassVar[str] = "arXiv:2401.16380"
    status: ClassVar[str] = "experimental"

    styles: tuple[Literal["plain", "brief", "encyclopedia"], ...] = Field(
        ("plain",), min_length=1, description="styles to write each passage in"
    )
    max_new_tokens: int = Field(256, ge=16, le=4096, description="longest rewriting")
    temperature: float = Field(0.3, ge=0, le=2, description="0 takes the likeliest token")
    top_p: float = Field(0.95, gt=0, le=1, description="share of the probability drawn from")
    repetition_penalty: float = Field(1.1, gt=0, description="above 1 discourages repeating")

    @property
    @override
    def asks(self) -> int:
        return len(self.styles)

    @property
    @override
    def longest(self) -> int:
        return self.max_new_tokens

    @override
    def generate(self, seeds: Sequence[Seed], model: TextModel) -> Iterator[Draft]:
        asking = Asking(seeds, model)
        places = [(place, style) for place in range(len(seeds)) for style in self.styles]
        asks = [self._ask(place, seeds[place], style) for place, style in places]
        for (place, style), completion in zip(places, asking.ask(asks), strict=True):
            if completion is None:
                continue
            text = completion.text.strip()
            if is_cut(completion):
                asking.fail(place, "rewriting cut at the token limit", text)
            elif not text:
                asking.fail(place, "no rewriting", completion.text)
            else:
                asking.keep(place, _record(seeds[place], text, style, model.fingerprint))
        return asking.drafts()

    def _ask(self, place: int, seed: Seed, style: str) -> Ask:
        topic = topic_of(seed)
        about = f"Topic: {topic}\n\n" if topic else ""
        words = f"{about}{fence(seed.passage.text)}\n\nRewrite this text {_STYLES[style]}."
        drawn = Sampling(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
            seed=seed.derive(style),
        )
        return Ask(place, Prompt((Message("system", _SYSTEM), Message("user", words))), drawn)


def _record(seed: Seed, text: str, style: str, fingerprint: str) -> Record:
    passage = seed.passage
    whole = Quote(passage.id, passage.start, passage.end, passage.text)
    link = Link("synth.generators.rewrite", fingerprint, (passage.id,))
    return Record(
        (Message("assistant", text),),
        {
            "answer": text,
            "style": style,
            "evidence": whole.to_json(),
            "split": seed.split,
            "document_id": passage.document_id,
        },
        passage.origin.then(link, kind="synthetic"),
    )
