"""GGUF files as Hugging Face folders: dequantized once, kept by digest.

Tensors and architecture go through transformers' GGUF loader (which undoes the row permutation of q
and k); tied embeddings stay tied. What that loader loses is mended here: the pre-tokenizer that the
file names, and the license. A dequantized weight is still a quantized one: the card says which.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stillroom.checkpoints.card import write_card
from stillroom.checkpoints.checkpoint import DEQUANTIZED
from stillroom.checkpoints.digests import cache_folder
from stillroom.checkpoints.gguf_header import broken_gguf, check_gguf
from stillroom.checkpoints.splitting import KNOWN_RULES, PLAIN_RULES, split_as
from stillroom.errors import CheckpointError, MissingExtraError
from stillroom.jobs import replace_folder, sync_folder
from stillroom.jobs.files import full_disk_as_error
from stillroom.provenance import digest_file

__all__ = ["dequantize_gguf"]

_FORMAT = 1  # raise it when the conversion changes, so that old conversions are made anew
_TRANSIENT = ("transformers_version", "_from_model_config")


def dequantize_gguf(path: Path, cache: Path | None = None) -> Path:
    """Return a folder with the float32 weights, tokenizer and config of a GGUF file.

    The folder is named by the file's digest and made once; a kill while it is made leaves nothing
    that could be taken for it.

    Args:
        path: The GGUF file.
        cache: Where to keep the folder; default the user's cache folder.

    Raises:
        CheckpointError: If the file is broken, or its architecture or tokenizer is not known.
        MissingExtraError: If the package gguf or accelerate is not installed.
        ResourceError: If the disk is full.
    """
    for package in ("gguf", "accelerate"):  # transformers' loader wants both
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
    """Return the file's plain fields, and how many tensors have which type."""
    from gguf import GGUFReader

    check_gguf(path)
    try:
        reader = GGUFReader(path)
        wanted = ("general.", "tokenizer.ggml.pre", "tokenizer.ggml.model")
        fields = {
            name: field.contents()
            for name, field in reader.fields.items()
            if name.startswith(wanted)
        }
        types = Counter(tensor.tensor_type.name for tensor in reader.tensors)
    except Exception as error:  # the reader raises whatever a broken file makes it
        raise broken_gguf(path, f"cannot be read as GGUF: {error!s:.160}") from error
    if not types:
        raise broken_gguf(path, "holds no tensors")
    return fields, types


def _convert(path: Path, work: Path, fields: dict[str, Any]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _quiet_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                str(path.parent), gguf_file=path.name, local_files_only=True
            )
            model = AutoModelForCausalLM.from_pretrained(
                str(path.parent), gguf_file=path.name, dtype=torch.float32, local_files_only=True
            )
        except Exception as error:  # the loader raises many kinds for a bad file
            raise broken_gguf(path, f"cannot be converted: {error!s:.160}") from error
        _mend_tokenizer(path, tokenizer, fields)
        tokenizer.save_pretrained(work)
    _mend_tokenizer_config(work, int(getattr(model.config, "max_position_embeddings", 0)))
    _save(model, work)


def _save(model: Any, work: Path) -> None:
    from stillroom.checkpoints.writer import CheckpointWriter, plan_tensors

    config = model.config.to_diff_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path", *_TRANSIENT):
        config.pop(key, None)
    config["architectures"] = [type(model).__name__]
    config["tie_word_embeddings"] = bool(model.config.tie_word_embeddings)
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:  # where transformers 4 looks for it
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


def _mend_tokenizer(path: Path, tokenizer: Any, fields: dict[str, Any]) -> None:
    """Set the pre-tokenizer the file names; transformers gives every such file a plain one."""
    if fields.get("tokenizer.ggml.model") != "gpt2":
        return
    named = str(fields.get("tokenizer.ggml.pre", ""))
    if named in PLAIN_RULES:
        return
    if named not in KNOWN_RULES:
        raise CheckpointError(
            f"{path.name} splits words by the rule '{named:.40}', which is not known here",
            code="checkpoint.gguf-tokenizer",
            where=str(path),
            expected=f"one of: {', '.join(sorted(KNOWN_RULES))}",
            next="use the original Hugging Face folder of the model",
        )
    tokenizer.backend_tokenizer.pre_tokenizer = split_as(named)


def _mend_tokenizer_config(work: Path, context_length: int) -> None:
    """Name a class that every supported transformers knows, and the real context length."""
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
    # Which weights most of the numbers come from: the type of most tensors that is quantized.
    quantized = Counter({kind: n for kind, n in types.items() if kind not in {"F32", "F16"}})
    tags = [f"{DEQUANTIZED}{quantized.most_common(1)[0][0].lower()}"] if quantized else []
    write_card(
        work, named, body, license=str(fields.get("general.license") or ""), tags=["gguf", *tags]
    )


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep progress bars and notices of the loader off the terminal."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # transformers' own
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers' own
    try:
        # Its loader draws a bar of its own that no setting turns off.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # transformers' own
