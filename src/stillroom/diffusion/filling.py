"""Filling a skeleton: hole by hole, each first given a length and then written in any order.

How many tokens a value has is chosen by the model: each length that is possible is read once, the
text behind the hole in its place, and the one whose likeliest value is surest a token, the first
token behind it counted, is taken. What is fixed is never written by the model, so that the
result parses whatever the model says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from stillroom.diffusion.automata import Automaton
from stillroom.diffusion.canvas import Request
from stillroom.diffusion.choosing import suppress
from stillroom.diffusion.constraining import HoleRule, TokenMoves
from stillroom.diffusion.decoding import DecodeSettings
from stillroom.diffusion.model import DiffusionModel, Reading
from stillroom.diffusion.sampling import generate
from stillroom.diffusion.skeleton import Hole, Skeleton
from stillroom.diffusion.steps import LENGTHS
from stillroom.errors import BackendError
from stillroom.models.token_bytes import TokenBytes

__all__ = ["Filled", "Filler"]

_EVERY = 8
_LONGEST = 32


@dataclass(frozen=True, slots=True)
class Filled:
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
class Filler:
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
    longest: int = _LONGEST
    _moves: dict[int, tuple[Automaton, TokenMoves]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Leave out of the settings what would break a value."""
        changed: dict[str, Any] = {"remasking": None, "length": LENGTHS.build("fixed")}
        if self.model.metadata.block_size is None:
            changed["block_length"] = None
        self.settings = self.settings.model_copy(update=changed)

    def fill(
        self,
        prompt: Sequence[int | None],
        skeleton: Skeleton,
        *,
        room: int,
        seed: int = 0,
        on_text: Callable[[str], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> Filled:
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
        holes = sum(isinstance(part, Hole) for part in skeleton)
        for number, part in enumerate(skeleton):
            if isinstance(part, str):
                ids += fixed[number]
                text += part
                if on_text is not None:
                    on_text(text)
                continue
            if is_cancelled is not None and is_cancelled():
                return Filled(text, len(ids) - len(prompt), nfe, is_cancelled=True)
            behind = fixed[number + 1] if number + 1 < len(skeleton) else []
            found, readings = self._fill_hole(
                part, ids, behind, left // holes, seed + number, is_cancelled
            )
            nfe += readings
            if found is None:
                return Filled(text, len(ids) - len(prompt), nfe, is_cancelled=True)
            ids += found
            left, holes = left - len(found), holes - 1
            text += b"".join(map(self.table.of, found)).decode()
        return Filled(text, len(ids) - len(prompt), nfe)

    def _fill_hole(
        self,
        hole: Hole,
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
            raise _no_value(hole, lengths, room)
        count, readings = self._choose_length(moves, fitting, before, behind)
        if count == 0:
            return [], readings
        request = Request(
            (*before, *[None] * count, *behind),
            0,
            seed,
            HoleRule(moves, len(before), count),
        )
        (sample,) = generate(self.model, [request], self.settings, is_cancelled=is_cancelled)
        if sample.finish_reason == "cancelled":
            return None, readings + sample.nfe
        found = list(sample.ids[len(before) : len(before) + count])
        return found, readings + sample.nfe

    def _choose_length(
        self, moves: TokenMoves, lengths: list[int], before: list[int | None], behind: list[int]
    ) -> tuple[int, int]:
        """Return how many tokens a value shall have, and the readings that told."""
        if len(lengths) == 1:
            return lengths[0], 0
        scores: dict[int, float] = {}

        def best() -> int:
            return max(scores, key=lambda length: (scores[length], -length))

        for length in _spread(lengths):
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
        self, moves: TokenMoves, count: int, before: list[int | None], behind: list[int]
    ) -> float:
        """Return nats a token of the likeliest value of a length and the first token behind it."""
        model, metadata = self.model, self.model.metadata
        start = len(before)
        ids = torch.tensor([*map(int, before), *[metadata.mask_token_id] * count, *behind])  # type: ignore[arg-type]
        asked = count + bool(behind)
        ids[start : start + asked] = metadata.mask_token_id
        at = torch.arange(len(ids))
        want = torch.arange(start, start + asked) - int(metadata.logit_shift)
        (states,) = model.read([Reading(ids, at, model.sees(at, at), want)])
        logprobs = suppress(model.logits(states), [metadata.mask_token_id]).log_softmax(-1).cpu()
        _, total = moves.best(count, {}, dict(enumerate(logprobs)))
        if behind:
            total += float(logprobs[count, behind[0]])
        return total / max(asked, 1)

    def _moves_of(self, hole: Hole) -> TokenMoves:
        key = id(hole.values)  # kept beside the moves, so that no other takes its number
        if key not in self._moves:
            longest = None if hole.longest is None else max(hole.longest // self.longest, 1)
            moves = TokenMoves.of(hole.values, self.table, self.model.vocabulary, longest)
            self._moves[key] = (hole.values, moves)
        return self._moves[key][1]

    def _encode(self, text: str) -> list[int]:
        ids = self.model.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [int(token) for token in ids if int(token) != self.model.metadata.mask_token_id]


def _spread(lengths: list[int]) -> list[int]:
    """Return the lengths that are tried first: each short one, then ever wider apart."""
    found, step = lengths[:_EVERY], 2
    at = len(found) - 1 + step
    while at < len(lengths):
        found.append(lengths[at])
        step *= 2
        at += step
    if found[-1] != lengths[-1]:
        found.append(lengths[-1])
    return found


def _no_value(hole: Hole, lengths: list[int], room: int) -> BackendError:
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
