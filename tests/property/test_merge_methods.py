"""What merging must hold for any tensors: identities, order, scale, blocks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from stillroom.merge.arithmetic import find_cut, keep_random, trim
from stillroom.merge.method import METHODS, Block, Place

FEW = settings(max_examples=60, deadline=None)
NUMBERS = st.floats(-8, 8, width=32, allow_subnormal=False)
SHAPES = arrays.array_shapes(min_dims=0, max_dims=3, max_side=7)


@st.composite
def families(draw, count=3):
    shape = draw(SHAPES)
    same = arrays.arrays(np.float32, shape, elements=NUMBERS)
    return [torch.from_numpy(np.asarray(draw(same)).copy()).double() for _ in range(count + 1)]


class Whole:
    """A tensor as blocks of the given number of rows."""

    def __init__(self, base, parents, at, step=1000):
        self.base, self.parents, self.at, self.step = base, parents, at, step

    def __iter__(self):
        from dataclasses import replace

        rows = self.base.shape[0] if self.base.dim() else 1
        width = self.base[0].numel() if self.base.dim() else 1
        for start in range(0, rows, self.step):
            cut = slice(start, start + self.step) if self.base.dim() else ...
            yield Block(
                self.base[cut],
                tuple(parent[cut] for parent in self.parents),
                replace(self.at, offset=start * width),
            )


def merge(method, base, parents, weights=None, step=1000, seed=0):
    count = len(parents)
    at = Place(
        "w", tuple(base.shape), tuple("abc"[:count]), tuple(weights or [1.0] * count), (), seed
    )
    blocks = Whole(base, parents, at, step)
    overall = method.survey([blocks])
    blocks.at = Place("w", at.shape, at.keys, at.weights, (), seed, 0, overall)
    measured = method.measure(blocks)
    done = [method.combine(b.base, b.parents, measured, b.at) for b in blocks]
    return torch.cat(done) if base.dim() else done[0]


def named(name, **values):
    return METHODS.build({"name": name, **values})


@pytest.mark.parametrize("name", METHODS.names())
@given(family=families(), step=st.integers(1, 8))
@FEW
def test_blocks_never_change_a_bit_and_inputs_are_left_alone(name, family, step):
    base, *parents = family
    method = named(name)
    parents = parents[: min(method.most_parents, 3)]
    before = [tensor.clone() for tensor in family]
    whole = merge(method, base, parents)
    assert torch.equal(whole, merge(method, base, parents, step=step))
    assert all(torch.equal(a, b) for a, b in zip(before, family, strict=True))


@pytest.mark.parametrize(
    "name", ["task_arithmetic", "ties", "dare_linear", "dare_ties", "model_stock"]
)
@given(family=families(0))
@FEW
def test_models_that_equal_the_base_change_nothing(name, family):
    (base,) = family
    assert torch.equal(merge(named(name), base, [base, base]), base)


@given(family=families(), weights=st.lists(st.floats(0.1, 5), min_size=3, max_size=3))
@FEW
def test_ties_that_trims_nothing_of_one_model_is_task_arithmetic(family, weights):
    base, first, *_ = family
    ties = merge(named("ties", density=1), base, [first])
    assert torch.allclose(ties, merge(named("task_arithmetic"), base, [first]))


@given(family=families(), scale=st.floats(-2, 2))
@FEW
def test_task_vectors_scale_with_lambda(family, scale):
    base, *parents = family
    for name in ("task_arithmetic", "ties", "dare_ties"):
        one = merge(named(name), base, parents) - base
        many = merge(named(name, scale=scale), base, parents) - base
        assert torch.allclose(many, scale * one, atol=1e-9)


@given(family=families(), weights=st.lists(st.floats(0.1, 5), min_size=3, max_size=3))
@FEW
def test_linear_lies_between_its_models(family, weights):
    base, *parents = family
    merged = merge(named("linear"), base, parents, weights)
    stack = torch.stack(parents)
    assert bool((merged <= stack.amax(0) + 1e-9).all())
    assert bool((merged >= stack.amin(0) - 1e-9).all())


@given(
    vector=arrays.arrays(np.float32, st.integers(1, 200), elements=st.sampled_from([-2, -1, 0, 1])),
    density=st.floats(0, 1),
    step=st.integers(1, 64),
)
@FEW
def test_a_cut_keeps_the_exact_share_largest_first_then_first_ones(vector, density, step):
    tensor = torch.from_numpy(vector.copy())
    at = Place("w", tuple(tensor.shape), ("a",), (1.0,))
    blocks = Whole(torch.zeros_like(tensor), [tensor], at, step)
    cut = find_cut(lambda: [blocks], lambda block: block.parents[0], density)
    wanted = max(1, int(density * len(vector))) if density > 0 else 0
    order = np.argsort(-np.abs(vector), kind="stable")[:wanted]
    expected = np.zeros_like(vector)
    expected[order] = vector[order]
    got = torch.cat([trim(block.parents[0], cut, block.at) for block in blocks])
    assert got.tolist() == expected.tolist()


@given(start=st.integers(0, 5000), count=st.integers(1, 300), density=st.floats(0, 1))
@FEW
def test_a_random_mask_is_the_same_from_wherever_it_is_read(start, count, density):
    whole = keep_random(torch.Size([6000]), density, "key", Place("w", (6000,), (), ()))
    part = keep_random(
        torch.Size([count]), density, "key", Place("w", (6000,), (), (), offset=start)
    )
    assert torch.equal(part, whole[start : start + count])


def test_dare_keeps_the_task_vector_on_average():
    base = torch.zeros(4, 5, dtype=torch.float64)
    vector = torch.linspace(-1, 1, 20, dtype=torch.float64).view(4, 5)
    runs = torch.stack(
        [merge(named("dare_linear", density=0.3), base, [vector], seed=s) for s in range(2000)]
    )
    error = (runs.mean(0) - vector).abs()
    sigma = vector.abs() * (0.7 / 0.3 / 2000) ** 0.5
    assert bool((error <= 4 * sigma + 1e-12).all())
