"""Dialogue: multi-turn conversation with the teacher as user and as assistant.

Source: Ding et al. 2023 (UltraChat), arXiv:2305.14233, section 2 (one model plays the user, with a
goal; another answers) and Xu et al. 2023 (Baize), arXiv:2304.01196 (grounded in a seed). Differs:
the user may end the conversation, a repetition ends it, and an answer that contradicts an earlier
one is removed with everything after it.
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
from stillroom.synth.prompting.requests import (
    fence_text,
    make_enum_schema,
    make_object_schema,
    strip_quotes,
    to_one_line,
)
from stillroom.synth.prompting.stepwise import GenerationUnit, RequestCoroutine, StepwiseGenerator

__all__ = ["Dialogue"]

_END = re.compile(r"\bEND\b")
_LABEL = re.compile(
    r"^\s*(?:(?:the )?user(?:'s (?:next )?message)?|(?:first |next )?message)\s*:\s*", re.IGNORECASE
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
"""Words of the prompts: a user message that contains them leaks the prompt."""
_PARAGRAPH = ("\n\n",)
"""End of a user message: a small teacher would continue as the assistant."""
_VERDICT = make_object_schema(contradicts=make_enum_schema("yes", "no"))


class Dialogue(StepwiseGenerator):
    """Generate a conversation of several turns about a text, a topic or a first question."""

    paper: ClassVar[str] = "arXiv:2305.14233"
    seed_kinds: ClassVar = ("passages", "topics", "records")
    default_filters: ClassVar[tuple[str, ...]] = RECORD_FILTERS
    templates: ClassVar = {
        "open": "{subject}\n\nYou play a person who talks to an assistant about the subject above. "
        "{goal} Write the person's first message alone: a question of one or two sentences.",
        "user": "{subject}\n\nYou play the user of this conversation about the subject "
        "above:\n\n{talk}\n\nWrite the user's next message alone, one or two sentences: go deeper, "
        "ask for an example, or doubt something. Write END if the user has nothing more to ask.",
        "assistant": "You answer questions.{subject}",
        "consistent": "{talk}\n\nDoes the assistant's last message contradict what the assistant "
        "said before?",
    }

    goal: str = Field(
        "The person wants to understand it.", description="goal of the user, in a sentence"
    )
    max_turns: int = Field(4, ge=1, le=20, description="maximum questions of a conversation")
    min_turns: int = Field(2, ge=1, le=20, description="minimum questions of a conversation")
    likeness: float = Field(
        0.8, gt=0, le=1, description="ROUGE-L with an earlier message from which it is a repetition"
    )
    check_consistency: bool = Field(
        True, description="check whether an answer contradicts an earlier one"
    )
    max_user_tokens: int = Field(96, ge=8, le=2048, description="maximum tokens of a user message")
    max_answer_tokens: int = Field(320, ge=16, le=8192, description="maximum tokens of an answer")

    @property
    @override
    def max_requests(self) -> int:
        return self.max_turns * (3 if self.check_consistency else 2)

    @override
    def write(self, unit: GenerationUnit) -> RequestCoroutine[None]:
        subject, first_question = self._subject(unit)
        grounding = f" They are about this:\n{subject}" if unit.seed.kind == "passages" else ""
        system = unit.render("assistant", subject=grounding)
        turns: list[Message] = []
        ending = "as long as wanted"
        while len(turns) < 2 * self.max_turns:
            question = (
                first_question
                if not turns and first_question
                else (yield from self._ask(unit, subject, turns))
            )
            if not question:
                ending = "the user had no more to ask" if question == "" else "no message"
                break
            if self._repeats(question, turns, "user"):
                ending = "the user repeats himself"
                break
            talk = [*turns, Message("user", question)]
            answer = yield from unit.ask(talk, tokens=self.max_answer_tokens, system=system)
            if answer is None:
                ending = "no answer"
                break
            if self._repeats(answer, turns, "assistant"):
                ending = "the assistant repeats itself"
                break
            talk = [*turns, *make_qa_messages(question, answer)]
            if turns and self.check_consistency and (yield from self._contradicts(unit, talk)):
                ending = "the assistant contradicts itself"
                break
            turns = talk
        unit.count(f"dialogues ended: {ending}")
        if len(turns) < 2 * self.min_turns:
            unit.fail("conversation too short", f"{ending} | {_show(turns)}")
            return
        fields = {
            "question": turns[0].content,
            "answer": turns[1].content,
            "turns": len(turns) // 2,
            "ended": ending,
        }
        unit.add_record(turns, fields)

    def _subject(self, unit: GenerationUnit) -> tuple[str, str]:
        """Return the subject of the conversation, and the first message if the seed has one."""
        seed = unit.seed
        if seed.kind == "topics":
            name = " > ".join(to_one_line(part) for part in seed.topic.path)
            description = (
                f". {to_one_line(seed.topic.description)}" if seed.topic.description else ""
            )
            return f"Subject: {name}{description}", ""
        if seed.kind == "records":
            question = get_question(seed.record)
            return f"Subject: {fence_text(question)}", question
        return fence_text(seed.passage.text), ""

    def _ask(
        self, unit: GenerationUnit, subject: str, turns: list[Message]
    ) -> RequestCoroutine[str | None]:
        """Return the user's next message; empty if the user ends, None if there is none."""
        prompt_text = (
            unit.render("user", subject=subject, talk=_show(turns))
            if turns
            else unit.render("open", subject=subject, goal=self.goal)
        )
        reply = yield from unit.ask(
            prompt_text, tokens=self.max_user_tokens, label="message of the user", stop=_PARAGRAPH
        )
        if reply is None:
            return None
        if turns and _END.search(reply):
            return ""
        bare = strip_quotes(_OTHER.split(_LABEL.sub("", reply), maxsplit=1)[0])
        is_first = not turns and unit.seed.kind == "passages"
        fault = _find_fault(bare, of_text=subject if is_first else "")
        if fault:
            unit.fail(fault, reply)
            return None
        return bare

    def _contradicts(self, unit: GenerationUnit, turns: list[Message]) -> RequestCoroutine[bool]:
        """Return whether the last answer contradicts another; True if the check is unparsable."""
        prompt_text = unit.render("consistent", talk=fence_text(_show(turns)))
        reply = yield from unit.ask_json(
            prompt_text, _VERDICT, label="consistency check", temperature=0.0
        )
        return reply is None or reply["contradicts"] == "yes"

    def _repeats(self, text: str, turns: list[Message], role: str) -> bool:
        return any(
            turn.role == role and rouge_l(text, turn.content) >= self.likeness for turn in turns
        )


def _find_fault(message: str, *, of_text: str) -> str:
    """Return the fault of a user message, or an empty string."""
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
