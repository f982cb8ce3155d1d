"""Stored numbers: what is not a number stays so, whatever its bits."""

import numpy as np
import pytest

from stillroom.checkpoints.dtypes import has_not_finite, narrow, widen


@pytest.mark.parametrize("kind", ["BF16", "F16", "F8_E4M3", "F8_E5M2"])
@pytest.mark.parametrize(
    "bits", [0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF800001, 0x7F80FFFF], ids=hex
)
@pytest.mark.parametrize("shape", [(), (3, 4)], ids=str)
def test_nans_of_all_payloads_stay_nans_when_narrowed(kind, bits, shape):
    values = np.ones(shape, np.float32)
    values.reshape(-1).view(np.uint32)[-1] = bits
    stored = narrow(values, kind)
    assert stored.shape == shape
    assert has_not_finite(stored, kind)
    assert np.array_equal(np.isnan(widen(stored, kind)), np.isnan(values))
    assert not has_not_finite(narrow(np.ones(shape, np.float32), kind), kind)
