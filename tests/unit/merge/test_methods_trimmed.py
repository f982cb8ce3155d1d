"""TIES and Breadcrumbs against plain float64 references: what is kept, what is voted for."""

import numpy as np
import pytest

from stillroom.errors import RecipeError
from stillroom.merge.interfaces import METHODS, BlockContext, InMemoryBlocks, merge_arrays

WEIGHTS = (0.5137, 0.3071, 0.1963)
SHAPES = {"a.weight": (7, 9), "b.weight": (5,), "c.weight": (2, 3, 4)}


def named(name, **values):
    return METHODS.build({"name": name, **values})


def model(seed, coarse=False):
    rng = np.random.default_rng(seed)
    tensors = {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}
    # Eighths make many equal magnitudes, so that the rule for those is tested too.
    return {name: np.round(t * 2) / 8 if coarse else t for name, t in tensors.items()}


def merge_models(method, base, parents, rows=None, own=()):
    """Merge whole models in memory, as the engine does: survey, then tensor by tensor."""
    blocks = []
    for name in sorted(base):
        at = BlockContext(name, base[name].shape, ("a", "b", "c"), WEIGHTS, own)
        blocks.append(InMemoryBlocks(base[name], [parent[name] for parent in parents], at, rows))
    overall = method.survey(blocks)
    merged = {}
    for each in blocks:
        at = BlockContext(
            each.context.name,
            each.context.shape,
            each.context.keys,
            WEIGHTS,
            own,
            global_statistics=overall,
        )
        merged[at.name] = merge_arrays(
            Surveyed(method, overall), base[at.name], [p[at.name] for p in parents], at, rows=rows
        )
    return merged


class Surveyed:
    """A method that was told what a survey of the whole model found."""

    def __init__(self, method, overall):
        self.survey = lambda tensors: overall
        self.measure, self.combine = method.measure, method.combine
        self.needs_whole = method.needs_whole


def ranks_of(vector):
    """The rank of each element, the largest magnitude 0; of equal ones the first is the larger."""
    order = np.argsort(-np.abs(vector), kind="stable")
    ranks = np.empty(len(vector), int)
    ranks[order] = np.arange(len(vector))
    return ranks


def reference(base, parents, keep, groups, *, votes, normalize=True, rescale=False):
    """Trim groups of tensors that are ranked together, then elect and average, or add up."""
    merged = {}
    for names in groups:
        flat = [np.concatenate([(p[n] - base[n]).ravel() for n in names]) for p in parents]
        kept = [
            vector * keep(number, ranks_of(vector), len(vector))
            for number, vector in enumerate(flat)
        ]
        if rescale:
            kept = [
                k * np.abs(v).sum() / max(np.abs(k).sum(), 1e-300)
                for k, v in zip(kept, flat, strict=True)
            ]
        weighted = np.array(WEIGHTS)[:, None] * np.stack(kept)
        sign = np.where(weighted.sum(0) >= 0, 1, -1) if votes else 0
        agree = weighted * sign > 0 if votes else np.ones(weighted.shape, bool)
        mass = (np.array(WEIGHTS)[:, None] * agree).sum(0)
        total = (weighted * agree).sum(0) / (np.where(mass == 0, 1, mass) if normalize else 1)
        start = 0
        for name in names:
            size = base[name].size
            merged[name] = base[name] + total[start : start + size].reshape(base[name].shape)
            start += size
    return merged


def same(got, expected):
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-13, atol=1e-14, err_msg=name)


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("rows", [None, 1, 3])
@pytest.mark.parametrize("density", [0.0, 0.2, 0.73, 1.0])
def test_ties_ranks_the_whole_model_together(density, rows, coarse):
    base, *parents = [model(seed, coarse) for seed in range(4)]
    got = merge_models(named("ties", density=density), base, parents, rows)
    counts = {n: max(1, int(density * n)) if density else 0 for n in (92,)}

    def keep(number, ranks, size):
        return ranks < counts[size]

    same(got, reference(base, parents, keep, [sorted(base)], votes=True))


@pytest.mark.parametrize("rescale", [False, True])
def test_ties_tensor_by_tensor_with_densities_of_their_own(rescale):
    base, *parents = [model(seed) for seed in range(4)]
    densities = (0.9, 0.5, 0.25)
    got = merge_models(
        named("ties", trim="tensor", rescale=rescale),
        base,
        parents,
        rows=2,
        own=tuple({"density": density} for density in densities),
    )

    def keep(number, ranks, size):
        return ranks < max(1, int(densities[number] * size))

    groups = [[name] for name in sorted(base)]
    same(got, reference(base, parents, keep, groups, votes=True, rescale=rescale))


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize(
    ("name", "density", "gamma", "rescale"),
    [
        ("breadcrumbs", 0.6, 0.1, False),
        ("breadcrumbs", 1.0, 0.3, True),
        ("breadcrumbs", 0.0, 0.1, False),
        ("breadcrumbs", 0.5, 1.0, False),
        ("breadcrumbs_ties", 0.6, 0.1, False),
        ("breadcrumbs_ties", 0.4, 0.0, True),
    ],
)
def test_breadcrumbs_keeps_the_middle_of_every_tensor(name, density, gamma, rescale, coarse):
    base, *parents = [model(seed, coarse) for seed in range(4)]
    method = named(name, density=density, gamma=gamma, rescale=rescale)
    got = merge_models(method, base, parents, rows=2)

    def keep(number, ranks, size):
        outliers = int(gamma * size)
        return (ranks >= outliers) & (ranks < outliers + int(density * size))

    groups, votes = [[each] for each in sorted(base)], name.endswith("ties")
    expected = reference(base, parents, keep, groups, votes=votes, normalize=votes, rescale=rescale)
    same(got, expected)


@pytest.mark.parametrize("name", ["breadcrumbs", "ties", "della", "dare_ties", "model_stock"])
def test_task_vectors_without_a_base_are_refused(name):
    parents = [model(seed)["a.weight"] for seed in range(2)]
    with pytest.raises(RecipeError, match=f"{name} merges differences") as caught:
        merge_arrays(named(name), None, parents)
    assert caught.value.code == "merge.base"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_model_stock_by_row_has_a_ratio_for_each_row(dtype):
    rng = np.random.default_rng(3)
    base, *parents = [rng.standard_normal((6, 5)).astype(dtype) for _ in range(4)]
    parents = [base + 0.1 * (parent + 2) for parent in parents]
    got = merge_arrays(named("model_stock", by_row=True), base, parents, rows=2)
    for row in range(6):
        deltas = [(parent - base)[row].astype(np.float64) for parent in parents]
        units = [delta / np.linalg.norm(delta) for delta in deltas]
        cosine = np.mean([units[0] @ units[1], units[0] @ units[2], units[1] @ units[2]])
        cosine = min(1.0, max(0.0, cosine))
        t = 3 * cosine / (1 + 2 * cosine)
        np.testing.assert_allclose(got[row] - base[row], t * np.mean(deltas, 0), atol=1e-6)


@pytest.mark.parametrize("name", ["ties", "dare_ties", "della", "breadcrumbs_ties"])
@pytest.mark.parametrize("normalize", [True, False])
def test_a_negative_weight_is_the_negated_task_vector(name, normalize):
    base = np.zeros(4, np.float32)
    one = np.array([1, 2, -3, 4], np.float32)
    two = np.array([3, -5, 2, 6], np.float32)
    rest = {"gamma": 0.0} if name == "breadcrumbs_ties" else {}
    method = named(name, density=1, normalize=normalize, **rest)

    def merge(parents, weights):
        names = tuple(f"p{number}" for number in range(len(weights)))
        context = BlockContext("t", (4,), names, weights)
        return merge_arrays(method, base, parents, context)

    assert (merge([one], (-1.0,)) == -one).all()
    removed = merge([one, two], (1.0, -0.5))
    assert (removed == merge([one, -two], (1.0, 0.5))).all()
    if not normalize:
        assert removed.tolist() == [-1.5, 4.5, -4.0, 4.0]
