"""Loading of causal language models, their tokenizers, devices, dtypes and tensor shapes.

Never runs code from a checkpoint's folder and never loads pickled weights.

For plans that are made before weights are fetched or converted. Nothing is allocated: the model is
made on torch's meta device.

The headers are looked at first, as hostile as they may be. A model that is quantized is read by
transformers with the library of its kind where that is installed and has the device that it needs;
otherwise its plain tensors are, which Stillroom dequantizes itself.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch

from stillroom.checkpoints import Checkpoint, dequantize_gguf
from stillroom.checkpoints.gguf import check_gguf
from stillroom.errors import CheckpointError, RecipeError
from stillroom.models.hub import read_backend_name
from stillroom.models.local.runtime import silence_transformers
from stillroom.text.unicode import replace_surrogates

__all__ = [
    "build_causal_lm",
    "choose_device",
    "choose_dtype",
    "find_end_tokens",
    "load_causal_lm",
    "load_pretrained",
    "load_tokenizer",
    "read_tensor_shapes",
    "resolve_config",
]


_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


_TEXT_ARGUMENTS = frozenset({"text", "text_pair", "pair"})  # arguments of tokenizers


_BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")


def choose_device(device: str = "auto") -> torch.device:
    """Return the device asked for, or for ``auto`` the best one there is.

    Raises:
        RecipeError: If there is no such device.
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
        found = torch.device(name)
        torch.empty(0, device=found)  # a device may be known by name and not be there
    except (RuntimeError, AssertionError) as error:
        there = ["cpu"]
        there += ["cuda"] if torch.cuda.is_available() else []
        there += ["mps"] if torch.backends.mps.is_available() else []
        raise RecipeError(
            f"there is no device {name!r}",
            code="recipe.device",
            expected=f"auto, or one of: {', '.join(there)}",
            next="use device auto",
        ) from error
    return found


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the dtype asked for; ``auto`` is bfloat16 where the device multiplies it natively.

    Raises:
        CheckpointError: If no such dtype is known.
    """
    if dtype in _DTYPES:
        return _DTYPES[dtype]
    if dtype != "auto":
        raise CheckpointError(
            f"dtype {dtype!r} is not known",
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
    """Load a model and its tokenizer from a Hugging Face folder or a ``.gguf`` file.

    The model comes in evaluation mode. A GGUF file is dequantized once and cached; a quantized
    folder is dequantized where transformers lacks what reads it.

    Args:
        path: A folder with config.json and safetensors, or a ``.gguf`` file.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        backend: The backend that is loading it. A checkpoint that names another in its config.json
            is refused: read as an autoregressive model it would give numbers, all of them wrong.

    Returns:
        The model (a transformers PreTrainedModel) and the tokenizer, which has a padding token
        and pads on the left.

    Raises:
        CheckpointError: If the folder holds no model that can be loaded safely, a tensor is
            missing, left over or of another shape, another backend reads it, or it is quantized in
            a way that is not known.
        RecipeError: If there is no such device.
    """
    from transformers import AutoModelForCausalLM

    folder = dequantize_gguf(path) if path.suffix == ".gguf" else path
    _check_folder(folder)
    _check_backend(folder, backend)
    place = choose_device(device)
    wanted = choose_dtype(dtype, place)
    with silence_transformers():
        try:
            model, report = load_pretrained(
                AutoModelForCausalLM,
                folder,
                dtype=wanted,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that they are named below, all of them
            )
        except CheckpointError:
            raise
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            raise _unloadable_error(folder, error) from error
        _refuse_mismatched(_find_mismatched(report), str(folder))
        tokenizer = load_tokenizer(folder)
    model.eval()
    return model.to(place), tokenizer


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
    """Build a stock model by its config and fill it with tensors that were named otherwise on disk.

    Args:
        config: As config.json says it, ``model_type`` included.
        names: The tensors there are, by the stock model's names; the output embedding is
            ``lm_head`` whatever this version of transformers calls it.
        tensor: Returns one of them, any float type.
        where: Named in errors.
        head_bias: Give the output embedding a bias, where the stock model has none.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.

    Returns:
        The model in evaluation mode.

    Raises:
        CheckpointError: If a tensor is missing, left over or of another shape; every one is named.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    place, builder = choose_device(device), cast("Any", AutoModelForCausalLM)
    with silence_transformers():
        try:
            made = AutoConfig.for_model(**config)
            model: Any = builder.from_config(made, dtype=choose_dtype(dtype, place))
            if head_bias:
                head = model.get_output_embeddings()
                model.set_output_embeddings(_add_bias(head))
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise _unloadable_error(Path(where), error) from error
    own = _parameters_by_name(model)
    given = set(names)
    problems = [f"'{name}' is missing" for name in sorted(set(own) - given)]
    problems += [f"'{name}' has no place" for name in sorted(given - set(own))]
    with torch.no_grad():
        for name in sorted(given & set(own)):
            found = tensor(name)
            if found.shape != own[name].shape:
                shapes = f"{tuple(found.shape)}, not {tuple(own[name].shape)}"
                problems.append(f"'{name}' has shape {shapes}")
            elif not problems:
                own[name].copy_(found)
    _refuse_mismatched(problems, where)
    model.eval()
    return model.to(place)


def load_tokenizer(folder: Path) -> Any:
    """Load a folder's tokenizer; it pads on the left and always has a padding token.

    Half a surrogate pair, which no tokenizer takes, is read as U+FFFD.

    Raises:
        CheckpointError: If the folder holds no tokenizer.
    """
    from transformers import AutoTokenizer

    with silence_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True, padding_side="left"
            )
        except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError) as error:
            raise _unloadable_error(folder, error) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    kind: Any = type(tokenizer)
    tokenizer.__class__ = _tolerate_surrogates(kind)
    return tokenizer


@functools.cache
def _tolerate_surrogates(kind: Any) -> Any:
    """Return a tokenizer's class whose texts may hold half a surrogate pair.

    It has the name of the other: a tokenizer that is saved is named by it. Pickles hold the other,
    and make this one of it again.
    """

    def reduce(self: Any, protocol: Any) -> tuple[Any, ...]:
        _, _, *state = kind.__reduce_ex__(self, protocol)
        return _blank_tokenizer, (kind,), *state

    own = {name: _tolerant_method(getattr(kind, name)) for name in ("_encode_plus", "tokenize")}
    more = {"__reduce_ex__": reduce, "__module__": kind.__module__}
    return type(kind.__name__, (kind,), {**own, **more})


def _tolerant_method(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return one of the methods that all ways to encode come to, without halves of characters."""

    @functools.wraps(method)
    def read(self: Any, *texts: Any, **settings: Any) -> Any:
        settings |= {
            name: replace_surrogates(settings[name]) for name in _TEXT_ARGUMENTS & set(settings)
        }
        return method(self, *map(replace_surrogates, texts), **settings)

    return read


def _blank_tokenizer(kind: Any) -> Any:
    """Return a tokenizer for a pickle to fill."""
    made: Any = _tolerate_surrogates(kind)
    return made.__new__(made)


def resolve_config(folder: Path) -> dict[str, Any]:
    """Return what a folder's config.json says, with all that its architecture derives from it.

    Raises:
        CheckpointError: If no architecture of transformers reads it.
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
    """Return every token that ends a completion: tokenizer and configurations may name several."""
    found: set[int] = set()
    for given in (
        tokenizer.eos_token_id,
        getattr(model.generation_config, "eos_token_id", None),
        getattr(model.config, "eos_token_id", None),
    ):
        if isinstance(given, int):
            found.add(given)
        elif isinstance(given, list | tuple):
            found.update(int(token) for token in given)
    return frozenset(found)


def _find_mismatched(report: Mapping[str, Any]) -> list[str]:
    """Return what transformers says of tensors that it drew at random, left out or could not use.

    It draws what is missing and says so in a warning; such a model writes, and all of it is wrong.
    """
    problems = [f"'{name}' is missing" for name in sorted(report["missing_keys"])]
    problems += [f"'{name}' has no place" for name in sorted(report["unexpected_keys"])]
    for name, found, wanted in sorted(report["mismatched_keys"]):
        problems.append(f"'{name}' has shape {tuple(found)}, not {tuple(wanted)}")
    return problems


def _refuse_mismatched(problems: list[str], where: str) -> None:
    if not problems:
        return
    shown = ", ".join(problems[:6])
    more = f" and {len(problems) - 6} more" if len(problems) > 6 else ""
    raise CheckpointError(
        f"the tensors do not fit the architecture: {shown}{more}",
        code="checkpoint.tensors",
        where=where,
        expected="every tensor of the architecture, once, and no other",
        next="check that the download is complete and that its config.json belongs to it",
    )


def _parameters_by_name(model: Any) -> dict[str, torch.nn.Parameter]:
    """Return a model's parameters by name, tied ones once; those of the head as ``lm_head``."""
    head = model.get_output_embeddings()
    own = next((name for name, module in model.named_modules() if module is head), "lm_head")
    return {
        f"lm_head{name.removeprefix(own)}" if name.startswith(f"{own}.") else name: parameter
        for name, parameter in model.named_parameters()
    }


def _add_bias(head: torch.nn.Linear) -> torch.nn.Linear:
    """Return an output embedding like this one, with a bias of 0."""
    made = torch.nn.Linear(head.in_features, head.out_features, dtype=head.weight.dtype)
    with torch.no_grad():
        made.weight.copy_(head.weight)
        made.bias.zero_()
    return made


def _check_folder(folder: Path) -> None:
    config = folder / "config.json"
    if not config.is_file():
        raise CheckpointError(
            f"{folder} holds no config.json",
            code="checkpoint.not-a-checkpoint",
            expected="a Hugging Face folder with config.json and *.safetensors, or a .gguf file",
            next=f"ls {folder}",
        )
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    raise CheckpointError(
        f"{folder} holds no *.safetensors" + (f", only {pickles[0]}" if pickles else ""),
        code="checkpoint.pickle" if pickles else "checkpoint.not-a-checkpoint",
        expected="weights in safetensors: pickled weights can run code when loaded",
        next="convert the checkpoint to safetensors",
    )


def _check_backend(folder: Path, backend: str) -> None:
    named = read_backend_name(folder)
    if named and named != backend:
        raise CheckpointError(
            f"this is no autoregressive model: it is read by backend '{named}'",
            code="checkpoint.other-backend",
            where=str(folder / "config.json"),
            expected="a causal language model",
            next="ask it as a model (serve, synth, rag, evaluate), or use the commands of its own "
            f"kind: stillroom {named} --help",
        )


def _unloadable_error(folder: Path, error: Exception) -> CheckpointError:
    kind = ""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = str(config.get("model_type", ""))
    except (OSError, ValueError):
        pass
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return CheckpointError(
        f"{folder} cannot be loaded: {first}",
        code="checkpoint.unloadable",
        expected="an architecture of transformers that needs no code of its own"
        + (f" (this one says '{kind}')" if kind else ""),
        next="check that the folder is complete and that transformers is new enough",
    )


@functools.cache
def _has_cpu_bf16() -> bool:
    """Whether the processor multiplies bfloat16 in hardware (without it, float32 is faster)."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    lines = [line for line in text.splitlines() if line.lower().startswith(("flags", "features"))]
    words = set(lines[0].split()) if lines else set()
    return any(flag in words for flag in _BF16_FLAGS)


def read_tensor_shapes(config: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Return what a configuration says, and the shape of every tensor by name; tied ones once.

    Args:
        config: A ``config.json``, or a ``.gguf`` file, of which only the metadata is read.

    Raises:
        CheckpointError: If no architecture of transformers reads it, or the file claims more than
            any model has.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    gguf = {"gguf_file": config.name} if config.suffix == ".gguf" else {}
    if gguf:
        check_gguf(config)
    with silence_transformers():
        try:
            found: Any = AutoConfig.from_pretrained(
                config.parent, trust_remote_code=False, local_files_only=True, **gguf
            )
            with torch.device("meta"):
                maker: Any = AutoModelForCausalLM
                model = maker.from_config(found, trust_remote_code=False)
        except Exception as error:  # a configuration from elsewhere may break in any way
            raise CheckpointError(
                f"{config} describes no model that transformers makes: {error!s:.160}",
                code="checkpoint.unloadable",
                where=str(config),
                expected="the configuration of a causal language model",
                next="update transformers, or use another checkpoint",
            ) from error
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    return dict(found.to_dict()), shapes


def load_pretrained(loader: Any, folder: Path, **settings: Any) -> Any:
    """Return what ``from_pretrained`` of a class of transformers gives for a folder.

    Args:
        loader: The class, such as AutoModel.
        folder: With config.json and safetensors; no code of its own is run, no pickle read.
        settings: Passed on.

    Raises:
        CheckpointError: If the weights are broken, or quantized in a way that neither an installed
            library nor Stillroom reads.
        OSError, ValueError, KeyError, RuntimeError, ImportError: As transformers raises them.
    """
    stored = Checkpoint.open(folder)
    safe = {"trust_remote_code": False, "local_files_only": True}
    try:
        return loader.from_pretrained(folder, use_safetensors=True, **safe, **settings)
    except (ImportError, RuntimeError, ValueError):
        if stored.quantization is None:
            raise
    import torch
    from transformers import AutoConfig

    config: Any = settings.pop("config", None) or AutoConfig.from_pretrained(folder, **safe)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    if hasattr(loader, "from_config"):  # a class that chooses another takes a folder alone
        with torch.device("meta"):
            loader = type(loader.from_config(config))
    tensors = {name: stored.tensor(name) for name in stored.names()}
    return loader.from_pretrained(None, config=config, state_dict=tensors, **settings)
