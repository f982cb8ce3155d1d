"""Retrieval encoders: ColBERT token vectors for late interaction, and SPLADE term weights.

A ColBERT checkpoint is an encoder and a projection, in the format of PyLate (modules.json with a
Dense module and no pooling) or of the authors (``linear.weight`` in the encoder's folder). A marker
after the first token distinguishes queries from passages; queries are padded with mask tokens
(query expansion); punctuation in passages is skipped. Token states of an embedder can be used
instead, with lower quality: it was trained for one vector per text.

Source: Khattab and Zaharia 2020, arXiv:2004.12832.

SPLADE: the logits of every position are passed through log(1 + max(0, x)), and the maximum over
positions is the weight of a term: a few hundred terms per text, those it contains and related ones.
Any masked-LM checkpoint can be used; those trained for it (SPLADE) retrieve better.

Source: SPLADE, Formal et al. 2021, arXiv:2107.05720; max pooling, arXiv:2109.10086.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.errors import CheckpointError, DataError
from stillroom.models.encoders.text_encoder import (
    TextReader,
    check_not_empty,
    find_max_tokens,
    find_positions,
    fingerprint_encoder,
    iter_modules,
    load_encoder,
    normalize_rows,
    read_json_file,
)
from stillroom.models.interfaces import Embedder, TextKind, TokenEmbedder, Vectors
from stillroom.provenance import digest_json

__all__ = [
    "EMBEDDER_REFERENCE",
    "ColbertEncoder",
    "MultiVectorEncoder",
    "SparseEncoder",
    "open_multi_vector_encoder",
]

EMBEDDER_REFERENCE = "builtin:embedder"
"""Reference to the index's own embedder."""
_MIN_TOKENS = 8


def open_multi_vector_encoder(reference: str, embedder: Embedder) -> MultiVectorEncoder:
    """Open a multi-vector encoder.

    Args:
        reference: Folder of a ColBERT checkpoint or ``hub:NAME``; or ``builtin:embedder`` for the
            token states of ``embedder``.
        embedder: Embedder of the index.

    Raises:
        DataError: If the embedder has no token states.
        CheckpointError: If the reference is not a ColBERT checkpoint.
    """
    if reference == EMBEDDER_REFERENCE:
        if not isinstance(embedder, TokenEmbedder):
            raise DataError(
                "the index's embedder has no token states",
                code="rag.no-token-states",
                where="store.late_interaction.model",
                expected="a sentence-transformers folder as embedder",
                next="set store.late_interaction.model to a ColBERT checkpoint",
            )
        return _EmbedderTokenEncoder(embedder)
    from stillroom.models.hub import resolve_checkpoint

    return ColbertEncoder(resolve_checkpoint(reference))


class _EmbedderTokenEncoder:
    """Token states of an embedder."""

    def __init__(self, embedder: TokenEmbedder) -> None:
        self._embedder = embedder
        self.width = int(embedder.embed_tokens(["width"], kind="passage")[0].shape[1])
        self.fingerprint = digest_json(["token states", embedder.fingerprint])

    def encode(self, texts: Sequence[str], *, kind: TextKind) -> list[Vectors]:
        check_not_empty(texts)
        return self._embedder.embed_tokens(texts, kind=kind)


@dataclass(frozen=True, slots=True)
class _ColbertConfig:
    """Encoding parameters of a folder."""

    encoder: Path
    dense: Path
    query_marker: str = "[unused0]"
    passage_marker: str = "[unused1]"
    query_tokens: int = 32
    passage_tokens: int = 220
    is_expanded: bool = True
    is_attended: bool = False
    skipped: tuple[str, ...] = tuple(string.punctuation)

    def to_json(self) -> list[Any]:
        """Return the parameters that affect vectors, for the fingerprint."""
        return [
            self.query_marker,
            self.passage_marker,
            self.query_tokens,
            self.passage_tokens,
            self.is_expanded,
            self.is_attended,
            self.skipped,
        ]


class ColbertEncoder:
    """ColBERT checkpoint."""

    def __init__(self, folder: Path) -> None:
        """Open a folder.

        Args:
            folder: Folder in the format of PyLate or of ColBERT's authors.

        Raises:
            CheckpointError: If the folder is not such a checkpoint.
        """
        from stillroom.checkpoints import Checkpoint

        self._layout = layout = _read_colbert_config(folder)

        def refuse(why: str) -> CheckpointError:
            return _not_colbert_error(folder, why)

        tokenizer, self._model = load_encoder(layout.encoder, _not_colbert_error)
        held = Checkpoint.open(layout.dense)
        if "linear.weight" not in held.names():
            raise refuse("it has no projection, linear.weight")
        weight = held.tensor("linear.weight").float()
        if weight.shape[1] != int(self._model.config.hidden_size):
            raise refuse(f"its projection has {weight.shape[1]} inputs, not those of the encoder")
        self._weight: Any = weight
        has_bias = "linear.bias" in held.names()
        self._bias: Any = held.tensor("linear.bias").float() if has_bias else None
        self.width = int(weight.shape[0])
        longest = find_max_tokens(find_positions(self._model), tokenizer)
        self._rooms: dict[TextKind, int] = {
            "query": min(layout.query_tokens, longest),
            "passage": min(layout.passage_tokens, longest),
        }
        if min(self._rooms.values()) < _MIN_TOKENS:
            raise refuse(f"it reads {min(self._rooms.values())} tokens")
        self._reader = TextReader(tokenizer, longest)
        self._markers: dict[TextKind, list[int]] = {
            "query": _find_marker_token(tokenizer, layout.query_marker, refuse),
            "passage": _find_marker_token(tokenizer, layout.passage_marker, refuse),
        }
        self._skipped = {
            token
            for mark in layout.skipped
            for token in tokenizer(mark, add_special_tokens=False)["input_ids"][:1]
        }
        self._mask: int | None = tokenizer.mask_token_id
        self.fingerprint = digest_json(
            [*fingerprint_encoder(layout.encoder), held.fingerprint, layout.to_json()]
        )

    @property
    def truncated(self) -> int:
        """Number of truncated texts."""
        return self._reader.truncated

    def encode(self, texts: Sequence[str], *, kind: TextKind) -> list[Vectors]:
        """Return the vectors of each text; see ``MultiVectorEncoder``."""
        check_not_empty(texts)
        read = self._read_query if kind == "query" else self._read_passage
        return self._reader.map(read, texts)

    def close(self) -> None:
        """Shut down the worker threads."""
        self._reader.close()

    def _read_query(self, text: str) -> Vectors:
        ids = self._mark(text, "query")
        mask = [1] * len(ids)
        spare = self._rooms["query"] - len(ids)
        if self._layout.is_expanded and self._mask is not None and spare > 0:
            ids += [self._mask] * spare
            mask += [int(self._layout.is_attended)] * spare
        return self._project(ids, mask)

    def _read_passage(self, text: str) -> Vectors:
        ids = self._mark(text, "passage")
        rows = self._project(ids, [1] * len(ids))
        indices = [index for index, token in enumerate(ids) if token not in self._skipped]
        return rows[indices]

    def _mark(self, text: str, kind: TextKind) -> list[int]:
        """Return the token ids of a text, with the marker (if there is one) after the first."""
        marker = self._markers[kind]
        ids = self._reader.encode(text, self._rooms[kind] - len(marker), count=kind == "passage")
        return [*ids[:1], *marker, *ids[1:]]

    def _project(self, ids: Sequence[int], mask: Sequence[int]) -> Vectors:
        import torch

        with torch.inference_mode():
            states = self._model(
                input_ids=torch.tensor([ids]),
                attention_mask=torch.tensor([mask]),
            )[0][0].float()
            rows = torch.nn.functional.linear(states, self._weight, self._bias)
            return normalize_rows(rows.numpy())


def _read_colbert_config(folder: Path) -> _ColbertConfig:
    if not folder.is_dir():
        raise _not_colbert_error(folder, "it is not a folder")
    if (folder / "modules.json").is_file():
        return _read_pylate_config(folder)
    config = read_json_file(folder / "config.json", _not_colbert_error)
    if "HF_ColBERT" not in (config.get("architectures") or []):
        raise _not_colbert_error(folder, "HF_ColBERT is not among the architectures of config.json")
    metadata_file = folder / "artifact.metadata"
    has_metadata = metadata_file.is_file()
    metadata = read_json_file(metadata_file, _not_colbert_error) if has_metadata else {}
    return _ColbertConfig(
        folder,
        folder,
        str(metadata.get("query_token_id") or "[unused0]"),
        str(metadata.get("doc_token_id") or "[unused1]"),
        int(metadata.get("query_maxlen") or 32),
        int(metadata.get("doc_maxlen") or 220),
        is_attended=bool(metadata.get("attend_to_mask_tokens")),
        skipped=tuple(string.punctuation) if metadata.get("mask_punctuation", True) else (),
    )


_PYLATE_DEFAULTS = {
    "query_prefix": "[Q] ",
    "document_prefix": "[D] ",
    "query_length": 32,
    "document_length": 180,
    "do_query_expansion": True,
    "attend_to_expansion_tokens": False,
    "skiplist_words": string.punctuation,
}


def _read_pylate_config(folder: Path) -> _ColbertConfig:
    encoder, dense = folder, None
    for kind, path in iter_modules(folder, _not_colbert_error):
        if kind == "Transformer":
            encoder = path
        elif kind == "Dense" and dense is None:
            dense = path
        else:
            raise _not_colbert_error(folder, f"its module {kind!r} is not part of a ColBERT")
    if dense is None:
        raise _not_colbert_error(folder, "it has no Dense module")
    settings_file = folder / "config_sentence_transformers.json"
    has_settings = settings_file.is_file()
    written = read_json_file(settings_file, _not_colbert_error) if has_settings else {}
    settings = {
        **_PYLATE_DEFAULTS,
        **{name: value for name, value in written.items() if value is not None},
    }
    return _ColbertConfig(
        encoder,
        dense,
        str(settings["query_prefix"]),
        str(settings["document_prefix"]),
        int(settings["query_length"]),
        int(settings["document_length"]),
        bool(settings["do_query_expansion"]),
        bool(settings["attend_to_expansion_tokens"]),
        tuple(settings["skiplist_words"]),
    )


def _find_marker_token(tokenizer: Any, marker: str, refuse: Any) -> list[int]:
    """Return the id of a marker; none for an empty one."""
    if not marker:
        return []
    token_id = tokenizer.convert_tokens_to_ids(marker)
    if token_id is None or token_id == tokenizer.unk_token_id:
        ids = tokenizer(marker, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise refuse(f"its marker {marker!r} is not a token of its tokenizer")
        token_id = ids[0]
    return [int(token_id)]


def _not_colbert_error(folder: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{folder} cannot be used as a ColBERT: {why}",
        code="checkpoint.not-a-colbert",
        expected="an encoder with a projection, in the format of PyLate or of the authors",
        next="use such a folder, or store.late_interaction.model=builtin:embedder",
    )


MultiVectorEncoder = _EmbedderTokenEncoder | ColbertEncoder
"""Encoder with several vectors per text; results are independent of the other texts."""


class SparseEncoder:
    """SPLADE encoder: term weights of texts, independent of the other texts."""

    def __init__(self, folder: Path, *, max_terms: int | None = None) -> None:
        """Open a folder.

        Args:
            folder: Masked-LM checkpoint of transformers.
            max_terms: Maximum terms per text, heaviest first; default: all above 0.

        Raises:
            CheckpointError: If the folder is not such a checkpoint.
        """
        tokenizer, self._model = load_encoder(
            folder, _not_sparse_error, loader="AutoModelForMaskedLM"
        )
        self.max_tokens = find_max_tokens(find_positions(self._model), tokenizer)
        self.max_terms = max_terms
        self._reader = TextReader(tokenizer, self.max_tokens)
        self._terms: list[str] = tokenizer.convert_ids_to_tokens(
            list(range(int(self._model.config.vocab_size)))
        )
        self.fingerprint = digest_json(
            [*fingerprint_encoder(folder), "log1p-max", self.max_tokens, max_terms]
        )

    @property
    def truncated(self) -> int:
        """Number of texts truncated to ``max_tokens``."""
        return self._reader.truncated

    def encode(self, texts: Sequence[str]) -> list[dict[str, float]]:
        """Return the terms of each text with positive weights, heaviest first.

        Raises:
            DataError: If a text is empty.
        """
        check_not_empty(texts)
        return self._reader.map(self._encode_one, texts)

    def close(self) -> None:
        """Shut down the worker threads."""
        self._reader.close()

    def _encode_one(self, text: str) -> dict[str, float]:
        import torch

        ids = self._reader.encode(text, self.max_tokens)
        input_ids = torch.tensor([ids])
        with torch.inference_mode():
            logits: Any = self._model(
                input_ids=input_ids, attention_mask=torch.ones_like(input_ids)
            ).logits[0]
            weights = torch.log1p(torch.relu(logits.float()).max(dim=0).values)
        term_ids = torch.nonzero(weights > 0)[:, 0].tolist()
        values = weights[term_ids].tolist()
        order = sorted(range(len(term_ids)), key=lambda index: (-values[index], term_ids[index]))
        return {self._terms[term_ids[index]]: values[index] for index in order[: self.max_terms]}


def _not_sparse_error(folder: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{folder} cannot be used as a sparse encoder: {why}",
        code="checkpoint.not-a-masked-lm",
        expected="a masked language model with its head (SPLADE or another), in safetensors",
        next="use the folder of a SPLADE checkpoint, or leave sparse out",
    )
