"""GGUF files dequantized to Hugging Face folders: header checks, and the pre-tokenizer.

Tensors and architecture go through transformers' GGUF loader (which undoes the row permutation of q
and k); tied embeddings stay tied. Two things that the loader loses are restored: the pre-tokenizer
named by the file, and the license. A dequantized weight keeps its quantization error: the card
names the original type.

The reader of the package gguf takes 65 microseconds and 5 kB for each tensor, key and array
element, however small: a file of 100 MB could block it for minutes and fill the memory. The header
is therefore walked first, by lengths only.

A GGUF file names its pre-tokenizer (``tokenizer.ggml.pre``); tokenizer.json defines it in full.
This module maps between both, for rules with an established definition.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import mmap
import os
import shutil
import struct
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stillroom.checkpoints.card import write_card
from stillroom.errors import CheckpointError, MissingExtraError
from stillroom.jobs import cache_folder, replace_folder, sync_folder
from stillroom.objects.disk import full_disk_as_error
from stillroom.provenance import digest_file

__all__ = [
    "check_gguf",
    "dequantize_gguf",
    "detect_pretokenizer",
]

_FORMAT = 2  # increment when the conversion changes, to invalidate cached ones
_TRANSIENT = ("transformers_version", "_from_model_config")


def dequantize_gguf(path: Path, cache: Path | None = None) -> Path:
    """Return a folder with the float32 weights, tokenizer and config of a GGUF file.

    The folder is named by the file's digest and created once; an interrupted conversion leaves no
    partial folder of that name.

    Args:
        path: The GGUF file.
        cache: Parent of the folder; default the user's cache folder.

    Raises:
        CheckpointError: If the file is broken, or its architecture or tokenizer is not supported.
        MissingExtraError: If the package gguf or accelerate is not installed.
        ResourceError: If the disk is full.
    """
    for package in ("gguf", "accelerate"):  # required by transformers' loader
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError.of(package, "gguf", "reading a GGUF file")
    cache = cache or cache_folder()
    target = cache / "dequantized" / f"{path.stem}-{digest_file(path)[:16]}-v{_FORMAT}"
    if (target / "config.json").is_file():
        return target
    fields, types = _read_fields(path)
    work = target.with_name(f".{target.name}.{os.getpid()}")
    with full_disk_as_error(cache):
        work.mkdir(parents=True, exist_ok=True)
        try:
            _convert(path, work, fields)
            _write_card(path, work, fields, types)
            sync_folder(work)
            replace_folder(work, target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return target


def _read_fields(path: Path) -> tuple[dict[str, Any], Counter[str]]:
    """Return the file's plain fields, and the number of tensors by type."""
    from gguf import GGUFReader

    check_gguf(path)
    try:
        reader = GGUFReader(path)
        prefixes = ("general.", "tokenizer.ggml.pre", "tokenizer.ggml.model", "split.count")
        fields = {
            name: field.contents()
            for name, field in reader.fields.items()
            if name.startswith(prefixes)
        }
        types = Counter(tensor.tensor_type.name for tensor in reader.tensors)
    except Exception as error:  # the reader raises arbitrary exceptions for a broken file
        raise _broken_gguf_error(path, f"cannot be read as GGUF: {error!s:.160}") from error
    if not types:
        raise _broken_gguf_error(path, "contains no tensors")
    if (parts := int(fields.get("split.count") or 1)) > 1:
        raise _broken_gguf_error(
            path, f"is one of {parts} parts of a file: join them by llama-gguf-split --merge"
        )
    return fields, types


def _convert(path: Path, work: Path, fields: dict[str, Any]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _quiet_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                str(path.parent), gguf_file=path.name, local_files_only=True
            )
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(path.parent),
                gguf_file=path.name,
                dtype=torch.float32,
                local_files_only=True,
                output_loading_info=True,
            )
        except Exception as error:  # the loader raises many kinds of exceptions for a broken file
            raise _broken_gguf_error(path, f"cannot be converted: {error!s:.160}") from error
        model, report = loaded
        # The loader initializes what the file lacks; of tied parameters, the first is named here.
        lacking = {name for name, _ in model.named_parameters()} & set(report["missing_keys"])
        if lacking:
            raise _broken_gguf_error(path, f"lacks the tensor of {min(lacking)}")
        _repair_tokenizer(path, tokenizer, fields)
        tokenizer.save_pretrained(work)
    _repair_tokenizer_config(work, int(getattr(model.config, "max_position_embeddings", 0)))
    _save(model, work)


def _save(model: Any, work: Path) -> None:
    from stillroom.checkpoints.writer import CheckpointWriter, plan_tensors

    config = model.config.to_diff_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path", *_TRANSIENT):
        config.pop(key, None)
    config["architectures"] = [type(model).__name__]
    config["tie_word_embeddings"] = bool(model.config.tie_word_embeddings)
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:  # for transformers 4
        config["rope_theta"] = rope["rope_theta"]
    generation = model.generation_config.to_diff_dict()
    for key in _TRANSIENT:
        generation.pop(key, None)
    tensors = dict(model.state_dict())
    if config.get("tie_word_embeddings"):
        tensors.pop("lm_head.weight", None)
    plan = plan_tensors(tensors)
    with CheckpointWriter(work, config=config, plan=plan, in_place=True) as writer:
        for name in sorted(tensors):
            writer.add(name, tensors[name])
        (work / "generation_config.json").write_text(
            json.dumps(generation, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )


def _repair_tokenizer(path: Path, tokenizer: Any, fields: dict[str, Any]) -> None:
    """Set the pre-tokenizer named by the file, which transformers ignores."""
    if fields.get("tokenizer.ggml.model") != "gpt2":
        return
    named = str(fields.get("tokenizer.ggml.pre", ""))
    if named in _PLAIN_PRETOKENIZERS:
        return
    if named not in _KNOWN_PRETOKENIZERS:
        raise CheckpointError(
            f"{path.name} has the pre-tokenizer '{named:.40}', which is not supported",
            code="checkpoint.gguf-tokenizer",
            where=str(path),
            expected=f"one of: {', '.join(sorted(_KNOWN_PRETOKENIZERS))}",
            next="use the original Hugging Face folder of the model",
        )
    tokenizer.backend_tokenizer.pre_tokenizer = _build_pretokenizer(named)


def _repair_tokenizer_config(work: Path, context_length: int) -> None:
    """Set a class that every supported transformers has, and the real context length."""
    path = work / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("backend", "is_local", "local_files_only", "name_or_path"):
        config.pop(key, None)
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if context_length:
        config["model_max_length"] = context_length
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_card(path: Path, work: Path, fields: dict[str, Any], types: Counter[str]) -> None:
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(types.items()))
    named = str(fields.get("general.name") or path.stem)
    maker = fields.get("general.organization")
    body = (
        f"Dequantized to float32 from `{path.name}` (sha256 `{digest_file(path)}`), whose tensors "
        f"were stored as: {counts}.\n\nThe weights keep the error of that quantization: they are "
        "not the original weights.\n\n"
        f"The file calls the model '{named}'{f' by {maker}' if maker else ''}."
    )
    # The most common quantized type of the tensors.
    quantized = Counter({kind: n for kind, n in types.items() if kind not in {"F32", "F16"}})
    tags = [f"{DEQUANTIZED}{quantized.most_common(1)[0][0].lower()}"] if quantized else []
    write_card(
        work, named, body, license=str(fields.get("general.license") or ""), tags=["gguf", *tags]
    )


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Suppress progress bars and log messages of the loader."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # transformers' own
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers' own
    try:
        # The loader has a progress bar that no setting turns off.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # transformers' own


_MAX_TENSORS = 1 << 14  # a layer's experts are one tensor in GGUF: large models have 2,000
_MAX_KEYS = 1 << 12
_MAX_ELEMENTS = 1 << 22  # a vocabulary of 256,000 with scores, types and merges has 1,300,000
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9


def check_gguf(path: Path) -> dict[str, str]:
    """Return the keys of a GGUF file's metadata; the chat templates with their text.

    Raises:
        CheckpointError: If the header is truncated or claims implausible sizes.
    """
    with path.open("rb") as file:
        if path.stat().st_size < 24:
            raise _broken_gguf_error(path, "is too short for a GGUF file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            try:
                return _walk(path, view)
            except (struct.error, OverflowError) as error:  # read beyond the end
                raise _broken_gguf_error(path, "ends within its header") from error


def _walk(path: Path, view: mmap.mmap) -> dict[str, str]:
    magic, version, tensors, keys = struct.unpack_from("<4sIQQ", view)
    if magic != b"GGUF":
        raise _broken_gguf_error(path, "does not start like a GGUF file")
    if version not in {2, 3}:  # version 1 used 32-bit counts
        raise _broken_gguf_error(path, f"has version {version}; versions 2 and 3 are supported")
    for count, limit, label in ((tensors, _MAX_TENSORS, "tensors"), (keys, _MAX_KEYS, "keys")):
        if count > limit:
            raise _broken_gguf_error(path, f"claims {count} {label}, over {limit}")
    offset, elements = 24, 0
    texts = {}
    for _ in range(keys):
        start, offset = offset + 8, _skip_string(view, offset)
        name = view[start:offset].decode("utf-8", "replace")
        (kind,) = struct.unpack_from("<I", view, offset)
        start, (offset, count) = offset + 12, _skip_value(path, view, offset + 4, kind)
        is_template = kind == _STRING and name.startswith("tokenizer.chat_template")
        texts[name] = view[start:offset].decode("utf-8", "replace") if is_template else ""
        elements += count
        if elements > _MAX_ELEMENTS:
            raise _broken_gguf_error(path, f"claims arrays of more than {_MAX_ELEMENTS} elements")
    return texts


def _skip_value(path: Path, view: mmap.mmap, offset: int, kind: int) -> tuple[int, int]:
    """Return the end of the value at an offset, and its number of elements."""
    if kind == _STRING:
        return _skip_string(view, offset), 1
    if kind in _SIZES:
        return offset + _SIZES[kind], 1
    if kind != _ARRAY:
        raise _broken_gguf_error(path, f"contains a value of unknown type {kind}")
    inner, count = struct.unpack_from("<IQ", view, offset)
    offset += 12
    if inner in _SIZES:
        return offset + count * _SIZES[inner], count
    if inner != _STRING or count > _MAX_ELEMENTS:
        raise _broken_gguf_error(path, f"contains an array of {count} values of type {inner}")
    for _ in range(count):
        offset = _skip_string(view, offset)
    return offset, count


def _skip_string(view: mmap.mmap, offset: int) -> int:
    (length,) = struct.unpack_from("<Q", view, offset)
    return offset + 8 + int(length)


def _broken_gguf_error(path: Path, problem: str) -> CheckpointError:
    """Return the error for a GGUF file that cannot be read."""
    return CheckpointError(
        f"{path.name} {problem}",
        code="checkpoint.gguf",
        where=str(path),
        expected="a complete GGUF file of an architecture that transformers can load",
        next="download the file again, or use the model's Hugging Face folder",
    )


_DIGITS = {"smollm", "refact", "codeshell", "starcoder", "command-r", "exaone", "minerva-7b"}

_PLAIN_PRETOKENIZERS = frozenset(
    {"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "default", ""}
)

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

_REGEXES = {
    "llama-bpe": _CONTRACTIONS + _WORDS % "{1,3}",
    "llama3": _CONTRACTIONS + _WORDS % "{1,3}",
    "qwen2": _CONTRACTIONS + _WORDS % "",
    "deepseek-r1-qwen": _CONTRACTIONS + _WORDS % "",
}

_KNOWN_PRETOKENIZERS = frozenset(_DIGITS | (_PLAIN_PRETOKENIZERS - {""}) | set(_REGEXES))


def _build_pretokenizer(name: str) -> Any:
    """Return the pre-tokenizer of a rule in ``_KNOWN_PRETOKENIZERS``; None for a plain one."""
    from tokenizers import Regex, pre_tokenizers

    if name in _PLAIN_PRETOKENIZERS:
        return None
    if name in _DIGITS:
        first: Any = pre_tokenizers.Digits(individual_digits=True)
        second = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    else:
        first = pre_tokenizers.Split(Regex(_REGEXES[name]), behavior="isolated")
        second = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([first, second])


def detect_pretokenizer(pre_tokenizer: Mapping[str, Any] | None) -> str:
    """Return GGUF's name of the pre-tokenizer in tokenizer.json; empty if it has none."""
    steps = [_shorten(step) for step in _flatten(pre_tokenizer)]
    named = {
        ("bytes+words",): "gpt-2",
        ("digits", "bytes+words"): "smollm",
        (f"split {_REGEXES['llama-bpe']}", "bytes"): "llama-bpe",
        (f"split {_REGEXES['qwen2']}", "bytes"): "qwen2",
    }
    return named.get(tuple(steps), "")


def _flatten(step: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if not step:
        return []
    if step.get("type") == "Sequence":
        return [inner for child in step.get("pretokenizers", ()) for inner in _flatten(child)]
    return [step]


def _shorten(step: Mapping[str, Any]) -> str:
    kind = step.get("type")
    if kind == "ByteLevel" and not step.get("add_prefix_space", True):
        return "bytes+words" if step.get("use_regex", True) else "bytes"
    if kind == "Digits" and step.get("individual_digits"):
        return "digits"
    pattern = step.get("pattern") or {}
    is_isolated = str(step.get("behavior", "")).lower() == "isolated" and not step.get("invert")
    if kind == "Split" and is_isolated and "Regex" in pattern:
        return f"split {pattern['Regex']}"
    return f"unknown {kind}"


DEQUANTIZED = "dequantized-from-"
