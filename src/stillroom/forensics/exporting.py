"""Detectors as ONNX files: pictures in, logits out, compared with the detector beforehand.

The file takes pictures (N, 3, P, P) in [0, 1], of a head over time clips (N, T, 3, P, P), and gives
logits (N,), higher for forged; what they mean (calibration, bounds, what it cannot see) is in its
metadata, as in the checkpoint's config.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import torch

from stillroom.errors import DataError, IntegrityError
from stillroom.forensics.detecting import CONFIG_KEY, TrainedDetector
from stillroom.forensics.extras import need
from stillroom.jobs import atomic_write

__all__ = ["export_onnx"]

_OPSET = 18
_TOLERANCE = 1e-3


def export_onnx(detector: TrainedDetector, path: Path) -> float:
    """Write a detector as ONNX; return the largest difference of a logit on random pictures.

    Raises:
        DataError: If its network has a part that ONNX does not know.
        IntegrityError: If the file's logits are not the detector's.
        MissingExtraError: If onnx, onnxscript or onnxruntime is not here.
    """
    need("onnx", "onnxscript", "onnxruntime", extra="onnx")
    import onnx
    import onnxruntime

    pixels = detector.about.pixels
    generator = torch.Generator().manual_seed(0)
    frames = detector.about.method.looks_at
    probe = torch.rand(2, *([frames] if frames > 1 else []), 3, pixels, pixels, generator=generator)
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
                dynamic_shapes={"images": {0: torch.export.Dim("N", min=1)}},
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, TypeError, ValueError) as error:
        raise DataError(
            f"a detector {detector.name} cannot be written as ONNX: {str(error).splitlines()[0]}",
            code="forensics.onnx",
            expected="a network whose parts ONNX knows, as cnn, srm, npr or face_xray",
            next="use its checkpoint",
        ) from error
    if program is None:
        raise TypeError("the exporter gave no program")
    model = program.model_proto
    entry = model.metadata_props.add()
    entry.key, entry.value = CONFIG_KEY, json.dumps(detector.about.to_json())
    data = model.SerializeToString()
    onnx.checker.check_model(data)
    gap = _compare(onnxruntime.InferenceSession(data), network, probe)
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


def _compare(session: object, network: torch.nn.Module, probe: torch.Tensor) -> float:
    """Return the largest difference on one picture and on three: the number is no constant."""
    gaps = []
    for given in (probe[:1], torch.cat([probe, probe[:1].flip(-1)])):
        with torch.inference_mode():
            wanted = network(given).numpy()
        (found,) = session.run(None, {"pictures": given.numpy()})  # type: ignore[attr-defined]
        gaps.append(float(np.abs(np.asarray(found) - wanted).max()))
    return max(gaps)
