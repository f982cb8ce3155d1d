"""Published weights of detectors, brought into this room's files.

Meso4's come from Keras: kernels lie height, width, in, out; dense kernels in, out; the output is 1
for real. All three are turned round here, and a test holds the result against Keras' own order.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stillroom.errors import DataError
from stillroom.forensics.calibrating import Calibrator
from stillroom.forensics.detecting import About, write_detector
from stillroom.forensics.extras import need
from stillroom.forensics.method import DETECTORS
from stillroom.forensics.networks import Network
from stillroom.jobs import Job
from stillroom.provenance import Artifact, digest_file, make_parent
from stillroom.records import Link, Origin

__all__ = ["import_meso4", "keep_published", "read_keras"]

Array = npt.NDArray[np.float32]
_PIXELS = 256


def import_meso4(path: Path, out: Path) -> Artifact:
    """Write Meso4's published weights as a detector of this program.

    Its scores are log odds as published: there are no faces here to calibrate it on, and none to
    show that it tells forged from real, so ``check`` calls all it says inconclusive.

    Args:
        path: Keras' ``.h5`` of weights, or an ``.npz`` of arrays by the same names.
        out: The folder to make.

    Raises:
        DataError: If the file does not hold Meso4's weights, or ``out`` is taken.
        MissingExtraError: If h5py is needed and not here.
    """
    arrays = read_keras(path)
    method = DETECTORS.build("meso4")
    network = method.build(_PIXELS)
    state = _translate(arrays, path)
    own = {
        name: tuple(value.shape)
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    given = {name: tuple(value.shape) for name, value in state.items()}
    if own != given:
        name = next(name for name in own if own[name] != given.get(name))
        raise _not_meso4(path, f"{name} is {given.get(name)}, not {own[name]}")
    network.load_state_dict(
        {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()},
        strict=False,
    )
    about = About(method, _PIXELS, _PIXELS, 1.3, Calibrator("none"), faces="as published")
    return keep_published(network, about, path, out)


def keep_published(network: Network, about: About, path: Path, out: Path) -> Artifact:
    """Write a network with imported weights as a detector.

    Args:
        network: With the weights.
        about: What is known of it; it is not shown to work, so ``check`` says nothing by it.
        path: The file that they come from.
        out: The folder to make.
    """
    name = about.method.method_name()
    job = Job.start(out, f"import {name} {digest_file(path)}\n")
    try:
        fingerprint = write_detector(job.output, network, about)
        return job.finish(
            "checkpoint",
            parents=[make_parent("published", path, out)],
            origin=Origin("unknown").then(Link(f"forensics.published.{name}")).to_json(),
            details={"detector": about.to_json(), "fingerprint": fingerprint},
        )
    finally:
        job.close()


def read_keras(path: Path) -> dict[str, Array]:
    """Return arrays by ``layer/name`` from a Keras ``.h5`` or an ``.npz``.

    Raises:
        DataError: If the file cannot be read as either.
        MissingExtraError: If h5py is needed and not here.
    """
    if not path.is_file():
        raise _not_meso4(path, "there is no such file")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as stored:
                return {name: np.asarray(stored[name], np.float32) for name in stored.files}
        need("h5py", extra="keras")
        import h5py

        found: dict[str, Array] = {}

        def keep(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                parts = name.split("/")
                found[f"{parts[-2]}/{parts[-1].split(':')[0]}"] = np.asarray(item, np.float32)

        with h5py.File(path, "r") as file:
            file.visititems(keep)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise _not_meso4(path, f"it cannot be read ({error})") from error
    return found


def _translate(arrays: Mapping[str, Array], path: Path) -> dict[str, Array]:
    """Return the network's own tensors, kernels turned and the last layer's sign changed."""
    kinds: dict[str, list[str]] = {"conv2d": [], "batch_normalization": [], "dense": []}
    for layer in dict.fromkeys(name.rpartition("/")[0] for name in arrays):
        for kind, layers in kinds.items():
            if layer.startswith(kind):
                layers.append(layer)
    counts = {kind: len(layers) for kind, layers in kinds.items()}
    if counts != {"conv2d": 4, "batch_normalization": 4, "dense": 2}:
        raise _not_meso4(path, f"it has the layers {counts}")
    for layers in kinds.values():
        layers.sort(key=lambda layer: (len(layer), layer))
    state: dict[str, Array] = {}
    try:
        for at, layer in enumerate(kinds["conv2d"]):
            state[f"convolutions.{at}.weight"] = arrays[f"{layer}/kernel"].transpose(3, 2, 0, 1)
            state[f"convolutions.{at}.bias"] = arrays[f"{layer}/bias"]
        for at, layer in enumerate(kinds["batch_normalization"]):
            state[f"norms.{at}.weight"] = arrays[f"{layer}/gamma"]
            state[f"norms.{at}.bias"] = arrays[f"{layer}/beta"]
            state[f"norms.{at}.running_mean"] = arrays[f"{layer}/moving_mean"]
            state[f"norms.{at}.running_var"] = arrays[f"{layer}/moving_variance"]
        first, last = kinds["dense"]
        state["hidden.weight"] = arrays[f"{first}/kernel"].T
        state["hidden.bias"] = arrays[f"{first}/bias"]
        state["head.weight"] = -arrays[f"{last}/kernel"].T
        state["head.bias"] = -arrays[f"{last}/bias"]
    except (KeyError, ValueError) as error:
        raise _not_meso4(path, f"a layer lacks an array ({error})") from error
    return state


def _not_meso4(path: Path, why: str) -> DataError:
    return DataError(
        f"{path.name} does not hold Meso4's weights: {why}",
        code="forensics.import",
        where=str(path),
        expected="Meso4_DF.h5 or Meso4_F2F.h5 as MesoNet published them, or the same arrays as npz",
        next="check which file it is",
    )
