"""sentence-transformers checkpoints: pooling (CLS, mean pooling), normalization and query prompts.

Pooling, dense layers, normalization, the maximum length and the prompts for queries and passages
are read from the folder (modules.json and its modules, of E5 the card), never assumed. Texts are
embedded one at a time, each on one thread, with as many in parallel as there are threads: a row's
bytes then depend on its text alone. Measured with all-MiniLM-L6-v2 on 2 cores, 128 passages of 175
tokens on average:

=====================================  ==========  =============================
setup                                  passages/s  rows unlike one at a time
=====================================  ==========  =============================
one at a time, 2 workers of 1 thread           35  none (the default)
one at a time, 2 threads                       31  none, but other bits than above
batches of 8, sorted by length                 29  44 % (by up to 1.5e-7)
batches of 32, sorted by length                12  57 % (by up to 1.5e-7)
=====================================  ==========  =============================

Rounding to float16 does not make batches reproducible: a third of the rows still differ.

A query is embedded in numpy where the folder holds a plain BERT or MPNet
(``stillroom.models.encoders.numpy_bert``), so that a search does not wait for torch; torch is
imported with the first passage. A text's vector as a query then differs from its vector as a
passage by rounding, 1.8e-7 a number at most. Without torch, numpy embeds the passages of such a
folder as well.

Source: Reimers and Gurevych 2019, arXiv:1908.10084.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from typing_extensions import override

from stillroom.errors import CheckpointError
from stillroom.models.encoders.int8_layers import QUANTIZATION
from stillroom.models.encoders.numpy_bert import open_bert
from stillroom.models.encoders.text_encoder import (
    SPECIAL_TOKENS,
    check_not_empty,
    find_max_tokens,
    find_positions,
    fingerprint_encoder,
    iter_modules,
    load_encoder,
    normalize_rows,
    read_json_file,
)
from stillroom.models.interfaces import Embedder, EmbedderMethod, TextKind, Vectors
from stillroom.models.tokenization.token_counter import build_token_counter
from stillroom.provenance import digest_json

__all__ = ["Sentence", "not_embedder_error"]

_LONGEST = 1 << 20
_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_lasttoken": "last",
}
"""Pooling modes, in the order in which their vectors are concatenated."""
_ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU")
_E5_DEMAND = 'should start with "query: " or "passage: "'  # E5's cards, whose folders state none


class Sentence(EmbedderMethod):
    """Encoders in the format of sentence-transformers."""

    paper: ClassVar[str] = "arXiv:1908.10084"

    num_threads: int | None = Field(
        None, ge=1, description="texts embedded in parallel; default: all cores of this process"
    )
    device: str = Field("cpu", description="cpu, cuda, cuda:1, mps; accelerators use one worker")
    max_tokens: int | None = Field(
        None, ge=8, description="maximum tokens per text; default: that of the folder"
    )
    dtype: Literal["float32", "int8"] = Field(
        "float32",
        description="int8 is three times faster on a cpu, and rounds; BERT or MPNet",
    )

    @override
    def open(self, reference: str) -> Embedder:
        layout = _read_layout(Path(reference))
        workers = self.num_threads or len(os.sched_getaffinity(0))
        return _SentenceEmbedder(
            layout,
            self.max_tokens,
            self.device,
            workers if self.device == "cpu" else 1,
            is_int8=self.dtype == "int8",
        )


@dataclass(frozen=True)
class _Layout:
    """Embedding pipeline of a folder."""

    folder: Path
    encoder: Path
    poolings: tuple[str, ...] = ("mean",)
    pools_prompt: bool = True
    dense: tuple[Path, ...] = ()
    max_tokens: int = 0
    lower: bool = False
    prompts: dict[str, str] = field(default_factory=dict)


class _SentenceEmbedder:
    def __init__(
        self,
        layout: _Layout,
        max_tokens: int | None,
        device: str,
        num_workers: int,
        *,
        is_int8: bool,
    ) -> None:
        from stillroom.checkpoints import Checkpoint

        self._layout = layout
        self._device = device
        self._bert = open_bert(layout.encoder) if device == "cpu" and not layout.dense else None
        if is_int8:
            if self._bert is None:
                why = "8-bit integers need a plain BERT or MPNet without dense layers, on a cpu"
                raise not_embedder_error(layout.folder, why)
            self._bert = self._bert.quantize()
        self._uses_torch = not is_int8 and find_spec("torch") is not None
        self._torch = None if self._bert else _TorchEncoder(layout, device)
        self._loading = threading.Lock()
        reader = self._bert or self._encoder
        self._tokenizer, self._width = reader.tokenizer, reader.width
        limit = find_max_tokens(reader.max_positions, self._tokenizer, layout.max_tokens)
        self._window = min(max_tokens or limit, limit)
        self._tokenizer.model_max_length = _LONGEST  # truncation is done here, and counted
        self.truncated = 0
        self._lock = threading.Lock()
        self.count_tokens = build_token_counter(self._tokenizer, self._lock, lower=layout.lower)
        self.max_tokens = self._window - self._count_prompt()
        self._workers = ThreadPoolExecutor(num_workers, "stillroom-embed")
        probe = self._workers.submit(self._embed_query, "dimensions", count=False)
        self.dimensions = int(probe.result().shape[0])
        self.fingerprint = digest_json(
            [
                *fingerprint_encoder(layout.encoder),
                [Checkpoint.open(folder).fingerprint for folder in layout.dense],
                layout.poolings,
                layout.lower,
                layout.prompts,
                self._window,
                *([] if layout.pools_prompt else ["without prompt"]),
                *([QUANTIZATION] if is_int8 else []),
            ]
        )

    def embed(self, texts: Sequence[str], *, kind: TextKind) -> Vectors:
        check_not_empty(texts)
        prompt = self._layout.prompts.get(kind, "")
        read = self._embed_query if kind == "query" else self._embed_one
        read = partial(read, skip=self._count_skipped(prompt))
        rows = list(self._workers.map(read, [prompt + text for text in texts]))
        if not rows:
            return np.zeros((0, self.dimensions), dtype=np.float32)
        return normalize_rows(np.stack(rows))

    def embed_tokens(self, texts: Sequence[str], *, kind: TextKind) -> list[Vectors]:
        prompt = self._layout.prompts.get(kind, "")
        return list(self._workers.map(self._embed_each, [prompt + text for text in texts]))

    def close(self) -> None:
        self._workers.shutdown()

    @property
    def _encoder(self) -> _TorchEncoder:
        """The torch encoder, loaded on first use."""
        with self._loading:
            if self._torch is None:
                self._torch = _TorchEncoder(self._layout, self._device)
            return self._torch

    def _count_prompt(self) -> int:
        """Return the tokens taken by the longest prompt and by special tokens beyond two."""
        longest = max(
            (self.count_tokens(prompt) for prompt in self._layout.prompts.values()), default=0
        )
        special = int(self._tokenizer.num_special_tokens_to_add(pair=False))
        # One more, since tokenization may differ at the boundary of prompt and text.
        return longest + bool(longest) + max(special - SPECIAL_TOKENS, 0)

    def _count_skipped(self, prompt: str) -> int:
        """Return the number of first tokens, those of the prompt, that pooling leaves out."""
        if not prompt or self._layout.pools_prompt:
            return 0
        ids = self._tokenize(prompt, count=False)
        return len(ids) - (ids[-1] in self._tokenizer.all_special_ids)

    def _embed_query(self, text: str, count: bool = True, skip: int = 0) -> Any:
        if self._bert is None:
            return self._embed_one(text, count, skip)
        states = self._bert.states(self._tokenize(text, count))
        return np.concatenate([_pool(states, how, skip) for how in self._layout.poolings])

    def _embed_one(self, text: str, count: bool = True, skip: int = 0) -> Any:
        if self._bert is not None and not self._uses_torch:
            return self._embed_query(text, count, skip)
        import torch

        with torch.inference_mode():
            states = self._encoder.states(self._tokenize(text, count))
            row = torch.cat([_pool(states, how, skip) for how in self._layout.poolings])
            for layer in self._encoder.dense:
                row = layer(row)
            return row.cpu().numpy()

    def _embed_each(self, text: str) -> Vectors:
        ids = self._tokenize(text, count=True)
        states = self._states(ids)
        special = set(self._tokenizer.all_special_ids)
        rows = states[[index for index, token in enumerate(ids) if token not in special]]
        return (
            normalize_rows(rows) if len(rows) else np.zeros((0, states.shape[1]), dtype=np.float32)
        )

    def _states(self, ids: list[int]) -> Vectors:
        """Return the last hidden states of tokens, (T, D) float32."""
        if self._bert is not None and not self._uses_torch:
            return self._bert.states(ids)
        import torch

        with torch.inference_mode():
            states: Vectors = self._encoder.states(ids).cpu().numpy()
        return states

    def _tokenize(self, text: str, count: bool) -> list[int]:
        text = text.lower() if self._layout.lower else text
        # Truncation is state of a fast tokenizer, which threads must not change concurrently.
        with self._lock:
            ids = list(self._tokenizer(text)["input_ids"])
            if len(ids) <= self._window:
                return ids
            self.truncated += count
            cut = self._tokenizer(text, truncation=True, max_length=self._window)
            return list(cut["input_ids"])


class _TorchEncoder:
    """Tokenizer, encoder and dense layers of a folder, in torch."""

    def __init__(self, layout: _Layout, device: str) -> None:
        self.tokenizer, self._model = load_encoder(
            layout.encoder, not_embedder_error, device=device
        )
        self.dense = [_load_dense(folder, device) for folder in layout.dense]
        self.width = int(self._model.config.hidden_size)
        self.max_positions = find_positions(self._model)
        self._device = device

    def states(self, ids: list[int]) -> Any:
        """Return the last hidden states of a sequence, (T, D) float32."""
        import torch

        torch.set_num_threads(1)  # of the calling worker: the setting is thread-local
        input_ids = torch.tensor([ids], device=self._device)
        states = self._model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids))
        return states[0][0].float()


def _pool(states: Any, how: str, skip: int = 0) -> Any:
    """Pool token states (T, D), NumPy or torch, to one vector (D,); without the first ``skip``."""
    if how == "cls":
        return states[0]
    if how == "last":
        return states[-1]
    states = states[min(skip, len(states) - 1) :]
    if how == "max":
        return states.max(0) if isinstance(states, np.ndarray) else states.max(0).values
    if how == "mean_sqrt_len":
        return states.sum(0) / states.shape[0] ** 0.5
    return states.mean(0)


def _load_dense(folder: Path, device: str) -> Any:
    import torch

    from stillroom.checkpoints import Checkpoint

    config = read_json_file(folder / "config.json", not_embedder_error)
    name = str(config.get("activation_function", "torch.nn.modules.linear.Identity"))
    name = name.rsplit(".", 1)[-1]
    if name not in _ACTIVATIONS:
        raise not_embedder_error(folder, f"its activation {name!r} is unknown")
    held = Checkpoint.open(folder)
    if "linear.weight" not in held:
        raise not_embedder_error(folder, "its dense layer has no linear.weight")
    weight = held.tensor("linear.weight").float()
    bias = held.tensor("linear.bias") if "linear.bias" in held else None
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias.float())
    return torch.nn.Sequential(layer, getattr(torch.nn, name)()).eval().to(device)


def _read_layout(folder: Path) -> _Layout:
    if not folder.is_dir():
        raise not_embedder_error(folder, "it is not a folder")
    if not (folder / "modules.json").is_file():
        return _Layout(folder, folder, prompts=_read_prompts(folder))
    encoder, dense = folder, []
    poolings: tuple[str, ...] = ("mean",)
    pools_prompt = True
    for kind, path in iter_modules(folder, not_embedder_error):
        if kind == "Transformer":
            encoder = path
        elif kind == "Pooling":
            poolings, pools_prompt = _read_poolings(path)
        elif kind == "Dense":
            dense.append(path)
        elif kind != "Normalize":  # rows are always normalized
            raise not_embedder_error(folder, f"its module {kind!r} is unknown")
    words = folder / "sentence_bert_config.json"
    words = words if words.is_file() else encoder / "sentence_bert_config.json"
    sizes = read_json_file(words, not_embedder_error) if words.is_file() else {}
    return _Layout(
        folder,
        encoder,
        poolings,
        pools_prompt,
        tuple(dense),
        int(sizes.get("max_seq_length") or 0),
        bool(sizes.get("do_lower_case")),
        _read_prompts(folder),
    )


def _read_poolings(folder: Path) -> tuple[tuple[str, ...], bool]:
    """Return the pooling modes, and whether the tokens of a prompt are pooled."""
    config = read_json_file(folder / "config.json", not_embedder_error)
    named = config.get("pooling_mode")
    modes = [how for key, how in _POOLINGS.items() if config.get(key) is True]
    if isinstance(named, str) and not modes:
        modes = [{"lasttoken": "last", "mean_sqrt_len_tokens": "mean_sqrt_len"}.get(named, named)]
    if not modes or not set(modes) <= set(_POOLINGS.values()):
        raise not_embedder_error(folder, "its pooling is unknown")
    return tuple(modes), config.get("include_prompt") is not False


def _read_prompts(folder: Path) -> dict[str, str]:
    """Return the prompts that the settings state, else those that an E5 model's card demands."""
    path = folder / "config_sentence_transformers.json"
    settings = read_json_file(path, not_embedder_error) if path.is_file() else {}
    prompts = settings.get("prompts") or {}
    by_kind = {
        "query": prompts.get("query", ""),
        "passage": prompts.get("passage", "") or prompts.get("document", ""),
    }
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    if not any(by_kind.values()) and _E5_DEMAND in text:
        by_kind = {"query": "query: ", "passage": "passage: "}
    return {kind: text for kind, text in by_kind.items() if text}


def not_embedder_error(folder: Path, why: str) -> CheckpointError:
    """Return the error of a folder that cannot be used as an embedder."""
    return CheckpointError(
        f"{folder} cannot be used as an embedder: {why}",
        code="checkpoint.not-an-embedder",
        expected="a sentence-transformers folder (modules.json, config.json, safetensors)",
        next="use hub:sentence-transformers/all-MiniLM-L6-v2, or builtin:static without a model",
    )
