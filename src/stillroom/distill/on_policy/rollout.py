"""Rollouts: text sampled after a record's prompt, its prompts, and a monitor of collapse.

Prompts are the records up to their last assistant turn. Whether a rollout ended by itself is told
by how it ended, never by its ids: one that was cut off has no end token, and learns none.

A student that learns on its own text can slip into short or repetitive text that its loss likes
(reverse KL from a student far from its teacher does so). The numbers are logged every step.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from stillroom.distill.data.tokenized import TokenizedRecord
from stillroom.evaluate.lm.encoding import encode_record
from stillroom.models import render_chat
from stillroom.models.tokenization.chat_template import list_control_tokens
from stillroom.records import Link, Message, Origin, Record

__all__ = [
    "CollapseMonitor",
    "OnPolicyPrompt",
    "Rollout",
    "TokenizedRollout",
    "find_turn_end",
    "make_record",
    "make_rollout_prompts",
    "measure_repetition",
    "summarize_rollouts",
]


Numbers = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class OnPolicyPrompt:
    """What a rollout goes on from: the record, its first messages, and their tokens."""

    record: Record
    record_id: str
    messages: tuple[Message, ...]
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TokenizedRollout(TokenizedRecord):
    """A rollout as a lesson; every array has one number for each of the N positions.

    Args:
        own: True where the student wrote the next token.
        old: The student's log-probability of it when it was written, at temperature 1.
        importance: The student's probability of it over that with which it was drawn.
        gains: The teacher's log-probability of it minus ``old``; 0 where nobody asked.
        credit: What a policy gradient credits the token with.
    """

    own: npt.NDArray[np.bool_] | None = None
    old: Numbers | None = None
    importance: Numbers | None = None
    gains: Numbers | None = None
    credit: Numbers | None = None


@dataclass(frozen=True, slots=True)
class Rollout:
    """Text that was written for one prompt; arrays are (N,), one number a token.

    Args:
        record_id: Of the record whose prompt it goes on from.
        ids: Tokens, the end token included where it finished.
        own: True where the student wrote the token.
        old: The student's log-probability of the token, at temperature 1.
        importance: The student's probability of it over that with which it was drawn.
        finished: Whether it ended by itself; otherwise its room was used up.
        entropy: Mean entropy of the student's distributions, in nats.
        teacher: The teacher's log-probabilities of the tokens, where they were asked for.
    """

    record_id: str
    ids: npt.NDArray[np.int64]
    own: npt.NDArray[np.bool_]
    old: Numbers
    importance: Numbers
    finished: bool
    entropy: float
    teacher: Numbers | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; arrays as base64 of little-endian bytes."""
        return {
            "record": self.record_id,
            "ids": _pack(self.ids, "<i4"),
            "own": _pack(self.own, "u1"),
            "old": _pack(self.old, "<f4"),
            "importance": _pack(self.importance, "<f4"),
            "finished": self.finished,
            "entropy": self.entropy,
            "teacher": None if self.teacher is None else _pack(self.teacher, "<f4"),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Rollout:
        """Read what ``to_json`` wrote."""
        teacher = data["teacher"]
        return cls(
            data["record"],
            _unpack(data["ids"], "<i4").astype(np.int64),
            _unpack(data["own"], "u1").astype(np.bool_),
            _unpack(data["old"], "<f4").astype(np.float32),
            _unpack(data["importance"], "<f4").astype(np.float32),
            bool(data["finished"]),
            float(data["entropy"]),
            None if teacher is None else _unpack(teacher, "<f4").astype(np.float32),
        )

    def lesson(self, prompt: OnPolicyPrompt, credit: Numbers | None = None) -> TokenizedRollout:
        """Return it as a lesson: every token it has bears loss, and none of the prompt's."""
        begin, count = len(prompt.ids), len(self.ids)
        gains = np.zeros(count, np.float32) if self.teacher is None else self.teacher - self.old
        return TokenizedRollout(
            self.record_id,
            np.concatenate([np.asarray(prompt.ids, np.int64), self.ids]),
            np.arange(begin - 1, begin - 1 + count, dtype=np.int64),
            own=self.own,
            old=self.old,
            importance=self.importance,
            gains=gains,
            credit=np.zeros(count, np.float32) if credit is None else credit,
        )

    def scored(self, teacher: Numbers) -> Rollout:
        """Return it with the teacher's log-probabilities."""
        return replace(self, teacher=teacher)


def make_rollout_prompts(
    tokenizer: Any,
    records: Iterable[Record],
    lessons: Sequence[TokenizedRecord],
    *,
    opening_tokens: int,
    max_tokens: int,
) -> list[OnPolicyPrompt | None]:
    """Return each lesson's prompt; None where it has none, or none that leaves room for a token.

    Args:
        tokenizer: The student's.
        records: Those that the lessons were made of, and perhaps others.
        lessons: What is learned from.
        opening_tokens: Tokens of a plain text that prompt for its continuation.
        max_tokens: Of prompt and rollout together.
    """
    wanted = {lesson.record_id: lesson for lesson in lessons}
    made: dict[str, OnPolicyPrompt | None] = {}
    for record in records:
        lesson = wanted.get(record.id)
        if lesson is None or lesson.record_id in made:
            continue
        messages, ids = _prompt_of(tokenizer, record, lesson, opening_tokens)
        fits = 0 < len(ids) < max_tokens
        made[lesson.record_id] = (
            OnPolicyPrompt(record, lesson.record_id, messages, ids) if fits else None
        )
    return [made.get(lesson.record_id) for lesson in lessons]


def find_turn_end(tokenizer: Any) -> frozenset[int]:
    """Return the token that the chat template writes at the end of an assistant's turn, if one."""
    record = Record((Message("user", "a"), Message("assistant", "b")))
    encoded = encode_record(tokenizer, record, max_tokens=1 << 20)
    if not encoded.targets:
        return frozenset()
    last = encoded.ids[encoded.targets[-1]]
    is_control = tokenizer.convert_ids_to_tokens(last) in list_control_tokens(tokenizer)
    return frozenset({last} if is_control else ())


def make_record(
    tokenizer: Any, rollout: Rollout, prompt: OnPolicyPrompt, link: Link, fields: Mapping[str, Any]
) -> Record:
    """Return a rollout as a record: synthetic, with its chain, its prompt's record as parent.

    Args:
        tokenizer: The student's.
        rollout: What was written.
        prompt: What it went on from.
        link: Method and model that wrote it.
        fields: Further fields.
    """
    text = _decode(tokenizer, [*(() if prompt.messages else prompt.ids), *rollout.ids.tolist()])
    origin = prompt.record.origin
    return Record(
        (*prompt.messages, Message("assistant", text)),
        {
            **fields,
            "record": prompt.record_id,
            "finished": rollout.finished,
            "tokens": len(rollout.ids),
            "student_tokens": int(rollout.own.sum()),
            "token_ids": rollout.ids.tolist(),
        },
        Origin("synthetic", (*origin.chain, link), origin.license),
    )


def _prompt_of(
    tokenizer: Any, record: Record, lesson: TokenizedRecord, opening_tokens: int
) -> tuple[tuple[Message, ...], tuple[int, ...]]:
    roles = [message.role for message in record.messages]
    if roles == ["assistant"]:
        opening = lesson.ids[:opening_tokens] if len(lesson.ids) > opening_tokens else ()
        return (), tuple(int(token) for token in opening)
    last = len(roles) - 1 - roles[::-1].index("assistant")
    messages = record.messages[:last]
    if not messages:
        return (), ()
    text = render_chat(tokenizer, messages, add_generation_prompt=True)
    return messages, tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _pack(values: npt.NDArray[Any], kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype=kind).tobytes()).decode("ascii")


def _unpack(text: str, kind: str) -> npt.NDArray[Any]:
    return np.frombuffer(base64.b64decode(text), dtype=kind)


_NGRAM = 4


_REFERENCE_STEPS = 5


_MAX_REPETITION = 0.5


_MIN_LENGTH_SHARE = 0.25


_MIN_ENTROPY = 0.1


def measure_repetition(ids: Sequence[int], gram: int = _NGRAM) -> float:
    """Return the share of runs of ``gram`` tokens that stood in the text before."""
    runs = [tuple(ids[at : at + gram]) for at in range(len(ids) - gram + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def summarize_rollouts(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Return what is logged of a step's rollouts: means over them, and shares."""
    if not rollouts:
        return {}
    return {
        "rollout_tokens": float(np.mean([len(one.ids) for one in rollouts])),
        "rollout_finished": float(np.mean([one.finished for one in rollouts])),
        "rollout_entropy": float(np.mean([one.entropy for one in rollouts])),
        "rollout_repetition": float(
            np.mean([measure_repetition(one.ids.tolist()) for one in rollouts])
        ),
        "rollout_own": float(np.mean([float(one.own.mean()) for one in rollouts])),
    }


class CollapseMonitor:
    """Compares each step's rollouts with the first ones, and tells once what went wrong."""

    def __init__(self) -> None:
        """Have seen nothing."""
        self._first: list[tuple[float, float]] = []
        self._told: set[str] = set()

    def see(self, numbers: dict[str, float]) -> str:
        """Take a step's numbers; return a warning, or nothing."""
        if not numbers:
            return ""
        length, entropy = numbers["rollout_tokens"], numbers["rollout_entropy"]
        if len(self._first) < _REFERENCE_STEPS:
            self._first.append((length, entropy))
            return ""
        usual, wide = np.mean(self._first, axis=0)
        found = {
            "repeats itself": numbers["rollout_repetition"] > _MAX_REPETITION,
            "has become short": length < _MIN_LENGTH_SHARE * usual,
            "has become certain of everything": entropy < _MIN_ENTROPY * wide,
        }
        news = [what for what, holds in found.items() if holds and what not in self._told]
        self._told.update(news)
        if not news:
            return ""
        return (
            f"the student's own text {' and '.join(news)} ({length:.0f} tokens, entropy "
            f"{entropy:.2f}, {numbers['rollout_repetition']:.0%} repeated): lower "
            "train.learning_rate, raise rollouts.warm_up, or use method jsd or forward_kl"
        )
