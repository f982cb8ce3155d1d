"""Structured output (JSON infilling): each slot of a template decoded under its automaton.

The length of a value is chosen by the model: candidate lengths are scored by one forward pass each,
with the text after the slot in place, and the length with the highest log-probability per token is
used, the first token after the slot included. Fixed text is never generated, so the result always
parses.

In every step the most probable token sequence that forms a value, with the tokens already written
held fixed, is found by dynamic programming over positions and states; unmasking any of its tokens
keeps the value reachable.

Source: Suresh et al. 2025, arXiv:2505.23061 (DINGO), Algorithm 1: the path of greatest probability
through the automaton. Differs from the paper: small automata of single values, over bytes.
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
from stillroom.diffusion.sampling.sequence import InfillRequest
from stillroom.diffusion.sampling.settings import DecodeSettings
from stillroom.diffusion.sampling.token_sampling import suppress_tokens
from stillroom.errors import BackendError
from stillroom.models.tokenization.token_bytes import TEXT, TokenBytes

__all__ = ["InfillResult", "JsonInfiller", "SlotConstraint", "TokenTransitions"]

_NEVER = float("-inf")


@dataclass(frozen=True, slots=True)
class TokenTransitions:
    """Transitions of an automaton by token instead of by byte.

    Args:
        moves: For each state, the tokens that lead to each next state, (n,).
        accepts: Accepting states, (S,), bool.
    """

    moves: tuple[Mapping[int, Tensor], ...]
    accepts: tuple[bool, ...]

    @classmethod
    def from_dfa(
        cls, values: ByteDFA, table: TokenBytes, vocabulary: int, longest: int | None = None
    ) -> TokenTransitions:
        """Compile a byte automaton for a tokenizer.

        Args:
            values: Automaton of the values.
            table: Bytes of the tokens; special and unknown tokens have no transitions.
            vocabulary: Number of tokens that the model has logits for.
            longest: Maximum bytes per token.
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
        moves = []
        # one extra row for the dead state: state -1 indexes the last row
        steps = np.concatenate([values.table, np.full((1, 256), -1, dtype=np.int32)])
        for state in range(len(values.table)):
            states = np.full(len(tokens), state, dtype=np.int64)
            for offset in range(widest):
                is_longer = sizes > offset
                if not is_longer.any():
                    break
                data = table.data[table.starts[tokens[is_longer]] + offset]
                states[is_longer] = steps[states[is_longer], data]
            is_alive = states >= 0
            targets = {
                int(end): torch.from_numpy(tokens[is_alive & (states == end)])
                for end in np.unique(states[is_alive])
            }
            moves.append(targets)
        return cls(tuple(moves), tuple(values.accepts.tolist()))

    def lengths(self, most: int) -> list[int]:
        """Return the possible token counts of a value, up to ``most``, in ascending order."""
        reached, counts = {0}, [0] if self.accepts[0] else []
        for count in range(1, most + 1):
            reached = {end for state in reached for end in self.moves[state]}
            if any(self.accepts[state] for state in reached):
                counts.append(count)
        return counts

    def best(
        self, count: int, fixed: Mapping[int, int], logprobs: Mapping[int, Tensor]
    ) -> tuple[list[int], float]:
        """Return the most probable token sequence of a value and its summed log-probability.

        Args:
            count: Number of tokens.
            fixed: Fixed tokens by position.
            logprobs: Log-probabilities of all tokens, (V,), by position; a position in neither
                mapping may hold any token at no cost.

        Raises:
            ValueError: If no value of ``count`` tokens agrees with the fixed tokens.
        """
        scores: dict[int, float] = {0: 0.0}
        steps: list[dict[int, tuple[int, int]]] = []  # by state: previous state and token
        for position in range(count):
            following: dict[int, float] = {}
            came: dict[int, tuple[int, int]] = {}
            for state, score in scores.items():
                for end, tokens in self.moves[state].items():
                    token, gain = _pick_token(tokens, fixed.get(position), logprobs.get(position))
                    if token >= 0 and score + gain > following.get(end, _NEVER):
                        following[end], came[end] = score + gain, (state, token)
            scores = following
            steps.append(came)
        ends = {state: score for state, score in scores.items() if self.accepts[state]}
        if not ends:
            raise ValueError(f"no value of {count} tokens agrees with the fixed tokens")
        state = max(ends, key=lambda end: ends[end])
        total, path = ends[state], []
        for came in reversed(steps):
            state, token = came[state]
            path.append(token)
        return path[::-1], total


def _pick_token(tokens: Tensor, fixed: int | None, logprobs: Tensor | None) -> tuple[int, float]:
    """Return the most probable of ``tokens`` and its log-probability; -1 where none is allowed."""
    if fixed is not None:
        return (fixed, 0.0) if bool((tokens == fixed).any()) else (-1, _NEVER)
    if logprobs is None:
        return int(tokens[0]), 0.0
    scores = logprobs[tokens]
    best = int(scores.argmax())
    return int(tokens[best]), max(float(scores[best]), -1e30)


@dataclass(frozen=True, slots=True)
class SlotConstraint:
    """Decoding constraint of one slot.

    Args:
        moves: Token transitions of its automaton.
        start: First position of the slot.
        count: Number of tokens.
    """

    moves: TokenTransitions
    start: int
    count: int

    def choose(self, ids: Tensor, is_open: Tensor, positions: Tensor, logits: Tensor) -> Tensor:
        """Return a token for each position, (k,), consistent with the rest of the slot.

        Args:
            ids: Current tokens, (T,).
            is_open: Masked positions, (T,), bool.
            positions: Masked positions within the slot, (k,), ascending.
            logits: Logits at these positions, (k, V).
        """
        scores = logits.log_softmax(-1).cpu()
        rows = {int(position) - self.start: row for row, position in enumerate(positions.tolist())}
        fixed = {
            position: int(ids[self.start + position])
            for position in range(self.count)
            if not bool(is_open[self.start + position])
        }
        values, _ = self.moves.best(
            self.count, fixed, {position: scores[row] for position, row in rows.items()}
        )
        selected = [values[int(position) - self.start] for position in positions.tolist()]
        return torch.tensor(selected, dtype=torch.long, device=logits.device)


_DENSE_LENGTHS = 8
_MAX_VALUE_TOKENS = 32


@dataclass(frozen=True, slots=True)
class InfillResult:
    """A filled JSON template.

    Args:
        text: JSON.
        tokens: Number of tokens after the prompt, fixed and generated.
        nfe: Forward passes, those for choosing lengths included.
        is_cancelled: Whether generation was cancelled; the text is then incomplete.
    """

    text: str
    tokens: int
    nfe: int
    is_cancelled: bool = False


@dataclass(slots=True)
class JsonInfiller:
    """Fills the slots of a JSON template with a diffusion model.

    Args:
        model: Diffusion model.
        table: Bytes of its tokens.
        settings: Unmasking order and rule, cache and temperature; remasking is off, and a slot is
            decoded as one block.
        longest: Maximum tokens per value.
    """

    model: DiffusionModel
    table: TokenBytes
    settings: DecodeSettings
    longest: int = _MAX_VALUE_TOKENS
    _moves: dict[int, tuple[ByteDFA, TokenTransitions]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Remove settings that could invalidate a value."""
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
        """Fill the slots from left to right.

        Args:
            prompt: Tokens before the template.
            skeleton: Fixed text and slots.
            room: Maximum tokens of fixed text and values together.
            seed: Random seed.
            on_text: Called with the text up to the next slot whenever it has grown.
            is_cancelled: Polled before every forward pass.

        Raises:
            BackendError: If the room is too small for the shortest values, or the tokenizer has no
                tokens for a value.
        """
        fixed = [self._encode(part) if isinstance(part, str) else [] for part in skeleton]
        ids, text, nfe, remaining = list(prompt), "", 0, room - sum(map(len, fixed))
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
            tokens, readings = self._fill_hole(
                part, ids, behind, remaining // holes, seed + number, is_cancelled
            )
            nfe += readings
            if tokens is None:
                return InfillResult(text, len(ids) - len(prompt), nfe, is_cancelled=True)
            ids += tokens
            remaining, holes = remaining - len(tokens), holes - 1
            text += b"".join(map(self.table.of, tokens)).decode()
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
        """Return a value's tokens and the forward passes used; None if cancelled."""
        moves = self._moves_of(hole)
        lengths = moves.lengths(self.longest)
        fitting = [length for length in lengths if length <= room]
        if not fitting:
            raise _no_value_error(hole, lengths, room)
        count, readings = self._choose_length(moves, fitting, before, behind)
        if count == 0:
            return [], readings
        request = InfillRequest(
            (*before, *[None] * count, *behind), 0, seed, SlotConstraint(moves, len(before), count)
        )
        (sample,) = generate(self.model, [request], self.settings, is_cancelled=is_cancelled)
        if sample.finish_reason == "cancelled":
            return None, readings + sample.nfe
        tokens = list(sample.ids[len(before) : len(before) + count])
        return tokens, readings + sample.nfe

    def _choose_length(
        self,
        moves: TokenTransitions,
        lengths: list[int],
        before: list[int | None],
        behind: list[int],
    ) -> tuple[int, int]:
        """Return the length of a value in tokens, and the forward passes used to choose it."""
        if len(lengths) == 1:
            return lengths[0], 0
        scores: dict[int, float] = {}

        def best() -> int:
            return max(scores, key=lambda length: (scores[length], -length))

        for length in _spread_lengths(lengths):
            scores[length] = self._sureness(moves, length, before, behind)
        while True:  # bisect between the best length and its scored neighbors
            tried, now = sorted(scores), best()
            index = tried.index(now)
            low, high = tried[max(index - 1, 0)], tried[min(index + 1, len(tried) - 1)]
            new = [n for n in lengths if low < n < high and n not in scores]
            if not new:
                return now, len(scores)
            for length in {new[len(new) // 4], new[3 * len(new) // 4]}:
                scores[length] = self._sureness(moves, length, before, behind)

    @torch.inference_mode()
    def _sureness(
        self, moves: TokenTransitions, count: int, before: list[int | None], behind: list[int]
    ) -> float:
        """Return the log-probability per token of the best value and the first token after it."""
        model, metadata = self.model, self.model.metadata
        start = len(before)
        ids = torch.tensor([*map(int, before), *[metadata.mask_token_id] * count, *behind])  # type: ignore[arg-type]
        num_masked = count + bool(behind)
        ids[start : start + num_masked] = metadata.mask_token_id
        positions = torch.arange(len(ids))
        want = torch.arange(start, start + num_masked) - int(metadata.logit_shift)
        (states,) = model.read(
            [ForwardRequest(ids, positions, model.attention_mask(positions, positions), want)]
        )
        logprobs = (
            suppress_tokens(model.logits(states), [metadata.mask_token_id]).log_softmax(-1).cpu()
        )
        _, total = moves.best(count, {}, dict(enumerate(logprobs)))
        if behind:
            total += float(logprobs[count, behind[0]])
        return total / max(num_masked, 1)

    def _moves_of(self, hole: Slot) -> TokenTransitions:
        key = id(hole.values)  # stored with the value, so that the id is not reused
        if key not in self._moves:
            longest = None if hole.longest is None else max(hole.longest // self.longest, 1)
            moves = TokenTransitions.from_dfa(
                hole.values, self.table, self.model.vocabulary, longest
            )
            self._moves[key] = (hole.values, moves)
        return self._moves[key][1]

    def _encode(self, text: str) -> list[int]:
        ids = self.model.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [int(token) for token in ids if int(token) != self.model.metadata.mask_token_id]


def _spread_lengths(lengths: list[int]) -> list[int]:
    """Return the lengths to score first: all short ones, then at doubling distances."""
    spread, step = lengths[:_DENSE_LENGTHS], 2
    index = len(spread) - 1 + step
    while index < len(lengths):
        spread.append(lengths[index])
        step *= 2
        index += step
    if spread[-1] != lengths[-1]:
        spread.append(lengths[-1])
    return spread


def _no_value_error(hole: Slot, lengths: list[int], room: int) -> BackendError:
    if not lengths:
        return BackendError(
            f"the tokenizer cannot encode any value of {hole.path or 'the whole'}",
            code="backend.schema",
            where=hole.path or "the whole",
            expected="tokens for digits, letters and quotation marks",
            next="use a model whose tokenizer can write JSON",
        )
    return BackendError(
        f"{hole.path or 'the whole'} needs {lengths[0]} tokens, and {max(room, 0)} are left",
        code="backend.schema",
        where=hole.path or "the whole",
        expected="room for the fixed text and the shortest values",
        next="raise max_new_tokens",
    )
