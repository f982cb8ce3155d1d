"""Methods that choose elements, each beside its formula written out plainly in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from stillroom.errors import RecipeError
from stillroom.merge.interfaces import METHODS, BlockContext, InMemoryBlocks, merge_arrays
from stillroom.merge.mergekit.exact import merge_whole_tensor

ROWS = (None, 1, 3)


def named(name, **settings):
    return METHODS.build({"name": name, **settings})


def merge(method, base, parents, weights=None, rows=None, **more):
    weights = weights or [1.0] * len(parents)
    keys = tuple(f"p{number}" for number in range(len(parents)))
    at = BlockContext("w", parents[0].shape, keys, tuple(weights), **more)
    return merge_arrays(method, base, parents, at, rows=rows)


def family(shape=(11, 7), count=3, seed=0, share=1.0):
    rng = np.random.default_rng(seed)
    base = rng.standard_normal(shape)
    return base, [
        base + 0.1 * rng.standard_normal(shape) * (rng.random(shape) < share) for _ in range(count)
    ]


def check(method, base, parents, expected, weights=None, **more):
    for rows in ROWS:
        got = merge(method, base, parents, weights, rows, **more)
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14)


def test_nearswap_moves_by_the_difference_or_by_t():
    base, (other,) = family(count=1)
    share = np.clip(0.05 / np.abs(base - other), 0, 1)
    check(named("nearswap", t=0.05), base, [other], (1 - share) * base + share * other)


def softmax(array):
    raised = np.exp(array - array.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("shape", [(11, 7), (50,), (3, 4, 6), (5,)])
def test_arcee_fusion_takes_what_stands_out(shape):
    base, (other,) = family(shape, 1)
    new, old = softmax(other), softmax(base)
    divergence = (new * np.log(new / old)).sum(axis=-1, keepdims=True)
    importance = np.abs(other - base) * divergence
    ordered = np.sort(importance.ravel())
    low, middle, high = (ordered[int(part * (base.size - 1))] for part in (0.25, 0.5, 0.75))
    taken = importance >= middle + 1.5 * (high - low)
    assert 0 < taken.sum() < base.size or base.size == 5
    expected = np.where(taken, other, base)
    for rows in ROWS:
        assert (merge(named("arcee_fusion"), base, [other], rows=rows) == expected).all()


def test_arcee_fusion_of_few_or_equal_numbers_is_defined():
    for shape in ((), (1,), (2,), (0, 3), (4, 1)):
        base, (other,) = family(shape, 1)
        base, other = np.asarray(base), np.asarray(other)
        assert np.isfinite(merge(named("arcee_fusion"), base, [other])).all()
        assert (merge(named("arcee_fusion"), base, [base.copy()]) == base).all()


def test_arcee_fusion_finds_quartiles_of_a_large_tensor_exactly():
    base, (other,) = family((2100, 2100), 1)
    base, other = base.astype(np.float32), other.astype(np.float32)
    method = named("arcee_fusion")
    at = BlockContext("w", base.shape, ("p",), (1.0,))
    measured = method.measure(InMemoryBlocks(base, [other], at, rows=64))
    importance = np.abs(other - base) * measured["divergence"]
    ordered = np.sort(importance.astype(np.float32).ravel())
    low, middle, high = (float(ordered[int(part * (base.size - 1))]) for part in (0.25, 0.5, 0.75))
    assert measured["limit"] == middle + 1.5 * (high - low)


def count_changes(base, parents, epsilon):
    deltas = [parent - base for parent in parents]
    changed = np.stack([np.abs(delta) > epsilon for delta in deltas])
    return np.stack(deltas) * changed, changed, changed.sum(0)


def test_ram_averages_what_several_changed_and_keeps_what_one_did():
    base, parents = family(share=0.4)
    kept, _, count = count_changes(base, parents, 1e-5)
    assert set(np.unique(count)) == {0, 1, 2, 3}
    check(named("ram"), base, parents, base + kept.sum(0) / np.maximum(count, 1))


def test_ram_drops_moves_of_epsilon_or_less():
    base = np.zeros((2, 2))
    parent = np.array([[0.1, 0.3], [-0.1, -0.3]])
    check(named("ram", epsilon=0.2), base, [parent], [[0, 0.3], [0, -0.3]])


@pytest.mark.parametrize("count", ["tensor", "model"])
def test_ramplus_enlarges_what_is_unique_by_what_is_shared(count):
    base, parents = family(share=0.4)
    kept, changed, votes = count_changes(base, parents, 1e-5)
    expected = base + kept.sum(0) / np.maximum(votes, 1)
    for delta, mask in zip(kept, changed, strict=True):
        unique = mask & (votes == 1)
        ratio = (mask & (votes > 1)).sum() / unique.sum()
        expected += delta * unique * 0.3 * min(ratio, 0.9)
    check(named("ramplus_tl", r=0.3, alpha=0.9, count=count), base, parents, expected)


def test_ramplus_counts_over_the_whole_model_where_asked():
    method = named("ramplus_tl", r=1, alpha=5, count="model")
    one, two = family(share=0.4, seed=1), family(share=0.7, seed=2)
    at = BlockContext("w", (11, 7), ("a", "b", "c"), (1.0,) * 3)
    found = method.survey([InMemoryBlocks(*each, at) for each in (one, two)])
    shared = unique = 0
    for base, parents in (one, two):
        _, changed, votes = count_changes(base, parents, 1e-5)
        shared += (changed[0] & (votes > 1)).sum()
        unique += (changed[0] & (votes == 1)).sum()
    assert found[0] == [shared, unique]
    blocks = InMemoryBlocks(*one, replace(at, global_statistics=found))
    assert method.measure(blocks)[0] == pytest.approx(1 + min(shared / unique, 5))
    # A tensor that alone counts over the model has nothing but itself to count.
    assert method.measure(InMemoryBlocks(*one, at)) == named("ramplus_tl", r=1, alpha=5).measure(
        InMemoryBlocks(*one, at)
    )


@pytest.mark.parametrize("density", [1.0, 0.3, 0.0])
def test_sce_selects_weighs_and_erases(density):
    base, parents = family()
    deltas = np.stack([parent - base for parent in parents])
    wanted = max(1, int(density * base.size)) if density else 0
    spread = deltas.std(0).ravel().astype(np.float32)
    mask = np.zeros(base.size, bool)
    mask[np.argsort(-spread, kind="stable")[:wanted]] = True
    deltas = deltas * mask.reshape(base.shape)
    energy = (deltas**2).sum((1, 2))
    shares = energy / energy.sum() if density else np.full(3, 1 / 3)
    sign = np.where(deltas.sum(0) < 0, -1, 1)
    weights = shares[:, None, None] * (np.sign(deltas) == sign)
    total = weights.sum(0)
    expected = base + (weights * deltas).sum(0) / np.where(total == 0, 1, total)
    check(named("sce", density=density), base, parents, expected)


def test_sce_that_sums_divides_by_nothing():
    base, (parent,) = family(count=1)
    check(named("sce", density=1, normalize=False), base, [parent, base], parent)


def test_sce_of_equal_models_has_no_spread_to_select_by():
    base, (parent,) = family(count=1)
    check(named("sce", density=1), base, [parent] * 3, parent)


@pytest.mark.parametrize(("layer", "scale"), [(0.0, 0.2), (0.5, 0.6), (1.0, 1.0), (None, 0.2)])
def test_lines_scales_with_depth(layer, scale):
    base, parents = family(count=2)
    total = 0.7 * (parents[0] - base) + 0.2 * (parents[1] - base)
    method = named("lines", alpha=0.2, beta=0.8)
    check(method, base, parents, base + scale * total, [0.7, 0.2], layer=layer)


def test_lines_has_a_scale_of_its_own_outside_the_layers():
    base, (parent,) = family(count=1)
    check(named("lines", outside=0), base, [parent], base)


def test_consensus_keeps_what_enough_models_need():
    base, parents = family()
    deltas = [parent - base for parent in parents]
    total = sum(deltas)
    votes = sum(np.abs(delta) >= 0.4 * np.abs(total - delta) for delta in deltas)
    assert len(np.unique(votes)) > 1
    check(named("consensus", scale=0.6), base, parents, base + 0.6 * total * (votes >= 2))
    check(named("consensus", agree=0), base, parents, base + total)


def test_consensus_takes_a_threshold_and_a_weight_of_each_model():
    base, parents = family(count=2)
    one, two = 0.5 * (parents[0] - base), 2 * (parents[1] - base)
    votes = (np.abs(one) >= 9 * np.abs(two)).astype(int) + (np.abs(two) >= 0.1 * np.abs(one))
    own = ({"threshold": 9.0}, {})
    method = named("consensus", threshold=0.1, agree=1)
    check(method, base, parents, base + (one + two) * (votes >= 1), [0.5, 2.0], per_model=own)


def test_consensus_of_more_models_than_there_are_is_refused():
    with pytest.raises(RecipeError, match="agree is 3") as error:
        named("consensus", agree=3).check([1.0, 1.0])
    assert error.value.code == "merge.agree"


def elect(deltas):
    sign = np.where(deltas.sum(0) < 0, -1, 1)
    return sign * np.maximum((deltas * sign).max(0), 0)


def test_emr_elects_the_largest_of_the_elected_sign():
    base, parents = family()
    deltas = np.stack([parent - base for parent in parents])
    check(named("emr", scale=0.5), base, parents, base + 0.5 * elect(deltas))


@pytest.mark.parametrize("rescale", ["model", "tensor", "off"])
def test_emr_serves_one_model_with_mask_and_scale(rescale):
    base, parents = family()
    deltas = np.stack([parent - base for parent in parents])
    elected = elect(deltas)
    for task in range(3):
        masked = elected * (elected * deltas[task] > 0)
        scale = np.abs(deltas[task]).sum() / np.abs(masked).sum() if rescale != "off" else 1
        check(named("emr", task=task, rescale=rescale), base, parents, base + scale * masked)


def test_emr_scales_over_the_whole_model():
    method = named("emr", task=1)
    one, two = family(seed=1), family(seed=2)
    at = BlockContext("w", (11, 7), ("a", "b", "c"), (1.0,) * 3)
    found = method.survey([InMemoryBlocks(*each, at) for each in (one, two)])
    wanted = served = 0.0
    for base, parents in (one, two):
        deltas = np.stack([parent - base for parent in parents])
        elected = elect(deltas)
        wanted += np.abs(deltas[1]).sum()
        served += np.abs(elected * (elected * deltas[1] > 0)).sum()
    assert found["ratio"] == pytest.approx(wanted / served, rel=1e-12)
    blocks = InMemoryBlocks(*one, replace(at, global_statistics=found))
    assert method.measure(blocks) == found["ratio"]
    assert named("emr", task=2).measure(blocks) == named("emr", task=2, rescale="tensor").measure(
        blocks
    )


def test_emr_of_one_model_is_that_model():
    base, (parent,) = family(count=1)
    check(named("emr", task=0), base, [parent], parent)


def test_emr_for_a_model_that_is_not_there_is_refused():
    with pytest.raises(RecipeError, match="model 2 does not exist") as error:
        named("emr", task=2).check([1.0, 1.0])
    assert error.value.code == "merge.task"


@pytest.mark.parametrize("name", ["ram", "ramplus_tl", "sce", "lines", "consensus", "emr"])
@pytest.mark.parametrize("shape", [(), (1,), (5,), (4, 3), (2, 3, 4), (0, 4)])
def test_odd_tensors_have_a_defined_result(name, shape):
    base, parents = family(shape, 2)
    base, parents = np.asarray(base), [np.asarray(parent) for parent in parents]
    for models in (parents, [base, parents[0]], [np.zeros(shape), -base]):
        for dtype in (np.float32, np.float64):
            tensors = [model.astype(dtype) for model in models]
            merged = merge(named(name), base.astype(dtype), tensors)
            assert merged.shape == shape
            assert merged.dtype == dtype
            assert np.isfinite(merged).all()


@pytest.mark.parametrize(
    "name", ["arcee_fusion", "ram", "ramplus_tl", "sce", "consensus", "emr", "nearswap"]
)
def test_blocks_change_no_bit_in_single_precision(name):
    method = named(name)
    base, parents = family((23, 9), min(3, method.max_models))
    tensors = [parent.astype(np.float32) for parent in parents]
    whole = merge(method, base.astype(np.float32), tensors)
    for rows in (1, 2, 7):
        part = merge(method, base.astype(np.float32), tensors, rows=rows)
        assert part.tobytes() == whole.tobytes()


@pytest.mark.parametrize("name", ["ram", "ramplus_tl", "sce", "nearswap", "arcee_fusion"])
def test_without_a_base_they_say_so(name):
    method = named(name)
    parents = [torch.ones(3)] * min(2, method.max_models)
    at = BlockContext("w", (3,), ("a", "b")[: len(parents)], (1.0,) * len(parents))
    with pytest.raises(RecipeError) as error:
        merge_whole_tensor(method, None, parents, at)
    assert error.value.code == "merge.base"
    with pytest.raises(RecipeError) as error:
        merge(method, None, [parent.numpy() for parent in parents])
    assert error.value.code == "merge.base"


@pytest.mark.parametrize("name", ["emr", "consensus"])
def test_choices_that_fit_are_accepted(name):
    named(name, **({"task": 1} if name == "emr" else {})).check([1.0, 1.0])
