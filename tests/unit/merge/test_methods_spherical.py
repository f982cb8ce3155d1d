"""Methods on the sphere, each beside its formula written out on the whole vectors in float64."""

import numpy as np
import pytest
import torch

from stillroom.errors import RecipeError
from stillroom.merge.interfaces import METHODS, BlockContext, merge_arrays
from stillroom.merge.mergekit.exact import merge_whole_tensor

NAMES = ("nuslerp", "multislerp", "karcher")
WEIGHTS = (0.5137, 0.3071, 0.1963)


def named(name, **settings):
    return METHODS.build({"name": name, **settings})


def place(shape, weights):
    keys = tuple(f"p{number}" for number in range(len(weights)))
    return BlockContext("layers.0.weight", shape, keys, tuple(weights))


def merge(method, base, parents, weights=None, rows=None):
    weights = weights or [1.0] * len(parents)
    return merge_arrays(method, base, parents, place(parents[0].shape, weights), rows=rows)


def family(shape=(7, 5), count=3, seed=0):
    rng = np.random.default_rng(seed)
    base = rng.standard_normal(shape)
    return base, [base + 0.3 * rng.standard_normal(shape) for _ in range(count)]


def arc(one, two, share):
    angle = np.arccos(one @ two / np.linalg.norm(one) / np.linalg.norm(two))
    return (np.sin((1 - share) * angle) * one + np.sin(share * angle) * two) / np.sin(angle)


@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("per", ["tensor", "row", "column"])
def test_nuslerp_turns_what_it_says(per, with_base):
    base, parents = family(count=2)
    share = WEIGHTS[1] / (WEIGHTS[0] + WEIGHTS[1])
    offset = base if with_base else np.zeros_like(base)
    one, two = (parent - offset for parent in parents)
    if per == "tensor":
        expected = arc(one.ravel(), two.ravel(), share).reshape(one.shape)
    elif per == "row":
        expected = np.stack([arc(a, b, share) for a, b in zip(one, two, strict=True)])
    else:
        expected = np.stack([arc(a, b, share) for a, b in zip(one.T, two.T, strict=True)]).T
    method = named("nuslerp", per=per)
    for rows in (None, 1, 3):
        got = merge(method, base if with_base else None, parents, WEIGHTS[:2], rows)
        np.testing.assert_allclose(got, offset + expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("per", ["tensor", "row", "column"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nuslerp_ends_at_its_models_bit_for_bit(per, dtype):
    base, parents = family(count=2)
    parents = [parent.astype(dtype) for parent in parents]
    method = named("nuslerp", per=per)
    for end, weights in enumerate([(2.0, 0.0), (0.0, 0.7)]):
        for origin in (None, base.astype(dtype)):
            assert merge(method, origin, parents, weights).tobytes() == parents[end].tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_weights_that_cancel_out_are_refused(name):
    named(name).check([1.0, 0.5])
    with pytest.raises(RecipeError, match="add up to zero") as error:
        named(name).check([1.0, -1.0])
    assert error.value.code == "merge.weights"


def test_multislerp_that_sums_takes_weights_that_cancel_out():
    named("multislerp", normalize=False).check([1.0, -1.0])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(), (1,), (5,), (4, 3), (2, 3, 4), (0, 4)])
def test_odd_tensors_have_a_defined_result(name, shape):
    rng = np.random.default_rng(3)
    some = np.asarray(rng.standard_normal(shape))
    zero = np.zeros(shape)
    per = ["tensor", "row", "column"] if name == "nuslerp" else [None]
    for settings in [{"per": each} if each else {} for each in per]:
        method = named(name, **settings)
        for first, second in ((some, some), (some, zero), (zero, some), (zero, zero)):
            for base in (None, some, zero):
                merged = merge(method, base, [first, second])
                assert merged.shape == shape
                assert np.isfinite(merged).all()
        same = merge(method, some, [some, some])
        assert same.tobytes() == some.tobytes()
        opposite = merge(method, None, [some, -some])
        assert np.isfinite(opposite).all()


def tangent_mean(vectors, weights):
    lengths = np.linalg.norm(vectors, axis=1)
    units = vectors / lengths[:, None]
    mean = weights @ units
    mean /= np.linalg.norm(mean)
    tangent = weights @ (units - (units @ mean)[:, None] * mean)
    step = np.linalg.norm(tangent)
    return (np.cos(step) * mean + np.sin(step) * tangent / step) * (weights @ lengths)


@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("normalize", [True, False])
def test_multislerp_is_the_mean_in_the_tangent_space(normalize, with_base):
    base, parents = family()
    offset = base if with_base else np.zeros_like(base)
    weights = np.array([0.9, 0.4, 0.6])
    used = weights / weights.sum() if normalize else weights
    vectors = np.stack([(parent - offset).ravel() for parent in parents])
    expected = offset + tangent_mean(vectors, used).reshape(base.shape)
    for rows in (None, 2):
        got = merge(
            named("multislerp", normalize=normalize),
            base if with_base else None,
            parents,
            weights.tolist(),
            rows,
        )
        np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-13)


def test_multislerp_whose_directions_cancel_out_is_the_weighted_sum():
    one = np.array([1.0, 0.0, 0.0])
    two = np.array([-0.5, np.sqrt(3) / 2, 0.0])
    three = np.array([-0.5, -np.sqrt(3) / 2, 0.0])
    merged = merge(named("multislerp"), None, [one, two, three])
    np.testing.assert_allclose(merged, (one + two + three) / 3, atol=1e-15)


def test_replicated_multislerp_refuses_directions_that_cancel_out():
    zeros = [torch.zeros(3) for _ in range(3)]
    with pytest.raises(RecipeError, match="cancel out") as error:
        merge_whole_tensor(named("multislerp"), None, zeros, place((3,), WEIGHTS))
    assert error.value.code == "merge.cancelled"


def walk_to_mean(vectors, weights):
    lengths = np.linalg.norm(vectors, axis=1)
    units = vectors / lengths[:, None]
    point = weights @ units
    point /= np.linalg.norm(point)
    for _ in range(500):
        turned = np.clip(units @ point, -1, 1)
        angle = np.arccos(turned)
        step = (weights * angle / np.sin(angle)) @ (units - turned[:, None] * point)
        size = np.linalg.norm(step)
        if size < 1e-14:
            break
        point = np.cos(size) * point + np.sin(size) * step / size
    return point * (weights @ lengths)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.2, 0.5, 0.3)])
def test_karcher_is_where_the_tangents_balance(weights):
    rng = np.random.default_rng(5)
    parents = [rng.standard_normal((6, 4)) for _ in range(3)]
    shares = np.array(weights) / sum(weights)
    expected = walk_to_mean(np.stack([parent.ravel() for parent in parents]), shares)
    for rows in (None, 1):
        got = merge(named("karcher"), None, parents, weights, rows)
        np.testing.assert_allclose(got.ravel(), expected, rtol=1e-8, atol=1e-9)


def test_karcher_of_two_models_of_one_length_is_slerp_at_one_half():
    _, (one, two) = family(count=2, seed=9)
    two *= np.linalg.norm(one) / np.linalg.norm(two)
    half = merge(named("nuslerp"), None, [one, two])
    np.testing.assert_allclose(merge(named("karcher"), None, [one, two]), half, rtol=1e-9)


def test_karcher_is_as_long_as_its_models_are_on_average():
    _, parents = family()
    parents = [parent * (1 + number) for number, parent in enumerate(parents)]
    merged = merge(named("karcher"), None, parents)
    lengths = [np.linalg.norm(parent) for parent in parents]
    assert np.linalg.norm(merged) == pytest.approx(np.mean(lengths), rel=1e-12)


def test_karcher_without_a_step_is_the_mean_direction():
    _, parents = family()
    merged = merge(named("karcher", max_iter=0), None, parents)
    mean = sum(parent / np.linalg.norm(parent) for parent in parents)
    turned = (merged * mean).sum() / np.linalg.norm(merged) / np.linalg.norm(mean)
    assert turned == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("name", ["multislerp", "karcher"])
def test_order_of_models_changes_nothing(name):
    base, parents = family(count=3, seed=2)
    weights = [0.5, 0.3, 0.2]
    one = merge(named(name), base, parents, weights)
    other = merge(named(name), base, parents[::-1], weights[::-1])
    np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_single_precision_stays_close_to_double(name):
    base, parents = family(shape=(64, 48), count=2, seed=4)
    exact = merge(named(name), None, parents)
    got = merge(named(name), None, [parent.astype(np.float32) for parent in parents])
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-6)
    assert base.shape == got.shape


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_blocks_change_no_bit(name, rows):
    base, parents = family(shape=(11, 6), count=2, seed=6)
    for dtype in (np.float32, np.float64):
        tensors = [parent.astype(dtype) for parent in parents]
        origin = base.astype(dtype)
        whole = merge(named(name), origin, tensors, [0.7, 0.4])
        assert merge(named(name), origin, tensors, [0.7, 0.4], rows).tobytes() == whole.tobytes()
