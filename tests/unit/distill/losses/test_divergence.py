import math

import pytest
import torch
from tests.unit.distill.targets import draw_any, keep_top

from stillroom.distill.interfaces import METHODS
from stillroom.distill.losses.divergence import DistributionPair, compute_kd_loss, mixture_ratio
from stillroom.distill.losses.targets import DenseTargets, TopKTargets
from stillroom.errors import DataError, RecipeError, ShapeError

N, V = 4, 11


def draw(seed=0, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(2, N, V, generator=rng, dtype=dtype) * 2


@pytest.mark.parametrize("heat", [1.0, 3.0])
def test_weights_are_what_they_say(heat):
    student, teacher = draw()
    student.requires_grad_()
    labels = torch.arange(N)
    objective = METHODS.build(
        {"name": "reverse_kl", "temperature": heat, "kd_weight": 0.3, "ce_weight": 0.7}
    )
    q, p = torch.softmax(student / heat, -1), torch.softmax(teacher / heat, -1)
    kl = (q * (q / p).log()).sum(-1) * heat**2
    nats = torch.nn.functional.cross_entropy(student, labels, reduction="none")
    wanted = 0.3 * kl + 0.7 * nats  # cross-entropy at temperature 1, whatever the divergence's
    (gradient,) = torch.autograd.grad(wanted.sum(), student)
    loss, grad, parts = objective.score(student.detach(), DenseTargets(teacher), labels)
    torch.testing.assert_close(loss, wanted.detach())
    torch.testing.assert_close(grad, gradient)
    assert parts["divergence"] == pytest.approx(float(kl.detach().sum()))
    assert parts["cross_entropy"] == pytest.approx(float(nats.detach().sum()))


def test_cross_entropy_alone_is_kd_weight_0():
    student, teacher = draw()
    labels = torch.arange(N)
    objective = METHODS.build({"name": "jsd", "kd_weight": 0, "ce_weight": 1})
    loss, grad, parts = objective.score(student, DenseTargets(teacher), labels)
    wanted = torch.nn.functional.cross_entropy(student, labels, reduction="none")
    torch.testing.assert_close(loss, wanted)
    onehot = torch.nn.functional.one_hot(labels, V)
    torch.testing.assert_close(grad, torch.softmax(student, -1) - onehot)
    assert parts["divergence"] > 0  # still told


def test_t2_scale_is_a_switch_of_its_own():
    student, teacher = draw()
    with_it, without = (
        METHODS.build({"name": "jsd", "temperature": 2.0, "t2_scale": on}).divergence(
            student, DenseTargets(teacher)
        )
        for on in (True, False)
    )
    torch.testing.assert_close(with_it[0], 4 * without[0])
    torch.testing.assert_close(with_it[1], 4 * without[1])


def test_inputs_are_left_as_they_are():
    student, teacher = draw()
    kept = student.clone(), teacher.clone()
    for name in METHODS.names():
        if METHODS.get(name).needs_scores:
            continue
        objective = METHODS.build({"name": name, "ce_weight": 0.5})
        for target in (DenseTargets(teacher), keep_top(teacher, 3)):
            objective.score(student, target, torch.zeros(N, dtype=torch.int64))
    assert torch.equal(student, kept[0])
    assert torch.equal(teacher, kept[1])


def test_a_bfloat16_teacher_is_compared_in_float32():
    student, teacher = draw(dtype=torch.float32)
    low = teacher.bfloat16()
    found, _ = METHODS.build("jsd").divergence(student, DenseTargets(low))
    wanted, _ = METHODS.build("jsd").divergence(student, DenseTargets(low.float()))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_names_the_row_of_a_teacher_that_is_not_finite(bad):
    student, teacher = draw()
    teacher[2, 5] = bad
    for name in METHODS.names():
        with pytest.raises(DataError, match="row 2") as caught:
            METHODS.build(name).divergence(student, DenseTargets(teacher))
        assert caught.value.code == "distill.teacher-not-finite"
    with pytest.raises(DataError, match="record 7"):
        compute_kd_loss(
            METHODS.build("tvd"),
            student,
            DenseTargets(teacher),
            where=lambda row: f"record {row + 5}",
        )


def test_names_the_row_of_stored_numbers_that_are_not_finite():
    student, teacher = draw()
    top = keep_top(teacher, 3)
    top.logprobs[1, 0] = math.nan
    drawn = draw_any(teacher, 3, torch.Generator())
    drawn.weights[3, 1] = math.inf
    tail = keep_top(teacher, 3)
    tail.tail[0] = math.nan
    for target, row in ((top, 1), (drawn, 3), (tail, 0)):
        with pytest.raises(DataError, match=f"row {row}"):
            METHODS.build("forward_kl").divergence(student, target)


def test_a_tail_without_mass_is_no_error():
    student, teacher = draw()
    whole = keep_top(teacher, V)
    assert bool(whole.tail.isneginf().all())
    loss, grad = METHODS.build("reverse_kl").divergence(student, whole)
    assert bool(loss.isfinite().all())
    assert bool(grad.isfinite().all())


@pytest.mark.parametrize("shape", [(N, V - 1), (N + 1, V)])
def test_refuses_logits_of_another_shape(shape):
    with pytest.raises(ShapeError) as caught:
        METHODS.build("forward_kl").divergence(draw()[0], DenseTargets(torch.zeros(shape)))
    assert caught.value.code == "distill.shape"


def test_refuses_a_k_above_the_vocabulary_and_ids_outside_it():
    student = draw()[0]
    ids = torch.zeros(N, V + 1, dtype=torch.int64)
    wide = TopKTargets(ids, torch.zeros(N, V + 1), torch.zeros(N))
    with pytest.raises(ShapeError, match=f"k = {V + 1}"):
        METHODS.build("forward_kl").divergence(student, wide)
    outside = TopKTargets(torch.full((N, 1), V), torch.zeros(N, 1), torch.full((N,), -9.0))
    with pytest.raises(ShapeError, match=f"token {V}, outside a vocabulary of {V}"):
        METHODS.build("forward_kl").divergence(student, outside)
    other_rows = TopKTargets(torch.zeros(2, 1).long(), torch.zeros(2, 1), torch.zeros(2))
    with pytest.raises(ShapeError):
        METHODS.build("forward_kl").divergence(student, other_rows)


def test_refuses_targets_of_another_temperature():
    student, teacher = draw()
    objective = METHODS.build({"name": "forward_kl", "temperature": 2.0})
    for target in (
        keep_top(teacher, 3),
        draw_any(teacher, 3, torch.Generator()),
    ):
        with pytest.raises(RecipeError) as caught:
            objective.divergence(student, target)
        assert caught.value.code == "distill.temperature"


def test_mixture_is_1_where_both_are_equal_and_holds_where_they_are_not():
    ratio = torch.tensor([0.0, 500.0, -500.0])
    for share in (0.1, 0.37, 0.9):
        found = mixture_ratio(ratio, share)
        assert float(found[0]) == 1
        assert bool(found.isfinite().all())
        assert float(found[2]) == pytest.approx(1 - share)


def test_a_pair_computes_each_side_once():
    pair = DistributionPair(*torch.log_softmax(draw(), -1))
    assert pair.q is pair.q
    assert pair.p is pair.p
    assert pair.log_ratio is pair.log_ratio
    torch.testing.assert_close(pair.p.log() - pair.q.log(), pair.log_ratio)
