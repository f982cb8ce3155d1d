"""Forward pass of BERT and MPNet in NumPy, for a few short texts without torch.

Importing torch and transformers takes several CPU seconds; encoding a query takes milliseconds.
Queries are therefore encoded here where a folder has a plain BERT or MPNet. Results differ from
torch by rounding only: with all-MiniLM-L6-v2, over 1,290 questions, by at most 1.8e-7 per component
of a unit vector, and 2.7e-7 in a score.

Sources: Devlin et al. 2019, arXiv:1810.04805; Song et al. 2020, arXiv:2004.09297 (MPNet: no token
types, and a learned bias of the attention by distance). Supports absolute positions and the exact
GELU; other models are not opened. No batches, padding or decoders.
"""

from __future__ import annotations

import copy
import threading
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType, WeakValueDictionary, ref

import numpy as np

from stillroom.models.encoders.int8_layers import quantize_layers
from stillroom.models.interfaces import Vectors
from stillroom.models.tokenization.growth import check_growth
from stillroom.provenance.digests import digest_bytes, digest_json, load_json
from stillroom.text.unicode import replace_surrogates

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from stillroom.checkpoints import Checkpoint

__all__ = ["MPNET_PADDING", "NumpyBert", "PlainTokenizer", "erf", "open_bert"]

_DTYPES = {"F32": np.float32, "F16": np.float16}
_MPNET_NAMES = {
    "attention.attn.q.": "attention.self.query.",
    "attention.attn.k.": "attention.self.key.",
    "attention.attn.v.": "attention.self.value.",
    "attention.attn.o.": "attention.output.dense.",
    "attention.LayerNorm.": "attention.output.LayerNorm.",
}
MPNET_PADDING = 1
"""Id of MPNet's padding token, which has no position of its own in a text."""
_MPNET_MAX_DISTANCE = 128
_MPNET_BUCKETS = 32
_XLM_SPECIAL = {
    "bos_token": "<s>", "cls_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>",
    "sep_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>",
}  # fmt: skip
_MPNET_SPECIAL = {**_XLM_SPECIAL, "unk_token": "[UNK]"}
_BERT_SPECIAL = {
    "cls_token": "[CLS]", "pad_token": "[PAD]", "sep_token": "[SEP]", "unk_token": "[UNK]",
    "mask_token": "[MASK]",
}  # fmt: skip
_SPECIAL_TOKENS: Mapping[str, Mapping[str, str]] = {
    "PreTrainedTokenizerFast": {},
    "TokenizersBackend": {},
    **dict.fromkeys(("BertTokenizer", "BertTokenizerFast"), _BERT_SPECIAL),
    **dict.fromkeys(("MPNetTokenizer", "MPNetTokenizerFast"), _MPNET_SPECIAL),
    **dict.fromkeys(("XLMRobertaTokenizer", "XLMRobertaTokenizerFast"), _XLM_SPECIAL),
}
"""Special tokens by default, by class of tokenizer; the first two have none of their own."""
_REQUIRED_SETTINGS = {"hidden_act": "gelu", "position_embedding_type": "absolute"}
# Rational approximation of erf on [-4, 4], as in Eigen and XLA: exact to float32.
_ERF_TOP = (
    -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
    -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02,
)  # fmt: skip
_ERF_BOTTOM = (
    -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
    -1.42647390514189e-02,
)  # fmt: skip


class PlainTokenizer:
    """A tokenizer.json of the tokenizers library behind the interface of transformers.

    Truncation is state of the library's tokenizer, which threads share here under a lock.
    """

    def __init__(self, backend: Tokenizer, model_max_length: int) -> None:
        """Wrap a tokenizer; padding and truncation of its file are disabled."""
        backend.no_padding()
        backend.no_truncation()
        self.backend_tokenizer, self._lock = backend, threading.Lock()
        self.model_max_length = model_max_length
        added = backend.get_added_tokens_decoder()
        self._added = {token.content: number for number, token in added.items()}
        self.all_special_ids = [number for number, token in added.items() if token.special]

    def __call__(
        self,
        text: str,
        *,
        add_special_tokens: bool = True,
        truncation: bool = False,
        max_length: int | None = None,
        return_offsets_mapping: bool = False,
    ) -> dict[str, list[Any]]:
        """Return the ``input_ids`` of a text, and optionally the ``offset_mapping``.

        Unpaired surrogates, which no tokenizer accepts, are replaced by U+FFFD.
        """
        backend = self.backend_tokenizer
        with self._lock:
            if truncation and max_length is not None:
                backend.enable_truncation(max_length)
            try:
                encoding = backend.encode(
                    replace_surrogates(text), add_special_tokens=add_special_tokens
                )
            finally:
                backend.no_truncation()
        output: dict[str, list[Any]] = {"input_ids": encoding.ids}
        return {**output, "offset_mapping": encoding.offsets} if return_offsets_mapping else output

    def get_added_vocab(self) -> Mapping[str, int]:
        """Return the added tokens with their ids."""
        return self._added

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Return the number of special tokens around a text."""
        return int(self.backend_tokenizer.num_special_tokens_to_add(pair))


class NumpyBert:
    """BERT or MPNet encoder with its tokenizer; use ``open_bert``."""

    def __init__(self, held: Checkpoint, tokenizer: PlainTokenizer) -> None:
        """Read the weights of a checkpoint.

        Raises:
            ValueError: If a tensor is neither float32 nor float16.
        """
        from threadpoolctl import ThreadpoolController

        config = held.config
        self.tokenizer = tokenizer
        self.width = int(config["hidden_size"])
        is_mpnet = config["model_type"] == "mpnet"
        self.max_positions = int(config["max_position_embeddings"])
        if is_mpnet:
            self.max_positions -= MPNET_PADDING + 1
        self._heads = int(config["num_attention_heads"])
        self._epsilon = float(config.get("layer_norm_eps", 1e-12))
        prefix = f"{config['model_type']}."
        start = prefix if f"{prefix}embeddings.word_embeddings.weight" in held else ""
        names = [name for name in held.names() if name.startswith((f"{start}emb", f"{start}enc"))]
        self._weights = {
            _rename_tensor(name.removeprefix(start)): _read_weights(held, name)
            for name in names
            if "position_ids" not in name
        }
        self._distances = self._weights.get("encoder.relative_attention_bias.weight")
        if is_mpnet and self._distances is None:
            raise ValueError("an MPNet needs a relative_attention_bias")
        self._layers = [
            f"encoder.layer.{layer}." for layer in range(int(config["num_hidden_layers"]))
        ]
        # One thread, so that results do not depend on the number of threads. The limit is
        # process-wide,
        # so texts are encoded one at a time.
        self._threads = ThreadpoolController()
        self._lock = threading.Lock()
        self._opened: NumpyBert | None = None
        self._folder = held.folder
        self._quantized: Callable[[Vectors, Vectors], Vectors] | None = None
        self._as_int8: ReferenceType[NumpyBert] | None = None

    @property
    def is_quantized(self) -> bool:
        """Whether its layers multiply 8-bit integers."""
        return self._quantized is not None

    def share(self) -> NumpyBert:
        """Return an encoder of the same weights, whose tokenizer has settings of its own."""
        shared = copy.copy(self)
        shared.tokenizer = copy.copy(self.tokenizer)  # under the same lock
        shared._opened = self  # of this class; open as long as one that shares it
        return shared

    def quantize(self) -> NumpyBert:
        """Return this encoder as opened, without updates, in 8-bit integers: one for all it shares.

        Raises:
            MissingExtraError: If onnx or onnxruntime is not installed.
        """
        opened = self._opened or self
        with _QUANTIZING:
            quantized = opened._as_int8() if opened._as_int8 else None
            if quantized is None:
                quantized = opened.adapt({}, 1.0, to_int8=True)
                opened._as_int8 = ref(quantized)
        shared = quantized.share()
        shared.tokenizer = copy.copy(self.tokenizer)
        return shared

    def adapt(
        self, factors: Mapping[str, tuple[Vectors, Vectors]], scale: float, *, to_int8: bool = False
    ) -> NumpyBert:
        """Return an encoder with low-rank updates, B A times ``scale``, that shares what has none.

        Args:
            factors: A, (r, in), and B, (out, r), by name of the weight, such as
                ``encoder.layer.0.output.dense.weight``.
            scale: Factor of the products.
            to_int8: Whether its layers multiply 8-bit integers: four times faster, and rounded.

        Raises:
            ValueError: If there is no such weight, or its shape differs.
            MissingExtraError: If onnx or onnxruntime is not installed, ``to_int8``.
        """
        renamed = {_rename_tensor(name): pair for name, pair in factors.items()}
        for name, (narrow, wide) in renamed.items():
            shape = len(wide), narrow.shape[-1]
            if name not in self._weights or self._weights[name].shape != shape:
                raise ValueError(f"{name}: no weight of shape {shape}")

        def read(name: str) -> Vectors:
            weight = self._weights[name]
            if name in renamed:
                narrow, wide = renamed[name]
                weight = weight + scale * np.matmul(wide, narrow, dtype=np.float32)
            return weight

        adapted = copy.copy(self)
        adapted._opened = self._opened or self
        names = list(self._weights)
        if to_int8:  # one weight at a time: all of them would be held twice
            from stillroom.checkpoints import Checkpoint

            updates = [
                [name, str(matrix.dtype), digest_bytes(matrix.tobytes())]
                for name, pair in sorted(renamed.items())
                for matrix in pair
            ]
            key = digest_json([Checkpoint.open(self._folder).fingerprint, scale, updates])
            adapted._quantized = quantize_layers(
                read, self._layers, heads=self._heads, epsilon=self._epsilon, key=key
            )
            names = [name for name in names if name.startswith("embeddings.")]
        adapted._weights = {name: read(name) for name in names}
        return adapted

    def states(
        self,
        ids: Sequence[int],
        segments: Sequence[int] | None = None,
        added: Vectors | None = None,
    ) -> Vectors:
        """Return the last hidden states of a sequence, (T, D) float32.

        Args:
            ids: Token ids, with special tokens.
            segments: Token type of each id (0 or 1); default: all 0.
            added: Addends to the word embeddings, (T, D); default: none.
        """
        if self._quantized is not None:  # without BLAS, so without its lock
            return self._quantized(*self._embed(ids, segments, added))
        with self._lock, self._threads.limit(limits=1, user_api="blas"):
            states, bias = self._embed(ids, segments, added)
            for layer in self._layers:
                states = self._read_layer(states, layer, bias)
            return states

    def check_shapes(self) -> None:
        """Check that every tensor is there and fits, without reading those that are mapped.

        Raises:
            LookupError: If one is missing.
            ValueError: If the shape of one is wrong.
        """
        width, wide = self.width, len(self._weights[f"{self._layers[0]}intermediate.dense.bias"])
        square = {f"attention.self.{part}.": (width, width) for part in ("query", "key", "value")}
        linear: dict[str, tuple[int, ...]] = {
            **square,
            "attention.output.dense.": (width, width),
            "intermediate.dense.": (wide, width),
            "output.dense.": (width, wide),
        }
        names = ("word", "position", *(["token_type"] if self._distances is None else []))
        shapes: dict[str, tuple[int, ...]] = {
            f"embeddings.{name}_embeddings.weight": (-1, width) for name in names
        }
        if self._distances is not None:
            shapes["encoder.relative_attention_bias.weight"] = (_MPNET_BUCKETS, self._heads)
        norms = ["embeddings."]
        for layer in self._layers:
            norms += [f"{layer}output.", f"{layer}attention.output."]
            for name, sizes in linear.items():
                shapes |= {f"{layer}{name}weight": sizes, f"{layer}{name}bias": sizes[:1]}
        for norm in norms:
            shapes |= {f"{norm}LayerNorm.{name}": (width,) for name in ("weight", "bias")}
        for name, shape in shapes.items():
            found = self._weights[name].shape
            if len(found) != len(shape) or found[-1] != shape[-1] or shape[0] not in (-1, found[0]):
                raise ValueError(f"{name} has the shape {found}, not {shape}")
        if self._heads < 1 or width % self._heads:
            raise ValueError(f"{width} is no multiple of {self._heads} heads")
        self._embed([0], None, None)

    def _embed(
        self, ids: Sequence[int], segments: Sequence[int] | None, added: Vectors | None
    ) -> tuple[Vectors, Vectors]:
        """Return the states before the first layer, (T, D), and the bias of the attention."""
        words = self._weights["embeddings.word_embeddings.weight"][list(ids)]
        words = words.astype(np.float32, copy=False)
        words = words if added is None else words + added
        positions = self._weights["embeddings.position_embeddings.weight"]
        bias: Vectors = np.zeros((1, 1, 1), dtype=np.float32)
        if self._distances is None:
            kinds = self._weights["embeddings.token_type_embeddings.weight"]
            kind = kinds[0] if segments is None else kinds[list(segments)]
            states = words + kind + positions[: len(ids)]
        else:
            is_text = np.array(ids) != MPNET_PADDING  # padding in a text is not counted
            states = words + positions[np.cumsum(is_text) * is_text + MPNET_PADDING]
            bias = _bias_by_distance(self._distances, len(ids))
        return self._norm(states, "embeddings.LayerNorm."), bias

    def _read_layer(self, states: Vectors, layer: str, bias: Vectors) -> Vectors:
        attended = self._attend(states, f"{layer}attention.self.", bias)
        states = self._norm(
            self._linear(attended, f"{layer}attention.output.dense.") + states,
            f"{layer}attention.output.LayerNorm.",
        )
        wide = self._linear(states, f"{layer}intermediate.dense.")
        wide *= np.float32(0.5) * (1 + erf(wide * np.float32(0.5**0.5)))
        return self._norm(
            self._linear(wide, f"{layer}output.dense.") + states, f"{layer}output.LayerNorm."
        )

    def _attend(self, states: Vectors, name: str, bias: Vectors) -> Vectors:
        queries, keys, values = (
            self._linear(states, f"{name}{part}.").reshape(len(states), self._heads, -1)
            for part in ("query", "key", "value")
        )
        queries, keys, values = (tensor.transpose(1, 0, 2) for tensor in (queries, keys, values))
        scores = queries @ keys.transpose(0, 2, 1) / np.float32(queries.shape[-1] ** 0.5) + bias
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        mixed: Vectors = (scores @ values).transpose(1, 0, 2).reshape(len(states), self.width)
        return mixed

    def _linear(self, states: Vectors, name: str) -> Vectors:
        output: Vectors = states @ self._weights[f"{name}weight"].T + self._weights[f"{name}bias"]
        return output

    def _norm(self, states: Vectors, name: str) -> Vectors:
        centered = states - states.mean(axis=-1, keepdims=True)
        spread = np.sqrt((centered * centered).mean(axis=-1, keepdims=True) + self._epsilon)
        normalized: Vectors = centered / spread.astype(np.float32) * self._weights[f"{name}weight"]
        return normalized + self._weights[f"{name}bias"]


_OPENING, _QUANTIZING = threading.Lock(), threading.Lock()
_OPENED: WeakValueDictionary[tuple[Any, ...], NumpyBert] = WeakValueDictionary()


def open_bert(folder: Path) -> NumpyBert | None:
    """Open a folder's encoder, or return None if it is not a supported BERT.

    Weights and vocabulary are shared with those of the same files that are still open: an index's
    embedder is often its reader's base.

    Raises nothing: folders that cannot be opened or run here (old files name some tensors
    differently) are left to transformers and its errors.
    """
    from stillroom.checkpoints import Checkpoint

    try:
        files = [file.resolve() for file in sorted(folder.iterdir()) if file.is_file()]
        stats = [file.stat() for file in files]
        key = (*files, *((at.st_ino, at.st_size, at.st_mtime_ns) for at in stats))
        with _OPENING:
            opened = _OPENED.get(key)
            if opened is None:
                held = Checkpoint.open(folder)
                tokenizer = _open_tokenizer(folder) if _is_plain(held.config) else None
                if tokenizer is None:
                    return None
                opened = NumpyBert(held, tokenizer)
                opened.check_shapes()
                _OPENED[key] = opened
    except Exception:  # noqa: BLE001  # tokenizers raises it bare
        return None
    return opened.share()


def erf(values: Vectors) -> Vectors:
    """Return the error function of float32 values, exact to about 1e-7."""
    bound = np.clip(values, np.float32(-4), np.float32(4))
    square = bound * bound
    result: Vectors = bound * _polynomial(_ERF_TOP, square) / _polynomial(_ERF_BOTTOM, square)
    return result


def _polynomial(coefficients: tuple[float, ...], points: Vectors) -> Vectors:
    """Evaluate a polynomial, highest coefficient first (Horner)."""
    values: Vectors = np.full_like(points, coefficients[0])
    for coefficient in coefficients[1:]:
        values *= points
        values += np.float32(coefficient)
    return values


def _rename_tensor(name: str) -> str:
    """Return BERT's name of a tensor of MPNet, without the prefix of its head."""
    for theirs, ours in _MPNET_NAMES.items():
        name = name.replace(theirs, ours)
    return name


def _bias_by_distance(biases: Vectors, length: int) -> Vectors:
    """Return the bias of the attention, (heads, T, T), of one value a bucket of distances.

    Args:
        biases: Learned values, (buckets, heads).
        length: Number of tokens, T.
    """
    half = _MPNET_BUCKETS // 2
    exact = half // 2
    steps = np.arange(length)
    distance = np.abs(behind := steps[:, None] - steps[None, :])
    with np.errstate(divide="ignore"):
        logarithms = np.log(distance.astype(np.float32) / np.float32(exact))
    far = exact + logarithms / np.float32(np.log(_MPNET_MAX_DISTANCE / exact)) * (half - exact)
    bucket = np.where(distance < exact, distance, np.clip(far, 0, half - 1).astype(np.int64))
    values: Vectors = biases[bucket + half * (behind < 0)].transpose(2, 0, 1)
    return values


def _is_plain(config: Mapping[str, Any]) -> bool:
    return (
        config.get("model_type") in {"bert", "mpnet"}
        and all(config.get(name, value) == value for name, value in _REQUIRED_SETTINGS.items())
        and not any(config.get(name) for name in ("is_decoder", "auto_map", "quantization_config"))
    )


def _open_tokenizer(folder: Path) -> PlainTokenizer | None:
    """Open a tokenizer if its file alone determines transformers' behavior."""
    from tokenizers import Tokenizer

    file, settings_file = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if not (file.is_file() and settings_file.is_file()):
        return None
    check_growth(file)
    text, config = file.read_text(encoding="utf-8"), load_json(settings_file.read_bytes())
    default = _SPECIAL_TOKENS.get(str(config.get("tokenizer_class")))
    if default is None:
        return None
    backend = Tokenizer.from_str(text)
    sides = {(backend.truncation or {}).get("direction"), config.get("truncation_side")}
    longest = config.get("model_max_length")
    length = int(longest) if isinstance(longest, int | float) else 1 << 62
    tokenizer = PlainTokenizer(backend, length)
    special, extra = _read_special_tokens(folder, {**default, **config})
    if (
        "left" in sides
        or config.get("split_special_tokens")
        or not tokenizer.get_added_vocab().keys() >= {*special.values(), *extra}
    ):  # transformers adds the tokens that the file lacks
        return None
    if default is _XLM_SPECIAL:
        filed = load_json(text)
        if special != _XLM_SPECIAL or not _is_plain_xlm(filed, config):
            return None
        _set_xlm_steps(backend, filed["normalizer"])
    elif default and not (
        _tokenizer_files_agree(load_json(text), config, special["unk_token"])
        and backend.encode("").tokens == [special["cls_token"], special["sep_token"]]
    ):
        return None
    return tokenizer


def _read_special_tokens(
    folder: Path, config: Mapping[str, Any]
) -> tuple[dict[str, str], list[str]]:
    """Return the special tokens by name, and further tokens that transformers adds."""

    def read(name: str) -> Any:
        return load_json((folder / name).read_bytes()) if (folder / name).is_file() else {}

    values = {**config, **read("special_tokens_map.json")}
    further = list(values.get("additional_special_tokens") or ())
    extra = values.get("extra_special_tokens") or ()
    further += extra.values() if isinstance(extra, Mapping) else extra
    further += (values.get("added_tokens_decoder") or {}).values()
    special = {name: _get_content(values[name]) for name in _XLM_SPECIAL if values.get(name)}
    return special, [*map(_get_content, further), *read("added_tokens.json")]


def _get_content(token: Any) -> str:
    return str(token["content"] if isinstance(token, Mapping) else token)


def _tokenizer_files_agree(
    filed: Mapping[str, Any], config: Mapping[str, Any], unknown: str
) -> bool:
    """Return whether both files of a BERT tokenizer agree; transformers uses the second."""
    model, normalizer = filed["model"], filed.get("normalizer") or {}
    return (
        (model["type"], model["unk_token"]) == ("WordPiece", unknown)
        and model["continuing_subword_prefix"] == "##"
        and model["max_input_chars_per_word"] == 100  # the library's default
        and (filed.get("pre_tokenizer") or {}).get("type") == "BertPreTokenizer"
        and normalizer.get("type") == "BertNormalizer"
        and normalizer.get("clean_text") is True
        and normalizer.get("lowercase") == config.get("do_lower_case", True)
        and normalizer.get("strip_accents") == config.get("strip_accents")
        and normalizer.get("handle_chinese_chars") == config.get("tokenize_chinese_chars", True)
    )


def _is_plain_xlm(filed: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Return whether the settings of an XLM-RoBERTa tokenizer are those of its own class."""
    model = filed["model"]
    special = {token["content"] for token in filed["added_tokens"] if token["special"]}
    return (
        (model["type"], model["unk_id"], model.get("byte_fallback", False)) == ("Unigram", 3, False)
        and special.issuperset(_XLM_SPECIAL.values())
        and config.get("add_prefix_space", True) is True
    )


def _set_xlm_steps(tokenizer: Tokenizer, normalizer: Mapping[str, Any]) -> None:
    """Replace the steps of a tokenizer by those of transformers' class XLMRobertaTokenizer.

    It uses the vocabulary, the map of characters and the added tokens of tokenizer.json, and steps
    of its own around them.

    Raises:
        StopIteration: If there is no map of characters.
    """
    from tokenizers import normalizers, pre_tokenizers, processors

    steps = normalizer.get("normalizers") or [normalizer]
    charsmap = next(step["precompiled_charsmap"] for step in steps if step["type"] == "Precompiled")
    tokenizer.normalizer = normalizers.Precompiled(b64decode(charsmap))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")],
    )


def _read_weights(held: Checkpoint, name: str) -> Vectors:
    """Return a tensor in float32, mapped from its file if it is stored so.

    Word embeddings stay as stored: a lookup reads and widens the few rows it needs.

    Raises:
        ValueError: If it is neither float32 nor float16.
    """
    entry = held.entry(name)
    if entry.dtype not in _DTYPES:
        raise ValueError(entry.dtype)
    data = np.frombuffer(held.view(name), dtype=_DTYPES[entry.dtype])
    data = data if data.flags.aligned else data.copy()  # old writers did not align
    weights: Vectors = data.reshape(entry.shape)
    is_looked_up = name.endswith("word_embeddings.weight")
    return weights if is_looked_up else weights.astype(np.float32, copy=False)
