"""Building blocks of text encoders: loading, threads, truncation limit, L2 normalization.

Texts are encoded one at a time, so that a result depends on its text alone, bit for bit: batches
are padded, and sums of other lengths round differently.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from stillroom.checkpoints.config_file import read_config
from stillroom.errors import CheckpointError, DataError
from stillroom.models.interfaces import Embedder, Vectors
from stillroom.provenance import digest_file

__all__ = [
    "SPECIAL_TOKENS",
    "Refusal",
    "TextReader",
    "check_not_empty",
    "find_max_tokens",
    "find_positions",
    "fingerprint_encoder",
    "get_max_text_tokens",
    "iter_modules",
    "load_encoder",
    "normalize_rows",
    "read_json_file",
]

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.txt")  # the first is read
_UNLIMITED = 1 << 20
_DEFAULT_MAX_TOKENS = 512
T = TypeVar("T")


class TextReader:
    """A tokenizer shared by threads, and the threads that encode texts.

    ``truncated`` counts texts truncated to ``max_tokens``.
    """

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self.tokenizer.model_max_length = _UNLIMITED  # truncation is done here, and counted
        self.truncated = 0
        self._lock = threading.Lock()
        workers = len(os.sched_getaffinity(0))
        self._workers = ThreadPoolExecutor(workers, "stillroom-read", _limit_to_one_thread)

    def encode(self, text: str, room: int, *, count: bool = True) -> list[int]:
        """Return the token ids of a text with special tokens, at most ``room``."""
        # Truncation is state of a fast tokenizer, which threads must not change concurrently.
        with self._lock:
            ids = list(self.tokenizer(text)["input_ids"])
            if len(ids) <= room:
                return ids
            self.truncated += count
            cut = self.tokenizer(text, truncation=True, max_length=room)
            return list(cut["input_ids"])

    def map(self, read: Callable[[str], T], texts: Sequence[str]) -> list[T]:
        """Apply a function to each text on the worker threads, in order."""
        return list(self._workers.map(read, texts))

    def close(self) -> None:
        """Shut down the worker threads."""
        self._workers.shutdown()


Refusal = Callable[[Path, str], CheckpointError]
"""Returns the error of a folder that cannot be used, with the reason."""


def load_encoder(
    folder: Path, refuse: Refusal, *, loader: str = "AutoModel", device: str = "cpu"
) -> tuple[Any, Any]:
    """Load tokenizer and model of a folder in float32.

    Raises:
        CheckpointError: As returned by ``refuse``, also if a tensor of the model is missing, but
            for the pooler of a plain encoder, which is not used.
    """
    import torch
    import transformers

    from stillroom.models.local.causal_lm import load_pretrained, load_tokenizer
    from stillroom.models.local.runtime import silence_transformers

    if not folder.is_dir():
        raise refuse(folder, "it is not a folder")
    with silence_transformers():
        try:
            model, report = load_pretrained(
                getattr(transformers, loader),
                folder,
                dtype=torch.float32,
                output_loading_info=True,
            )
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            reason = (str(error).strip().splitlines() or ["unreadable"])[0]
            raise refuse(folder, reason) from error
    is_plain = loader == "AutoModel"
    missing = [name for name in report["missing_keys"] if not (is_plain and "pooler" in name)]
    if missing:
        raise refuse(folder, f"it lacks {min(missing)}, which would be initialized at random")
    return load_tokenizer(folder), model.eval().to(device)


def read_json_file(path: Path, refuse: Refusal, kind: type = dict) -> Any:
    """Return the JSON object, or list, of a file of a folder.

    Raises:
        CheckpointError: As returned by ``refuse``.
    """
    try:
        return read_config(path, kind)
    except (OSError, ValueError) as error:
        raise refuse(path.parent, f"{path.name} cannot be read: {error}") from error


def iter_modules(folder: Path, refuse: Refusal) -> Iterator[tuple[str, Path]]:
    """Yield kind and folder of each module in the modules.json of sentence-transformers.

    Raises:
        CheckpointError: As returned by ``refuse``.
    """
    for module in read_json_file(folder / "modules.json", refuse, list):
        path = (folder / str(module.get("path", ""))).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise refuse(folder, f"its module path {module.get('path')!r} is outside the folder")
        yield str(module.get("type", "")).rsplit(".", 1)[-1], path


def fingerprint_encoder(folder: Path) -> list[str]:
    """Return the fingerprint of a folder's weights, and the digest of its tokenizer's file.

    Both are cached as long as the files are unchanged.
    """
    from stillroom.checkpoints import Checkpoint
    from stillroom.checkpoints.digests import load_digests, save_digests

    fingerprint = Checkpoint.open(folder).fingerprint
    paths = (folder / name for name in _TOKENIZER_FILES)
    file = next((path for path in paths if path.is_file()), None)
    if file is None:
        return [fingerprint, ""]
    digests = load_digests([file])
    if digests is None:
        digests = {"sha256": digest_file(file)}
        save_digests([file], digests)
    return [fingerprint, digests["sha256"]]


def find_positions(model: Any) -> int:
    """Return the number of positions of a model; 0 if it has no limit.

    RoBERTa and its descendants number positions from the one after the padding's.
    """
    count = int(getattr(model.config, "max_position_embeddings", 0) or 0)
    tables = [getattr(module, "position_embeddings", None) for module in model.modules()]
    numbers = [getattr(table, "padding_idx", None) for table in tables]
    return count - next((number + 1 for number in numbers if number is not None), 0)


def find_max_tokens(positions: int, tokenizer: Any, max_tokens: int = 0) -> int:
    """Return the maximum number of tokens, limited by the model's positions; 0 is no limit."""
    bounds = [max_tokens, positions, int(min(tokenizer.model_max_length, _UNLIMITED))]
    return min((bound for bound in bounds if 0 < bound < _UNLIMITED), default=_DEFAULT_MAX_TOKENS)


def _limit_to_one_thread() -> None:
    """Limit torch to one thread on this worker (the setting is thread-local)."""
    import torch

    torch.set_num_threads(1)


SPECIAL_TOKENS = 2
"""Maximum number of special tokens that encoders add to a text."""


def get_max_text_tokens(embedder: Embedder) -> int:
    """Return the maximum tokens of a text that an embedder reads completely."""
    return embedder.max_tokens - SPECIAL_TOKENS


def check_not_empty(texts: Sequence[str]) -> None:
    """Check that every text has a visible character.

    Raises:
        DataError: If one has none: its vector would have no direction, and NaN would rank first.
    """
    for number, text in enumerate(texts):
        if not text.strip():
            raise DataError(
                f"text {number} of {len(texts)} is empty",
                code="data.empty-text",
                expected="at least one visible character",
                next="drop empty passages before embedding",
            )


def normalize_rows(rows: Vectors) -> Vectors:
    """Normalize rows to unit length, (N, D) float32, computed in float64.

    Raises:
        DataError: If a row is zero or not finite.
    """
    wide = rows.astype(np.float64)
    lengths = np.sqrt((wide * wide).sum(axis=1, keepdims=True))
    if not np.isfinite(lengths).all() or (lengths == 0).any():
        raise DataError(
            "the embedder returned a vector without direction (zero or NaN)",
            code="data.bad-vector",
            expected="finite nonzero vectors",
            next="check the checkpoint, or use dtype float32",
        )
    unit: Vectors = (wide / lengths).astype(np.float32)
    return unit
