"""Every method against its formula written out plainly in float64, whole model in memory.

Tolerance: ours computes in float64 too and rounds once to float32 storage, so one unit in the last
place of float32 (6e-8 relative) is all that may differ.
"""

import numpy as np
import pytest
import torch
from tests.unit.merge.conftest import fine_tune

from stillroom.checkpoints import Checkpoint
from stillroom.merge import merge_checkpoints
from stillroom.testing import tiny_checkpoint

WEIGHTS = [0.5137, 0.3071, 0.1963]


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parity")
    base = tiny_checkpoint(folder / "base")
    tunes = [fine_tune(base, folder / f"tune{seed}", seed) for seed in (1, 2, 3)]
    return base, tunes


def load(folder):
    checkpoint = Checkpoint.open(folder)
    return {n: checkpoint.tensor(n).double().numpy() for n in checkpoint.names()}


def check(method, arrays, tmp_path, reference, *, base=True, count=3, weights=WEIGHTS):
    origin, tunes = arrays
    merge_checkpoints(
        method, origin if base else None, tunes[:count], tmp_path / "out", weights=weights
    )
    got, b, xs = load(tmp_path / "out"), load(origin), [load(tune) for tune in tunes[:count]]
    expected = reference(b, xs)
    for name in b:
        np.testing.assert_allclose(got[name], expected[name], rtol=6e-8, atol=1e-9, err_msg=name)


def test_linear(arrays, tmp_path):
    def mean(b, xs):
        total = sum(WEIGHTS)
        return {n: sum(w * x[n] for w, x in zip(WEIGHTS, xs, strict=True)) / total for n in b}

    check("linear", arrays, tmp_path, mean, base=False)


def test_slerp(arrays, tmp_path):
    def slerp(b, xs):
        out = {}
        for n in b:
            p, q = xs[0][n].ravel(), xs[1][n].ravel()
            angle = np.arccos(np.clip(p @ q / np.linalg.norm(p) / np.linalg.norm(q), -1, 1))
            straight = np.cos(angle) > 0.9995
            c = (0.7, 0.3) if straight else np.sin([0.7 * angle, 0.3 * angle]) / np.sin(angle)
            out[n] = c[0] * xs[0][n] + c[1] * xs[1][n]
        return out

    check({"name": "slerp", "t": 0.3}, arrays, tmp_path, slerp, base=False, count=2, weights=None)


def test_task_arithmetic(arrays, tmp_path):
    def add(b, xs):
        return {
            n: b[n] + 0.8 * sum(w * (x[n] - b[n]) for w, x in zip(WEIGHTS, xs, strict=True))
            for n in b
        }

    check({"name": "task_arithmetic", "scale": 0.8}, arrays, tmp_path, add)


def ties_reference(b, xs, density, groups):
    """Yadav et al., Algorithm 1, over groups of tensors that are ranked together."""
    out = {}
    for names in groups:
        flat = [np.concatenate([(x[n] - b[n]).ravel() for n in names]) for x in xs]
        for vector in flat:
            k = int(density * len(vector))
            keep = np.argsort(-np.abs(vector.astype(np.float32)), kind="stable")[:k]
            mask = np.zeros(len(vector), bool)
            mask[keep] = True
            vector[~mask] = 0
        sign = np.where(sum(w * v for w, v in zip(WEIGHTS, flat, strict=True)) >= 0, 1, -1)
        agree = [v * sign > 0 for v in flat]
        total = sum(w * v * a for w, v, a in zip(WEIGHTS, flat, agree, strict=True))
        mass = sum(w * a for w, a in zip(WEIGHTS, agree, strict=True))
        merged, start = total / np.where(mass == 0, 1, mass), 0
        for n in names:
            out[n] = b[n] + merged[start : start + b[n].size].reshape(b[n].shape)
            start += b[n].size
    return out


@pytest.mark.parametrize("density", [0.2, 0.73])
def test_ties_over_the_whole_model(density, arrays, tmp_path):
    check(
        {"name": "ties", "density": density},
        arrays,
        tmp_path,
        lambda b, xs: ties_reference(b, xs, density, [sorted(b)]),
    )


def test_ties_tensor_by_tensor(arrays, tmp_path):
    check(
        {"name": "ties", "density": 0.4, "trim": "tensor"},
        arrays,
        tmp_path,
        lambda b, xs: ties_reference(b, xs, 0.4, [[n] for n in sorted(b)]),
    )


def test_model_stock(arrays, tmp_path):
    def stock(b, xs):
        out = {}
        for n in b:
            deltas = [(x[n] - b[n]).ravel() for x in xs]
            units = [d / np.linalg.norm(d) for d in deltas]
            cosine = np.mean([units[0] @ units[1], units[0] @ units[2], units[1] @ units[2]])
            t = np.clip(3 * np.clip(cosine, 0, 1) / (1 + 2 * np.clip(cosine, 0, 1)), 0, 1)
            out[n] = t * np.mean([x[n] for x in xs], axis=0) + (1 - t) * b[n]
        return out

    check("model_stock", arrays, tmp_path, stock, weights=None)


def test_run_average(arrays, tmp_path):
    def ema(b, xs):
        w = [0.25, 0.5, 1.0]
        return {n: sum(v * x[n] for v, x in zip(w, xs, strict=True)) / sum(w) for n in b}

    check(
        {"name": "run_average", "average": "ema"}, arrays, tmp_path, ema, base=False, weights=None
    )


def test_dare_with_full_density_is_task_arithmetic(arrays, tmp_path):
    def add(b, xs):
        return {n: b[n] + sum(x[n] - b[n] for x in xs) for n in b}

    check({"name": "dare_linear", "density": 1}, arrays, tmp_path, add, weights=None)


def test_dare_drops_the_share_it_should_and_rescales_the_rest(arrays, tmp_path):
    origin, tunes = arrays
    merge_checkpoints({"name": "dare_linear", "density": 0.25}, origin, tunes[:1], tmp_path / "out")
    got, b, x = load(tmp_path / "out"), load(origin), load(tunes[0])
    name = "model.embed_tokens.weight"
    change, full = got[name] - b[name], x[name] - b[name]
    kept = change != 0
    assert kept.mean() == pytest.approx(0.25, abs=0.012)
    np.testing.assert_allclose(change[kept], 4 * full[kept], rtol=1e-4, atol=2e-7)


def test_bfloat16_results_are_the_rounded_float64_ones(tmp_path):
    base = tiny_checkpoint(tmp_path / "base", dtype=torch.bfloat16)
    tunes = [fine_tune(base, tmp_path / f"t{seed}", seed) for seed in (1, 2, 3)]
    merge_checkpoints("linear", None, tunes, tmp_path / "out", weights=WEIGHTS)
    got, xs = Checkpoint.open(tmp_path / "out"), [load(tune) for tune in tunes]
    differing = total = 0
    for name in got.names():
        exact = sum(w * x[name] for w, x in zip(WEIGHTS, xs, strict=True)) / sum(WEIGHTS)
        rounded = torch.from_numpy(np.asarray(exact)).to(torch.bfloat16)
        differing += int((rounded != got.tensor(name)).sum())
        total += rounded.numel()
    # float32 sums may fall on the other side of a halfway point, about one in 2**15.
    assert differing <= total * 2e-4
