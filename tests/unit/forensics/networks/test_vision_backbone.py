"""Detectors on a vision model learn what they should and nothing else; published ones come over."""

import json
import zipfile

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tests.unit.forensics.keras import keras_arrays
from torch import nn

from stillroom.cli.app import stillroom
from stillroom.errors import CheckpointError, DataError
from stillroom.flow import run_recipe
from stillroom.forensics.image_detectors.effort import make_svd_residual_linear
from stillroom.forensics.inference.conversion import export_onnx, import_meso4, read_keras
from stillroom.forensics.inference.trained_detector import TrainedDetector
from stillroom.forensics.interfaces import IMAGE_DETECTORS
from stillroom.forensics.modalities.image import ImageModality
from stillroom.models.encoders.vision import build_vision, load_vision
from stillroom.provenance import read_artifact, verify_artifact
from stillroom.recipes import parse_recipe

RECIPE = """
version: 1
kind: forensics.image_detector
seed: 3
model: {name: METHOD, checkpoint: FOLDER}
data: {type: forgeries, count: 12, split: {test: 0.3, validation: 0.3}}
face_size: 128
image_size: 32
train: {steps: 2, batch_size: 3, threads: 1, learning_rate: 0.01}
"""


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=24,
    )
    folder = tmp_path_factory.mktemp("clip")
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    said = {"image_mean": [0.4, 0.4, 0.4], "image_std": [0.2, 0.2, 0.2]}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    return folder


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    folder = tmp_path_factory.mktemp("dino")
    Dinov2Model(config).save_pretrained(folder)
    return folder


def test_a_vision_model_is_loaded_and_built_again(clip, dino):
    for folder, size in ((clip, 24), (dino, 32)):
        vision = load_vision(folder)
        images = torch.rand(2, 3, vision.side, vision.side)
        again = build_vision(json.loads(json.dumps(vision.to_json())))
        again.model.load_state_dict(vision.model.state_dict())
        with torch.inference_mode():
            found = vision.vectors(images)
            assert found.shape == (2, size)
            assert torch.allclose(again.vectors(images), found, atol=1e-5)
    assert load_vision(clip).mean == (0.4, 0.4, 0.4)


def test_what_does_not_see_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="no loadable vision model") as caught:
        load_vision(tmp_path)
    assert caught.value.code == "checkpoint.no-vision"


def learned(network):
    return {name for name, value in network.named_parameters() if value.requires_grad}


def test_each_method_frees_its_own_part(clip):
    frozen = IMAGE_DETECTORS.build({"name": "univfd", "checkpoint": str(clip)}).build(32)
    assert learned(frozen) == {"head.weight", "head.bias"}
    norms = IMAGE_DETECTORS.build({"name": "gend", "checkpoint": str(clip)}).build(32)
    assert all("norm" in name or name.startswith("head") for name in learned(norms))
    assert len(learned(norms)) > 6
    split = IMAGE_DETECTORS.build({"name": "effort", "checkpoint": str(clip)}).build(32)
    parts = {name.rpartition(".")[2] for name in learned(split) if not name.startswith("head")}
    assert parts == {"left", "sizes", "right"}


def test_splitting_a_map_changes_nothing_at_first():
    torch.manual_seed(1)
    linear = nn.Linear(12, 8)
    split = make_svd_residual_linear(linear, 3)
    given = torch.rand(4, 12)
    assert torch.allclose(split(given), linear(given), atol=1e-5)
    assert split.orthogonality() < 1e-9
    rank = torch.linalg.matrix_rank(split.main, atol=1e-5)
    assert rank == 5
    with torch.no_grad():
        split.left.mul_(2)
    assert float(split.orthogonality().detach()) == pytest.approx(
        27.0, rel=1e-4
    )  # three columns, (4 - 1)^2 each


@pytest.mark.parametrize("name", ["gend", "effort"])
def test_a_tuned_tower_is_trained_and_opened_without_its_start(name, clip, tmp_path, faces):
    moved = tmp_path / "vision"
    clip_files = {path.name: path.read_bytes() for path in clip.iterdir()}
    moved.mkdir()
    for file, data in clip_files.items():
        (moved / file).write_bytes(data)
    recipe = RECIPE.replace("METHOD", name).replace("FOLDER", str(moved))
    run_recipe(parse_recipe(recipe), tmp_path / "run")
    for file in clip_files:
        (moved / file).unlink()
    detector = TrainedDetector.open(tmp_path / "run")
    assert np.isfinite(detector.logits([face.image for face in faces])).all()


def as_keras_does(arrays, image):
    """Return the published network's output, 1 for REAL, of one picture (H, W, 3) in [0, 1]."""
    grid = image
    for at, pool in enumerate((2, 2, 2, 4), start=1):
        kernel = arrays[f"conv2d_{at}/kernel"]
        half = kernel.shape[0] // 2
        padded = np.pad(grid, ((half, half), (half, half), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[:2], axis=(0, 1))
        grid = np.einsum("hwcij,ijco->hwo", windows, kernel) + arrays[f"conv2d_{at}/bias"]
        grid = np.maximum(grid, 0)
        norm = f"batch_normalization_{at}"
        spread = np.sqrt(arrays[f"{norm}/moving_variance"] + 1e-3)
        grid = (grid - arrays[f"{norm}/moving_mean"]) / spread
        grid = grid * arrays[f"{norm}/gamma"] + arrays[f"{norm}/beta"]
        height, width, channels = grid.shape
        grid = grid.reshape(height // pool, pool, width // pool, pool, channels).max((1, 3))
    hidden = grid.reshape(-1) @ arrays["dense_1/kernel"] + arrays["dense_1/bias"]
    hidden = np.where(hidden > 0, hidden, 0.1 * hidden)
    return 1 / (1 + np.exp(-(hidden @ arrays["dense_2/kernel"] + arrays["dense_2/bias"])[0]))


def test_meso4_says_one_minus_what_keras_says(tmp_path):
    rng = np.random.default_rng(5)
    arrays = keras_arrays(rng)
    np.savez(tmp_path / "weights.npz", **arrays)
    import_meso4(tmp_path / "weights.npz", tmp_path / "run")
    detector = TrainedDetector.open(tmp_path / "run", device="cpu")
    image = rng.random((256, 256, 3), dtype=np.float32)
    with torch.inference_mode():
        logit = detector.network(torch.from_numpy(image.transpose(2, 0, 1))[None])
    assert float(torch.sigmoid(logit)) == pytest.approx(1 - as_keras_does(arrays, image), abs=1e-4)
    assert not detector.metadata.is_validated


def test_keras_files_are_read_by_layer(tmp_path):
    import h5py

    arrays = keras_arrays(np.random.default_rng(5), pixels=32)
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        for name, value in arrays.items():
            layer, part = name.split("/")
            file[f"{layer}/{layer}/{part}:0"] = value
    found = read_keras(tmp_path / "weights.h5")
    assert set(found) == set(arrays)
    with pytest.raises(DataError, match="does not hold Meso4's weights") as caught:
        import_meso4(tmp_path / "weights.h5", tmp_path / "run")  # of another size
    assert caught.value.code == "forensics.import"
    (tmp_path / "broken.h5").write_bytes(b"no such thing")
    with pytest.raises(DataError, match="cannot be read"):
        read_keras(tmp_path / "broken.h5")


def claim_size(path):
    import h5py

    with h5py.File(path, "w") as file:
        file.create_dataset("conv2d/kernel:0", (2**40,), "f4", chunks=(2**20,))


def point_at(secret, path):
    import h5py

    with h5py.File(path, "w") as file:
        file.create_dataset("conv2d/kernel:0", (4,), "f4", external=[(str(secret), 0, 16)])


def write_compound(path):
    import h5py

    with h5py.File(path, "w") as file:
        file.create_dataset("conv2d/kernel:0", (2,), np.dtype([("a", "f4"), ("b", "S3")]))


def write_npz(path, name, data):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)


def test_hostile_keras_files_are_refused_by_name(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(16))
    header = (
        b"\x93NUMPY\x01\x00\x60\x00"
        + (
            f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**50},), }}".ljust(95) + "\n"
        ).encode()
    )
    made = {
        "size.h5": claim_size,
        "outside.h5": lambda path: point_at(secret, path),
        "compound.h5": write_compound,
        "bomb.npz": lambda path: write_npz(path, "conv2d/kernel.npy", bytes(2**25)),
        "shape.npz": lambda path: write_npz(path, "conv2d/kernel.npy", header),
        "broken.npz": lambda path: path.write_bytes(b"PK\x03\x04" + bytes(99)),
    }
    for name, write in made.items():
        write(tmp_path / name)
        with pytest.raises(DataError, match=f"{name} does not hold Meso4's weights: it cannot"):
            read_keras(tmp_path / name)


def test_meso4_names_the_sizes_it_takes():
    with pytest.raises(DataError, match="does not support 100 pixels") as caught:
        IMAGE_DETECTORS.build("meso4").build(100)
    assert caught.value.code == "forensics.pixels"


@pytest.mark.slow
def test_an_exported_detector_gives_the_same_logits(tmp_path):
    import onnxruntime

    recipe = RECIPE.replace("METHOD, checkpoint: FOLDER", "npr, width: 8")
    run_recipe(parse_recipe(recipe), tmp_path / "run")
    words = ["forensics", "export", str(tmp_path / "run"), "--out", str(tmp_path / "a.onnx")]
    done = CliRunner().invoke(stillroom, words)
    assert done.exit_code == 0, done.output
    (parent,) = read_artifact(tmp_path / "a.onnx").parents
    assert parent.digest == read_artifact(tmp_path / "run").digest
    assert not verify_artifact(tmp_path / "a.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    detector = TrainedDetector.open(tmp_path / "run", device="cpu")
    given = torch.rand(5, 3, 32, 32)
    (found,) = session.run(None, {"pictures": given.numpy()})
    with torch.inference_mode():
        np.testing.assert_allclose(found, detector.network(given).numpy(), atol=1e-4)
    about = json.loads(session.get_modelmeta().custom_metadata_map["stillroom_detector"])
    assert about["method"]["name"] == "npr"


def test_what_onnx_does_not_know_is_refused(tmp_path):
    class Odd(nn.Module):
        def forward(self, images):
            return torch.from_numpy(np.sort(images.numpy().ravel())[:1])

    method = IMAGE_DETECTORS.build("npr")
    from stillroom.forensics.inference.results import Calibrator
    from stillroom.forensics.inference.trained_detector import DetectorMetadata

    metadata = DetectorMetadata(method, ImageModality(32, 128, 1.9), Calibrator("none"))
    detector = TrainedDetector(method.build(32), metadata)
    detector.network = Odd()
    with pytest.raises(DataError, match="cannot be exported to ONNX") as caught:
        export_onnx(detector, tmp_path / "a.onnx")
    assert caught.value.code == "forensics.onnx"
    assert not (tmp_path / "a.onnx").exists()
