"""Front ends of detectors keep the property they are built on; every network judges a batch."""

import numpy as np
import pytest
import torch

from stillroom.errors import CheckpointError
from stillroom.forensics.image_detectors.face_xray import compute_boundary
from stillroom.forensics.image_detectors.npr import compute_neighbor_residual
from stillroom.forensics.image_detectors.spectral import compute_azimuthal_mean
from stillroom.forensics.image_detectors.spsl import compute_phase_image
from stillroom.forensics.image_detectors.srm import compute_noise_residuals
from stillroom.forensics.interfaces import IMAGE_DETECTORS
from stillroom.forensics.networks.interfaces import make_dct_matrix

SIDE = 32


@pytest.fixture
def images():
    return torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def test_noise_residuals_of_smooth_pictures_are_nothing():
    ramp = torch.linspace(0.1, 0.9, SIDE).expand(1, 3, SIDE, SIDE)
    found = compute_noise_residuals(ramp, 3.0)[..., 4:-4]
    assert found.abs().max() < 1e-3


def test_noise_residuals_are_the_filters_and_cut_off(images):
    gray = (images[0] * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0).numpy() * 255
    at = gray[10, 9:12]
    wanted = np.clip((at[0] - 2 * at[1] + at[2]) / 2, -3, 3) / 3
    found = compute_noise_residuals(images, 3.0)
    assert found[0, 2, 10, 10] == pytest.approx(wanted, abs=1e-4)
    assert found.abs().max() <= 1


def test_phase_does_not_change_with_contrast(images):
    front = compute_phase_image
    assert torch.allclose(front(images), front(images * 0.4), atol=1e-2)
    assert front(images).std() == pytest.approx(1.0, abs=0.1)


def test_bands_add_up_to_the_whole_picture(images):
    front = IMAGE_DETECTORS.build({"name": "f3net", "weights": "none"}).build(SIDE).instead
    with torch.no_grad():
        front.learned.zero_()
    bands = front(images).view(2, 4, 3, SIDE, SIDE)
    assert torch.allclose(bands[:, :3].sum(1), bands[:, 3], atol=1e-4)
    assert torch.allclose(bands[:, 3], front.normalize(images), atol=1e-4)


def test_cosine_matrix_is_orthonormal():
    matrix = make_dct_matrix(SIDE)
    assert torch.allclose(matrix @ matrix.T, torch.eye(SIDE), atol=1e-5)


def test_neighbor_residual_of_a_doubled_picture_is_nothing(images):
    front = compute_neighbor_residual
    doubled = images[..., ::2, ::2].repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert front(doubled).abs().max() == 0
    assert front(images).abs().max() > 0
    assert front(images[..., :-1, :-1]).shape == (2, 3, SIDE - 2, SIDE - 2)


def build_spectral(radii, bands):
    settings = {"name": "spectral", "radii": radii, "bands": bands}
    return IMAGE_DETECTORS.build(settings).build(SIDE)


def test_spectrum_by_radius_matches_a_plain_reading(images):
    network = build_spectral(8, 4)
    gray = torch.rand(1, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    power = np.abs(np.fft.fft2(gray[0].numpy())) ** 2
    along = np.fft.fftfreq(SIDE) * SIDE
    radius = np.rint(np.hypot(along[:, None], along[None]))
    place = np.floor(radius * 8 / (SIDE // 2 + 1))
    wanted = np.array([10 * np.log10(power[place == at].mean()) for at in range(8)])
    found = compute_azimuthal_mean(gray, network.ring, 8)[0].numpy()
    np.testing.assert_allclose(found, wanted - wanted[0], atol=1e-3)


def test_spectrum_shows_the_grid_of_upsampling():
    smooth = torch.nn.functional.avg_pool2d(
        torch.rand(1, 3, SIDE + 6, SIDE + 6, generator=torch.Generator().manual_seed(3)), 7, 1
    )
    grid = smooth.clone()
    grid[..., ::2, ::2] *= 1.05
    network = build_spectral(16, 4)
    plain, marked = network.describe(smooth)[0], network.describe(grid)[0]
    assert marked[15] - plain[15] > 10  # decibels at the highest frequency of an axis


def test_boundary_lies_where_a_mask_is_half():
    masks = torch.tensor([[[0.0, 0.25, 0.5, 1.0]]])
    assert compute_boundary(masks).flatten().tolist() == [0.0, 0.75, 1.0, 0.0]


@pytest.mark.parametrize("name", IMAGE_DETECTORS.names())
def test_every_detector_judges_a_batch_and_one_picture_alike(name, images):
    method = IMAGE_DETECTORS.get(name)
    if any(info.is_required() for info in method.model_fields.values()):
        pytest.skip("it needs a checkpoint; see its own test")
    small = {
        key: value
        for key, value in (("weights", "none"), ("width", 8))
        if key in method.model_fields
    }
    pixels = 256 if name == "meso4" else 64
    network = method.model_validate(small).build(pixels).eval()
    given = torch.nn.functional.interpolate(images, (pixels, pixels))
    with torch.inference_mode():
        both = network.forward_features(given)
        one = network.forward_features(given[:1])
    assert both.logits.shape == (2,)
    assert torch.allclose(both.logits[:1], one.logits, atol=1e-4)
    total, _ = network.loss(both, torch.tensor([1.0, 0.0]), torch.zeros(2, pixels, pixels))
    assert torch.isfinite(total)


def test_an_unknown_backbone_is_named():
    with pytest.raises(CheckpointError, match="timm has no network 'mine'") as caught:
        IMAGE_DETECTORS.build({"name": "cnn", "backbone": "mine"}).build(64)
    assert caught.value.code == "forensics.backbone"
    with pytest.raises(CheckpointError, match="no known package provides"):
        IMAGE_DETECTORS.build({"name": "cnn", "backbone": "resnet18"}).build(64)


def test_imagenet_weights_land_in_their_places():
    plain = IMAGE_DETECTORS.build("cnn").build(64)
    noise = IMAGE_DETECTORS.build("srm").build(64)
    stem = plain.body.body.conv_stem.weight
    assert torch.equal(noise.body.body.conv_stem.weight[:, :3], stem)
    assert torch.allclose(noise.body.body.conv_stem.weight[:, 3], stem.mean(1))
    norm = plain.body.body.bn1
    assert norm.running_mean.abs().max() > 0.1  # learned statistics, not those of a new network
