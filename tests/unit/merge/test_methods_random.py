"""DARE and DELLA: which elements are dropped, how often, and what the rest is multiplied with."""

import numpy as np
import pytest
import torch

from stillroom.checkpoints import Checkpoint, CheckpointWriter
from stillroom.errors import RecipeError
from stillroom.merge import merge_checkpoints
from stillroom.merge.interfaces import METHODS, BlockContext, merge_arrays
from stillroom.merge.tensors.task_vectors import PROBABILITY_LEVELS, bernoulli_mask, philox_uint16

WEIGHTS = (0.5137, 0.3071, 0.1963)


def named(name, **values):
    return METHODS.build({"name": name, **values})


def place(shape, seed=0, weights=WEIGHTS, own=()):
    return BlockContext("w", shape, ("a", "b", "c")[: len(weights)], tuple(weights), own, seed)


def family(shape, dtype=np.float64):
    rng = np.random.default_rng(5)
    return [np.asarray(rng.standard_normal(shape), dtype) for _ in range(4)]


def vote(vectors, weights, normalize=True):
    """The elect and mean of TIES, written plainly."""
    vectors, weights = np.stack(vectors), np.reshape(weights, (-1, *[1] * vectors[0].ndim))
    sign = np.where((vectors * weights).sum(0) >= 0, 1, -1)
    agree = vectors * sign > 0
    mass = (weights * agree).sum(0) if normalize else 1
    return (vectors * weights * agree).sum(0) / np.where(mass == 0, 1, mass)


def thin_by_rank(vector, density, epsilon, key, at, rescale=True):
    """MagPrune in float64: of every row the smallest are kept with density - epsilon."""
    rows = vector.reshape(-1, vector.shape[-1])
    drawn, kept = philox_uint16(rows.shape, key, at), np.zeros_like(rows)
    for number, row in enumerate(rows):
        for rank, element in enumerate(np.argsort(np.abs(row), kind="stable")):
            rising = 2 * rank / (len(row) - 1) - 1 if len(row) > 1 else 0
            level = round((density + epsilon * rising) * PROBABILITY_LEVELS)
            if drawn[number, rank] < level:
                kept[number, element] = row[element] * (
                    PROBABILITY_LEVELS / level if rescale else 1
                )
    return kept.reshape(vector.shape)


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
def test_dare_is_its_formula_in_float64(name, rescale):
    base, *parents = family((6, 7))
    at = place(base.shape, own=({"density": 0.25}, {}, {"density": 1.0}))
    kept = []
    for parent, key, density in zip(parents, "abc", (0.25, 0.5, 1.0), strict=True):
        mask = bernoulli_mask(base.shape, density, key, at)
        kept.append((parent - base) * mask / (density if rescale else 1))
    changes = {"dare_linear": sum(w * v for w, v in zip(WEIGHTS, kept, strict=True))}
    changes["dare_ties"] = vote(kept, WEIGHTS)
    got = merge_arrays(named(name, rescale=rescale, scale=0.7), base, parents, at)
    np.testing.assert_allclose(got, base + 0.7 * changes[name], rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("shape", [(6, 7), (2, 3, 5), (40,), (1, 1), (3, 5000)])
@pytest.mark.parametrize("name", ["della", "della_linear"])
def test_della_is_its_formula_in_float64(name, shape):
    base, *parents = family(shape)
    base = np.zeros(shape)  # so that magnitudes are those that the formula ranks
    parents = [np.asarray(parent, np.float32).astype(np.float64) for parent in parents]
    at = place(shape, own=({"epsilon": 0.2}, {}, {"density": 0.3, "epsilon": 0}))
    settings = [(0.5, 0.2), (0.5, 0.15), (0.3, 0.0)]
    kept = [
        thin_by_rank(parent, *window, key, at)
        for parent, window, key in zip(parents, settings, "abc", strict=True)
    ]
    changes = {"della_linear": sum(w * v for w, v in zip(WEIGHTS, kept, strict=True))}
    changes["della"] = vote(kept, WEIGHTS)
    got = merge_arrays(named(name), base, parents, at)
    np.testing.assert_allclose(got, changes[name], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", ["dare_linear", "della_linear"])
def test_what_is_kept_is_the_task_vector_on_average(name):
    base = np.linspace(3, 5, 20).reshape(4, 5)
    vector = np.linspace(-1, 1, 20).reshape(4, 5)[:, ::-1]
    runs, method = 2000, named(name, density=0.4)
    total = np.zeros_like(base)
    for seed in range(runs):
        total += merge_arrays(method, base, [base + vector], place((4, 5), seed, [1.0])) - base
    least = 0.4 if name == "dare_linear" else 0.4 - 0.15  # the variance is largest there
    sigma = np.abs(vector) * ((1 / least - 1) / runs) ** 0.5
    assert np.all(np.abs(total / runs - vector) <= 4 * sigma + 1e-12)


def test_della_keeps_the_large_ones_of_a_row_more_often():
    width, rows = 200, 3000
    vector = np.tile(np.arange(1, width + 1.0), (rows, 1)) * np.where(np.arange(width) % 2, 1, -1)
    method = named("della_linear", density=0.4, epsilon=0.3, rescale=False)
    got = merge_arrays(method, np.zeros_like(vector), [vector], place(vector.shape, 0, [1.0]))
    share = (got != 0).mean(axis=0)
    expected = 0.4 + 0.3 * (2 * np.arange(width) / (width - 1) - 1)
    assert np.all(np.abs(share - expected) < 4.5 * np.sqrt(expected * (1 - expected) / rows))
    assert share.mean() == pytest.approx(0.4, abs=0.003)


def test_della_ranks_equal_magnitudes_by_place_and_keeps_the_density():
    vector = np.where(np.arange(600_000).reshape(600, 1000) % 3, 0.5, -0.5)
    method = named("della_linear", density=0.5, epsilon=0.4, rescale=False)
    got = merge_arrays(method, np.zeros_like(vector), [vector], place(vector.shape, 0, [1.0]))
    kept = got != 0
    assert kept.mean() == pytest.approx(0.5, abs=0.004)
    assert kept[:, :100].mean() < 0.2 < 0.8 < kept[:, -100:].mean()


@pytest.mark.parametrize("name", ["della", "della_linear"])
def test_a_window_of_probabilities_that_leaves_0_to_1_is_refused(name):
    base, *parents = family((3, 4))
    with pytest.raises(RecipeError, match="keeps elements with") as caught:
        merge_arrays(named(name, density=0.9, epsilon=0.2), base, parents)
    assert caught.value.code == "merge.window"
    at = place(base.shape, own=({}, {"density": 0.1}, {}))
    with pytest.raises(RecipeError, match=r"from -0\.05 to 0\.25"):
        merge_arrays(named(name), base, parents, at)


@pytest.mark.parametrize("shape", [(3, 4), (12,)])
@pytest.mark.parametrize("epsilon", [0, 0.15])
def test_della_drops_nothing_at_density_1_and_all_at_0_whatever_the_epsilon(shape, epsilon):
    base, *parents = family(shape)
    whole = merge_arrays(named("della_linear", density=1, epsilon=epsilon), base, parents)
    plain = merge_arrays(named("task_arithmetic"), base, parents)
    assert np.array_equal(whole, plain)
    none = merge_arrays(named("della_linear", density=0, epsilon=epsilon), base, parents)
    assert np.array_equal(none, base)


@pytest.mark.parametrize("name", ["dare_linear", "della_linear", "task_arithmetic", "breadcrumbs"])
def test_a_mean_divides_by_the_sum_of_weights_and_refuses_a_sum_of_zero(name):
    base, *parents = family((3, 4))
    mean = merge_arrays(named(name, normalize=True), base, parents, place(base.shape))
    plain = merge_arrays(named(name), base, parents, place(base.shape))
    np.testing.assert_allclose(mean - base, (plain - base) / sum(WEIGHTS), atol=1e-14)
    with pytest.raises(RecipeError) as caught:
        merge_arrays(
            named(name, normalize=True), base, parents, place(base.shape, 0, (1.0, 1.0, -2.0))
        )
    assert caught.value.code == "merge.weights"


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_the_fate_of_an_element_depends_on_seed_and_model_not_on_the_other_models(name):
    base, first, *_ = family((30, 40), np.float32)
    alone = merge_arrays(named(name), base, [first], place(base.shape, 1, [1.0]))
    beside = merge_arrays(named(name), base, [first, base], place(base.shape, 1, [1.0, 1.0]))
    other = merge_arrays(named(name), base, [first], place(base.shape, 2, [1.0]))
    assert np.array_equal(alone != base, beside != base)
    assert not np.array_equal(alone != base, other != base)


def test_draws_are_spread_evenly_over_all_levels():
    drawn = philox_uint16((1000, 1000), "a", place((1000, 1000)))
    counts = np.bincount(drawn.ravel() >> 8, minlength=256)
    assert abs(counts - 1e6 / 256).max() < 5 * (1e6 / 256) ** 0.5


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_what_is_drawn_depends_neither_on_files_nor_on_other_tensors(name, half_family, tmp_path):
    base, tunes = half_family
    merge_checkpoints(name, base, tunes[:2], tmp_path / "whole", seed=7)
    moved = []
    for folder in (base, *tunes[:2]):
        opened = Checkpoint.open(folder)
        target = tmp_path / f"cut-{folder.name}"
        with CheckpointWriter(target, config=opened.config, shard_size=9_000) as writer:
            for tensor in reversed(opened.names()):
                writer.add(tensor, opened.tensor(tensor))
            writer.copy_tokenizer(folder)
        assert len(list(target.glob("*.safetensors"))) > 3
        moved.append(target)
    for exclude in ((), ("*.mlp.*", "model.embed_tokens.weight")):
        out = tmp_path / f"out-{len(exclude)}"
        merge_checkpoints(
            name, moved[0], moved[:0:-1], out, seed=7, shard_size=20_000, exclude=exclude, threads=3
        )
        one, other = Checkpoint.open(tmp_path / "whole"), Checkpoint.open(out)
        for tensor in one.names():
            if not exclude or not (".mlp." in tensor or "embed" in tensor):
                assert torch.equal(one.tensor(tensor), other.tensor(tensor)), tensor
