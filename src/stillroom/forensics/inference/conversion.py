"""Import of published detector weights, and ONNX export.

ONNX files take images (N, 3, P, P) in [0, 1] and return logits (N,), higher for forged.
Calibration, bounds and limitations are in the metadata, as in the checkpoint's config.

Meso4's published weights come from Keras: kernels are height, width, in, out; dense kernels in,
out; the output is 1 for real. All three are converted, and a test compares the result with Keras'
order.

AASIST has two outputs, the second for bona fide speech: the logit of forged is the first minus the
second, held by a test. The released code feeds each block's first convolution its raw input instead
of the activation, and so does the imported network.
"""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stillroom.errors import DataError, IntegrityError
from stillroom.forensics.extras import require_packages
from stillroom.forensics.inference.results import Calibrator
from stillroom.forensics.inference.trained_detector import (
    CONFIG_KEY,
    DetectorMetadata,
    TrainedDetector,
    select_weights,
    write_detector,
)
from stillroom.forensics.interfaces import AUDIO_DETECTORS, IMAGE_DETECTORS, Detector
from stillroom.forensics.modalities.audio import AudioModality
from stillroom.forensics.modalities.image import ImageModality
from stillroom.forensics.modalities.interfaces import Modality
from stillroom.jobs import Job, atomic_write
from stillroom.provenance import Artifact, digest_file, make_parent
from stillroom.records import Link, Origin

__all__ = [
    "export_onnx",
    "import_aasist",
    "import_meso4",
    "read_keras",
]

_OPSET = 18
_TOLERANCE = 1e-3
_MAX_BYTES = 2**24  # Meso4 has 28 thousand weights, AASIST 297 thousand


def export_onnx(detector: TrainedDetector, path: Path) -> float:
    """Write a detector as ONNX; return the largest logit difference on random images.

    Raises:
        DataError: If the network has an operation that ONNX does not support.
        IntegrityError: If the logits of the file differ from the detector's.
        MissingExtraError: If onnx, onnxscript or onnxruntime is not installed.
    """
    require_packages("onnx", "onnxscript", "onnxruntime", extra="onnx")
    import onnx
    import onnxruntime

    if not isinstance(detector.metadata.modality, ImageModality):
        raise DataError(
            f"{detector.name} is an audio detector, which is not exported to ONNX",
            code="forensics.onnx",
            expected="an image detector",
            next="use its checkpoint",
        )
    generator = torch.Generator().manual_seed(0)
    probe = torch.rand(2, *detector.image_input.input_shape, generator=generator)
    network = detector.network.cpu().eval()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network,
                (probe,),
                dynamo=True,
                opset_version=_OPSET,
                input_names=["pictures"],
                output_names=["logits"],
                dynamic_shapes={"inputs": {0: torch.export.Dim("N", min=1)}},
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, TypeError, ValueError) as error:
        raise DataError(
            f"a detector {detector.name} cannot be exported to ONNX: {str(error).splitlines()[0]}",
            code="forensics.onnx",
            expected="a network of operations that ONNX supports, such as cnn, srm or face_xray",
            next="use its checkpoint",
        ) from error
    if program is None:
        raise TypeError("the exporter returned no program")
    model = program.model_proto
    entry = model.metadata_props.add()
    entry.key, entry.value = CONFIG_KEY, json.dumps(detector.metadata.to_json())
    data = model.SerializeToString()
    onnx.checker.check_model(data)
    gap = _compare_logits(onnxruntime.InferenceSession(data), network, probe)
    if gap > _TOLERANCE:
        raise IntegrityError(
            f"the file's logits differ from the detector's by {gap:.2g}",
            code="forensics.onnx",
            expected=f"at most {_TOLERANCE}",
            next="use its checkpoint; report it with the versions of torch and onnxscript",
        )
    with atomic_write(path, "wb") as file:
        file.write(data)
    return gap


def _compare_logits(session: object, network: torch.nn.Module, probe: torch.Tensor) -> float:
    """Return the largest logit difference for batches of one and three: the size is dynamic."""
    gaps = []
    for batch in (probe[:1], torch.cat([probe, probe[:1].flip(-1)])):
        with torch.inference_mode():
            expected = network(batch).numpy()
        (actual,) = session.run(None, {"pictures": batch.numpy()})  # type: ignore[attr-defined]
        gaps.append(float(np.abs(np.asarray(actual) - expected).max()))
    return max(gaps)


FloatArray = npt.NDArray[np.float32]
_PIXELS = 256


def import_meso4(path: Path, out: Path) -> Artifact:
    """Import Meso4's published weights as a detector.

    Its scores are uncalibrated log odds, and it has not been validated on faces here, so ``check``
    reports its results as inconclusive.

    Args:
        path: Keras' ``.h5`` weights, or an ``.npz`` of arrays with the same names.
        out: The folder to create.

    Raises:
        DataError: If the file does not hold Meso4's weights, or ``out`` exists.
        MissingExtraError: If h5py is needed and not installed.
    """
    arrays = read_keras(path)
    method = IMAGE_DETECTORS.build("meso4")
    state = _translate(arrays, path)
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()}
    modality = ImageModality.of(method, _PIXELS, _PIXELS, 1.3)
    return _write_imported(method, modality, tensors, "Meso4", path, out)


def _write_imported(
    method: Detector,
    modality: Modality,
    state: Mapping[str, Tensor],
    published: str,
    path: Path,
    out: Path,
) -> Artifact:
    """Write a detector with published weights, which must all fit its network."""
    network = method.build(modality.input_size)
    expected = {name: tuple(value.shape) for name, value in select_weights(network).items()}
    actual = {name: tuple(value.shape) for name, value in state.items()}
    for name in sorted(expected | actual):
        if expected.get(name) != actual.get(name):
            problem = f"{name} is {actual.get(name)}, not {expected.get(name)}"
            raise _invalid_weights(path, published, problem)
    network.load_state_dict(state, strict=False)
    metadata = DetectorMetadata(method, modality, Calibrator("none"), source="as published")
    name = method.method_name()
    job = Job.start(out, f"import {name} {digest_file(path)}\n")
    try:
        fingerprint = write_detector(job.output, network.eval(), metadata)
        return job.finish(
            "checkpoint",
            parents=[make_parent("published", path, out)],
            origin=Origin("unknown").then(Link(f"forensics.published.{name}")).to_json(),
            details={"detector": metadata.to_json(), "fingerprint": fingerprint},
        )
    finally:
        job.close()


def read_keras(path: Path) -> dict[str, FloatArray]:
    """Read arrays by ``layer/name`` from a Keras ``.h5`` or an ``.npz``.

    Raises:
        DataError: If the file cannot be read as either.
        MissingExtraError: If h5py is needed and not installed.
    """
    if not path.is_file():
        raise _invalid_weights(path, "Meso4", "the file does not exist")
    if path.suffix != ".npz":
        require_packages("h5py", extra="keras")
    try:
        return _read_npz(path) if path.suffix == ".npz" else _read_h5(path)
    except Exception as error:  # both libraries raise many types for a damaged file
        why = f"it cannot be read ({error or type(error).__name__})"
        raise _invalid_weights(path, "Meso4", why) from error


def _read_npz(path: Path) -> dict[str, FloatArray]:
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > _MAX_BYTES:
        raise ValueError(f"it holds {size} bytes, over {_MAX_BYTES}")
    with np.load(path, allow_pickle=False) as stored:
        return {name: np.asarray(stored[name], np.float32) for name in stored.files}


def _read_h5(path: Path) -> dict[str, FloatArray]:
    """Read the datasets of a file; those may claim any size, or lie in other files."""
    import h5py

    arrays: dict[str, FloatArray] = {}
    room = _MAX_BYTES

    def keep(name: str, item: Any) -> None:
        nonlocal room
        if not isinstance(item, h5py.Dataset):
            return
        if item.external or item.is_virtual:
            raise ValueError(f"{name} refers to other files")
        room -= item.nbytes
        if room < 0:
            raise ValueError(f"it holds over {_MAX_BYTES} bytes")
        parts = name.split("/")
        arrays[f"{parts[-2]}/{parts[-1].split(':')[0]}"] = np.asarray(item, np.float32)

    with h5py.File(path, "r") as file:
        file.visititems(keep)
    return arrays


def _translate(arrays: Mapping[str, FloatArray], path: Path) -> dict[str, FloatArray]:
    """Return the network's tensors, with kernels transposed and the last layer negated."""
    kinds: dict[str, list[str]] = {"conv2d": [], "batch_normalization": [], "dense": []}
    for layer in dict.fromkeys(name.rpartition("/")[0] for name in arrays):
        for kind, layers in kinds.items():
            if layer.startswith(kind):
                layers.append(layer)
    counts = {kind: len(layers) for kind, layers in kinds.items()}
    if counts != {"conv2d": 4, "batch_normalization": 4, "dense": 2}:
        raise _invalid_weights(path, "Meso4", f"it has the layers {counts}")
    for layers in kinds.values():
        layers.sort(key=lambda layer: (len(layer), layer))
    state: dict[str, FloatArray] = {}
    try:
        for index, layer in enumerate(kinds["conv2d"]):
            state[f"convolutions.{index}.weight"] = arrays[f"{layer}/kernel"].transpose(3, 2, 0, 1)
            state[f"convolutions.{index}.bias"] = arrays[f"{layer}/bias"]
        for index, layer in enumerate(kinds["batch_normalization"]):
            state[f"norms.{index}.weight"] = arrays[f"{layer}/gamma"]
            state[f"norms.{index}.bias"] = arrays[f"{layer}/beta"]
            state[f"norms.{index}.running_mean"] = arrays[f"{layer}/moving_mean"]
            state[f"norms.{index}.running_var"] = arrays[f"{layer}/moving_variance"]
        first, last = kinds["dense"]
        state["hidden.weight"] = arrays[f"{first}/kernel"].T
        state["hidden.bias"] = arrays[f"{first}/bias"]
        state["head.weight"] = -arrays[f"{last}/kernel"].T
        state["head.bias"] = -arrays[f"{last}/bias"]
    except (KeyError, ValueError) as error:
        raise _invalid_weights(path, "Meso4", f"a layer lacks an array ({error})") from error
    return state


def _invalid_weights(path: Path, network: str, why: str) -> DataError:
    return DataError(
        f"{path.name} does not hold {network}'s weights: {why}",
        code="forensics.import",
        where=str(path),
        expected=_PUBLISHED[network],
        next="check which file it is",
    )


_PUBLISHED = {
    "Meso4": "Meso4_DF.h5 or Meso4_F2F.h5 as MesoNet published them, or the same arrays as npz",
    "AASIST": "AASIST.pth or AASIST-L.pth as its authors published them",
}
_SAMPLES = 64_600

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
    """Import AASIST's or AASIST-L's published weights as a detector.

    Its scores are uncalibrated, and it has not been validated on recordings here, so ``check``
    reports its results as inconclusive.

    Raises:
        DataError: If the file does not hold those weights, or ``out`` exists.
    """
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a damaged file
        raise _invalid_weights(
            path, "AASIST", f"it cannot be read ({type(error).__name__})"
        ) from error
    if not isinstance(stored, Mapping):
        raise _invalid_weights(path, "AASIST", "it is not a dictionary of tensors")
    state = _translate_aasist(stored, path)
    size = "light" if tuple(state["places"].shape) == (1, 23, 24) else "full"
    method = AUDIO_DETECTORS.build({"name": "aasist", "size": size, "as_released": True})
    return _write_imported(method, AudioModality(_SAMPLES), state, "AASIST", path, out)


def _translate_aasist(stored: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Return the tensors under the network's names, with the two outputs merged into one.

    Raises:
        DataError: If a name is not AASIST's, or one is missing.
    """
    state: dict[str, Tensor] = {}
    for name, value in stored.items():
        if name.endswith("num_batches_tracked") or not isinstance(value, Tensor):
            continue
        translated = _translate_name(name)
        if translated is None:
            raise _invalid_weights(path, "AASIST", f"it has {name}, which AASIST does not have")
        if value.nbytes > _MAX_BYTES:  # as it claims: a file can repeat one value
            raise _invalid_weights(path, "AASIST", f"{name} has {value.numel()} values")
        state[translated] = value.float()
    try:
        weight, bias = state["head.weight"], state["head.bias"]
        state["places"]
    except KeyError as error:
        raise _invalid_weights(path, "AASIST", f"it lacks {error.args[0]}") from error
    if weight.shape[:1] != (2,) or bias.shape != (2,):
        raise _invalid_weights(path, "AASIST", f"its output is {tuple(weight.shape)}, not two rows")
    state["head.weight"] = weight[:1] - weight[1:]  # released: 0 spoofed, 1 bona fide
    state["head.bias"] = bias[:1] - bias[1:]
    return state


def _translate_name(name: str) -> str | None:
    for released_name, own_name in _WHOLE.items():
        if name == released_name or name.startswith(f"{released_name}."):
            return own_name + name[len(released_name) :]
    if name.startswith("out_layer."):
        return "head" + name[len("out_layer") :]
    first, _, path = name.partition(".")
    if first == "encoder":  # encoder.NUMBER.0.PART
        number, _, path = path.partition(".0.")
        part, dot, end = path.partition(".")
        return f"encoder.{number}.{_BLOCK[part]}{dot}{end}" if part in _BLOCK else None
    if first in _PARTS:
        module, table = _PARTS[first]
        part, dot, end = path.partition(".")
        return f"{module}.{table[part]}{dot}{end}" if part in table else None
    return None
