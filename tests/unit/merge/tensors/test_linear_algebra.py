"""A device that is not there is told; both decompositions agree."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from stillroom.checkpoints import Checkpoint
from stillroom.cli.app import stillroom
from stillroom.errors import ResourceError
from stillroom.merge import METHODS
from stillroom.merge.engine.merge import Merge
from stillroom.merge.planning.inputs import MergeSource
from stillroom.merge.tensors.linear_algebra import (
    device_context,
    svd,
    svd_with_torch,
    warn_unused_device,
)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_card_that_is_not_there_is_told_before_anything_is_written(family, tmp_path):
    sources = [MergeSource(path.name, Checkpoint.open(path)) for path in family[1]]
    merge = Merge(METHODS.build("linear"), None, sources, device="cuda")
    with pytest.raises(ResourceError) as caught:
        merge.write(tmp_path / "out")
    assert caught.value.code == "merge.device"
    assert not (tmp_path / "out").exists()


def test_torch_decomposes_as_lapack_does():
    matrix = np.random.default_rng(0).standard_normal((30, 20)).astype(np.float32)
    with device_context("cpu"):
        left, values, right = svd(matrix)
    other = svd_with_torch(matrix, "cuda" if torch.cuda.is_available() else "cpu")
    np.testing.assert_allclose(values, other[1], rtol=1e-5)
    np.testing.assert_allclose((left * values) @ right, (other[0] * other[1]) @ other[2], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "device", "arithmetic", "is_told"),
    [
        ("linear", "cuda", "paper", True),
        ("ties", "cuda", "paper", True),
        ("ties", "cuda", "mergekit", False),
        ("iso_c", "cuda", "paper", False),
        ("linear", "cpu", "paper", False),
    ],
)
def test_a_device_without_work_is_told(name, device, arithmetic, is_told):
    lines = warn_unused_device(device, METHODS.build(name), arithmetic)
    assert bool(lines) == is_told
    assert all(name in line for line in lines)


def test_the_plan_and_a_quiet_run_say_that_a_card_has_nothing_to_do(family, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    models = "".join(f"  - {{model: {path}}}\n" for path in family[1])
    recipe.write_text(
        f"version: 1\nkind: merge.weights\ndevice: cuda\nmethod: linear\nmodels:\n{models}"
    )
    said = CliRunner().invoke(stillroom, ["merge", "plan", str(recipe)])
    assert said.exit_code == 0
    assert "warning: device cuda is not used: linear" in said.output
    words = ["merge", "run", str(recipe), "--out", str(tmp_path / "merged"), "--quiet"]
    assert CliRunner().invoke(stillroom, words).stderr.startswith("warning: device cuda is not")
