"""transformers in this process: any Hugging Face folder, on CPU or accelerator.

Completions are decoded in batches of a fixed number of rows. A prompt is read alone, in blocks that
are a function of its length, and padded to a length that is one as well; decoding steps have a
fixed number of rows (unused ones repeat the last), so the tensor shapes of a completion, and with
them its tokens, do not depend on the batch. Blocks that an earlier prompt began with are not read
again (``PrefixCache``), with equal bits. ``score`` reads one text at a time for the same reason.

``BatchScheduler`` decodes the streams of several threads (a server's clients) with these shapes, on
one thread: a token per open batch, in turn. New requests are queued, and each round opens one batch
of queued prompts of the same bucket. A running batch accepts no new rows, so that no stream depends
on others.

Source: Yu et al. 2022, "Orca: A Distributed Serving System for Transformer-Based Generative
Models", OSDI 2022 (iteration-level scheduling). Differs: batches are interleaved, never merged, so
that rows of finished streams stay empty.
"""

from __future__ import annotations

import functools
import inspect
import math
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.errors import BackendError
from stillroom.models.interfaces import Backend, Score, TextModel, Vectors
from stillroom.models.requests import broadcast_sampling, limit_new_tokens, make_closed_error
from stillroom.models.tokenization.chat_template import render_prompt
from stillroom.records import Completion, Message, Prompt, Sampling

if TYPE_CHECKING:
    from stillroom.models.local.generation import DecodingState

__all__ = [
    "BatchScheduler",
    "Transformers",
]

_EXHAUSTED = object()


@dataclass(eq=False)
class _QueuedStream:
    """A stream in the queue or in a batch, with its unread pieces."""

    drawing: DecodingState
    bucket: int
    emitted: int = 0
    """Characters added to ``pieces`` so far."""
    pieces: deque[str] = field(default_factory=deque)
    is_done: bool = False
    error: BaseException | None = None


@dataclass(eq=False)
class _Batch:
    seats: list[_QueuedStream]
    steps: Iterator[None] = field(default_factory=lambda: iter(()))


class BatchScheduler:
    """Decodes the streams of all calling threads on its own thread."""

    def __init__(
        self,
        draw: Callable[[Sequence[DecodingState]], Iterator[None]],
        *,
        rows: int,
        batches: int,
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        """Set the decoding function, which decodes one token per row between yields.

        Args:
            draw: Generator over the steps of a batch; ends when all its rows have ended.
            rows: Maximum rows per batch.
            batches: Maximum concurrent batches; further streams wait.
            begin: Called first on each decoding thread, for thread-local settings.
        """
        self._draw, self._rows, self._batches, self._begin = draw, rows, batches, begin
        self._state = threading.Condition()
        self._is_working = False
        self._line: deque[_QueuedStream] = deque()
        self._open: list[_Batch] = []

    def stream(self, drawing: DecodingState, bucket: int) -> Generator[str]:
        """Yield the final text of a completion, token by token; closing the generator ends it.

        Raises:
            Exception: Error of the engine in its batch or row.
        """
        seat = _QueuedStream(drawing, bucket)
        try:
            self._join(seat)
            while True:
                with self._state:
                    self._state.wait_for(lambda: seat.pieces or seat.is_done)
                    piece = seat.pieces.popleft() if seat.pieces else None
                if piece is None:
                    break
                yield piece
            if seat.error is not None:
                raise seat.error
        finally:
            self._leave(seat)

    def _join(self, seat: _QueuedStream) -> None:
        """Queue a stream, and start the decoding thread if needed."""
        with self._state:
            self._line.append(seat)
            if not self._is_working:
                # Not a daemon: at exit the interpreter waits for the current token.
                threading.Thread(target=self._work, name="stillroom-batching").start()
                self._is_working = True

    def _work(self) -> None:
        self._begin()
        while batches := self._next_round():
            for batch in batches:
                error: BaseException | None = None
                try:
                    is_over = next(batch.steps, _EXHAUSTED) is _EXHAUSTED
                except BaseException as raised:  # noqa: BLE001  # raised in its streams
                    is_over, error = True, raised
                with self._state:
                    for seat in batch.seats:
                        self._settle(seat, is_over, error)
                    self._drop_ended()
                    self._state.notify_all()

    def _next_round(self) -> list[_Batch]:
        """Open one more batch of queued streams; return the open batches, none at the end."""
        with self._state:
            self._open_batch()
            self._is_working = bool(self._open)
            return list(self._open)

    def _open_batch(self) -> None:
        """Move the first queued stream and those of its bucket to a new batch."""
        if not self._line or len(self._open) >= self._batches:
            return
        bucket = self._line[0].bucket
        seats = [seat for seat in self._line if seat.bucket == bucket][: self._rows]
        for seat in seats:
            self._line.remove(seat)
        self._open.append(_Batch(seats, self._draw([seat.drawing for seat in seats])))

    def _settle(self, seat: _QueuedStream, is_over: bool, error: BaseException | None) -> None:
        if seat.is_done:
            return
        try:
            text = "" if error else seat.drawing.settled()
        except BaseException as raised:  # noqa: BLE001  # raised in this stream only
            text, error = "", raised
            seat.drawing.reason = seat.drawing.reason or "failed"
        if len(text) > seat.emitted:
            seat.pieces.append(text[seat.emitted :])
            seat.emitted = len(text)
        seat.error = error or seat.drawing.error
        seat.is_done = is_over or bool(error or seat.drawing.reason)

    def _leave(self, seat: _QueuedStream) -> None:
        """Remove a stream; its row is empty from the next token on."""
        with self._state:
            if seat in self._line:
                self._line.remove(seat)
            if not seat.is_done:
                seat.is_done = True
                seat.drawing.reason = seat.drawing.reason or "cancelled"
                self._drop_ended()

    def _drop_ended(self) -> None:
        """Remove batches without open streams."""
        self._open = [
            batch for batch in self._open if not all(seat.is_done for seat in batch.seats)
        ]


_LONGEST = 1 << 20
_BATCHES = 4  # maximum concurrent batches


class Transformers(Backend):
    """Local transformers."""

    paper: ClassVar[str] = ""

    batch_size: int = Field(
        8, ge=1, le=256, description="rows per batch; other values may change completions"
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="dtype of the weights; auto: bfloat16 where the device supports it"
    )
    prefix_cache_mb: int = Field(
        256,
        ge=0,
        le=1 << 20,
        description="MB of computed prompt beginnings kept for prompts that begin alike; "
        "changes no completion",
    )

    @override
    def open(self, reference: str) -> TextModel:
        import torch

        from stillroom.checkpoints import Checkpoint
        from stillroom.models.local.causal_lm import fix_rope, load_causal_lm

        if self.num_threads is not None:
            torch.set_num_threads(self.num_threads)
        path = Path(reference)
        model, tokenizer = load_causal_lm(path, dtype=self.dtype, device=self.device)
        context_length = self.context_length or _context_of(model)
        fix_rope(model, context_length)
        return _TransformersModel(
            model,
            tokenizer,
            name=path.stem if path.suffix == ".gguf" else path.absolute().name,
            fingerprint=f"{Checkpoint.open(path).fingerprint}:{str(model.dtype).split('.')[-1]}",
            context_length=context_length,
            batch_size=self.batch_size,
            prefix_cache_mb=self.prefix_cache_mb,
        )


class _TransformersModel:
    """TextModel over a transformers model; threads may stream concurrently."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        fingerprint: str,
        context_length: int,
        batch_size: int,
        prefix_cache_mb: int,
    ) -> None:
        import torch

        from stillroom.models.local.causal_lm import find_end_tokens, has_kv_cache_only
        from stillroom.models.local.prefix_cache import PrefixCache

        self.name = name
        self.fingerprint = fingerprint
        self.context_length = context_length
        self.model = model
        self.tokenizer = tokenizer
        self._batch_size = batch_size
        self._lock = threading.Lock()
        self._prefixes = PrefixCache(prefix_cache_mb * 1_000_000)
        self._ends = find_end_tokens(model, tokenizer)
        parameters = inspect.signature(model.forward).parameters
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"
        self._can_generate = has_kv_cache_only(model)
        self._keep = "logits_to_keep" in parameters
        self._grammar: Any = None
        self.lanes = _BATCHES * batch_size
        # The number of torch threads of a thread becomes the default of later threads.
        begin = functools.partial(torch.set_num_threads, torch.get_num_threads())
        self._batching = BatchScheduler(
            self._draw_batch, rows=batch_size, batches=_BATCHES, begin=begin
        )

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | Sequence[Sampling],
        *,
        on_done: Callable[[int, Completion], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> list[Completion]:
        samplings = broadcast_sampling(prompts, sampling)
        drawings = [
            self._begin(prompt, prompt_sampling)
            for prompt, prompt_sampling in zip(prompts, samplings, strict=True)
        ]
        completions = [Completion("", "cancelled", model=self.fingerprint)] * len(prompts)
        is_stopped = is_cancelled or (lambda: False)

        def finish(index: int) -> None:
            error = drawings[index].error
            if error is not None:
                raise error
            completions[index] = self._completion(drawings[index])
            if on_done is not None:
                on_done(index, completions[index])

        if len(drawings) == 1:
            if self._write_one(drawings[0], is_stopped):
                finish(0)
            return completions
        self._write_all(drawings, is_stopped, finish)
        return completions

    def _write_all(
        self,
        drawings: Sequence[DecodingState],
        is_stopped: Callable[[], bool],
        finish: Callable[[int], None],
    ) -> None:
        """Decode batch by batch, and report each completion when it has ended."""
        for batch in _batches([len(drawing.prompt_ids) for drawing in drawings], self._batch_size):
            if is_stopped():
                return
            reported: set[int] = set()
            for _ in self._draw_batch([drawings[index] for index in batch]):
                for index in batch:
                    if drawings[index].reason and index not in reported:
                        reported.add(index)
                        finish(index)
                if is_stopped():
                    break

    def _write_one(self, drawing: DecodingState, is_stopped: Callable[[], bool]) -> bool:
        """Decode one completion alongside other threads'; return False if it was cancelled."""
        pieces = self._batching.stream(drawing, _bucket(len(drawing.prompt_ids)))
        if is_stopped():
            return False
        with closing(pieces):
            for _ in pieces:
                if is_stopped():
                    break
        return drawing.reason != "cancelled"

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[str, None, Completion]:
        drawing = self._begin(prompt, sampling)
        yield from self._batching.stream(drawing, _bucket(len(drawing.prompt_ids)))
        return self._completion(drawing)

    def _completion(self, drawing: DecodingState) -> Completion:
        counts = len(drawing.prompt_ids), len(drawing.ids)
        return Completion(drawing.text, drawing.reason, *counts, self.fingerprint)

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Score]:
        scores = []
        read: tuple[Prompt, Any] | None = None
        for prompt, completion in zip(prompts, completions, strict=True):
            after = self.tokenizer(completion, add_special_tokens=False)["input_ids"]
            if not after:
                scores.append(Score(()))
                continue
            if read is None or len(after) > 1 or read[0] != prompt:
                rows = self._chances(self._encode(prompt), after)
                # A single token depends on the prompt only: the same row scores the next option.
                read = (prompt, rows) if len(after) == 1 else None
            else:
                rows = read[1]
            scores.append(
                Score(tuple(float(row[token]) for row, token in zip(rows, after, strict=True)))
            )
        return scores

    def _chances(self, before: list[int], after: list[int]) -> Any:
        """Return log-probabilities over the vocabulary at the positions of ``after``, (T, V)."""
        import torch

        limit_new_tokens(len(before) + len(after) - 1, 1, self.context_length, self.name)
        with self._lock, torch.inference_mode():
            ids = torch.tensor([before + after], device=self.model.device)
            keep = {"logits_to_keep": len(after) + 1} if self._keep else {}
            logits = self.model(input_ids=ids, use_cache=False, **keep).logits
            return logits[0, -len(after) - 1 : -1].float().log_softmax(-1)

    def hidden_states(self, prompts: Sequence[Prompt], layer: int = -1) -> list[Vectors]:
        """Return the states of all tokens after one layer (0: embeddings), (T, D) each."""
        import torch

        states = []
        for prompt in prompts:
            ids = self._encode(prompt)
            limit_new_tokens(len(ids), 1, self.context_length, self.name)
            with self._lock, torch.inference_mode():
                output = self.model(
                    input_ids=torch.tensor([ids], device=self.model.device),
                    use_cache=False,
                    output_hidden_states=True,
                )
            states.append(output.hidden_states[layer][0].float().cpu().numpy())
        return states

    def count_tokens(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def count_prompt(self, prompt: Prompt) -> int:
        return len(self._encode(prompt))

    def render(self, messages: Sequence[Message]) -> str:
        return render_prompt(self.tokenizer, Prompt(tuple(messages)))

    def close(self) -> None:
        self.model = None
        with self._lock:
            self._prefixes.clear()

    def _encode(self, prompt: Prompt) -> list[int]:
        text = render_prompt(self.tokenizer, prompt)
        # A rendered chat includes the beginning-of-text token.
        ids = list(self.tokenizer(text, add_special_tokens=not prompt.messages)["input_ids"])
        start = self.tokenizer.bos_token_id
        return ids or [start if start is not None else self.tokenizer.pad_token_id]

    def _begin(self, prompt: Prompt, sampling: Sampling) -> DecodingState:
        from stillroom.models.local.generation import DecodingState, Grammar

        if self.model is None:
            raise make_closed_error(self.name)
        if not self._can_generate:
            raise BackendError(
                f"{self.name} keeps a recurrent state, which batches of prompts cannot share",
                code="backend.no-generation",
                where=self.name,
                expected="a model whose layers all attend with keys and values",
                next="use a GGUF file of it with backend 'llamacpp', or serve it by another engine "
                "and use its address",
            )
        ids = self._encode(prompt)
        room = limit_new_tokens(len(ids), sampling.max_new_tokens, self.context_length, self.name)
        matcher = None
        if prompt.schema is not None:
            if self._grammar is None:
                rows = self.model.get_output_embeddings().weight.shape[0]
                self._grammar = Grammar(self.tokenizer, rows)
            matcher = self._grammar.start(prompt.schema)
        return DecodingState(self.tokenizer, ids, sampling, self._ends, room, matcher)

    def _draw_batch(self, drawings: Sequence[DecodingState]) -> Iterator[None]:
        """Decode one token per row and step until all rows have ended; yields after each step.

        The engine is free for other calls between steps.
        """
        import torch

        rows = self._batch_size
        bucket = max(_bucket(len(drawing.prompt_ids)) for drawing in drawings)
        with self._lock, torch.inference_mode():
            cache, mask, logits = self._read_prompts(drawings, bucket)
        while True:
            tokens = [
                self.tokenizer.pad_token_id or 0
                if drawing.reason
                else drawing.try_draw(logits[row])
                for row, drawing in enumerate(drawings)
            ]
            yield
            if all(drawing.reason for drawing in drawings):
                return
            tokens += [tokens[-1]] * (rows - len(tokens))
            with self._lock, torch.inference_mode():
                mask = torch.cat([mask, mask.new_ones(rows, 1)], 1)  # (B, T + 1)
                ids = torch.tensor(tokens, device=mask.device)[:, None]  # (B, 1)
                logits = self._forward(ids, mask, cache)

    def _read_prompts(self, drawings: Sequence[DecodingState], bucket: int) -> tuple[Any, Any, Any]:
        """Read each prompt alone; return the joined cache, the mask (B, T) and logits (B, V)."""
        import torch
        from transformers import DynamicCache

        caches, masks, logits = [], [], []
        for drawing in drawings:
            cache, mask, last = self._read_prompt(drawing.prompt_ids, bucket)
            caches.append(cache)
            masks.append(mask)
            logits.append(last)
        spare = self._batch_size - len(drawings)
        caches += [caches[-1]] * spare
        masks += [masks[-1]] * spare
        joined = DynamicCache()
        parts: list[list[Any]] = [list(cache.layers) for cache in caches]
        for layer in range(len(parts[0])):
            joined.update(
                torch.cat([_pad_left(part[layer].keys, bucket) for part in parts]),
                torch.cat([_pad_left(part[layer].values, bucket) for part in parts]),
                layer,
            )
        return joined, torch.cat(masks), torch.cat(logits)

    def _read_prompt(self, ids: list[int], bucket: int) -> tuple[Any, Any, Any]:
        """Read one prompt behind its stored beginning; return cache, padded mask and logits."""
        import torch

        from stillroom.models.local.prefix_cache import split_prompt

        cache, known = self._prefixes.restore(ids)
        mask = torch.ones(1, len(ids), dtype=torch.long, device=self.model.device)
        logits = None
        for start, end in split_prompt(len(ids)):
            if start >= known:
                block = torch.tensor([ids[start:end]], device=mask.device)
                logits = self._forward(block, mask[:, :end], cache)
        self._prefixes.store(ids, cache)
        return cache, torch.nn.functional.pad(mask, (bucket - len(ids), 0)), logits

    def _forward(self, ids: Any, mask: Any, cache: Any) -> Any:
        """Append (B, T) tokens to the cache; return the logits of the last position, (B, V)."""
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        keep = {"logits_to_keep": 1} if self._keep else {}
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            **{self._cache_name: cache},
            **keep,
        )
        return output.logits[:, -1]


def _pad_left(states: Any, length: int) -> Any:
    """Return keys or values, (1, H, T, d), with zeros before them up to ``length`` positions."""
    from torch.nn.functional import pad

    return pad(states, (0, 0, length - states.shape[-2], 0))


def _bucket(length: int) -> int:
    """Return the padded length of a prompt: at most a quarter above its own."""
    step: int = max(16, 2 ** int(math.log2(length)) // 4)
    return -(-length // step) * step


def _batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Return indices grouped into batches of one bucket, shortest first."""
    by_bucket: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        by_bucket.setdefault(_bucket(length), []).append(index)
    return [
        members[start : start + batch_size]
        for _, members in sorted(by_bucket.items())
        for start in range(0, len(members), batch_size)
    ]


def _context_of(model: Any) -> int:
    length = getattr(model.config, "max_position_embeddings", None)
    return int(length) if isinstance(length, int) and 0 < length < _LONGEST else 4096
