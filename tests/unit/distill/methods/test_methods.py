"""Every divergence beside its definition, in every form of target."""

import math

import pytest
import torch
from tests.unit.distill.targets import draw_any, keep_top

from stillroom.distill.interfaces import METHODS
from stillroom.distill.losses.lm_head import LMHead, compute_chunked_loss
from stillroom.distill.losses.targets import DenseTargets, SampledTargets
from stillroom.errors import RecipeError

V, N, K = 17, 6, 5
CHOICES = [
    {"name": "forward_kl"},
    {"name": "reverse_kl"},
    {"name": "jsd", "beta": 0.0},
    {"name": "jsd", "beta": 0.1},
    {"name": "jsd", "beta": 0.5, "normalize": True},
    {"name": "jsd", "beta": 0.9},
    {"name": "jsd", "beta": 1.0, "normalize": True},
    {"name": "skew_kl", "alpha": 0.1},
    {"name": "skew_kl", "alpha": 0.3, "direction": "reverse"},
    {"name": "symmetric_kl"},
    {"name": "symmetric_kl", "forward_share": 0.8},
    {"name": "tvd"},
    {"name": "akl"},
    {"name": "akl", "head_mass": 0.9},
    {"name": "todi"},
    {"name": "distillm2", "alpha": 0.2, "beta": 1.4},
]
OWN = torch.tensor([True, False, False, True, False, True])
every = pytest.mark.parametrize("choice", CHOICES, ids=str)
takes_draws = pytest.mark.parametrize(
    "choice", [choice for choice in CHOICES if METHODS.build(choice).takes_samples], ids=str
)
own_gradient = pytest.mark.parametrize(
    "choice", [choice for choice in CHOICES if choice["name"] not in {"akl", "todi"}], ids=str
)


def kl(a, b):
    return (a * (a.log() - b.log())).sum(-1)


def skew(a, b, alpha):
    return kl(a, alpha * a + (1 - alpha) * b)


def akl(q, p, head_mass):
    order = p.argsort(-1, descending=True)
    sorted_p = p.gather(-1, order)
    inside = sorted_p.cumsum(-1) - sorted_p < head_mass
    head = torch.zeros_like(inside).scatter(-1, order, inside)
    gap = (p - q).abs().detach()
    share = (gap * head).sum(-1) / gap.sum(-1)
    return share * kl(p, q) + (1 - share) * kl(q, p)


def jsd(q, p, beta, normalize):
    if beta in (0, 1):
        return kl(q, p) if beta else kl(p, q)
    m = beta * p + (1 - beta) * q
    return (beta * kl(p, m) + (1 - beta) * kl(q, m)) / (beta * (1 - beta) if normalize else 1)


def todi(q, p):
    w = (p / (p + q)).detach()
    return (w * p * (p / q).log() + (1 - w) * q * (q / p).log()).sum(-1)


def reference(choice, q, p):
    """The definitions on probabilities, as the papers print them."""
    name, made = choice["name"], METHODS.build(choice)
    if name == "skew_kl":
        return skew(p, q, made.alpha) if made.direction == "forward" else skew(q, p, made.alpha)
    if name == "distillm2":
        pair = (2 - made.beta) * skew(p, q, made.alpha), made.beta * skew(q, p, made.alpha)
        return torch.where(OWN, pair[1], pair[0])
    if name == "symmetric_kl":
        return made.forward_share * kl(p, q) + (1 - made.forward_share) * kl(q, p)
    return {
        "forward_kl": lambda: kl(p, q),
        "reverse_kl": lambda: kl(q, p),
        "jsd": lambda: jsd(q, p, made.beta, made.normalize),
        "tvd": lambda: (p - q).abs().sum(-1) / 2,
        "akl": lambda: akl(q, p, made.head_mass),
        "todi": lambda: todi(q, p),
    }[name]()


def draw(seed=0):
    rng = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, N, V, generator=rng, dtype=torch.float64) * 2
    return student.requires_grad_(), teacher


def bucketed(probabilities, ids):
    head = probabilities.gather(-1, ids)
    return torch.cat([head, 1 - head.sum(-1, keepdim=True)], -1)


def test_the_list_is_whole():
    divergences = {name for name in METHODS.names() if not METHODS.get(name).needs_scores}
    assert {choice["name"] for choice in CHOICES} == divergences  # others: test_policy_gradient


@pytest.mark.parametrize("heat", [1.0, 2.5])
@pytest.mark.parametrize("form", ["dense", "top_k"])
@every
def test_loss_and_gradient_are_the_definitions(choice, form, heat):
    objective = METHODS.build({**choice, "temperature": heat})
    student, teacher = draw()
    q, p = torch.softmax(student / heat, -1), torch.softmax(teacher / heat, -1)
    target = DenseTargets(teacher)
    if form == "top_k":
        target = keep_top(teacher, K, temperature=heat)
        q, p = bucketed(q, target.ids), bucketed(p, target.ids)
    wanted = reference(choice, q, p) * heat**2
    (gradient,) = torch.autograd.grad(wanted.sum(), student)
    loss, grad = objective.divergence(student.detach(), target, rollout=OWN)
    torch.testing.assert_close(loss, wanted.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(grad, gradient, rtol=1e-8, atol=1e-11)


@every
def test_top_k_of_the_whole_vocabulary_is_the_dense_target(choice):
    objective, (student, teacher) = METHODS.build(choice), draw()
    dense = objective.divergence(student.detach(), DenseTargets(teacher), rollout=OWN)
    whole = keep_top(teacher, V)
    for ours, wanted in zip(
        objective.divergence(student.detach(), whole, rollout=OWN), dense, strict=True
    ):
        torch.testing.assert_close(ours, wanted, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("heat", [1.0, 0.5])
@every
def test_drawn_tokens_estimate_it_without_bias_or_are_refused(choice, heat):
    """The mean over all that one draw can be, each as often as it comes, is the dense value."""
    objective = METHODS.build({**choice, "temperature": 2.0})
    student, teacher = draw()
    if not objective.takes_samples:
        one = draw_any(teacher, 3, torch.Generator(), temperature=2.0)
        with pytest.raises(RecipeError, match=choice["name"]) as caught:
            objective.divergence(student.detach(), one)
        assert caught.value.code == "distill.target"
        return
    log_p = torch.log_softmax(teacher / 2.0, -1)
    proposal = torch.softmax(log_p / heat, -1)  # drawn at another temperature than learned at
    wanted = objective.divergence(student.detach(), DenseTargets(teacher), rollout=OWN)
    mean = [torch.zeros(N, dtype=torch.float64), torch.zeros(N, V, dtype=torch.float64)]
    for token in range(V):
        chance = proposal[:, token : token + 1]
        own = log_p[:, token : token + 1]
        target = SampledTargets(torch.full((N, 1), token), own.exp() / chance, own, 2.0)
        loss, grad = objective.divergence(student.detach(), target, rollout=OWN)
        mean[0] += chance.squeeze(-1) * loss
        mean[1] += chance * grad
    torch.testing.assert_close(mean[0], wanted[0], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(mean[1], wanted[1], rtol=1e-8, atol=1e-11)


def test_which_take_draws():
    takers = {str(choice): METHODS.build(choice).takes_samples for choice in CHOICES}
    refused = {name for name, takes in takers.items() if not takes}
    assert {METHODS.build(c).method_name() for c in CHOICES if str(c) in refused} == {
        "reverse_kl", "jsd", "symmetric_kl", "akl", "todi"
    }  # fmt: skip
    assert METHODS.build({"name": "jsd", "beta": 0.99}).takes_samples
    assert METHODS.build({"name": "symmetric_kl", "forward_share": 1}).takes_samples


@takes_draws
def test_no_draw_is_no_estimate_of_a_tiny_probability(choice):
    """A place without a draw (weight 0) may name any token, however unlikely."""
    objective = METHODS.build(choice)
    logits = torch.tensor([[0.0, 0.0, -200.0]])
    target = SampledTargets(
        torch.tensor([[0, 2]]), torch.tensor([[1.0, 0.0]]), torch.tensor([[-0.7, -200.0]])
    )
    loss, grad = objective.divergence(logits, target)
    assert bool(loss.isfinite().all())
    assert bool(grad.isfinite().all())


@every
def test_equal_sides_have_no_loss_and_no_gradient_at_all(choice):
    logits = (torch.randn(4, 1000, generator=torch.Generator().manual_seed(1)) * 5).requires_grad_()
    loss, grad = METHODS.build(choice).divergence(
        logits.detach(), DenseTargets(logits.detach().clone())
    )
    assert float(loss.abs().max()) == 0
    assert float(grad.abs().max()) == 0


@pytest.mark.parametrize("scale", [30.0, 3000.0])
@every
def test_is_finite_and_right_in_sign_where_probabilities_underflow(choice, scale):
    rng = torch.Generator().manual_seed(2)
    student, teacher = torch.randn(2, 8, 50, generator=rng) * scale
    loss, grad = METHODS.build(choice).divergence(student, DenseTargets(teacher))
    assert bool(loss.isfinite().all())
    assert bool(grad.isfinite().all())
    assert float(loss.min()) >= -1e-5
    assert float(grad.sum(-1).abs().max()) < 1e-2 * max(1.0, float(grad.abs().max()))


@own_gradient
def test_gradcheck(choice):
    objective = METHODS.build({**choice, "temperature": 1.5, "ce_weight": 0.3, "kd_weight": 0.7})
    rng = torch.Generator().manual_seed(3)
    weight, hidden, bias = (
        torch.randn(*shape, generator=rng, dtype=torch.float64).requires_grad_()
        for shape in ((V, 4), (N, 4), (V,))
    )
    teacher = torch.randn(N, V, generator=rng, dtype=torch.float64)
    labels = torch.arange(N)

    def loss(hidden, weight, bias):
        return compute_chunked_loss(
            hidden,
            LMHead(weight, bias, V, 0.8, 4.0),
            lambda z, a, b: objective.score(
                z, DenseTargets(teacher[a:b]), labels[a:b], rollout=OWN[a:b]
            ),
            chunk_rows=4,
        )[0]

    assert torch.autograd.gradcheck(loss, (hidden, weight, bias), fast_mode=True)


def test_jsd_joins_both_kls_without_a_jump_where_it_is_normalized():
    student, teacher = draw()
    for near, end in ((1e-9, 0.0), (1 - 1e-9, 1.0)):
        found, wanted = (
            METHODS.build({"name": "jsd", "beta": beta, "normalize": True}).divergence(
                student.detach(), DenseTargets(teacher)
            )
            for beta in (near, end)
        )
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def test_jsd_is_bounded_by_ln_2_and_small_near_its_ends():
    student, teacher = draw()
    half, _ = METHODS.build("jsd").divergence(student.detach() * 9, DenseTargets(-teacher * 9))
    assert float(half.max()) <= math.log(2) + 1e-12
    small, _ = METHODS.build({"name": "jsd", "beta": 0.01}).divergence(
        student.detach(), DenseTargets(teacher)
    )
    whole, _ = METHODS.build("forward_kl").divergence(student.detach(), DenseTargets(teacher))
    assert float((small / whole).mean()) == pytest.approx(0.01, rel=0.3)


def test_todi_is_jeffreys_in_value_only():
    student, teacher = draw()
    ours = METHODS.build("todi").divergence(student.detach(), DenseTargets(teacher))
    theirs = METHODS.build("symmetric_kl").divergence(student.detach(), DenseTargets(teacher))
    torch.testing.assert_close(ours[0], 2 * theirs[0])
    assert not torch.allclose(ours[1], 2 * theirs[1], atol=1e-3)


def test_akl_weighs_the_side_that_is_missed():
    """A student wrong in the head only learns by forward KL, one wrong in the tail by reverse."""
    p = torch.tensor([[0.6, 0.3, 0.05, 0.05]], dtype=torch.float64)
    q = torch.tensor([[0.6, 0.3, 0.09, 0.01]], dtype=torch.float64)
    loss, _ = METHODS.build("akl").divergence(q.log(), DenseTargets(p.log()))
    torch.testing.assert_close(loss, kl(q, p))


def test_akl_finds_a_head_that_is_longer_than_its_first_look():
    rng = torch.Generator().manual_seed(4)
    student, teacher = torch.randn(2, 3, 900, generator=rng, dtype=torch.float64) * 0.1
    loss, _ = METHODS.build("akl").divergence(student, DenseTargets(teacher))
    torch.testing.assert_close(
        loss, akl(torch.softmax(student, -1), torch.softmax(teacher, -1), 0.5)
    )


@pytest.mark.parametrize(
    "bad",
    [
        {"name": "jsd", "beta": -0.1},
        {"name": "jsd", "beta": 1.01},
        {"name": "jsd", "beta": math.nan},
        {"name": "forward_kl", "temperature": 0},
        {"name": "forward_kl", "temperature": -1},
        {"name": "forward_kl", "temperature": math.inf},
        {"name": "forward_kl", "ce_weight": -1},
        {"name": "skew_kl", "alpha": 0},
        {"name": "skew_kl", "direction": "both"},
        {"name": "akl", "head_mass": 1},
        {"name": "symmetric_kl", "forward_share": 2},
        {"name": "distillm2", "beta": 2.1},
        {"name": "todi", "beta": 1},
    ],
    ids=str,
)
def test_refuses_settings_out_of_bounds(bad):
    key = list(bad)[-1]
    with pytest.raises(ValueError, match=key):
        METHODS.build(bad)
