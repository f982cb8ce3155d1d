"""Every divergence, in every form of target, against a dense reference written with autograd."""

from __future__ import annotations

import math

import pytest
import torch

from stillroom.distill.interfaces import METHODS
from stillroom.distill.losses.lm_head import LMHead, compute_chunked_loss
from stillroom.distill.losses.targets import DenseTargets, SampledTargets, TopKTargets

V, N, K = 17, 6, 5
CHOICES = [
    {"name": "forward_kl"},
    {"name": "reverse_kl"},
    {"name": "jsd", "beta": 0.1},
    {"name": "jsd", "beta": 0.5, "normalize": True},
    {"name": "jsd", "beta": 0.9},
    {"name": "skew_kl", "alpha": 0.1},
    {"name": "skew_kl", "alpha": 0.3, "direction": "reverse"},
    {"name": "tvd"},
]


def reference(choice: dict, q: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """The definitions, on probabilities, as the papers print them."""

    def kl(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a * (a.log() - b.log())).sum(-1)

    name = choice["name"]
    if name == "forward_kl":
        return kl(p, q)
    if name == "reverse_kl":
        return kl(q, p)
    if name == "tvd":
        return (p - q).abs().sum(-1) / 2
    if name == "jsd":
        beta = choice["beta"]
        m = beta * p + (1 - beta) * q
        scale = beta * (1 - beta) if choice.get("normalize") else 1.0
        return (beta * kl(p, m) + (1 - beta) * kl(q, m)) / scale
    alpha = choice["alpha"]
    if choice.get("direction") == "reverse":
        return kl(q, (1 - alpha) * p + alpha * q)
    return kl(p, alpha * p + (1 - alpha) * q)


def draw(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(N, V, generator=generator, dtype=torch.float64) * 2
    teacher = torch.randn(N, V, generator=generator, dtype=torch.float64) * 2
    return student.requires_grad_(), teacher


def top_k(teacher: torch.Tensor, heat: float) -> tuple[TopKTargets, torch.Tensor]:
    logp = torch.log_softmax(teacher / heat, -1)
    top = logp.topk(K, -1)
    tail = torch.logsumexp(logp.scatter(-1, top.indices, -torch.inf), -1)
    return TopKTargets(top.indices, top.values, tail, heat), top.indices


def bucketed(probabilities: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    head = probabilities.gather(-1, ids)
    return torch.cat([head, 1 - head.sum(-1, keepdim=True)], -1)


@pytest.mark.parametrize("heat", [1.0, 2.5])
@pytest.mark.parametrize("form", ["dense", "top_k"])
@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_equals_the_definition(choice: dict, form: str, heat: float) -> None:
    objective = METHODS.build({**choice, "temperature": heat})
    student, teacher = draw()
    q = torch.softmax(student / heat, -1)
    p = torch.softmax(teacher / heat, -1)
    if form == "top_k":
        target, ids = top_k(teacher, heat)
        q, p = bucketed(q, ids), bucketed(p, ids)
    else:
        target = DenseTargets(teacher)
    wanted = reference(choice, q, p) * heat**2
    (gradient,) = torch.autograd.grad(wanted.sum(), student)
    loss, grad = objective.divergence(student.detach(), target)
    torch.testing.assert_close(loss, wanted.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(grad, gradient, rtol=1e-8, atol=1e-11)


def test_t2_scale_can_be_left_out() -> None:
    student, teacher = draw()
    scaled, grad = METHODS.build({"name": "forward_kl", "temperature": 2.0}).divergence(
        student.detach(), DenseTargets(teacher)
    )
    plain, plain_grad = METHODS.build(
        {"name": "forward_kl", "temperature": 2.0, "t2_scale": False}
    ).divergence(student.detach(), DenseTargets(teacher))
    torch.testing.assert_close(scaled, 4 * plain)
    torch.testing.assert_close(grad, 4 * plain_grad)


def test_sampled_targets_are_unbiased() -> None:
    student, teacher = draw()
    objective = METHODS.build("forward_kl")
    logp = torch.log_softmax(teacher, -1)
    exact, exact_grad = objective.divergence(student.detach(), DenseTargets(teacher))
    generator = torch.Generator().manual_seed(1)
    draws = 200_000
    ids = torch.multinomial(logp.exp(), draws, replacement=True, generator=generator)
    counts = torch.stack([torch.bincount(row, minlength=V) for row in ids]).double()
    every = torch.arange(V).expand(N, V)
    loss, grad = objective.divergence(student.detach(), SampledTargets(every, counts / draws, logp))
    torch.testing.assert_close(loss, exact, rtol=0.02, atol=0.02)
    torch.testing.assert_close(grad, exact_grad, rtol=0, atol=0.01)


def test_mixes_in_the_cross_entropy() -> None:
    student, teacher = draw()
    labels = torch.arange(N)
    objective = METHODS.build({"name": "forward_kl", "kd_weight": 0.3, "ce_weight": 0.7})
    p = torch.softmax(teacher, -1)
    q = torch.softmax(student, -1)
    nats = torch.nn.functional.cross_entropy(student, labels, reduction="none")
    kl = reference({"name": "forward_kl"}, q, p)
    wanted = 0.3 * kl + 0.7 * nats
    (gradient,) = torch.autograd.grad(wanted.sum(), student)
    loss, grad, parts = objective.score(student.detach(), DenseTargets(teacher), labels)
    torch.testing.assert_close(loss, wanted.detach())
    torch.testing.assert_close(grad, gradient)
    assert parts["cross_entropy"] == pytest.approx(float(nats.detach().sum()))
    assert parts["divergence"] == pytest.approx(float(kl.detach().sum()))


@pytest.mark.parametrize("cap", [0.0, 3.0])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("chunk_rows", [1, 4, 100])
def test_the_chunked_head_equals_a_dense_one(cap: float, has_bias: bool, chunk_rows: int) -> None:
    generator = torch.Generator().manual_seed(2)
    rows = V - 2  # two rows are padding of the vocabulary
    weight = torch.randn(V, 8, generator=generator, dtype=torch.float64).requires_grad_()
    bias = torch.randn(V, generator=generator, dtype=torch.float64).requires_grad_()
    hidden = torch.randn(N, 8, generator=generator, dtype=torch.float64).requires_grad_()
    teacher = torch.randn(N, rows, generator=generator, dtype=torch.float64)
    labels = torch.arange(N)
    objective = METHODS.build({"name": "jsd", "ce_weight": 0.2})
    head = LMHead(weight, bias if has_bias else None, rows, 0.5, cap)

    raw = hidden @ weight[:rows].t() + (bias[:rows] if has_bias else 0.0)
    logits = raw * 0.5
    logits = cap * torch.tanh(logits / cap) if cap else logits
    q, p = torch.softmax(logits, -1), torch.softmax(teacher, -1)
    nats = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    wanted = reference({"name": "jsd", "beta": 0.5}, q, p).sum() + 0.2 * nats
    leaves = [hidden, weight, *([bias] if has_bias else [])]
    gradients = torch.autograd.grad(wanted, leaves)

    total, parts = compute_chunked_loss(
        hidden,
        head,
        lambda z, a, b: objective.score(z, DenseTargets(teacher[a:b]), labels[a:b]),
        chunk_rows=chunk_rows,
    )
    found = torch.autograd.grad(total, leaves)
    torch.testing.assert_close(total, wanted)
    for ours, theirs in zip(found, gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)
    assert parts["cross_entropy"] == pytest.approx(float(nats.detach()))


def test_gradcheck_of_the_chunked_head() -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(V, 4, generator=generator, dtype=torch.float64).requires_grad_()
    hidden = torch.randn(N, 4, generator=generator, dtype=torch.float64).requires_grad_()
    teacher = torch.randn(N, V, generator=generator, dtype=torch.float64)
    labels = torch.zeros(N, dtype=torch.int64)
    objective = METHODS.build({"name": "skew_kl", "temperature": 1.5})

    def loss(h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return compute_chunked_loss(
            h,
            LMHead(w, None, V),
            lambda z, a, b: objective.score(z, DenseTargets(teacher[a:b]), labels[a:b]),
        )[0]

    assert torch.autograd.gradcheck(loss, (hidden, weight))


def test_top_k_alone_starves_the_tail_and_a_tail_bucket_does_not() -> None:
    """A student without context, fitted to a long-tailed teacher: the mass it gives the top 12."""
    size, k = 2000, 12
    p = 1 / torch.arange(1, size + 1, dtype=torch.float64) ** 1.1
    p /= p.sum()
    ids = torch.arange(k)[None]
    tail = p[k:].sum().log()[None]
    objective = METHODS.build("forward_kl")

    def fit(target: TopKTargets) -> float:
        logits = torch.zeros(1, size, dtype=torch.float64)
        for _ in range(400):
            _, grad = objective.divergence(logits, target)
            logits -= 8.0 * grad
        return float(torch.softmax(logits, -1)[0, :k].sum())

    true = float(p[:k].sum())
    with_tail = fit(TopKTargets(ids, p[:k].log()[None], tail))
    without = fit(TopKTargets(ids, p[:k].log()[None], torch.full((1,), -math.inf).double()))
    assert with_tail == pytest.approx(true, abs=0.01)
    assert without > 0.9, f"the teacher gives them {true:.3f}"
