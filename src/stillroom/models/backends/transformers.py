"""transformers in this process: any Hugging Face folder, on CPU or accelerator.

Completions are decoded in batches of a fixed number of rows. A prompt is read alone, in blocks that
are a function of its length, and padded to a length that is one as well; decoding steps have a
fixed number of rows (unused ones repeat the last), so the tensor shapes of a completion, and with
them its tokens, do not depend on the batch. Blocks that an earlier prompt began with are not read
again (``PrefixCache``), with equal bits. ``score`` reads one text at a time for the same reason.

Concurrent streams (a server's clients) are decoded with these shapes by ``local.batch_scheduler``.
"""

from __future__ import annotations

import functools
import inspect
import math
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.errors import BackendError
from stillroom.models.interfaces import Backend, Score, TextModel, Vectors
from stillroom.models.local.batch_scheduler import BatchScheduler
from stillroom.models.requests import broadcast_sampling, limit_new_tokens, make_closed_error
from stillroom.models.tokenization.chat_template import render_prompt
from stillroom.records import Completion, Message, Prompt, Sampling

if TYPE_CHECKING:
    from stillroom.models.local.generation import DecodingState

__all__ = ["Transformers"]

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
        from stillroom.models.local.generation import DecodingState
        from stillroom.models.local.grammar import Grammar

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
