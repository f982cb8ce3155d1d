"""AASIST's published weights, brought into this room's files.

Two of its outputs are one here: their second is bona fide speech, so the logit of forged is the
first less the second; a test holds the result against that. The released code gives each block's
first convolution what came in rather than its activation: so does the imported network.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillroom.errors import DataError
from stillroom.forensics.calibrating import Calibrator
from stillroom.forensics.detecting import About
from stillroom.forensics.method import DETECTORS
from stillroom.forensics.published import keep_published
from stillroom.forensics.waves import RATE
from stillroom.provenance import Artifact

__all__ = ["import_aasist", "translate_aasist"]

_SAMPLES = 64_600
_SPARE = "num_batches_tracked"
_BLOCK = {
    "bn1": "enter",
    "conv1": "first",
    "bn2": "norm",
    "conv2": "second",
    "conv_downsample": "shortcut",
}
_ATTENTION = {
    "att_proj": "compare",
    "att_weight": "weight",
    "proj_with_att": "attended",
    "proj_without_att": "plain",
    "bn": "norm",
}
_JOINT = {
    "proj_type1": "enter.0",
    "proj_type2": "enter.1",
    "att_proj": "compare",
    "att_projM": "compare_master",
    "att_weight11": "weights.0",
    "att_weight22": "weights.1",
    "att_weight12": "weights.2",
    "att_weightM": "weights.3",
    "proj_with_att": "attended",
    "proj_without_att": "plain",
    "proj_with_attM": "master_attended",
    "proj_without_attM": "master_plain",
    "bn": "norm",
}
_WHOLE = {
    "first_bn": "first_norm",
    "pos_S": "places",
    "master1": "masters.0",
    "master2": "masters.1",
    "pool_S.proj": "pool_bands.score",
    "pool_T.proj": "pool_time.score",
    "pool_hS1.proj": "branches.0.pool_bands.score",
    "pool_hT1.proj": "branches.0.pool_time.score",
    "pool_hS2.proj": "branches.1.pool_bands.score",
    "pool_hT2.proj": "branches.1.pool_time.score",
}
_PARTS = {
    "GAT_layer_S": ("over_bands", _ATTENTION),
    "GAT_layer_T": ("over_time", _ATTENTION),
    "HtrgGAT_layer_ST11": ("branches.0.one", _JOINT),
    "HtrgGAT_layer_ST12": ("branches.0.two", _JOINT),
    "HtrgGAT_layer_ST21": ("branches.1.one", _JOINT),
    "HtrgGAT_layer_ST22": ("branches.1.two", _JOINT),
}


def import_aasist(path: Path, out: Path) -> Artifact:
    """Write AASIST's or AASIST-L's published weights as a detector of this program.

    Its scores are raw: no recordings are here to calibrate it on, nor to show that it works, so
    ``check`` calls all it says inconclusive.

    Args:
        path: The ``.pth`` of weights.
        out: The folder to make.

    Raises:
        DataError: If the file does not hold those weights, or ``out`` is taken.
    """
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises of many kinds for a damaged file
        raise _not_aasist(path, f"it cannot be read ({type(error).__name__})") from error
    if not isinstance(stored, Mapping):
        raise _not_aasist(path, "it is no table of tensors")
    state = translate_aasist(stored, path)
    size = "light" if tuple(state["places"].shape) == (1, 23, 24) else "full"
    method = DETECTORS.build({"name": "aasist", "size": size, "as_released": True})
    network = method.build(_SAMPLES)
    own = {
        name: tuple(value.shape)
        for name, value in network.state_dict().items()
        if not name.endswith(_SPARE)
    }
    given = {name: tuple(value.shape) for name, value in state.items()}
    if own != given:
        names = sorted(set(own) ^ set(given)) or [n for n in own if own[n] != given[n]]
        raise _not_aasist(path, f"{names[0]} is {given.get(names[0])}, not {own.get(names[0])}")
    network.load_state_dict(state, strict=False)
    about = About(method, _SAMPLES, RATE, 1.0, Calibrator("none"), faces="as published")
    return keep_published(network.eval(), about, path, out)


def translate_aasist(stored: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Return the network's own tensors by its own names, two outputs made one.

    Raises:
        DataError: If a name is not AASIST's, or one is missing.
    """
    found: dict[str, Tensor] = {}
    for name, value in stored.items():
        if name.endswith(_SPARE) or not isinstance(value, Tensor):
            continue
        own = _translate_name(name)
        if own is None:
            raise _not_aasist(path, f"it holds {name}, which AASIST does not")
        found[own] = value.float()
    try:
        weight, bias = found["head.weight"], found["head.bias"]
        found["places"]
    except KeyError as error:
        raise _not_aasist(path, f"it lacks {error.args[0]}") from error
    if len(weight) != 2:
        raise _not_aasist(path, f"it has {len(weight)} outputs, not two")
    found["head.weight"] = weight[:1] - weight[1:]  # theirs: 0 spoofed, 1 bona fide
    found["head.bias"] = bias[:1] - bias[1:]
    return found


def _translate_name(name: str) -> str | None:
    for theirs, ours in _WHOLE.items():
        if name == theirs or name.startswith(f"{theirs}."):
            return ours + name[len(theirs) :]
    if name.startswith("out_layer."):
        return "head" + name[len("out_layer") :]
    first, _, rest = name.partition(".")
    if first == "encoder":  # encoder.NUMBER.0.PART
        number, _, rest = rest.partition(".0.")
        part, dot, end = rest.partition(".")
        return f"encoder.{number}.{_BLOCK[part]}{dot}{end}" if part in _BLOCK else None
    if first in _PARTS:
        place, table = _PARTS[first]
        part, dot, end = rest.partition(".")
        return f"{place}.{table[part]}{dot}{end}" if part in table else None
    return None


def _not_aasist(path: Path, why: str) -> DataError:
    return DataError(
        f"{path.name} does not hold AASIST's weights: {why}",
        code="forensics.import",
        where=str(path),
        expected="AASIST.pth or AASIST-L.pth as its authors published them",
        next="check which file it is",
    )
