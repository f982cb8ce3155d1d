"""Loading of causal language models: device, dtype, tokenizer, and EOS (``find_end_tokens``).

Never runs code from a checkpoint's folder and never loads pickled weights. Headers are validated
first, as they may be hostile. Quantized models are loaded by transformers if its library and device
are available; otherwise Stillroom dequantizes them.

``read_tensor_shapes`` builds models on torch's meta device, without allocation, for plans made
before weights are downloaded or converted.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from stillroom.checkpoints import Checkpoint, dequantize_gguf
from stillroom.checkpoints.config_file import read_config
from stillroom.checkpoints.gguf import check_gguf
from stillroom.checkpoints.safetensors_format import read_header
from stillroom.errors import CheckpointError, RecipeError
from stillroom.models.hub import read_backend_name
from stillroom.models.local.runtime import silence_transformers
from stillroom.models.tokenization.growth import check_growth
from stillroom.text.unicode import replace_surrogates

__all__ = [
    "build_causal_lm",
    "choose_device",
    "choose_dtype",
    "find_end_tokens",
    "fix_rope",
    "has_kv_cache_only",
    "load_causal_lm",
    "load_model_only",
    "load_pretrained",
    "load_tokenizer",
    "outline_model",
    "read_tensor_shapes",
    "resolve_config",
]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LAYER_KEYS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
_PLAUSIBLE_LAYERS = 1000
_TEXT_ARGUMENTS = frozenset({"text", "text_pair", "pair"})  # of tokenizers
_BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")


def choose_device(device: str = "auto") -> torch.device:
    """Return the device by name; ``auto`` is the best one available.

    Raises:
        RecipeError: If the device is not available.
    """
    if device != "auto":
        return _find_device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def _find_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)  # a valid name may have no device
    except (RuntimeError, AssertionError) as error:
        there = ["cpu"]
        there += ["cuda"] if torch.cuda.is_available() else []
        there += ["mps"] if torch.backends.mps.is_available() else []
        raise RecipeError(
            f"device {name!r} is not available",
            code="recipe.device",
            expected=f"auto, or one of: {', '.join(there)}",
            next="use device auto",
        ) from error
    return device


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the dtype by name; ``auto`` is bfloat16 where the device supports it natively.

    Raises:
        CheckpointError: If the dtype is unknown.
    """
    if dtype in _DTYPES:
        return _DTYPES[dtype]
    if dtype != "auto":
        raise CheckpointError(
            f"unknown dtype {dtype!r}",
            code="checkpoint.dtype",
            expected=f"auto, {', '.join(_DTYPES)}",
            next="use dtype auto",
        )
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if device.type == "cpu" and _has_cpu_bf16() else torch.float32


def load_causal_lm(
    path: Path, *, dtype: str = "auto", device: str = "auto", backend: str = ""
) -> tuple[Any, Any]:
    """Load a model, as ``load_model_only`` does, and its tokenizer.

    Returns:
        The model and the tokenizer, which has a padding token and pads on the left.

    Raises:
        CheckpointError: If either cannot be loaded safely.
        RecipeError: If the device is not available.
    """
    folder = dequantize_gguf(path) if path.suffix == ".gguf" else path
    model = load_model_only(folder, dtype=dtype, device=device, backend=backend)
    return model, load_tokenizer(folder)


def load_model_only(
    path: Path, *, dtype: str = "auto", device: str = "auto", backend: str = ""
) -> Any:
    """Load a model from a Hugging Face folder or a ``.gguf`` file; its tokenizer is not opened.

    The model is in evaluation mode. GGUF files are dequantized once and cached; quantized folders
    are dequantized if transformers lacks the library.

    Args:
        path: A folder with config.json and safetensors, or a ``.gguf`` file.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        backend: Calling backend. A checkpoint with another one in its config.json is refused: as an
            autoregressive model all its results would be wrong.

    Returns:
        A transformers PreTrainedModel.

    Raises:
        CheckpointError: If the folder has no model that can be loaded safely, a tensor is missing,
            unexpected or misshapen, another backend is required, or the quantization is unknown.
        RecipeError: If the device is not available.
    """
    from transformers import AutoModelForCausalLM

    folder = dequantize_gguf(path) if path.suffix == ".gguf" else path
    _check_folder(folder)
    _check_backend(folder, backend)
    target = choose_device(device)
    torch_dtype = choose_dtype(dtype, target)
    with silence_transformers():
        try:
            model, report = load_pretrained(
                AutoModelForCausalLM,
                folder,
                dtype=torch_dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that all are listed below
            )
        except CheckpointError:
            raise
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            raise _unloadable_error(folder, error) from error
        # Missing, unexpected and misshapen tensors of a loading report. Transformers initializes
        # missing ones at random with a warning; such a model generates text, and all of it is
        # wrong.
        problems = [f"'{name}' is missing" for name in sorted(report["missing_keys"])]
        problems += [f"'{name}' is unexpected" for name in sorted(report["unexpected_keys"])]
        for name, shape, expected in sorted(report["mismatched_keys"]):
            problems.append(f"'{name}' has shape {tuple(shape)}, not {tuple(expected)}")
        _refuse_mismatched(problems, str(folder))
    model.eval()
    return model.to(target)


def fix_rope(model: Any, length: int) -> None:
    """Fix the rotary frequencies that a model would change with the length of what it reads.

    With ``dynamic`` and ``longrope`` scaling, transformers chooses them in every forward pass by
    the longest row. A text would then depend on the texts beside it and before it, and keys of a
    prompt's first block would have other frequencies than those of its last.

    Source: Ding et al. 2024, "LongRoPE", arXiv:2402.13753; Peng et al. 2023, "YaRN",
    arXiv:2309.00071 (dynamic NTK). As in llama.cpp, the context length decides for all texts.

    Args:
        model: A transformers PreTrainedModel; changed in place.
        length: Context length in tokens.
    """
    states = torch.zeros(1, dtype=model.dtype, device=model.device)
    last = torch.tensor([[length - 1]], device=model.device)
    for module in model.modules():
        scaling = getattr(module, "rope_type", None)
        if isinstance(scaling, str) and _has_varying_frequencies(scaling):
            module(states, last)
            module.rope_type = "fixed"
        elif isinstance(scaling, dict):
            for layer_type in filter(lambda kind: _has_varying_frequencies(scaling[kind]), scaling):
                module(states, last, layer_type)
            module.rope_type = dict.fromkeys(scaling, "fixed")


def has_kv_cache_only(model: Any) -> bool:
    """Return whether all that a transformers model remembers of a text is keys and values."""
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    plain = DynamicLayer, DynamicSlidingWindowLayer
    layers = DynamicCache(config=model.config).layers
    return not getattr(model, "_is_stateful", False) and all(type(at) in plain for at in layers)


def _has_varying_frequencies(rope_type: str) -> bool:
    return "dynamic" in rope_type or rope_type == "longrope"


def build_causal_lm(
    config: Mapping[str, Any],
    names: Iterable[str],
    tensor: Callable[[str], torch.Tensor],
    *,
    where: str,
    head_bias: bool = False,
    dtype: str = "auto",
    device: str = "auto",
) -> Any:
    """Build a stock model from its config and copy tensors with other names on disk.

    Args:
        config: Values of config.json, ``model_type`` included.
        names: Available tensors, by the stock model's names; the output embedding is ``lm_head`` in
            any version of transformers.
        tensor: Returns a tensor by name, of any float dtype.
        where: Checkpoint path, for errors.
        head_bias: Add a bias to the output embedding.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.

    Returns:
        The model in evaluation mode.

    Raises:
        CheckpointError: If tensors are missing, unexpected or misshapen; lists them.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    target, builder = choose_device(device), cast("Any", AutoModelForCausalLM)
    with silence_transformers():
        try:
            model_config = AutoConfig.for_model(**config)
            model: Any = builder.from_config(model_config, dtype=choose_dtype(dtype, target))
            if head_bias:
                head = model.get_output_embeddings()
                model.set_output_embeddings(_add_bias(head))
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise _unloadable_error(Path(where), error) from error
    parameters = _parameters_by_name(model)
    available = set(names)
    problems = [f"'{name}' is missing" for name in sorted(set(parameters) - available)]
    problems += [f"'{name}' is unexpected" for name in sorted(available - set(parameters))]
    with torch.no_grad():
        for name in sorted(available & set(parameters)):
            value = tensor(name)
            if value.shape != parameters[name].shape:
                shapes = f"{tuple(value.shape)}, not {tuple(parameters[name].shape)}"
                problems.append(f"'{name}' has shape {shapes}")
            elif not problems:
                parameters[name].copy_(value)
    _refuse_mismatched(problems, where)
    model.eval()
    return model.to(target)


_TOO_LONG = "sequence-length-is-longer-than-the-specified-maximum"


def load_tokenizer(folder: Path) -> Any:
    """Load a folder's tokenizer; it pads on the left and always has a padding token.

    Unpaired surrogates, which no tokenizer accepts, are replaced by U+FFFD.

    Raises:
        CheckpointError: If the folder has no tokenizer, or one that multiplies a text.
    """
    from transformers import AutoTokenizer

    for file in folder.glob("tokenizer*.json"):  # a config may name tokenizer.VERSION.json
        check_growth(file)
    with silence_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True, padding_side="left"
            )
        except Exception as error:  # foreign files may fail in any way
            raise _unloadable_error(folder, error) from error
    if not (folder / "tokenizer.json").is_file() and hasattr(tokenizer, "backend_tokenizer"):
        check_growth(tokenizer.backend_tokenizer.to_str())  # made from tokenizer.model
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    # a text is cut, refused or counted where it is used: the tokenizer's own warning of "indexing
    # errors" is false there
    tokenizer.deprecation_warnings[_TOO_LONG] = True
    kind: Any = type(tokenizer)
    tokenizer.__class__ = _tolerate_surrogates(kind)
    return tokenizer


@functools.cache
def _tolerate_surrogates(kind: Any) -> Any:
    """Return a subclass of a tokenizer class that accepts unpaired surrogates.

    It has the name of the base class, under which tokenizers are saved. Pickles store the base
    class, and restore the subclass.
    """

    def reduce(self: Any, protocol: Any) -> tuple[Any, ...]:
        _, _, *state = kind.__reduce_ex__(self, protocol)
        return _blank_tokenizer, (kind,), *state

    methods = {name: _tolerant_method(getattr(kind, name)) for name in ("_encode_plus", "tokenize")}
    more = {"__reduce_ex__": reduce, "__module__": kind.__module__}
    return type(kind.__name__, (kind,), {**methods, **more})


def _tolerant_method(method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a method that all ways of encoding call, replacing unpaired surrogates."""

    @functools.wraps(method)
    def read(self: Any, *texts: Any, **settings: Any) -> Any:
        settings |= {
            name: replace_surrogates(settings[name]) for name in _TEXT_ARGUMENTS & set(settings)
        }
        try:
            return method(self, *map(replace_surrogates, texts), **settings)
        except BaseException as error:
            # The engine of patterns panics, which is no Exception, where it gives up backtracking.
            if type(error).__name__ != "PanicException":
                raise
            raise CheckpointError(
                f"the tokenizer gives up on a text: {str(error)[:200]}",
                code="checkpoint.unloadable",
                where=str(getattr(self, "name_or_path", "")),
                expected="patterns in tokenizer.json that every text comes to an end with",
                next="use tokenizer.json of the base model, and distrust the checkpoint",
            ) from error

    return read


def _blank_tokenizer(kind: Any) -> Any:
    """Return an empty tokenizer for unpickling."""
    subclass: Any = _tolerate_surrogates(kind)
    return subclass.__new__(subclass)


def resolve_config(folder: Path) -> dict[str, Any]:
    """Return a folder's config.json with all values derived by its architecture.

    Raises:
        CheckpointError: If transformers does not support the architecture.
    """
    from transformers import AutoConfig

    with silence_transformers():
        try:
            config: Any = AutoConfig.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
            )
        except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError) as error:
            raise _unloadable_error(folder, error) from error
    return dict(config.to_dict())


def find_end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return all end tokens (EOS), of the tokenizer and of the model's configs."""
    ends: set[int] = set()
    for setting in (
        tokenizer.eos_token_id,
        getattr(model.generation_config, "eos_token_id", None),
        getattr(model.config, "eos_token_id", None),
    ):
        if isinstance(setting, int):
            ends.add(setting)
        elif isinstance(setting, list | tuple):
            ends.update(int(token) for token in setting)
    return frozenset(ends)


def _refuse_mismatched(problems: list[str], where: str) -> None:
    if not problems:
        return
    shown = ", ".join(problems[:6])
    more = f" and {len(problems) - 6} more" if len(problems) > 6 else ""
    raise CheckpointError(
        f"the tensors do not match the architecture: {shown}{more}",
        code="checkpoint.tensors",
        where=where,
        expected="all tensors of the architecture, and no others",
        next="check that the download is complete and has the right config.json",
    )


def _parameters_by_name(model: Any) -> dict[str, torch.nn.Parameter]:
    """Return a model's parameters by name, tied ones once; the head's as ``lm_head``."""
    head = model.get_output_embeddings()
    head_name = next((name for name, module in model.named_modules() if module is head), "lm_head")
    return {
        f"lm_head{name.removeprefix(head_name)}"
        if name.startswith(f"{head_name}.")
        else name: parameter
        for name, parameter in model.named_parameters()
    }


def _add_bias(head: torch.nn.Linear) -> torch.nn.Linear:
    """Return a copy of an output embedding with a zero bias."""
    biased = torch.nn.Linear(head.in_features, head.out_features, dtype=head.weight.dtype)
    with torch.no_grad():
        biased.weight.copy_(head.weight)
        biased.bias.zero_()
    return biased


def _check_folder(folder: Path) -> None:
    config = folder / "config.json"
    if not config.is_file():
        raise CheckpointError(
            f"{folder} has no config.json",
            code="checkpoint.not-a-checkpoint",
            expected="a Hugging Face folder with config.json and *.safetensors, or a .gguf file",
            next=f"ls {folder}",
        )
    if files := sorted(folder.glob("*.safetensors")):
        _check_layers(config, files)
        return
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    raise CheckpointError(
        f"{folder} has no *.safetensors" + (f", only {pickles[0]}" if pickles else ""),
        code="checkpoint.pickle" if pickles else "checkpoint.not-a-checkpoint",
        expected="weights in safetensors: pickled weights can run code when loaded",
        next="convert the checkpoint to safetensors",
    )


def _check_layers(config: Path, files: Sequence[Path]) -> None:
    """Refuse a config of more layers than there are tensors, before any layer is made."""
    try:
        values = read_config(config)
    except (OSError, ValueError, CheckpointError):
        return  # transformers names the problem
    layers = max((n for key in _LAYER_KEYS if isinstance(n := values.get(key), int)), default=0)
    if layers > _PLAUSIBLE_LAYERS and layers > (count := sum(len(read_header(f)) for f in files)):
        raise CheckpointError(
            f"config.json claims {layers} layers; the weights have {count} tensors",
            code="checkpoint.unloadable",
            where=str(config),
            expected="at least one tensor a layer",
            next="download config.json again, and distrust the checkpoint",
        )


def _check_backend(folder: Path, backend: str) -> None:
    named = read_backend_name(folder)
    if named and named != backend:
        raise CheckpointError(
            f"this is not an autoregressive model: it requires backend '{named}'",
            code="checkpoint.other-backend",
            where=str(folder / "config.json"),
            expected="a causal language model",
            next="use it as a model (serve, synth, rag, evaluate), or the commands of its kind: "
            f"stillroom {named} --help",
        )


def _unloadable_error(folder: Path, error: Exception) -> CheckpointError:
    kind = ""
    try:
        config = read_config(folder / "config.json")
        kind = str(config.get("model_type", ""))
    except (OSError, ValueError):
        pass
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return CheckpointError(
        f"{folder} cannot be loaded: {first}",
        code="checkpoint.unloadable",
        expected="an architecture of transformers that needs no custom code"
        + (f" (model_type is '{kind}')" if kind else ""),
        next="check that the folder is complete and transformers is recent enough",
    )


@functools.cache
def _has_cpu_bf16() -> bool:
    """Return whether the CPU multiplies bfloat16 in hardware (otherwise float32 is faster)."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    lines = [line for line in text.splitlines() if line.lower().startswith(("flags", "features"))]
    words = set(lines[0].split()) if lines else set()
    return any(flag in words for flag in _BF16_FLAGS)


def outline_model(config: Path) -> tuple[Any, torch.nn.Module]:
    """Return a config and its model on the meta device, without weights.

    Args:
        config: A ``config.json``, or a ``.gguf`` file, of which only the metadata is read.

    Raises:
        CheckpointError: If transformers does not support the architecture, or the file's header is
            implausible.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    gguf = {"gguf_file": config.name} if config.suffix == ".gguf" else {}
    if gguf:
        check_gguf(config)
    with silence_transformers():
        try:
            model_config: Any = AutoConfig.from_pretrained(
                config.parent, trust_remote_code=False, local_files_only=True, **gguf
            )
            with torch.device("meta"):
                maker: Any = AutoModelForCausalLM
                model = maker.from_config(model_config, trust_remote_code=False)
        except Exception as error:  # foreign configs may fail in any way
            raise CheckpointError(
                f"transformers cannot build a model from {config}: {error!s:.160}",
                code="checkpoint.unloadable",
                where=str(config),
                expected="the configuration of a causal language model",
                next="update transformers, or use another checkpoint",
            ) from error
    return model_config, model


def read_tensor_shapes(config: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Return a config's values and the shape of every parameter by name; tied ones once.

    Arguments and errors are those of ``outline_model``.
    """
    model_config, model = outline_model(config)
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    return dict(model_config.to_dict()), shapes


def load_pretrained(loader: Any, folder: Path, **settings: Any) -> Any:
    """Call ``from_pretrained`` of a transformers class for a folder.

    Raises:
        CheckpointError: If the weights are corrupt, or their quantization is unknown.
        OSError, ValueError, KeyError, RuntimeError, ImportError: As raised by transformers.
    """
    stored = Checkpoint.open(folder)
    safe = {"trust_remote_code": False, "local_files_only": True}
    try:
        return loader.from_pretrained(folder, use_safetensors=True, **safe, **settings)
    except (ImportError, RuntimeError, ValueError):
        if stored.quantization is None:
            raise
    from transformers import AutoConfig

    config: Any = settings.pop("config", None) or AutoConfig.from_pretrained(folder, **safe)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    if hasattr(loader, "from_config"):  # an Auto class loads from a folder only
        with torch.device("meta"):
            loader = type(loader.from_config(config))
    tensors = {name: stored.tensor(name) for name in stored.names()}
    return loader.from_pretrained(None, config=config, state_dict=tensors, **settings)
