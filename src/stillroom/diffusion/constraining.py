"""Holding a hole to its values whatever order its places are written in.

In every step the likeliest tokens that together are a value, those already written fixed, are found
by dynamic programming over places and states; writing any of them leaves a value possible.

Source: Suresh et al. 2025, arXiv:2505.23061 (DINGO), Algorithm 1: the path of greatest probability
through the automaton. Differs from the paper: automata are small ones of single values, over bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stillroom.diffusion.automata import Automaton
from stillroom.models.token_bytes import TEXT, TokenBytes

__all__ = ["HoleRule", "TokenMoves"]

_NEVER = float("-inf")


@dataclass(frozen=True, slots=True)
class TokenMoves:
    """Where tokens lead in an automaton of bytes.

    Args:
        moves: From each state, by the state that is led to, the tokens that lead there, (n,).
        accepts: In which states a value may end, (S,), bool.
    """

    moves: tuple[Mapping[int, Tensor], ...]
    accepts: tuple[bool, ...]

    @classmethod
    def of(
        cls, values: Automaton, table: TokenBytes, vocabulary: int, longest: int | None = None
    ) -> TokenMoves:
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
                    token, gain = _pick(tokens, given.get(place), logprobs.get(place))
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


def _pick(tokens: Tensor, given: int | None, logprobs: Tensor | None) -> tuple[int, float]:
    """Return the likeliest of some tokens and its log-probability; -1 where none can stand."""
    if given is not None:
        return (given, 0.0) if bool((tokens == given).any()) else (-1, _NEVER)
    if logprobs is None:
        return int(tokens[0]), 0.0
    own = logprobs[tokens]
    best = int(own.argmax())
    return int(tokens[best]), max(float(own[best]), -1e30)


@dataclass(frozen=True, slots=True)
class HoleRule:
    """The rule of one hole of a text.

    Args:
        moves: Of its automaton.
        start: Its first place.
        count: How many places.
    """

    moves: TokenMoves
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
