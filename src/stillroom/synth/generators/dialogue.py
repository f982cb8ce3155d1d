"""Dialogue: multi-turn conversation with the teacher as user and as assistant.

Source: Ding et al. 2023 (UltraChat), arXiv:2305.14233, section 2 (one model plays the user, told
what he wants; another answers) and Xu et al. 2023 (Baize), arXiv:2304.01196 (grounded in a seed).
Differs: the user may end the talk, what repeats itself ends it, and an answer that contradicts an
earlier one is cut off with all that follows.
"""

from __future__ import annotations

import re
from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.records import Message
from stillroom.synth.interfaces import RECORD_FILTERS
from stillroom.synth.lexical_overlap import extract_content_stems, rouge_l
from stillroom.synth.prompting.conversation import get_question, make_qa_messages
from stillroom.synth.prompting.coroutines import GenerationUnit, RequestCoroutine, StepwiseGenerator
from stillroom.synth.prompting.requests import (
    PromptTemplate,
    fence_text,
    make_enum_schema,
    make_object_schema,
    strip_quotes,
    to_one_line,
)
from stillroom.synth.types import SeedKind

__all__ = ["Dialogue"]

_END = re.compile(r"\bEND\b")
_LABEL = re.compile(
    r"^\s*(?:(?:the )?user(?:'s (?:next )?message)?|(?:first |next )?message)\s*:\s*",
    re.IGNORECASE,
)
_OTHER = re.compile(r"\n\s*(?:assistant|user)\s*:", re.IGNORECASE)
_SWAPPED = re.compile(
    r"\bi(?:'|\u2019)?(?:m| am) (?:here|ready|happy|glad|able|designed) to (?:help|assist)\b|"
    r"\bi(?:'|\u2019)?(?:d| would) be (?:happy|glad|delighted) to (?:help|assist)\b|"
    r"\b(?:how|who|what) (?:can|may|could) i (?:help|assist)\b|"
    r"\bwhat(?:'|\u2019)?s your (?:first )?question\b|"
    r"\bas an ai (?:language )?(?:model|assistant)\b",
    re.IGNORECASE,
)
_PROMPT_LEAK = re.compile(
    r"\bone or two sentences\b|\b(?:person|user) (?:who|that) talks to an assistant\b|"
    r"\bmulti-?(?:round|turn) conversation\b|\bthe user has asked\b|</?text\b|"
    r"\bthe (?:user|person)(?:'|\u2019)s (?:next |first )?message\b|"
    r"\b(?:text|subject|question|conversation) above\b|\babove (?:text|subject|question)\b",
    re.IGNORECASE,
)
"""Words of the prompts: who says them speaks of his task."""
_PARAGRAPH = ("\n\n",)
"""Where a user's message ends: a small teacher would go on as the assistant."""
_VERDICT = make_object_schema(contradicts=make_enum_schema("yes", "no"))


class Dialogue(StepwiseGenerator):
    """Plays a conversation of several turns about a text, a topic or a first question."""

    paper: ClassVar[str] = "arXiv:2305.14233"
    takes: ClassVar[tuple[SeedKind, ...]] = ("passages", "topics", "records")
    default_filters: ClassVar[tuple[str, ...]] = RECORD_FILTERS
    templates: ClassVar = {
        "open": PromptTemplate(
            "{subject}\n\nYou play a person who talks to an assistant about the subject above. "
            "{goal} Write the person's first message alone: a question of one or two sentences."
        ),
        "user": PromptTemplate(
            "{subject}\n\nYou play the user of this conversation about the subject above:\n\n"
            "{talk}\n\nWrite the user's next message alone, one or two sentences: go deeper, ask "
            "for an example, or doubt something. Write END if the user has nothing more to ask."
        ),
        "assistant": PromptTemplate("You answer questions.{subject}"),
        "consistent": PromptTemplate(
            "{talk}\n\nDoes the assistant's last message contradict what the assistant said before?"
        ),
    }

    goal: str = Field(
        "The person wants to understand it.", description="what the user wants, in a sentence"
    )
    max_turns: int = Field(4, ge=1, le=20, description="questions of a conversation, at most")
    min_turns: int = Field(2, ge=1, le=20, description="questions below which it is dropped")
    likeness: float = Field(
        0.8, gt=0, le=1, description="ROUGE-L with an earlier message from which it is a repeat"
    )
    check_consistency: bool = Field(True, description="ask whether an answer contradicts another")
    max_user_tokens: int = Field(96, ge=8, le=2048, description="longest message of the user")
    max_answer_tokens: int = Field(320, ge=16, le=8192, description="longest answer")

    @property
    @override
    def asks(self) -> int:
        return self.max_turns * (3 if self.check_consistency else 2)

    @property
    @override
    def longest(self) -> int:
        return max(self.max_user_tokens, self.max_answer_tokens)

    @override
    def write(self, unit: GenerationUnit) -> RequestCoroutine[None]:
        subject, first = self._subject(unit)
        grounds = f" They are about this:\n{subject}" if unit.seed.kind == "passages" else ""
        system = unit.words("assistant", subject=grounds)
        turns: list[Message] = []
        ended = "as long as wanted"
        while len(turns) < 2 * self.max_turns:
            asked = first if not turns and first else (yield from self._ask(unit, subject, turns))
            if not asked:
                ended = "the user had no more to ask" if asked == "" else "no message"
                break
            if self._repeats(asked, turns, "user"):
                ended = "the user repeats himself"
                break
            talk = [*turns, Message("user", asked)]
            answer = yield from unit.say(talk, tokens=self.max_answer_tokens, system=system)
            if answer is None:
                ended = "no answer"
                break
            if self._repeats(answer, turns, "assistant"):
                ended = "the assistant repeats itself"
                break
            talk = [*turns, *make_qa_messages(asked, answer)]
            if turns and self.check_consistency and (yield from self._contradicts(unit, talk)):
                ended = "the assistant contradicts itself"
                break
            turns = talk
        unit.count(f"dialogues ended: {ended}")
        if len(turns) < 2 * self.min_turns:
            unit.fail("conversation too short", f"{ended} | {_show(turns)}")
            return
        told = {
            "question": turns[0].content,
            "answer": turns[1].content,
            "turns": len(turns) // 2,
            "ended": ended,
        }
        unit.keep(turns, told)

    def _subject(self, unit: GenerationUnit) -> tuple[str, str]:
        """Return what is talked about, and the first message where the seed has it."""
        seed = unit.seed
        if seed.kind == "topics":
            name = " > ".join(to_one_line(part) for part in seed.topic.path)
            about = f". {to_one_line(seed.topic.description)}" if seed.topic.description else ""
            return f"Subject: {name}{about}", ""
        if seed.kind == "records":
            question = get_question(seed.record)
            return f"Subject: {fence_text(question)}", question
        return fence_text(seed.passage.text), ""

    def _ask(
        self, unit: GenerationUnit, subject: str, turns: list[Message]
    ) -> RequestCoroutine[str | None]:
        """Return the user's next message; empty if he ends, None if there is none."""
        words = (
            unit.words("user", subject=subject, talk=_show(turns))
            if turns
            else unit.words("open", subject=subject, goal=self.goal)
        )
        said = yield from unit.say(
            words, tokens=self.max_user_tokens, what="message of the user", stop=_PARAGRAPH
        )
        if said is None:
            return None
        if turns and _END.search(said):
            return ""
        bare = strip_quotes(_OTHER.split(_LABEL.sub("", said), maxsplit=1)[0])
        is_first = not turns and unit.seed.kind == "passages"
        fault = _find_fault(bare, of_text=subject if is_first else "")
        if fault:
            unit.fail(fault, said)
            return None
        return bare

    def _contradicts(self, unit: GenerationUnit, turns: list[Message]) -> RequestCoroutine[bool]:
        """Return whether the last answer contradicts another; unread, it does."""
        words = unit.words("consistent", talk=fence_text(_show(turns)))
        found = yield from unit.fill(words, _VERDICT, what="consistency check", temperature=0.0)
        return found is None or found["contradicts"] == "yes"

    def _repeats(self, text: str, turns: list[Message], role: str) -> bool:
        return any(
            one.role == role and rouge_l(text, one.content) >= self.likeness for one in turns
        )


def _find_fault(message: str, *, of_text: str) -> str:
    """Return what is wrong with a user's message, or nothing."""
    if not message:
        return "no message of the user"
    if _SWAPPED.search(message):
        return "a user that speaks as the assistant"
    if _PROMPT_LEAK.search(message):
        return "words of the prompt in a user's message"
    if message[-1] in ":,;":
        return "a user's message that breaks off"
    if of_text and not set(extract_content_stems(message)) & set(extract_content_stems(of_text)):
        return "a first message that names nothing of the text"
    return ""


def _show(turns: list[Message]) -> str:
    return "\n\n".join(f"{turn.role.capitalize()}: {turn.content}" for turn in turns)
