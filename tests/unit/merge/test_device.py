"""A device that is not there is told; both decompositions agree."""

import numpy as np
import pytest
import torch

from stillroom.checkpoints import Checkpoint
from stillroom.errors import ResourceError
from stillroom.merge import METHODS
from stillroom.merge.device import svd, svd_by_torch, use_device
from stillroom.merge.sources import Source
from stillroom.merge.stream import Merge


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_card_that_is_not_there_is_told_before_anything_is_written(family, tmp_path):
    sources = [Source(path.name, Checkpoint.open(path)) for path in family[1]]
    merge = Merge(METHODS.build("linear"), None, sources, device="cuda")
    with pytest.raises(ResourceError) as caught:
        merge.write(tmp_path / "out")
    assert caught.value.code == "merge.device"
    assert not (tmp_path / "out").exists()


def test_torch_decomposes_as_lapack_does():
    matrix = np.random.default_rng(0).standard_normal((30, 20)).astype(np.float32)
    with use_device("cpu"):
        left, values, right = svd(matrix)
    other = svd_by_torch(matrix, "cuda" if torch.cuda.is_available() else "cpu")
    np.testing.assert_allclose(values, other[1], rtol=1e-5)
    np.testing.assert_allclose((left * values) @ right, (other[0] * other[1]) @ other[2], atol=1e-5)
