"""Token states: many vectors a text, for late interaction, by a ColBERT checkpoint or an embedder.

A ColBERT checkpoint is an encoder and a projection, in the folders of PyLate (modules.json with a
Dense module and no pooling) or of the authors (``linear.weight`` beside the encoder). A marker
after the first token says whether a query or a passage is read; a query is filled with mask tokens,
whose states ask for what is not said; punctuation of passages is left out. An embedder that gives
its tokens' states serves as well, if less well: it was trained for one vector a text.

Source: Khattab and Zaharia 2020, arXiv:2004.12832.
"""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from stillroom.errors import CheckpointError, DataError
from stillroom.models.protocols import Embedder, TextKind, TokenEmbedder, Vectors
from stillroom.models.reading import TextReader, load_encoder, longest_text
from stillroom.models.vectors import refuse_empty, unit_rows
from stillroom.provenance import digest_json

__all__ = ["EMBEDDER", "ColbertEncoder", "TokenEncoder", "open_token_encoder"]

EMBEDDER = "builtin:embedder"
"""The reference that stands for the index's own embedder."""
_LEAST = 8


class TokenEncoder(Protocol):
    """Anything that gives many vectors a text."""

    @property
    def width(self) -> int:
        """Numbers a vector."""

    @property
    def fingerprint(self) -> str:
        """What identifies the weights and how they are used."""

    def encode(self, texts: Sequence[str], *, kind: TextKind) -> list[Vectors]:
        """Return for each text its vectors, L2-normalized rows, (T, D) float32.

        What is given for a text does not depend on the texts beside it.

        Raises:
            DataError: If a text is empty.
        """


def open_token_encoder(reference: str, embedder: Embedder) -> TokenEncoder:
    """Open what gives many vectors a text.

    Args:
        reference: The folder of a ColBERT checkpoint or ``hub:NAME``; or ``builtin:embedder`` for
            the token states of ``embedder``.
        embedder: The index's own.

    Raises:
        DataError: If the embedder gives no token states.
        CheckpointError: If the reference leads to no ColBERT checkpoint.
    """
    if reference == EMBEDDER:
        if not isinstance(embedder, TokenEmbedder):
            raise DataError(
                "the index's embedder gives no token states",
                code="rag.no-token-states",
                where="tokens.model",
                expected="an embedder that is a sentence-transformers folder",
                next="name a ColBERT checkpoint in tokens.model",
            )
        return _EmbedderTokens(embedder)
    from stillroom.models.hub import resolve_checkpoint

    return ColbertEncoder(resolve_checkpoint(reference))


class _EmbedderTokens:
    """An embedder's token states."""

    def __init__(self, embedder: TokenEmbedder) -> None:
        self._embedder = embedder
        self.width = int(embedder.embed_tokens(["width"], kind="passage")[0].shape[1])
        self.fingerprint = digest_json(["token states", embedder.fingerprint])

    def encode(self, texts: Sequence[str], *, kind: TextKind) -> list[Vectors]:
        refuse_empty(texts)
        return self._embedder.embed_tokens(texts, kind=kind)


@dataclass(frozen=True, slots=True)
class _Layout:
    """What a folder says of how texts are read."""

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
        """Return what shapes vectors beside the weights."""
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
    """A ColBERT checkpoint."""

    def __init__(self, folder: Path, *, device: str = "cpu") -> None:
        """Open a folder.

        Args:
            folder: Of PyLate or of ColBERT's authors.
            device: cpu, cuda, cuda:1 or mps.

        Raises:
            CheckpointError: If the folder is no such checkpoint.
        """
        from stillroom.checkpoints import Checkpoint

        self._layout = layout = _read_layout(folder)

        def refuse(why: str) -> CheckpointError:
            return _refuse(folder, why)

        tokenizer, self._model, missing = load_encoder(layout.encoder, "AutoModel", device, refuse)
        lacking = [name for name in missing if "pooler" not in name]  # which nothing here reads
        if lacking:
            raise refuse(f"it lacks {lacking[0]}")
        held = Checkpoint.open(layout.dense)
        if "linear.weight" not in held.names():
            raise refuse("it has no projection, linear.weight")
        weight = held.tensor("linear.weight").float()
        if weight.shape[1] != int(self._model.config.hidden_size):
            raise refuse(f"its projection reads {weight.shape[1]} numbers of a state")
        self._weight: Any = weight.to(device)
        bias = held.tensor("linear.bias").float() if "linear.bias" in held.names() else None
        self._bias: Any = bias if bias is None else bias.to(device)
        self._device, self.width = device, int(weight.shape[0])
        longest = longest_text(self._model, tokenizer, None)
        self._rooms: dict[TextKind, int] = {
            "query": min(layout.query_tokens, longest),
            "passage": min(layout.passage_tokens, longest),
        }
        if min(self._rooms.values()) < _LEAST:
            raise refuse(f"it reads {min(self._rooms.values())} tokens")
        self._reader = TextReader(tokenizer, longest, device)
        self._markers = {
            "query": _token_of(tokenizer, layout.query_marker, refuse),
            "passage": _token_of(tokenizer, layout.passage_marker, refuse),
        }
        self._skipped = {
            one
            for mark in layout.skipped
            for one in tokenizer(mark, add_special_tokens=False)["input_ids"][:1]
        }
        self._mask: int | None = tokenizer.mask_token_id
        self.fingerprint = digest_json(
            [Checkpoint.open(layout.encoder).fingerprint, held.fingerprint, layout.to_json()]
        )

    @property
    def truncated(self) -> int:
        """How many texts were read without their ends."""
        return self._reader.truncated

    def encode(self, texts: Sequence[str], *, kind: TextKind) -> list[Vectors]:
        """Return for each text its vectors; see ``TokenEncoder``."""
        refuse_empty(texts)
        read = self._read_query if kind == "query" else self._read_passage
        return self._reader.map(read, texts)

    def close(self) -> None:
        """End the threads."""
        self._reader.close()

    def _read_query(self, text: str) -> Vectors:
        ids = self._mark(text, "query")
        seen = [1] * len(ids)
        spare = self._rooms["query"] - len(ids)
        if self._layout.is_expanded and self._mask is not None and spare > 0:
            ids += [self._mask] * spare
            seen += [int(self._layout.is_attended)] * spare
        return self._project(ids, seen)

    def _read_passage(self, text: str) -> Vectors:
        ids = self._mark(text, "passage")
        rows = self._project(ids, [1] * len(ids))
        kept = [at for at, one in enumerate(ids) if one not in self._skipped]
        return rows[kept]

    def _mark(self, text: str, kind: TextKind) -> list[int]:
        """Return a text's tokens with the marker after the first."""
        ids = self._reader.encode(text, self._rooms[kind] - 1, count=kind == "passage")
        return [*ids[:1], self._markers[kind], *ids[1:]]

    def _project(self, ids: Sequence[int], seen: Sequence[int]) -> Vectors:
        import torch

        with torch.inference_mode():
            states = self._model(
                input_ids=torch.tensor([ids], device=self._device),
                attention_mask=torch.tensor([seen], device=self._device),
            )[0][0].float()
            rows = torch.nn.functional.linear(states, self._weight, self._bias)
            return unit_rows(rows.cpu().numpy())


def _read_layout(folder: Path) -> _Layout:
    if not folder.is_dir():
        raise _refuse(folder, "it is not a folder")
    if (folder / "modules.json").is_file():
        return _read_pylate(folder)
    config = _read_json(folder / "config.json")
    if "HF_ColBERT" not in (config.get("architectures") or []):
        raise _refuse(folder, "its config.json does not name HF_ColBERT")
    told = folder / "artifact.metadata"
    own = _read_json(told) if told.is_file() else {}
    return _Layout(
        folder,
        folder,
        str(own.get("query_token_id") or "[unused0]"),
        str(own.get("doc_token_id") or "[unused1]"),
        int(own.get("query_maxlen") or 32),
        int(own.get("doc_maxlen") or 220),
        is_attended=bool(own.get("attend_to_mask_tokens")),
        skipped=tuple(string.punctuation) if own.get("mask_punctuation", True) else (),
    )


def _read_pylate(folder: Path) -> _Layout:
    encoder, dense = folder, None
    for module in _read_json(folder / "modules.json", list):
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        place = (folder / str(module.get("path", ""))).resolve()
        if not place.is_relative_to(folder.resolve()):
            raise _refuse(folder, f"its module path {module.get('path')!r} leads out of the folder")
        if kind == "Transformer":
            encoder = place
        elif kind == "Dense" and dense is None:
            dense = place
        else:
            raise _refuse(folder, f"its module {kind!r} is not that of a ColBERT")
    if dense is None:
        raise _refuse(folder, "it has no Dense module")
    told = folder / "config_sentence_transformers.json"
    own = _read_json(told) if told.is_file() else {}
    return _Layout(
        encoder,
        dense,
        str(own.get("query_prefix") or "[unused0]"),
        str(own.get("document_prefix") or "[unused1]"),
        int(own.get("query_length") or 32),
        int(own.get("document_length") or 180),
        bool(own.get("do_query_expansion", True)),
        bool(own.get("attend_to_expansion_tokens")),
        tuple(own.get("skiplist_words") or string.punctuation),
    )


def _token_of(tokenizer: Any, marker: str, refuse: Any) -> int:
    """Return the one token that a marker is."""
    found = tokenizer.convert_tokens_to_ids(marker)
    if found is None or found == tokenizer.unk_token_id:
        ids = tokenizer(marker, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise refuse(f"its marker {marker!r} is no token of its tokenizer")
        found = ids[0]
    return int(found)


def _read_json(path: Path, kind: type = dict) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _refuse(path.parent, f"{path.name} cannot be read: {error}") from error
    if not isinstance(value, kind):
        raise _refuse(path.parent, f"{path.name} holds no {kind.__name__}")
    return value


def _refuse(folder: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{folder} cannot be used as a ColBERT: {why}",
        code="checkpoint.not-a-colbert",
        expected="an encoder with a projection, in PyLate's folders or its authors'",
        next="give such a folder, or tokens.model=builtin:embedder",
    )
