"""Diffusion sampler: unmasking and remasking steps, guidance (CFG), early stop at EOS, batches.

Tokens are sampled in ``sampling.token_sampling`` (Gumbel-max); EOS is suppressed in ``_suppress``;
``_has_ended`` stops. With ``block_length`` blocks (cut by ``SequenceState.blocks``) are decoded
from left to right (semi-autoregressive); without, all at once. A step unmasks positions, and may
remask others.

A sampler is a coroutine: it yields forward requests and is sent the states. Several sequences thus
share forward passes, and each depends on its own positions, step counts and random numbers only.

With ``rows: 1`` every forward pass reads one sequence, without padding, and results are the same
bits whatever the batch. On a CPU this is as fast, as blocks keep it busy; on an accelerator raise
``rows``: results then agree up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stillroom.diffusion.model.network import DiffusionModel, ForwardRequest
from stillroom.diffusion.sampling.kv_cache import CacheQuery, CacheSession
from stillroom.diffusion.sampling.sequence import (
    Candidates,
    CommittedTokens,
    InfillRequest,
    SampledSequence,
    SequenceState,
    StepIndex,
    decode_tokens,
)
from stillroom.diffusion.sampling.settings import DecodeSettings
from stillroom.diffusion.sampling.token_sampling import (
    draw_exponential,
    sample_tokens,
    suppress_tokens,
)
from stillroom.errors import DataError
from stillroom.models.interfaces import DenoisingStep

__all__ = ["DiffusionSampler", "StepEvent", "generate"]

_MAX_REMASKED = 4  # times a position is remasked or replaced: sampling ends
_NO_POSITIONS = torch.zeros(0, dtype=torch.long)

Reads = Generator[ForwardRequest, Tensor, None]


@dataclass(frozen=True, slots=True)
class StepEvent:
    """State of a sequence after one step.

    Args:
        row: Index of the request.
        step: Step over all blocks, from 0.
        nfe: Forward passes so far.
        ids: Token ids, the mask token where masked, (T,).
        is_open: Masked positions, (T,).
        written: Positions unmasked in this step.
        changed: Positions remasked or replaced in this step.
        confidence: Confidence of every token when it was chosen, (T,).
        tail: First position after the request's own tokens.
        start: First position of the block that is decoded; blocks before it are final.
    """

    row: int
    step: int
    nfe: int
    ids: tuple[int, ...]
    is_open: tuple[bool, ...]
    written: tuple[int, ...]
    changed: tuple[int, ...]
    confidence: tuple[float, ...]
    tail: int
    start: int = 0

    def describe(self, tokenizer: Any, *, first: int = 0) -> DenoisingStep:
        """Return the text of the positions from ``first``, which are counted from there."""
        texts = decode_tokens(tokenizer, self.ids, first=first)
        pieces = (
            None if is_open else text
            for text, is_open in zip(texts, self.is_open[first:], strict=True)
        )
        written = (position - first for position in self.written if position >= first)
        changed = (position - first for position in self.changed if position >= first)
        return DenoisingStep(self.step, self.nfe, tuple(pieces), tuple(written), tuple(changed))


@dataclass(slots=True)
class DiffusionSampler:
    """Sampler of one sequence.

    Args:
        model: Diffusion model.
        settings: Decoding settings.
        request: Infill request.
        row: Index of the request, for events.
        on_step: Called after every step.
    """

    model: DiffusionModel
    settings: DecodeSettings
    request: InfillRequest
    row: int = 0
    on_step: Callable[[StepEvent], None] | None = None
    sequence: SequenceState = field(init=False)
    nfe: int = field(init=False, default=0)
    steps: int = field(init=False, default=0)
    changes: int = field(init=False, default=0)
    ended: bool = field(init=False, default=False)
    rng: torch.Generator = field(init=False)
    _sessions: list[CacheSession] = field(init=False)

    def __post_init__(self) -> None:
        """Validate the request and open the caches.

        Raises:
            DataError: If nothing is masked, a token id is invalid, the text exceeds the context
                length, or the first position is masked and the model's logits are shifted.
        """
        metadata, room = self.model.metadata, self.request.max_new_tokens
        length, most = len(self.request.ids) + room, self.model.context_length
        if length > most:
            raise DataError(
                f"text and max_new_tokens are {length} positions; the context length is {most}",
                code="diffusion.too-long",
                expected=f"at most {most} positions",
                next="shorten the text, or lower max_new_tokens",
            )
        self.sequence = SequenceState.from_request(
            self.request,
            metadata.mask_token_id,
            self.model.vocabulary,
            room=self.settings.length.start(room) if room else 0,
        )
        if metadata.logit_shift and bool(self.sequence.is_open[0]):
            raise DataError(
                "the model predicts a token from the state before it, and the first token has none",
                code="diffusion.first-place",
                expected="a text whose first token is given",
                next="start the prompt with the beginning-of-text token",
            )
        if self.settings.length.needs_whole and not bool(
            self.sequence.is_given[: self.sequence.tail].all()
        ):
            raise DataError(
                f"length '{self.settings.length.method_name()}' does not support infilling",
                code="diffusion.holes",
                expected="a prompt without masked spans",
                next="use length fixed",
            )
        seed = self.settings.seed if self.request.seed is None else self.request.seed
        self.rng = torch.Generator().manual_seed(seed & 0x7FFFFFFFFFFFFFFF)
        cache = self.settings.cache_for(metadata)
        capacity = self.sequence.length + (self.settings.block_length or self.sequence.length)
        sides = 2 if self.settings.cfg_scale else 1
        self._sessions = [cache.open(self.model, capacity) for _ in range(sides)]

    def run(self) -> Reads:
        """Yield forward requests until the sequence is complete."""
        yield from self._extend()
        size = self.settings.block_length or self.model.metadata.block_size
        is_aligned = self.model.metadata.attention == "block_causal"
        blocks = self.sequence.blocks(size, aligned=is_aligned)
        grown = 0
        for number, (start, stop) in enumerate(blocks):
            before = self.sequence.length
            yield from self._decode_block(start + grown, stop + grown, number, len(blocks))
            grown += self.sequence.length - before
            if self.ended:
                return

    def sample(self, *, cancelled: bool = False) -> SampledSequence:
        """Return the current sequence as a result."""
        sequence, metadata = self.sequence, self.model.metadata
        ids = sequence.ids.tolist()
        end = sequence.end_position(metadata.end_token_ids)
        new = ids[sequence.tail : end] if end is not None else ids[sequence.tail :]
        reason = "cancelled" if cancelled else "stop" if end is not None else "length"
        return SampledSequence(
            tuple(ids),
            tuple(new),
            reason,
            self.nfe,
            self.steps,
            tuple(sequence.confidence.tolist()),
            tuple(sequence.chosen_at.tolist()),
            self.changes,
            self._sessions[0].drift,
        )

    def _extend(self) -> Reads:
        """Append mask tokens until the last ones predict the end."""
        length, sequence = self.settings.length, self.sequence
        while length.window and sequence.length - sequence.tail < self.request.max_new_tokens:
            positions = sequence.masked_in(sequence.tail, sequence.length)
            logits = yield from self._logits(
                positions, _NO_POSITIONS, sequence.tail, sequence.length, 0
            )
            room = self.request.max_new_tokens - (sequence.length - sequence.tail)
            more = length.extend(self._end_confidence(positions, logits[0]), room)
            if not more:
                return
            sequence.insert(sequence.length, more, self.model.metadata.mask_token_id)

    def _decode_block(self, start: int, stop: int, block: int, blocks: int) -> Reads:
        """Decode one block."""
        sequence, masked = self.sequence, len(self.sequence.masked_in(start, stop))
        remasking, reviews = self.settings.remasking, 0
        number = 0
        while True:
            positions = sequence.masked_in(start, stop)
            is_full = len(positions) == 0
            if is_full and (remasking is None or reviews >= remasking.extra_steps):
                return
            reviews += is_full
            step = StepIndex(number, block, blocks, masked)
            earlier = sequence.unmasked_in(start, stop)
            reviewed = (
                earlier if remasking is not None and remasking.needs != "nothing" else _NO_POSITIONS
            )
            logits = yield from self._logits(positions, reviewed, start, stop, number)
            unmasked = self._unmask(positions, logits[0], step)
            changed = self._remask(earlier, logits[1], step)
            stop += self._expand(logits[0], positions)
            self._emit_event(unmasked, changed, start)
            number += 1
            if is_full and len(changed) == 0:
                return
            if self._has_ended():
                return

    def _logits(
        self, positions: Tensor, reviewed: Tensor, start: int, stop: int, step: int
    ) -> Generator[ForwardRequest, Tensor, tuple[Tensor, Tensor | None]]:
        """Return logits at masked positions, (k, V), and at unmasked ones to be reviewed, (m, V).

        Classifier-free guidance takes two passes: l = l_u + (w + 1)(l_c - l_u), where the given
        text is masked in l_u (Nie et al. 2024, arXiv:2410.18514).
        """
        sequence, mask = self.sequence, self.model.metadata.mask_token_id
        remasking = self.settings.remasking
        has_shadows = remasking is not None and remasking.needs == "shadows"
        queried = positions if has_shadows else torch.cat([positions, reviewed]).sort().values
        sides = []
        for side, session in enumerate(self._sessions):
            ids = sequence.ids if side == 0 else torch.where(sequence.is_given, mask, sequence.ids)
            query = CacheQuery(
                ids,
                start,
                stop,
                queried,
                sequence.is_open,
                reviewed if has_shadows else _NO_POSITIONS,
                mask,
                step,
            )
            sides.append((yield from self._read(session, query)))
        logits = sides[0]
        if len(sides) == 2:
            logits = sides[1] + (self.settings.cfg_scale + 1) * (sides[0] - sides[1])
        logits = self._suppress(logits)
        if len(reviewed) == 0:
            return logits, None
        if has_shadows:
            return logits[: len(positions)], logits[len(positions) :]
        is_reviewed = torch.isin(queried, reviewed)
        return logits[~is_reviewed], logits[is_reviewed]

    def _read(
        self, session: CacheSession, query: CacheQuery
    ) -> Generator[ForwardRequest, Tensor, Tensor]:
        reads = session.read(query)
        try:
            request = next(reads)
            while True:
                self.nfe += 1
                states = yield request
                request = reads.send(states)
        except StopIteration as done:
            states = done.value
        return self.model.logits(states)

    def _suppress(self, logits: Tensor) -> Tensor:
        metadata, end = self.model.metadata, self.settings.end
        never = [metadata.mask_token_id, *(metadata.end_token_ids if end.never else ())]
        logits = suppress_tokens(logits, never)
        return (
            suppress_tokens(logits, metadata.end_token_ids, end.penalty) if end.penalty else logits
        )

    def _unmask(self, positions: Tensor, logits: Tensor, step: StepIndex) -> Tensor:
        """Unmask those that order and rule select, as low-confidence remasking; return them."""
        if len(positions) == 0:
            return positions
        settings = self.settings
        tokens = self._choose_tokens(positions, logits)
        view = Candidates(positions, tokens, logits, step, self.rng)
        rank = settings.order.score(view).sort(descending=True, stable=True).indices
        ordered = view.reorder(rank)
        if settings.end.last:
            # Leave out candidates that are end tokens, unless there are no others.
            ends = torch.tensor(list(self.model.metadata.end_token_ids), dtype=torch.long)
            continuing = (~torch.isin(ordered.tokens.cpu(), ends)).nonzero()[:, 0]
            ordered = ordered.reorder(continuing) if len(continuing) else ordered
        is_taken = settings.commit.take(ordered)
        is_taken[0] = True  # progress: a step unmasks at least one, whatever the rule
        selected = ordered.places[is_taken]
        selected_tokens = ordered.tokens[is_taken.to(tokens.device)].cpu()
        self.sequence.unmask(selected, selected_tokens, ordered.confidence[is_taken], self.steps)
        return selected

    def _choose_tokens(self, positions: Tensor, logits: Tensor) -> Tensor:
        """Return a token for each position, (k,): sampled, or constrained by the request's rule."""
        settings, rule = self.settings, self.request.rule
        if rule is None:
            return sample_tokens(
                logits,
                temperature=settings.temperature,
                rng=self.rng,
                top_k=settings.top_k,
                top_p=settings.top_p,
            )
        if settings.temperature:
            # argmax of perturbed logits: exact where positions are independent
            noise = draw_exponential(logits.shape, self.rng).log_().to(logits.device)
            logits = logits.double() / settings.temperature - noise
        return rule.choose(self.sequence.ids, self.sequence.is_open, positions, logits)

    def _remask(self, unmasked: Tensor, logits: Tensor | None, step: StepIndex) -> Tensor:
        """Remask or replace tokens; return the changed positions."""
        remasking, sequence = self.settings.remasking, self.sequence
        if remasking is None or len(unmasked) == 0:
            return _NO_POSITIONS
        committed = CommittedTokens(
            unmasked,
            sequence.ids[unmasked] if logits is None else sequence.ids[unmasked].to(logits.device),
            sequence.confidence[unmasked],
            logits,
            step,
            self.settings.commit.plan(step),
            self.rng,
        )
        is_remasked, tokens = remasking.review(committed)
        is_remasked = is_remasked & (sequence.remasked[unmasked] < _MAX_REMASKED)
        tokens = tokens.cpu()
        is_replaced = ~is_remasked & (tokens != sequence.ids[unmasked])
        is_replaced &= sequence.remasked[unmasked] < _MAX_REMASKED
        sequence.ids[unmasked[is_replaced]] = tokens[is_replaced]
        sequence.remasked[unmasked[is_replaced]] += 1
        sequence.remask(unmasked[is_remasked], self.model.metadata.mask_token_id)
        changed = unmasked[is_remasked | is_replaced]
        self.changes += len(changed)
        return changed

    def _expand(self, logits: Tensor, positions: Tensor) -> int:
        """Insert mask tokens before the least confident position; return how many."""
        length, sequence = self.settings.length, self.sequence
        is_masked = sequence.is_open[positions]
        if not length.window or not bool(is_masked.any()):
            return 0
        confidence = logits.double().softmax(-1).max(-1).values.cpu()
        least = int(torch.where(is_masked, confidence, 2.0).argmin())
        room = self.request.max_new_tokens - (sequence.length - sequence.tail)
        end = self._end_confidence(positions, logits)
        count = length.expand(float(confidence[least]), end, room)
        if count:
            sequence.insert(int(positions[least]), count, self.model.metadata.mask_token_id)
        return count

    def _end_confidence(self, positions: Tensor, logits: Tensor) -> float:
        """Return the confidence that the text has ended, over the last positions, 0 to 1."""
        sequence, ends = self.sequence, torch.tensor(list(self.model.metadata.end_token_ids))
        window = min(self.settings.length.window, sequence.length - sequence.tail)
        first = sequence.length - window
        best = logits.double().softmax(-1).max(-1)
        is_end = torch.isin(best.indices.cpu(), ends) & (positions >= first)
        sure = float(best.values.cpu()[is_end & sequence.is_open[positions]].sum())
        unmasked = sequence.unmasked_in(first, sequence.length)
        is_end = torch.isin(sequence.ids[unmasked], ends)
        return (sure + float(sequence.confidence[unmasked[is_end]].sum())) / max(window, 1)

    def _has_ended(self) -> bool:
        if self.settings.end.stop_early:
            self.ended = self.sequence.end_position(self.model.metadata.end_token_ids) is not None
        return self.ended

    def _emit_event(self, unmasked: Tensor, changed: Tensor, start: int) -> None:
        if self.on_step is not None:
            sequence = self.sequence
            self.on_step(
                StepEvent(
                    self.row,
                    self.steps,
                    self.nfe,
                    tuple(sequence.ids.tolist()),
                    tuple(sequence.is_open.tolist()),
                    tuple(sorted(unmasked.tolist())),
                    tuple(changed.tolist()),
                    tuple(sequence.confidence.tolist()),
                    sequence.tail,
                    start,
                )
            )
        self.steps += 1


@torch.inference_mode()
def generate(
    model: DiffusionModel,
    requests: Sequence[InfillRequest],
    settings: DecodeSettings,
    *,
    on_step: Callable[[StepEvent], None] | None = None,
    on_done: Callable[[int, SampledSequence], None] | None = None,
    is_cancelled: Callable[[], bool] | None = None,
) -> list[SampledSequence]:
    """Complete all requests, and return their results in order.

    Args:
        model: Diffusion model.
        requests: Infill requests.
        settings: Decoding settings.
        on_step: Called after every step of every sequence.
        on_done: Called with each finished sequence, in any order.
        is_cancelled: Polled before every forward pass; unfinished sequences are returned as they
            are.

    Raises:
        RecipeError: If the settings do not suit the model.
        DataError: If a request is invalid.
    """
    settings.check_against(model.metadata)
    samplers = [
        DiffusionSampler(model, settings, request, row, on_step)
        for row, request in enumerate(requests)
    ]
    samples: dict[int, SampledSequence] = {}
    is_stopped = is_cancelled or (lambda: False)
    waiting = list(range(len(samplers)))
    active: dict[int, tuple[Reads, ForwardRequest]] = {}

    def finish(row: int, *, cancelled: bool = False) -> None:
        samples[row] = samplers[row].sample(cancelled=cancelled)
        if on_done is not None:
            on_done(row, samples[row])

    while (waiting or active) and not is_stopped():
        while waiting and len(active) < settings.rows:
            row = waiting.pop(0)
            run = samplers[row].run()
            active[row] = (run, next(run))
        # All rows of a forward pass have a cache, or none.
        with_keys = active[min(active)][1].keys is not None
        rows = [row for row in sorted(active) if (active[row][1].keys is not None) == with_keys]
        states = model.read([active[row][1] for row in rows])
        for row, row_states in zip(rows, states, strict=True):
            try:
                following = active[row][0].send(row_states)
            except StopIteration:
                del active[row]
                finish(row)
            else:
                active[row] = (active[row][0], following)
    for row in sorted({*waiting, *active}):
        finish(row, cancelled=True)
    return [samples[row] for row in range(len(samplers))]
