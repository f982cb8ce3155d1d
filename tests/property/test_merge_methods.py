"""What merging must hold for any tensors: identities, order, scale, blocks, exact shares."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from stillroom.merge.interfaces import (
    METHODS,
    BlockContext,
    InMemoryBlocks,
    RowBlock,
    merge_arrays,
)
from stillroom.merge.tensors.task_vectors import bernoulli_mask
from stillroom.merge.tensors.trimming import find_thresholds, mask_above, trim

FEW = settings(max_examples=25, deadline=None)
NUMBERS = st.floats(-8, 8, width=32, allow_subnormal=False)
SHAPES = arrays.array_shapes(min_dims=0, max_dims=3, max_side=7)
NAMES = [  # without those that need statistics
    name
    for name in METHODS.names()
    if not any(field.is_required() for field in METHODS.get(name).model_fields.values())
]
BASED = [name for name in NAMES if METHODS.get(name).needs_base]
SUMS = ["breadcrumbs", "dare_linear", "della_linear", "linear", "model_stock", "task_arithmetic"]
VOTES = ["breadcrumbs_ties", "dare_ties", "della", "ties"]
SCALED = sorted({*SUMS, *VOTES} - {"linear", "model_stock"})


@st.composite
def families(draw, count=3, dtype=np.float64):
    shape = draw(SHAPES)
    same = arrays.arrays(np.float32, shape, elements=NUMBERS)
    return [np.asarray(draw(same), dtype) for _ in range(count + 1)]


def named(name, **values):
    return METHODS.build({"name": name, **values})


def place(parents, weights=None, seed=0, name="w"):
    count = len(parents)
    keys = tuple("abcdefgh"[:count])
    return BlockContext(name, parents[0].shape, keys, tuple(weights or [1.0] * count), seed=seed)


def merge(method, base, parents, weights=None, rows=None, seed=0):
    return merge_arrays(method, base, parents, place(parents, weights, seed), rows=rows)


def bits(array):
    return np.asarray(array).tobytes()


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data(), rows=st.integers(1, 8), dtype=st.sampled_from([np.float32, np.float64]))
@FEW
def test_blocks_never_change_a_bit_and_inputs_are_left_alone(name, dtype, data, rows):
    base, *parents = data.draw(families(dtype=dtype))
    method = named(name)
    parents = parents[: min(method.max_models, 3)]
    before = [array.copy() for array in (base, *parents)]
    whole = merge(method, base, parents)
    assert bits(whole) == bits(merge(method, base, parents, rows=rows))
    assert (whole.shape, whole.dtype) == (base.shape, base.dtype)
    assert all(bits(a) == bits(b) for a, b in zip(before, (base, *parents), strict=True))


@pytest.mark.parametrize("name", BASED)
@given(family=families(0, np.float32))
@FEW
def test_models_that_equal_the_base_change_nothing(name, family):
    (base,) = family
    count = max(2, METHODS.get(name).min_models)
    parents = [base] * min(count, METHODS.get(name).max_models)
    merged = merge(named(name), base, parents)
    assert np.array_equal(merged, base)  # though a zero may lose its sign
    assert merged.dtype == base.dtype


@pytest.mark.parametrize("name", ["ties", "breadcrumbs", "breadcrumbs_ties", "dare_linear"])
@given(family=families())
@FEW
def test_what_drops_nothing_of_one_model_is_task_arithmetic(name, family):
    base, first, *_ = family
    all_kept = {"gamma": 0} if name.startswith("breadcrumbs") else {}
    kept = merge(named(name, density=1, **all_kept), base, [first])
    assert np.allclose(kept, merge(named("task_arithmetic"), base, [first]))


@pytest.mark.parametrize("name", SCALED)
@given(family=families(), scale=st.floats(-2, 2))
@FEW
def test_task_vectors_scale_with_lambda(name, family, scale):
    base, *parents = family
    one = merge(named(name), base, parents) - base
    many = merge(named(name, scale=scale), base, parents) - base
    assert np.allclose(many, scale * one, atol=1e-9)


@pytest.mark.parametrize("name", SCALED)
@given(family=families(), power=st.integers(-3, 3))
@FEW
def test_larger_task_vectors_change_the_same_elements_by_as_much_more(name, family, power):
    _, *parents = family
    base = np.zeros_like(parents[0])
    one = merge(named(name), base, parents)
    many = merge(named(name), base, [parent * 2.0**power for parent in parents])
    assert np.array_equal(many, one * 2.0**power)


@pytest.mark.parametrize("name", SUMS + VOTES)
@given(data=st.data(), weights=st.permutations([1, 2, 5]), order=st.permutations([0, 1, 2]))
@FEW
def test_the_order_of_models_changes_nothing_but_rounding(name, data, weights, order):
    if name == "della":
        pytest.skip("probabilities are no round numbers: a vote that is a draw may turn")
    # Eighths, so that every sum is exact and a draw is one in any order.
    shape = data.draw(SHAPES)
    eighths = arrays.arrays(np.int8, shape, elements=st.integers(-32, 32))
    base, *parents = [np.asarray(data.draw(eighths) / 8, np.float64) for _ in range(4)]
    at = place(parents, weights)
    other = BlockContext("w", shape, *(tuple(x[i] for i in order) for x in (at.keys, at.weights)))
    merged = merge_arrays(named(name), base, parents, at)
    moved = merge_arrays(named(name), base, [parents[i] for i in order], other)
    assert np.allclose(merged, moved, atol=1e-12)


@given(family=families(), weights=st.lists(st.floats(0.1, 5), min_size=3, max_size=3))
@FEW
def test_linear_lies_between_its_models(family, weights):
    _, *parents = family
    merged = merge(named("linear"), None, parents, weights)
    stack = np.stack(parents)
    assert np.all(merged <= stack.max(0) + 1e-9)
    assert np.all(merged >= stack.min(0) - 1e-9)


@given(family=families(1, np.float32), t=st.sampled_from([0, 1]))
@FEW
def test_slerp_ends_at_its_models_bit_for_bit(family, t):
    assert bits(merge(named("slerp", t=t), None, family)) == bits(family[t])


def largest(vector, wanted):
    """The mask of the largest magnitudes, first ones first: by a stable sort of everything."""
    mask = np.zeros(vector.size, bool)
    mask[np.argsort(-np.abs(vector.ravel()), kind="stable")[:wanted]] = True
    return mask.reshape(vector.shape)


def count_kept(density, size):
    return max(1, int(density * size)) if density > 0 and size else 0


@given(
    vector=arrays.arrays(np.float32, st.integers(1, 200), elements=st.sampled_from([-2, -1, 0, 1])),
    densities=st.lists(st.floats(0, 1), min_size=1, max_size=3),
    rows=st.integers(1, 64),
)
@FEW
def test_a_cut_keeps_the_exact_share_largest_first_then_first_ones(vector, densities, rows):
    at = BlockContext("w", vector.shape, ("a",), (1.0,))
    blocks = InMemoryBlocks(None, [vector], at, rows)
    cuts = find_thresholds([blocks], lambda block: [block.parents[0]] * len(densities), densities)
    for density, cut in zip(densities, cuts, strict=True):
        got = np.concatenate([trim(block.parents[0], cut, block.context) for block in blocks])
        kept = largest(vector, count_kept(density, vector.size))
        assert got.tolist() == (vector * kept).tolist()


def big_vector(kind):
    """Over four million numbers, so that a sample sets the first bounds; all but one are hard."""
    shape = (1100, 4096)
    rng = np.random.default_rng(0)
    normal = rng.standard_normal(shape, np.float32)
    hidden = np.zeros(shape, np.float32)
    hidden[16:32] = normal[16:32]  # rows that the sample does not read
    kinds = {
        "normal": lambda: normal,
        "heavy": lambda: normal * np.exp(4 * rng.standard_normal(shape, np.float32)),
        "sorted": lambda: np.sort(normal, axis=None).reshape(shape),
        "rounded": lambda: ((normal.view(np.uint32) & 0xFFFF0000).view(np.float32)) * 0.01,
        "few": lambda: rng.integers(-3, 4, shape).astype(np.float32),
        "constant": lambda: np.full(shape, -0.25, np.float32),
        "zero": lambda: np.zeros(shape, np.float32),
        "hidden": lambda: hidden,
        "striped": lambda: np.where(np.arange(4096) % 7 == 0, 0, normal).astype(np.float32),
    }
    return kinds[kind]()


BIG = [  # the slow ones have ties or zeros, or neither, as others here have
    "constant",
    "heavy",
    "hidden",
    "sorted",
    "zero",
    *(pytest.param(one, marks=pytest.mark.slow) for one in ("few", "normal", "rounded", "striped")),
]


@pytest.mark.parametrize("kind", BIG)
def test_the_cut_of_a_big_tensor_is_that_of_a_full_sort(kind):
    vector = big_vector(kind)
    densities = [0.2, 0.001, 0.9999, 1e-9, 0.0]
    blocks = InMemoryBlocks(
        None, [vector], BlockContext("w", vector.shape, ("a",), (1.0,)), rows=16
    )
    cuts = find_thresholds([blocks], lambda block: [block.parents[0]] * len(densities), densities)
    order = np.argsort(-np.abs(vector).ravel(), kind="stable")
    for density, cut in zip(densities, cuts, strict=True):
        kept = np.zeros(vector.size, bool)
        kept[order[: count_kept(density, vector.size)]] = True
        got = np.concatenate([trim(block.parents[0], cut, block.context) for block in blocks])
        assert np.array_equal(got, vector * kept.reshape(vector.shape)), density
        assert cut is not None


def test_a_cut_over_many_tensors_ranks_them_together_by_name_and_element():
    rng = np.random.default_rng(1)
    tensors = {f"w{n}": rng.integers(-2, 3, (90 + n, 7)).astype(np.float32) for n in range(12)}
    names = sorted(tensors)
    blocks = [
        InMemoryBlocks(
            None, [tensors[n]], BlockContext(n, tensors[n].shape, ("a",), (1.0,)), rows=5
        )
        for n in names
    ]
    flat = np.concatenate([tensors[name].ravel() for name in names])
    for density in (0.03, 0.2, 0.5, 0.77):
        (cut,) = find_thresholds(blocks, lambda block: [block.parents[0]], [density])
        got = [trim(tensors[name], cut, BlockContext(name, (), (), ())).ravel() for name in names]
        kept = largest(flat, count_kept(density, flat.size))
        assert np.array_equal(np.concatenate(got), flat * kept)


@given(start=st.integers(0, 5000), count=st.integers(1, 300), density=st.floats(0, 1))
@FEW
def test_a_random_mask_is_the_same_from_wherever_it_is_read(start, count, density):
    whole = bernoulli_mask((6000,), density, "key", BlockContext("w", (6000,), (), ()))
    part = bernoulli_mask(
        (count,), density, "key", BlockContext("w", (6000,), (), (), offset=start)
    )
    assert np.array_equal(part, whole[start : start + count])


def test_a_random_mask_keeps_the_share_it_should_and_differs_by_seed_tensor_and_model():
    shape = (400, 500)
    masks = [
        bernoulli_mask(shape, 0.3, key, BlockContext(name, shape, (), (), seed=seed))
        for key in "ab"
        for name in "wv"
        for seed in (0, 1)
    ]
    sigma = (0.3 * 0.7 / 200_000) ** 0.5
    assert all(abs(mask.mean() - 0.3) < 4 * sigma for mask in masks)
    together = [np.mean(a & b) for i, a in enumerate(masks) for b in masks[:i]]
    assert all(abs(share - 0.09) < 4.5 * (0.09 * 0.91 / 200_000) ** 0.5 for share in together)


class _Made:
    """A large tensor whose blocks are made when they are read, so that nothing holds it whole."""

    def __init__(self, make, rows=16, width=8192, blocks=128):
        self.make, self.rows, self.width, self.count = make, rows, width, blocks
        self.context = BlockContext("w", (rows * blocks, width), ("a",), (1.0,))
        self.size = rows * blocks * width

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        if number >= self.count:
            raise IndexError(number)
        at = replace(self.context, offset=number * self.rows * self.width)
        return RowBlock(None, (self.make(number, (self.rows, self.width)),), at)

    def each(self, reduce):
        return [reduce(self[number]) for number in range(self.count)]


def _draw_block(number, shape):
    return np.random.default_rng(number).standard_normal(shape, np.float32)


MISLEADING = {
    "constant": lambda number, shape: np.full(shape, 0.5, np.float32),
    # Blocks that the sample does not read hold other numbers than those that it reads.
    "hidden": lambda number, shape: _draw_block(number, shape) * (0.0 if number % 2 == 0 else 1),
}


@pytest.mark.parametrize("kind", MISLEADING)
def test_a_sample_that_misleads_holds_no_tensor_in_memory(kind):
    tensor = _Made(MISLEADING[kind])
    tracemalloc.start()
    (cut,) = find_thresholds([tensor], lambda block: [block.parents[0]], [0.3])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    kept = sum(mask_above(block.parents[0], cut, block.context).sum() for block in tensor)
    assert kept == int(0.3 * tensor.size)
    assert peak < 40e6  # the tensor's magnitudes alone would be 67 MB


def test_threads_that_come_in_any_order_find_the_same_cut():
    made = _Made(lambda number, shape: _draw_block(number, shape).round(2), 2, 64, 900)
    shuffled = _Made(made.make, 2, 64, 900)
    order = np.random.default_rng(0).permutation(900)
    shuffled.each = lambda reduce: [reduce(shuffled[number]) for number in order]
    for density in (0.001, 0.2, 0.5, 0.9):
        found = [
            find_thresholds([each], lambda b: [b.parents[0]], [density])
            for each in (made, shuffled)
        ]
        assert found[0] == found[1]
