"""Text-model backend for diffusion checkpoints, registered as ``models.backends`` ``diffusion``.

An entry point of the registry ``models.backends``, as a plug-in would register one; selected where
config.json has ``stillroom_backend: diffusion``. Streamed text is append-only: a token is emitted
once every position before it is final.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

from pydantic import Field
from typing_extensions import override

from stillroom.diffusion.interfaces import ESTIMATORS, UNMASK_RULES, LikelihoodEstimator, UnmaskRule
from stillroom.diffusion.sampling.kv_cache import KV_CACHES, KVCacheMethod
from stillroom.diffusion.sampling.settings import (
    DecodeSettings,
    DecodingPreset,
    find_preset,
    read_preset,
)
from stillroom.errors import BackendError, RecipeError
from stillroom.models.interfaces import Backend, DenoisingStep, Score, TextModel
from stillroom.models.requests import (
    broadcast_sampling,
    count_held_back,
    cut_at_stop,
    limit_new_tokens,
    make_closed_error,
)
from stillroom.records import Completion, Prompt, Sampling

if TYPE_CHECKING:
    from stillroom.diffusion.constrained.infilling import InfillResult
    from stillroom.diffusion.model.network import DiffusionModel
    from stillroom.diffusion.sampling.sampler import StepEvent
    from stillroom.diffusion.sampling.sequence import SampledSequence
    from stillroom.models.tokenization.token_bytes import TokenBytes

__all__ = ["Diffusion"]


class Diffusion(Backend):
    """Local masked diffusion model."""

    paper: ClassVar[str] = ""

    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="dtype of the weights; auto: bfloat16 where the device supports it"
    )
    preset: str | None = Field(
        None,
        description="preset file of a job of kind diffusion.tune, or its folder; replaces "
        "block_length, commit and cache. null: the preset.yaml in the checkpoint's folder, "
        "if none of the three is set; 'none': no preset",
    )
    block_length: int | None = Field(
        None, ge=1, description="tokens per block; blocks are decoded from left to right"
    )
    commit: Annotated[UnmaskRule, UNMASK_RULES.choice("threshold")] = Field(
        default_factory=lambda: UNMASK_RULES.build("threshold"),
        description="unmasking rule: how many positions are unmasked per step",
    )
    cache: Annotated[KVCacheMethod, KV_CACHES.choice()] | None = Field(
        None, description="KV cache method; null: the exact one"
    )
    estimator: Annotated[LikelihoodEstimator, ESTIMATORS.choice("chain_rule")] = Field(
        default_factory=lambda: ESTIMATORS.build("chain_rule"),
        description="estimator for scoring completions; chain_rule gives a value per token",
    )
    rows: int = Field(1, ge=1, le=1024, description="sequences per forward pass")

    @override
    def open(self, reference: str) -> TextModel:
        import torch

        from stillroom.diffusion.model.loading import open_diffusion

        if self.num_threads is not None:
            torch.set_num_threads(self.num_threads)
        model = open_diffusion(reference, dtype=self.dtype, device=self.device)
        if model.tokenizer is None:
            raise BackendError(
                f"{reference} has no tokenizer",
                code="backend.tokenizer",
                expected="tokenizer.json in the folder of the weights",
                next="copy the tokenizer files into the folder",
            )
        return _DiffusionTextModel(model, self, self._preset(model, Path(reference)))

    def _preset(self, model: DiffusionModel, checkpoint: Path) -> DecodingPreset | None:
        """Return the preset, checked against the fingerprint of the weights."""
        named = {"block_length", "commit", "cache"} & self.model_fields_set
        path = Path(self.preset) if self.preset is not None else None
        if path is None and not named:
            path = find_preset(checkpoint)
        if path is None or self.preset == "none":
            return None
        preset = read_preset(path)
        if named:
            raise RecipeError(
                f"preset '{preset.name}' and {', '.join(sorted(named))} are both set",
                code="diffusion.preset",
                expected="a preset, or single settings",
                next="leave one of them out",
            )
        preset.check_against(model.fingerprint)
        preset.settings.check_against(model.metadata)
        return preset


class _DiffusionTextModel:
    """TextModel of a diffusion checkpoint; requests run one at a time."""

    def __init__(
        self, model: DiffusionModel, engine: Diffusion, preset: DecodingPreset | None = None
    ) -> None:
        from stillroom.provenance import digest_json

        self.model: DiffusionModel | None = model
        self.engine = engine
        self.name = model.name
        settings = engine.model_dump(mode="json", exclude={"num_threads", "device", "preset"})
        mark = ""
        self.settings = DecodeSettings(
            block_length=engine.block_length, commit=engine.commit, cache=engine.cache
        )
        if preset is not None:  # the fingerprint holds the settings, not the path
            self.settings = preset.settings
            settings |= {"preset": preset.settings.model_dump(mode="json")}
            mark = f"{preset.name}-"
        self.fingerprint = f"{model.fingerprint}:{mark}{digest_json(settings)[:12]}"
        self.context_length = engine.context_length or model.context_length
        model.context_length = self.context_length
        self._lock = threading.Lock()
        self._table: TokenBytes | None = None

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | Sequence[Sampling],
        *,
        on_done: Callable[[int, Completion], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> list[Completion]:
        completions: list[Completion] = []
        is_stopped = is_cancelled or (lambda: False)
        for index, (prompt, prompt_sampling) in enumerate(
            zip(prompts, broadcast_sampling(prompts, sampling), strict=True)
        ):
            if is_stopped():
                completions.append(Completion("", "cancelled", model=self.fingerprint))
                continue
            completions.append(self._ask(prompt, prompt_sampling, is_stopped))
            if on_done is not None and completions[-1].finish_reason != "cancelled":
                on_done(index, completions[-1])
        return completions

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[str, None, Completion]:
        """Yield the text in pieces; a piece is final: no position before it changes any more."""
        texts = self._stream(prompt, sampling, has_steps=False)
        return cast("Generator[str, None, Completion]", texts)

    def stream_canvas(
        self, prompt: Prompt, sampling: Sampling
    ) -> Generator[str | DenoisingStep, None, Completion]:
        """Yield the pieces of ``stream``, and each denoising step before the piece it completed."""
        return self._stream(prompt, sampling, has_steps=True)

    def _stream(
        self, prompt: Prompt, sampling: Sampling, *, has_steps: bool
    ) -> Generator[str | DenoisingStep, None, Completion]:
        import queue

        from stillroom.diffusion.sampling.sampler import StepEvent

        events: queue.Queue[Any] = queue.Queue()
        is_left = threading.Event()

        def work() -> None:
            try:
                events.put(self._ask(prompt, sampling, is_left.is_set, events.put))
            except Exception as error:  # noqa: BLE001  # raised again in the consumer's thread
                events.put(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        yielded = ""
        try:
            while True:
                event = events.get()
                if isinstance(event, Exception):
                    raise event
                if has_steps and isinstance(event, StepEvent):
                    yield event.describe(self._opened().tokenizer, first=event.tail)
                text = self._settled(event, sampling)
                if text.startswith(yielded) and len(text) > len(yielded):
                    yield text[len(yielded) :]
                    yielded = text
                if isinstance(event, Completion):
                    return event
        finally:
            is_left.set()  # a closed consumer stops the sampler before its next forward pass
            thread.join()

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Score]:
        """Return the log-probabilities of each completion, token by token from left to right.

        Estimators other than ``chain_rule`` give one bound, which is divided evenly by the tokens.
        """
        import torch

        from stillroom.diffusion.evaluation.likelihood import MaskedLikelihood, score_text
        from stillroom.diffusion.sampling.sequence import build_prompt_request

        model, scores = self._opened(), []
        for prompt, completion in zip(prompts, completions, strict=True):
            after = model.tokenizer(completion, add_special_tokens=False)["input_ids"]
            if not after:
                scores.append(Score(()))
                continue
            before = [token or 0 for token in build_prompt_request(model.tokenizer, prompt, 0).ids]
            limit_new_tokens(len(before) + len(after) - 1, 1, self.context_length, self.name)
            ids, positions = before + after, range(len(before), len(before) + len(after))
            with self._lock:
                if self.engine.estimator.method_name() == "chain_rule":
                    scorer = MaskedLikelihood(model, ids, positions, rows=self.engine.rows)
                    scores.append(Score(_causal_logprobs(scorer, torch)))
                else:
                    bound = score_text(model, ids, positions, self.engine.estimator)
                    scores.append(Score((bound.value / len(after),) * len(after)))
        return scores

    def count_tokens(self, text: str) -> int:
        return len(self._opened().tokenizer(text, add_special_tokens=False)["input_ids"])

    def close(self) -> None:
        self.model = None

    def _opened(self) -> DiffusionModel:
        if self.model is None:
            raise make_closed_error(self.name)
        return self.model

    def _ask(
        self,
        prompt: Prompt,
        sampling: Sampling,
        is_cancelled: Callable[[], bool],
        on_news: Callable[[Any], None] | None = None,
    ) -> Completion:
        """Complete a prompt; ``on_news`` receives step events, or partial texts of a template."""
        if prompt.schema is None:
            sample, length = self._write(prompt, sampling, on_news, is_cancelled)
            text, is_cut = cut_at_stop(self._decode(sample.new_ids), sampling.stop)
            reason = "stop" if is_cut else sample.finish_reason
            return Completion(text, reason, length, len(sample.new_ids), self.fingerprint)
        filled, length = self._fill(prompt, sampling, on_news, is_cancelled)
        reason = "cancelled" if filled.is_cancelled else "stop"
        return Completion(filled.text, reason, length, filled.tokens, self.fingerprint)

    def _fill(
        self,
        prompt: Prompt,
        sampling: Sampling,
        on_text: Callable[[str], None] | None,
        is_cancelled: Callable[[], bool],
    ) -> tuple[InfillResult, int]:
        """Fill the JSON template of a prompt's schema; stop strings are not applied."""
        from stillroom.diffusion.constrained.infilling import JsonInfiller
        from stillroom.diffusion.constrained.json_template import build_template
        from stillroom.diffusion.sampling.sequence import build_prompt_request
        from stillroom.models.tokenization.token_bytes import read_token_bytes

        model = self._opened()
        skeleton = build_template(prompt.schema or {})
        if self._table is None:
            self._table = read_token_bytes(model.tokenizer)
        ids = build_prompt_request(model.tokenizer, prompt, 0).ids
        room = limit_new_tokens(len(ids), sampling.max_new_tokens, self.context_length, self.name)
        filler = JsonInfiller(model, self._table, self._settings(sampling))
        with self._lock:
            filled = filler.fill(
                ids,
                skeleton,
                room=room,
                seed=sampling.seed,
                on_text=on_text,
                is_cancelled=is_cancelled,
            )
        return filled, len(ids)

    def _write(
        self,
        prompt: Prompt,
        sampling: Sampling,
        on_step: Callable[[StepEvent], None] | None,
        is_cancelled: Callable[[], bool],
    ) -> tuple[SampledSequence, int]:
        from stillroom.diffusion.sampling.sampler import generate
        from stillroom.diffusion.sampling.sequence import build_prompt_request

        model = self._opened()
        request = build_prompt_request(
            model.tokenizer, prompt, sampling.max_new_tokens, sampling.seed
        )
        length = len(request.ids)
        room = limit_new_tokens(length, sampling.max_new_tokens, self.context_length, self.name)
        settings = self._settings(sampling)
        with self._lock:
            (sample,) = generate(
                model,
                [replace(request, max_new_tokens=room)],
                settings,
                on_step=on_step,
                is_cancelled=is_cancelled,
            )
        return sample, length

    def _settings(self, sampling: Sampling) -> DecodeSettings:
        overrides = {
            "temperature": max(sampling.temperature, 0.0),
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
        }
        return self.settings.model_copy(update=overrides)

    def _decode(self, ids: Sequence[int]) -> str:
        from stillroom.diffusion.sampling.sequence import decode_text

        return decode_text(self._opened().tokenizer, ids)

    def _settled(self, event: StepEvent | Completion | str, sampling: Sampling) -> str:
        """Return the part of the text that no later step changes."""
        if isinstance(event, str):
            return event
        if isinstance(event, Completion):
            return event.text
        ends, stop = set(self._opened().metadata.end_token_ids), event.tail
        last = len(event.ids) if self.settings.remasking is None else event.start
        while stop < last and not event.is_open[stop] and event.ids[stop] not in ends:
            stop += 1
        settled = self._decode(event.ids[event.tail : stop]).rstrip("\ufffd")
        text, is_cut = cut_at_stop(settled, sampling.stop)
        return text if is_cut else text[: len(text) - count_held_back(text, sampling.stop)]


def _causal_logprobs(scorer: Any, torch: Any) -> tuple[float, ...]:
    """Return the log-probability of each token given the tokens before it."""
    count = len(scorer.places)
    masks = torch.ones(count, count, dtype=torch.bool).triu()
    if scorer.model.metadata.attention != "full":
        blocks = torch.zeros(count, dtype=torch.long)
        for number, group in enumerate(scorer.groups):
            blocks[group] = number
        masks &= blocks[:, None] == blocks[None]
    logprobs = scorer.logprobs(masks)
    return tuple(float(value) for value in logprobs.diagonal())
