"""Learning from draws: the gradient is the definition's, and on average the exact one."""

import itertools
from dataclasses import fields

import numpy as np
import pytest
import torch

from stillroom.distill.data.tokenized import SamplingInfo
from stillroom.distill.interfaces import METHODS
from stillroom.distill.losses.targets import DenseTargets
from stillroom.errors import RecipeError

V, N = 11, 9
OWN = torch.tensor([True, True, False, True, True, False, True, True, True])
CHOICES = [
    {"name": "sampled_reverse_kl"},
    {"name": "sampled_reverse_kl", "clip": None, "ce_weight": 0.3},
    {"name": "sampled_reverse_kl", "clip": 0.05, "kd_weight": 0.4},
    {"name": "minillm", "ce_weight": 0.7},
    {"name": "minillm", "clip": 0.05, "kd_weight": 0.4},
]


def draw(seed=0):
    rng = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, N, V, generator=rng, dtype=torch.float64)
    labels = torch.randint(V, (N,), generator=rng)
    logprobs = student.log_softmax(-1).gather(-1, labels[:, None]).squeeze(-1)
    old = logprobs + 0.3 * torch.randn(N, generator=rng, dtype=torch.float64)
    importance = torch.rand(N, generator=rng, dtype=torch.float64) + 0.5
    gains, credit = torch.randn(2, N, generator=rng, dtype=torch.float64)
    drawn = [torch.where(OWN, part, 0.0) for part in (old, importance, gains, credit)]
    return student.requires_grad_(), teacher, labels, SamplingInfo(*drawn)


def definition(objective, student, teacher, labels, drawn):
    """What the class says, on probabilities and with autograd."""
    q, p = student.softmax(-1), teacher.softmax(-1)
    own = q.gather(-1, labels[:, None]).squeeze(-1)
    r = own / drawn.old.exp()
    raised = r * drawn.credit
    if objective.clip is not None:
        bounded = torch.clamp(r, 1 - objective.clip, 1 + objective.clip) * drawn.credit
        raised = torch.minimum(raised, bounded)
    drawn_loss = -drawn.importance * raised
    if objective.needs_target:
        drawn_loss = drawn_loss + drawn.importance * (q * (q / p).log()).sum(-1)
    return torch.where(OWN, objective.kd_weight * drawn_loss, -objective.ce_weight * own.log())


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_loss_and_gradient_are_the_definitions(choice):
    objective = METHODS.build(choice)
    student, teacher, labels, drawn = draw()
    wanted = definition(objective, student, teacher, labels, drawn)
    (gradient,) = torch.autograd.grad(wanted.sum(), student)
    target = DenseTargets(teacher) if objective.needs_target else None
    loss, slope, parts = objective.score(
        student.detach(), target, labels, rollout=OWN, sampling=drawn
    )
    torch.testing.assert_close(loss, wanted.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(slope, gradient, rtol=1e-9, atol=1e-12)
    assert parts["sampled_reverse_kl"] == pytest.approx(
        -float((drawn.importance * drawn.gains).sum())
    )
    assert (parts["clipped"] > 0) == (objective.clip is not None)


def tables(seed=3, size=3):
    """A student and a teacher of texts of two tokens: log q(y1), log q(y2 | y1)."""
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 1 + size, size, generator=rng, dtype=torch.float64)
    return logits[0].requires_grad_(), logits[1].log_softmax(-1)


def expected_gradient(objective, student, teacher, lengths=2):
    """The mean gradient over every text there is, each as likely as the student finds it."""
    size = student.shape[1]
    logits, log_q = student.detach(), student.detach().log_softmax(-1)
    total = torch.zeros_like(logits)
    for text in itertools.product(range(size), repeat=lengths):
        rows = [0, 1 + text[0]][:lengths]
        at = torch.tensor(text)
        old, p = log_q[rows, at], teacher[rows, at]
        (credit,) = objective.credit([(p - old).numpy()])
        drawn = SamplingInfo(old, torch.ones_like(old), p - old, torch.from_numpy(credit))
        target = DenseTargets(teacher[rows]) if objective.needs_target else None
        _, gradient, _ = objective.score(
            logits[rows], target, at, rollout=torch.ones(lengths, dtype=torch.bool), sampling=drawn
        )
        for row, part in zip(rows, gradient, strict=True):
            total[row] += old.sum().exp() * part
    return total


def sequence_kl(student, teacher, *, hold_prefix=False):
    q, p = student.log_softmax(-1), teacher
    each = (q.exp() * (q - p)).sum(-1)  # KL at each prefix
    first = q[0].exp()
    return each[0] + ((first.detach() if hold_prefix else first) * each[1:]).sum()


@pytest.mark.parametrize(
    ("choice", "hold"),
    [
        ({"name": "sampled_reverse_kl", "discount": 1.0}, False),
        ({"name": "sampled_reverse_kl", "discount": 0.0}, True),
        ({"name": "minillm", "whiten": False, "length_normalize": False}, False),
    ],
    ids=str,
)
def test_on_average_the_gradient_is_that_of_the_reverse_kl(choice, hold):
    student, teacher = tables()
    (exact,) = torch.autograd.grad(sequence_kl(student, teacher, hold_prefix=hold), student)
    found = expected_gradient(METHODS.build(choice), student, teacher)
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-12)


def test_one_token_at_a_time_it_is_reverse_kl():
    student, teacher = tables()
    found = expected_gradient(METHODS.build("sampled_reverse_kl"), student, teacher, lengths=1)
    reverse = METHODS.build("reverse_kl")
    _, exact = reverse.divergence(student.detach()[:1], DenseTargets(teacher[:1]))
    torch.testing.assert_close(found[:1], exact, rtol=1e-9, atol=1e-12)


def test_text_of_a_mixture_counts_as_the_students_own():
    """With the weight q / p~ a draw from the mixture has the student's expectation."""
    student, teacher = tables()
    objective = METHODS.build({"name": "sampled_reverse_kl", "clip": None})
    logits, log_q = student.detach()[:1], student.detach()[:1].log_softmax(-1)
    mixed = 0.2 * teacher[:1].exp() + 0.8 * log_q.exp()
    total = torch.zeros_like(logits)
    for token in range(3):
        at = torch.tensor([token])
        old = log_q[:, token]
        gain = teacher[:1, token] - old
        drawn = SamplingInfo(old, old.exp() / mixed[:, token], gain, gain)
        _, gradient, _ = objective.score(
            logits, None, at, rollout=torch.ones(1, dtype=torch.bool), sampling=drawn
        )
        total += mixed[:, token] * gradient
    _, exact = METHODS.build("reverse_kl").divergence(logits, DenseTargets(teacher[:1]))
    torch.testing.assert_close(total, exact, rtol=1e-9, atol=1e-12)


def test_credit_is_what_comes_after():
    gains = [np.array([1.0, 2.0, 4.0]), np.array([8.0])]
    each = METHODS.build("sampled_reverse_kl")
    assert [part.tolist() for part in each.credit(gains)] == [[1, 2, 4], [8]]
    later = METHODS.build({"name": "sampled_reverse_kl", "discount": 0.5})
    assert later.credit(gains)[0].tolist() == [3, 4, 4]
    mean = METHODS.build({"name": "sampled_reverse_kl", "baseline": "mean"})
    assert sum(part.sum() for part in mean.credit(gains)) == pytest.approx(0)
    plain = {"name": "minillm", "whiten": False}
    assert METHODS.build(plain).credit(gains)[0].tolist() == [3, 4, 0]
    long = METHODS.build({**plain, "length_normalize": False})
    assert [part.tolist() for part in long.credit(gains)] == [[6, 4, 0], [0]]
    half = METHODS.build({**plain, "discount": 0.5})
    assert half.credit(gains)[0].tolist() == pytest.approx([(2 + 0.5 * 4) / 1.5, 4, 0])
    white = np.concatenate(METHODS.build("minillm").credit(gains))
    assert (white.mean(), white.std()) == (pytest.approx(0, abs=1e-12), pytest.approx(1))
    assert METHODS.build("minillm").credit([]) == []
    assert METHODS.build("minillm").credit([np.array([3.0])])[0].tolist() == [0]


def test_refuses_to_guess_how_tokens_were_drawn():
    student, _, labels, _ = draw()
    with pytest.raises(RecipeError) as caught:
        METHODS.build("sampled_reverse_kl").score(student.detach(), None, labels, rollout=OWN)
    assert caught.value.code == "distill.rollouts"
    with pytest.raises(ValueError, match="temperature 1"):
        METHODS.build({"name": "minillm", "temperature": 2.0})
    with pytest.raises(ValueError, match="needs a target"):
        METHODS.build("forward_kl").score(student.detach(), None, labels)
    assert {one.name for one in fields(SamplingInfo)} == {"old", "importance", "gains", "credit"}
