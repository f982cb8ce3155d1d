"""mergekit's rules, each written out once more by other means than torch's.

That they are mergekit's bits is for ``tests/parity/merge`` to show; here the rules must hold where
no mergekit is installed.
"""

import numpy as np
import pytest
import torch

from stillroom.errors import RecipeError
from stillroom.merge.interfaces import METHODS, BlockContext
from stillroom.merge.mergekit.exact import merge_whole_tensor
from stillroom.merge.mergekit.torch_methods import (
    magprune,
    match_l1_norm,
    slerp,
    trim,
    trim_to_band,
)

WEIGHTS = (0.5137, 0.3071, 0.1963)
SHAPE = (5, 8)
OURS = (
    "breadcrumbs breadcrumbs_ties dare_linear dare_ties della della_linear linear model_stock "
    "passthrough slerp task_arithmetic ties"
).split()


def family(shape=SHAPE, dtype=torch.float64):
    rng = torch.Generator().manual_seed(11)
    return [torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype) for _ in range(4)]


def replicate(settings, base, parents, weights=WEIGHTS, own=()):
    method = METHODS.build(settings)
    keys = tuple("abc"[: len(parents)])
    at = BlockContext("w", tuple(parents[0].shape), keys, weights[: len(parents)], own)
    before = [tensor.clone() for tensor in (*parents, *([base] if base is not None else []))]
    merged = merge_whole_tensor(method, base, parents, at)
    after = [*parents, *([base] if base is not None else [])]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert (merged.dtype, merged.shape) == (parents[0].dtype, parents[0].shape)
    return merged


def deltas_of(base, parents):
    return [(parent - base).numpy() for parent in parents]


def near(got, expected):
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12, atol=1e-12)


def test_linear_rounds_once_a_model_in_float32():
    _, *parents = family(dtype=torch.float32)
    got = replicate({"name": "linear"}, None, parents)
    x = [parent.double().numpy() for parent in parents]
    w = [float(np.float32(weight)) for weight in WEIGHTS]
    total = np.float32(x[0] * w[0])
    for each, weight in zip(x[1:], w[1:], strict=True):
        total = np.float32(np.float64(total) + each * weight)  # exact product, one rounding
    expected = total / np.float32(np.float32(w[0] + w[1]) + np.float32(w[2]))
    assert np.array_equal(got.numpy(), expected)


def test_ties_trims_each_tensor_votes_with_weights_and_averages():
    base, *parents = family()
    got = replicate({"name": "ties", "density": 0.4}, base, parents)
    kept = []
    for delta in deltas_of(base, parents):
        least = np.sort(np.abs(delta), axis=None)[-int(0.4 * 40)]
        kept.append(delta * (np.abs(delta) >= least))
    weighted = np.stack([w * k for w, k in zip(WEIGHTS, kept, strict=True)])
    agree = weighted * np.where(weighted.sum(0) >= 0, 1, -1) > 0
    mass = (np.reshape(WEIGHTS, (3, 1, 1)) * agree).sum(0)
    near(got, base.numpy() + (weighted * agree).sum(0) / np.where(mass == 0, 1, mass))


def test_task_arithmetic_adds_up_and_can_average():
    base, *parents = family()
    total = sum(w * d for w, d in zip(WEIGHTS, deltas_of(base, parents), strict=True))
    got = replicate({"name": "task_arithmetic", "scale": 0.7}, base, parents)
    near(got, base.numpy() + 0.7 * total)
    got = replicate({"name": "task_arithmetic", "normalize": True}, base, parents)
    near(got, base.numpy() + total / sum(WEIGHTS))


def test_dare_draws_from_the_global_generator_and_matches_the_l1_norm():
    base, *parents = family()
    torch.manual_seed(3)
    got = replicate({"name": "dare_linear", "density": 0.4}, base, parents)
    torch.manual_seed(3)
    total = 0
    for weight, delta in zip(WEIGHTS, deltas_of(base, parents), strict=True):
        kept = delta * torch.bernoulli(torch.full(SHAPE, 0.4)).numpy()
        total = total + weight * kept * np.abs(delta).sum() / np.abs(kept).sum()
    near(got, base.numpy() + total)


def test_della_keeps_by_rank_in_the_row():
    vector = torch.tensor([[4.0, -1.0, 2.0, -3.0]]).repeat(20_000, 1)
    torch.manual_seed(0)
    kept = magprune(vector, 0.5, 0.2, rescale=False)
    share = (kept != 0).double().mean(0).tolist()
    assert share == pytest.approx([0.7, 0.3, 0.5 - 0.2 + 0.4 / 3, 0.5 - 0.2 + 0.8 / 3], abs=0.015)


def test_breadcrumbs_leaves_out_the_largest_and_the_smallest():
    vector = torch.tensor([5.0, -1.0, 2.0, -3.0, 4.0, 0.5, 0.1, -6.0, 0.2, 0.3])
    kept = trim_to_band(vector, 0.4, 0.2, rescale=False)
    assert kept.tolist() == [0, -1, 2, -3, 4, 0, 0, 0, 0, 0]


def test_model_stock_is_not_held_back_from_antiparallel_models():
    base = torch.zeros(4, dtype=torch.float64)
    one = torch.tensor([1.0, 0.0, 0.1, 0.0], dtype=torch.float64)
    two = torch.tensor([-1.0, 0.1, 0.0, 0.0], dtype=torch.float64)
    cosine = float(one @ two / (one.norm() * two.norm()))
    t = 2 * cosine / (1 + cosine)
    assert t < -50
    near(replicate({"name": "model_stock"}, base, [one, two]), (t * (one + two) / 2).numpy())


def test_slerp_is_straight_between_parallel_vectors_and_bent_between_others():
    rng = torch.Generator().manual_seed(0)
    one, two = torch.randn(2, 6, 5, generator=rng)
    assert torch.allclose(slerp(0.3, one, 2 * one), 0.7 * one + 0.3 * 2 * one)
    near_zero = slerp(0.3, torch.zeros(3), torch.ones(3))
    assert near_zero.isfinite().all()
    angle = float(torch.arccos((one * two).sum() / (one.norm() * two.norm())))
    expected = (np.sin(0.7 * angle) * one + np.sin(0.3 * angle) * two) / np.sin(angle)
    assert torch.allclose(slerp(0.3, one, two), expected, atol=1e-6)


def test_passthrough_is_the_model_itself_or_scaled():
    _, first, *_ = family(dtype=torch.bfloat16)
    assert torch.equal(replicate({"name": "passthrough"}, None, [first]), first)
    scaled = replicate({"name": "passthrough", "scale": 0.5}, None, [first])
    assert torch.equal(scaled, first * 0.5)


@pytest.mark.parametrize(
    ("density", "left"), [(1.7, 8), (1.0, 8), (0.0, 0), (-1.0, 0), (0.01, 1), (0.5, 4)]
)
def test_densities_outside_0_to_1_keep_all_or_nothing(density, left):
    vector = torch.arange(1.0, 9)
    assert int((trim(vector, density, rescale=False) != 0).sum()) == left


def test_what_is_all_dropped_is_not_rescaled():
    vector = torch.ones(4)
    assert torch.equal(match_l1_norm(torch.zeros(4), vector), torch.zeros(4))


@pytest.mark.parametrize("name", OURS)
def test_a_method_that_replicates_keeps_type_and_shape(name):
    method = METHODS.get(name)
    count = min(3, method.max_models)
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for shape in ((6, 4), (5,)):
            base, *parents = family(shape, dtype)
            merged = replicate({"name": name}, base if method.needs_base else None, parents[:count])
            assert merged.isfinite().all()


@pytest.mark.parametrize("name", ["ties", "dare_linear", "della", "breadcrumbs", "model_stock"])
def test_replicating_task_vectors_needs_a_base(name):
    _, *parents = family()
    with pytest.raises(RecipeError, match=f"{name} merges differences") as caught:
        replicate({"name": name}, None, parents)
    assert caught.value.code == "merge.base"


def test_a_method_that_mergekit_lacks_says_so():
    with pytest.raises(RecipeError, match="has no run_average"):
        replicate({"name": "run_average"}, None, family()[1:])
