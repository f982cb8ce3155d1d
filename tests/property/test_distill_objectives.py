"""What holds for every divergence, whatever the distributions are."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.distill.interfaces import METHODS
from stillroom.distill.losses.targets import DenseTargets, TopKTargets

CHOICES = [
    {"name": "forward_kl"},
    {"name": "reverse_kl"},
    {"name": "jsd", "beta": 0.3},
    {"name": "jsd", "beta": 0.7, "normalize": True},
    {"name": "skew_kl"},
    {"name": "skew_kl", "direction": "reverse"},
    {"name": "tvd"},
    {"name": "symmetric_kl", "forward_share": 0.3},
    {"name": "akl"},
    {"name": "todi"},
    {"name": "distillm2"},
]
F_DIVERGENCES = [choice for choice in CHOICES if choice["name"] != "akl"]
# Rounded, since akl orders the tokens: a shift makes those equal that differ in the last place.
logits = st.lists(st.floats(-30, 30).map(lambda value: round(value, 6)), min_size=6, max_size=6)
any_choice = pytest.mark.parametrize("choice", CHOICES, ids=str)


def rows(values):
    return torch.tensor([values], dtype=torch.float64)


@any_choice
@settings(max_examples=40, deadline=None)
@given(student=logits, teacher=logits, shift=st.floats(-20, 20))
def test_is_not_negative_and_blind_to_a_shift_of_the_logits(choice, student, teacher, shift):
    objective = METHODS.build(choice)
    loss, grad = objective.divergence(rows(student), DenseTargets(rows(teacher)))
    assert float(loss) >= -1e-9
    assert torch.isfinite(grad).all()
    assert float(grad.sum()) == pytest.approx(0, abs=1e-9)
    shifted, _ = objective.divergence(rows(student) + shift, DenseTargets(rows(teacher) - shift))
    torch.testing.assert_close(shifted, loss, rtol=1e-8, atol=1e-9)


@any_choice
@settings(max_examples=25, deadline=None)
@given(same=logits)
def test_is_zero_where_both_agree(choice, same):
    loss, grad = METHODS.build(choice).divergence(rows(same), DenseTargets(rows(same)))
    assert float(loss) == pytest.approx(0, abs=1e-9)
    if choice["name"] != "tvd":
        assert float(grad.abs().max()) < 1e-9


@any_choice
@settings(max_examples=25, deadline=None)
@given(student=logits, teacher=logits, order=st.permutations(range(6)))
def test_the_order_of_the_vocabulary_does_not_matter(choice, student, teacher, order):
    objective = METHODS.build(choice)
    loss, grad = objective.divergence(rows(student), DenseTargets(rows(teacher)))
    other, moved = objective.divergence(
        rows(student)[:, order], DenseTargets(rows(teacher)[:, order])
    )
    torch.testing.assert_close(other, loss)
    if choice["name"] != "tvd":  # its gradient jumps where p and q touch
        torch.testing.assert_close(moved, grad[:, order], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("choice", F_DIVERGENCES, ids=str)
@settings(max_examples=40, deadline=None)
@given(student=logits, teacher=logits, k=st.integers(1, 5))
def test_buckets_never_say_more_than_the_whole(choice, student, teacher, k):
    """Joining outcomes cannot raise an f-divergence; with all of them apart nothing is lost."""
    objective = METHODS.build(choice)
    whole, _ = objective.divergence(rows(student), DenseTargets(rows(teacher)))
    logp = torch.log_softmax(rows(teacher), -1)
    top = logp.topk(k, -1)
    tail = torch.logsumexp(logp.scatter(-1, top.indices, -torch.inf), -1)
    target = TopKTargets(top.indices, top.values, tail)
    joined, grad = objective.divergence(rows(student), target)
    assert -1e-9 <= float(joined) <= float(whole) + 1e-6
    assert float(grad.sum()) == pytest.approx(0, abs=1e-9)
    if k == 5:
        torch.testing.assert_close(joined, whole, rtol=1e-6, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(student=logits, teacher=logits)
def test_the_ends_of_the_normalized_jsd_are_the_two_kls(student, teacher):
    student, teacher = rows(student) / 6, DenseTargets(rows(teacher) / 6)
    for beta, name in ((1e-5, "forward_kl"), (1 - 1e-5, "reverse_kl")):
        near, _ = METHODS.build({"name": "jsd", "beta": beta, "normalize": True}).divergence(
            student, teacher
        )
        wanted, _ = METHODS.build(name).divergence(student, teacher)
        torch.testing.assert_close(near, wanted, rtol=0.02, atol=1e-4)
