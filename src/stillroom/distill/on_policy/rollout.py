"""Rollout (trajectory): text sampled after a record's prompt, and a monitor of collapse.

Prompts are the records up to their last assistant turn. ``finished`` is recorded during generation,
never derived from ids: a truncated rollout has no end token, and none is learned from it.

Training on its own text can collapse a student to short or repetitive text with a low loss (for
example, reverse KL with a student far from its teacher). The metrics are logged every step.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from stillroom.distill.data.tokenized import TokenizedRecord
from stillroom.evaluate.metrics.diversity import distinct_ngram_share
from stillroom.models import render_chat
from stillroom.models.tokenization.assistant_mask import encode_conversation
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
    """Prompt of a rollout: the record, its first messages, and their tokens."""

    record: Record
    record_id: str
    messages: tuple[Message, ...]
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TokenizedRollout(TokenizedRecord):
    """A tokenized rollout; every array has one number for each of the N positions.

    Args:
        own: True if the student sampled the next token.
        old: Student's log-probability at sampling time, at temperature 1.
        importance: Student's probability divided by the sampling probability.
        gains: Teacher's log-probability minus ``old``; 0 without scores.
        credit: Return assigned by a policy gradient.
    """

    own: npt.NDArray[np.bool_] | None = None
    old: Numbers | None = None
    importance: Numbers | None = None
    gains: Numbers | None = None
    credit: Numbers | None = None


@dataclass(frozen=True, slots=True)
class Rollout:
    """Text generated for one prompt; arrays are (N,), one number per token.

    Args:
        record_id: Id of the prompt's record.
        ids: Tokens, including the end token if it finished.
        own: True if the student sampled the token.
        old: Student's log-probability of the token, at temperature 1.
        importance: Student's probability divided by the sampling probability.
        finished: Whether it ended with an end token; else it reached the length limit.
        entropy: Mean entropy of the student's distributions, in nats.
        teacher: Teacher's log-probabilities of the tokens, if scored.
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
        """Return JSON values; arrays as base64 of little-endian bytes."""
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
        """Build from the output of ``to_json``."""
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

    def to_tokenized(
        self, prompt: OnPolicyPrompt, credit: Numbers | None = None
    ) -> TokenizedRollout:
        """Return a tokenized record with loss on every token of the rollout, none of the prompt."""
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
        """Return a copy with the teacher's log-probabilities."""
        return replace(self, teacher=teacher)


def make_rollout_prompts(
    tokenizer: Any,
    records: Iterable[Record],
    tokenized: Sequence[TokenizedRecord],
    *,
    opening_tokens: int,
    max_tokens: int,
) -> list[OnPolicyPrompt | None]:
    """Return each record's prompt; None without a prompt, or if it leaves no room for a token.

    Args:
        tokenizer: Tokenizer of the student.
        records: Source records of ``tokenized``, and possibly others.
        tokenized: Tokenized training records.
        opening_tokens: Number of first tokens of a plain text used as a prompt.
        max_tokens: Maximum tokens of prompt and rollout together.
    """
    by_id = {tokenized_record.record_id: tokenized_record for tokenized_record in tokenized}
    prompts: dict[str, OnPolicyPrompt | None] = {}
    for record in records:
        tokenized_record = by_id.get(record.id)
        if tokenized_record is None or tokenized_record.record_id in prompts:
            continue
        messages, ids = _prompt_of(tokenizer, record, tokenized_record, opening_tokens)
        fits = 0 < len(ids) < max_tokens
        prompts[tokenized_record.record_id] = (
            OnPolicyPrompt(record, tokenized_record.record_id, messages, ids) if fits else None
        )
    return [prompts.get(tokenized_record.record_id) for tokenized_record in tokenized]


def find_turn_end(tokenizer: Any) -> frozenset[int]:
    """Return the token that the chat template appends to an assistant's turn, if there is one."""
    record = Record((Message("user", "a"), Message("assistant", "b")))
    encoded = encode_conversation(tokenizer, record, max_tokens=1 << 20)
    if not encoded.targets:
        return frozenset()
    last = encoded.ids[encoded.targets[-1]]
    is_control = tokenizer.convert_ids_to_tokens(last) in list_control_tokens(tokenizer)
    return frozenset({last} if is_control else ())


def make_record(
    tokenizer: Any, rollout: Rollout, prompt: OnPolicyPrompt, link: Link, fields: Mapping[str, Any]
) -> Record:
    """Convert a rollout to a synthetic record, with its prompt's record as parent."""
    text = _decode(tokenizer, [*(() if prompt.messages else prompt.ids), *rollout.ids.tolist()])
    origin = prompt.record.origin
    return Record(
        (*prompt.messages, Message("assistant", text)),
        {
            **fields,
            **({"tools": prompt.record.tools} if prompt.record.tools else {}),
            "record": prompt.record_id,
            "finished": rollout.finished,
            "tokens": len(rollout.ids),
            "student_tokens": int(rollout.own.sum()),
            "token_ids": rollout.ids.tolist(),
        },
        Origin("synthetic", (*origin.chain, link), origin.license),
    )


def _prompt_of(
    tokenizer: Any, record: Record, tokenized_record: TokenizedRecord, opening_tokens: int
) -> tuple[tuple[Message, ...], tuple[int, ...]]:
    roles = [message.role for message in record.messages]
    if roles == ["assistant"]:
        opening = (
            tokenized_record.ids[:opening_tokens]
            if len(tokenized_record.ids) > opening_tokens
            else ()
        )
        return (), tuple(int(token) for token in opening)
    last = len(roles) - 1 - roles[::-1].index("assistant")
    messages = record.messages[:last]
    if not messages:
        return (), ()
    text = render_chat(tokenizer, messages, tools=record.tools)
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


def measure_repetition(ids: Sequence[int]) -> float:
    """Return the share of n-grams of four tokens that occurred before in the text."""
    return 1 - distinct_ngram_share(ids, _NGRAM)


def summarize_rollouts(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Return metrics of a step's rollouts: means and shares."""
    if not rollouts:
        return {}
    return {
        "rollout_tokens": float(np.mean([len(rollout.ids) for rollout in rollouts])),
        "rollout_finished": float(np.mean([rollout.finished for rollout in rollouts])),
        "rollout_entropy": float(np.mean([rollout.entropy for rollout in rollouts])),
        "rollout_repetition": float(
            np.mean([measure_repetition(rollout.ids.tolist()) for rollout in rollouts])
        ),
        "rollout_own": float(np.mean([float(rollout.own.mean()) for rollout in rollouts])),
    }


class CollapseMonitor:
    """Detector of collapse: compares rollouts with those of the first steps, and warns once."""

    def __init__(self) -> None:
        self._first: list[tuple[float, float]] = []
        self._warned: set[str] = set()

    def update(self, numbers: dict[str, float]) -> str:
        """Update with a step's metrics; return a warning, or an empty string."""
        if not numbers:
            return ""
        length, entropy = numbers["rollout_tokens"], numbers["rollout_entropy"]
        if len(self._first) < _REFERENCE_STEPS:
            self._first.append((length, entropy))
            return ""
        reference_length, reference_entropy = np.mean(self._first, axis=0)
        symptoms = {
            "repeats itself": numbers["rollout_repetition"] > _MAX_REPETITION,
            "has become short": length < _MIN_LENGTH_SHARE * reference_length,
            "has become certain of everything": entropy < _MIN_ENTROPY * reference_entropy,
        }
        news = [
            symptom
            for symptom, is_present in symptoms.items()
            if is_present and symptom not in self._warned
        ]
        self._warned.update(news)
        if not news:
            return ""
        return (
            f"the student's generated text {' and '.join(news)} ({length:.0f} tokens, entropy "
            f"{entropy:.2f}, {numbers['rollout_repetition']:.0%} repeated): lower "
            "train.learning_rate, raise rollout_policy.warm_up, or use method jsd or forward_kl"
        )
