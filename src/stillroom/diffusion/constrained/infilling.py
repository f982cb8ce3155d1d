"""JSON infilling: the slots of a template, each decoded under the automaton of its values.

How many tokens a value has is chosen by the model: each length that is possible is read once, the
text behind the hole in its place, and the one whose likeliest value is surest a token, the first
token behind it counted, is taken. What is fixed is never written by the model, so that the
result parses whatever the model says.

In every step the likeliest tokens that together are a value, those already written fixed, are found
by dynamic programming over places and states; writing any of them leaves a value possible.

Source: Suresh et al. 2025, arXiv:2505.23061 (DINGO), Algorithm 1: the path of greatest probability
through the automaton. Differs from the paper: automata are small ones of single values, over bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillroom.diffusion.constrained.automata import ByteDFA
from stillroom.diffusion.constrained.json_template import JsonTemplate, Slot
from stillroom.diffusion.interfaces import LENGTH_POLICIES
from stillroom.diffusion.model.network import DiffusionModel, ForwardRequest
from stillroom.diffusion.sampling.sampler import generate
from stillroom.diffusion.sampling.sequence import InfillRequest, suppress_tokens
from stillroom.diffusion.sampling.settings import DecodeSettings
from stillroom.errors import BackendError
from stillroom.models.tokenization.token_bytes import TEXT, TokenBytes

__all__ = [
    "InfillResult",
    "JsonInfiller",
    "SlotConstraint",
    "TokenTransitions",
]


_NEVER = float("-inf")


@dataclass(frozen=True, slots=True)
class TokenTransitions:
    """Where tokens lead in an automaton of bytes.

    Args:
        moves: From each state, by the state that is led to, the tokens that lead there, (n,).
        accepts: In which states a value may end, (S,), bool.
    """

    moves: tuple[Mapping[int, Tensor], ...]
    accepts: tuple[bool, ...]

    @classmethod
    def of(
        cls, values: ByteDFA, table: TokenBytes, vocabulary: int, longest: int | None = None
    ) -> TokenTransitions:
        """Read every token's bytes from every state.

        Args:
            values: What may be held.
            table: The tokens' bytes; special and unknown tokens lead nowhere.
            vocabulary: Tokens that the model has logits for.
            longest: Bytes of a token at most.
        """
        count = min(len(table), vocabulary)
        lengths = table.lengths[:count]
        alphabet = np.any(values.table >= 0, axis=0)  # (256,)
        outside = np.concatenate([[0], np.cumsum(~alphabet[table.data])])
        is_fit = (table.kinds[:count] == TEXT) & (lengths > 0)
        is_fit &= outside[table.starts[1 : count + 1]] == outside[table.starts[:count]]
        if longest is not None:
            is_fit &= lengths <= longest
        tokens = np.flatnonzero(is_fit)
        sizes = lengths[tokens]
        widest = int(sizes.max()) if len(sizes) else 0
        found = []
        # a row more for nowhere, which leads nowhere: state -1 reads the last row
        steps = np.concatenate([values.table, np.full((1, 256), -1, dtype=np.int32)])
        for state in range(len(values.table)):
            at = np.full(len(tokens), state, dtype=np.int64)
            for place in range(widest):
                is_longer = sizes > place
                if not is_longer.any():
                    break
                data = table.data[table.starts[tokens[is_longer]] + place]
                at[is_longer] = steps[at[is_longer], data]
            is_alive = at >= 0
            own = {
                int(end): torch.from_numpy(tokens[is_alive & (at == end)])
                for end in np.unique(at[is_alive])
            }
            found.append(own)
        return cls(tuple(found), tuple(values.accepts.tolist()))

    def lengths(self, most: int) -> list[int]:
        """Return how many tokens, at most so many, a value may have, rising."""
        reached, found = {0}, [0] if self.accepts[0] else []
        for count in range(1, most + 1):
            reached = {end for state in reached for end in self.moves[state]}
            if any(self.accepts[state] for state in reached):
                found.append(count)
        return found

    def best(
        self, count: int, given: Mapping[int, int], logprobs: Mapping[int, Tensor]
    ) -> tuple[list[int], float]:
        """Return the likeliest tokens of a value and the sum of their log-probabilities.

        Args:
            count: How many tokens.
            given: Tokens that stand already, by place.
            logprobs: Of all tokens, (V,), by place; a place with neither may hold any token and
                counts for nothing.

        Raises:
            ValueError: If no value has so many tokens, those given among them.
        """
        scores: dict[int, float] = {0: 0.0}
        steps: list[dict[int, tuple[int, int]]] = []  # by state: from which, by which token
        for place in range(count):
            following: dict[int, float] = {}
            came: dict[int, tuple[int, int]] = {}
            for state, score in scores.items():
                for end, tokens in self.moves[state].items():
                    token, gain = _pick_token(tokens, given.get(place), logprobs.get(place))
                    if token >= 0 and score + gain > following.get(end, _NEVER):
                        following[end], came[end] = score + gain, (state, token)
            scores = following
            steps.append(came)
        ends = {state: score for state, score in scores.items() if self.accepts[state]}
        if not ends:
            raise ValueError(f"no value of {count} tokens goes with those given")
        state = max(ends, key=lambda end: ends[end])
        total, found = ends[state], []
        for came in reversed(steps):
            state, token = came[state]
            found.append(token)
        return found[::-1], total


def _pick_token(tokens: Tensor, given: int | None, logprobs: Tensor | None) -> tuple[int, float]:
    """Return the likeliest of some tokens and its log-probability; -1 where none can stand."""
    if given is not None:
        return (given, 0.0) if bool((tokens == given).any()) else (-1, _NEVER)
    if logprobs is None:
        return int(tokens[0]), 0.0
    own = logprobs[tokens]
    best = int(own.argmax())
    return int(tokens[best]), max(float(own[best]), -1e30)


@dataclass(frozen=True, slots=True)
class SlotConstraint:
    """The rule of one hole of a text.

    Args:
        moves: Of its automaton.
        start: Its first place.
        count: How many places.
    """

    moves: TokenTransitions
    start: int
    count: int

    def choose(self, ids: Tensor, is_open: Tensor, places: Tensor, logits: Tensor) -> Tensor:
        """Return a token for each place, (k,), that goes with all others of the hole.

        Args:
            ids: The text as it stands, (T,).
            is_open: (T,), bool.
            places: Open places, (k,), rising, within the hole.
            logits: What tokens are chosen by, (k, V).
        """
        scores = logits.log_softmax(-1).cpu()
        at = {int(place) - self.start: row for row, place in enumerate(places.tolist())}
        given = {
            place: int(ids[self.start + place])
            for place in range(self.count)
            if not bool(is_open[self.start + place])
        }
        found, _ = self.moves.best(
            self.count, given, {place: scores[row] for place, row in at.items()}
        )
        chosen = [found[int(place) - self.start] for place in places.tolist()]
        return torch.tensor(chosen, dtype=torch.long, device=logits.device)


_DENSE_LENGTHS = 8


_MAX_VALUE_TOKENS = 32


@dataclass(frozen=True, slots=True)
class InfillResult:
    """A skeleton with its holes filled.

    Args:
        text: JSON.
        tokens: How many tokens stand behind the prompt, fixed and written.
        nfe: Readings, those that chose lengths included.
        is_cancelled: Whether it was left before its end; the text then is what was there.
    """

    text: str
    tokens: int
    nfe: int
    is_cancelled: bool = False


@dataclass(slots=True)
class JsonInfiller:
    """Fills a skeleton by a model; one for each text.

    Args:
        model: Writes.
        table: The bytes of its tokens.
        settings: Order, commit rule, cache and temperature; nothing is taken back, and a hole is
            written as one block.
        longest: Tokens of a value at most.
    """

    model: DiffusionModel
    table: TokenBytes
    settings: DecodeSettings
    longest: int = _MAX_VALUE_TOKENS
    _moves: dict[int, tuple[ByteDFA, TokenTransitions]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Leave out of the settings what would break a value."""
        changed: dict[str, Any] = {"remasking": None, "length": LENGTH_POLICIES.build("fixed")}
        if self.model.metadata.block_size is None:
            changed["block_length"] = None
        self.settings = self.settings.model_copy(update=changed)

    def fill(
        self,
        prompt: Sequence[int | None],
        skeleton: JsonTemplate,
        *,
        room: int,
        seed: int = 0,
        on_text: Callable[[str], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> InfillResult:
        """Fill the holes from the first to the last.

        Args:
            prompt: Tokens before the skeleton.
            skeleton: Fixed text and holes.
            room: Tokens that fixed text and values may have together.
            seed: Of draws.
            on_text: Told the text up to the next hole, whenever that has grown.
            is_cancelled: Asked before every call of the model.

        Raises:
            BackendError: If the room is too small for the shortest values, or the tokenizer has no
                tokens for a value.
        """
        fixed = [self._encode(part) if isinstance(part, str) else [] for part in skeleton]
        ids, text, nfe, left = list(prompt), "", 0, room - sum(map(len, fixed))
        holes = sum(isinstance(part, Slot) for part in skeleton)
        for number, part in enumerate(skeleton):
            if isinstance(part, str):
                ids += fixed[number]
                text += part
                if on_text is not None:
                    on_text(text)
                continue
            if is_cancelled is not None and is_cancelled():
                return InfillResult(text, len(ids) - len(prompt), nfe, is_cancelled=True)
            behind = fixed[number + 1] if number + 1 < len(skeleton) else []
            found, readings = self._fill_hole(
                part, ids, behind, left // holes, seed + number, is_cancelled
            )
            nfe += readings
            if found is None:
                return InfillResult(text, len(ids) - len(prompt), nfe, is_cancelled=True)
            ids += found
            left, holes = left - len(found), holes - 1
            text += b"".join(map(self.table.of, found)).decode()
        return InfillResult(text, len(ids) - len(prompt), nfe)

    def _fill_hole(
        self,
        hole: Slot,
        before: list[int | None],
        behind: list[int],
        room: int,
        seed: int,
        is_cancelled: Callable[[], bool] | None,
    ) -> tuple[list[int] | None, int]:
        """Return a value's tokens and the readings they took; None where it was cancelled."""
        moves = self._moves_of(hole)
        lengths = moves.lengths(self.longest)
        fitting = [length for length in lengths if length <= room]
        if not fitting:
            raise _no_value_error(hole, lengths, room)
        count, readings = self._choose_length(moves, fitting, before, behind)
        if count == 0:
            return [], readings
        request = InfillRequest(
            (*before, *[None] * count, *behind),
            0,
            seed,
            SlotConstraint(moves, len(before), count),
        )
        (sample,) = generate(self.model, [request], self.settings, is_cancelled=is_cancelled)
        if sample.finish_reason == "cancelled":
            return None, readings + sample.nfe
        found = list(sample.ids[len(before) : len(before) + count])
        return found, readings + sample.nfe

    def _choose_length(
        self,
        moves: TokenTransitions,
        lengths: list[int],
        before: list[int | None],
        behind: list[int],
    ) -> tuple[int, int]:
        """Return how many tokens a value shall have, and the readings that told."""
        if len(lengths) == 1:
            return lengths[0], 0
        scores: dict[int, float] = {}

        def best() -> int:
            return max(scores, key=lambda length: (scores[length], -length))

        for length in _spread_lengths(lengths):
            scores[length] = self._sureness(moves, length, before, behind)
        while True:  # between the best and its neighbors, until there is nothing between them
            tried, now = sorted(scores), best()
            at = tried.index(now)
            low, high = tried[max(at - 1, 0)], tried[min(at + 1, len(tried) - 1)]
            new = [n for n in lengths if low < n < high and n not in scores]
            if not new:
                return now, len(scores)
            for length in {new[len(new) // 4], new[3 * len(new) // 4]}:
                scores[length] = self._sureness(moves, length, before, behind)

    @torch.inference_mode()
    def _sureness(
        self, moves: TokenTransitions, count: int, before: list[int | None], behind: list[int]
    ) -> float:
        """Return nats a token of the likeliest value of a length and the first token behind it."""
        model, metadata = self.model, self.model.metadata
        start = len(before)
        ids = torch.tensor([*map(int, before), *[metadata.mask_token_id] * count, *behind])  # type: ignore[arg-type]
        asked = count + bool(behind)
        ids[start : start + asked] = metadata.mask_token_id
        at = torch.arange(len(ids))
        want = torch.arange(start, start + asked) - int(metadata.logit_shift)
        (states,) = model.read([ForwardRequest(ids, at, model.sees(at, at), want)])
        logprobs = (
            suppress_tokens(model.logits(states), [metadata.mask_token_id]).log_softmax(-1).cpu()
        )
        _, total = moves.best(count, {}, dict(enumerate(logprobs)))
        if behind:
            total += float(logprobs[count, behind[0]])
        return total / max(asked, 1)

    def _moves_of(self, hole: Slot) -> TokenTransitions:
        key = id(hole.values)  # kept beside the moves, so that no other takes its number
        if key not in self._moves:
            longest = None if hole.longest is None else max(hole.longest // self.longest, 1)
            moves = TokenTransitions.of(hole.values, self.table, self.model.vocabulary, longest)
            self._moves[key] = (hole.values, moves)
        return self._moves[key][1]

    def _encode(self, text: str) -> list[int]:
        ids = self.model.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [int(token) for token in ids if int(token) != self.model.metadata.mask_token_id]


def _spread_lengths(lengths: list[int]) -> list[int]:
    """Return the lengths that are tried first: each short one, then ever wider apart."""
    found, step = lengths[:_DENSE_LENGTHS], 2
    at = len(found) - 1 + step
    while at < len(lengths):
        found.append(lengths[at])
        step *= 2
        at += step
    if found[-1] != lengths[-1]:
        found.append(lengths[-1])
    return found


def _no_value_error(hole: Slot, lengths: list[int], room: int) -> BackendError:
    if not lengths:
        return BackendError(
            f"the tokenizer has no tokens that make up a value of {hole.path or 'the whole'}",
            code="backend.schema",
            where=hole.path or "the whole",
            expected="tokens for digits, letters and quotation marks",
            next="use a model whose tokenizer can write JSON",
        )
    return BackendError(
        f"{hole.path or 'the whole'} needs {lengths[0]} tokens, and {max(room, 0)} are left for it",
        code="backend.schema",
        where=hole.path or "the whole",
        expected="room for the fixed text and the shortest values",
        next="raise max_new_tokens",
    )
