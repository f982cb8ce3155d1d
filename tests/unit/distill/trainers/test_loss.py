import copy
from dataclasses import replace

import pytest
import torch
from tests.unit.distill.targets import draw_any, keep_top
from torch import Tensor

from stillroom.distill.data.tokenized import Batch, SamplingInfo, make_batch
from stillroom.distill.interfaces import METHODS
from stillroom.distill.losses.lm_head import LMHead
from stillroom.distill.losses.targets import DenseTargets, SampledTargets, slice_target
from stillroom.distill.trainers.loss import DistillationLoss, TeacherStates, compute_position_loss
from stillroom.errors import DataError, RecipeError


@pytest.fixture
def student(loaded):
    model = copy.deepcopy(loaded[0]).requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn(value.shape, generator=generator) * 0.05)
    return model


def dense_reference(student, teacher, batch):
    q = torch.log_softmax(student(input_ids=batch.input_ids).logits, -1).flatten(0, 1)[batch.flat]
    with torch.no_grad():
        logits = teacher(input_ids=batch.input_ids).logits
    p = torch.log_softmax(logits, -1).flatten(0, 1)[batch.flat]
    return (p.exp() * (p - q)).sum()


def test_loss_and_gradients_equal_the_whole_models(loaded, student, lessons):
    teacher, _ = loaded
    batch = make_batch(lessons, None)
    wanted = dense_reference(student, teacher, batch)
    wanted.backward()
    gradients = {name: value.grad.clone() for name, value in student.named_parameters()}
    student.zero_grad()
    rows = teacher.config.vocab_size
    objective = DistillationLoss(
        METHODS.build("forward_kl"), rows=rows, teacher=teacher, chunk_rows=5
    )
    loss = objective(student, batch)
    loss.total.backward()
    torch.testing.assert_close(loss.total, wanted.detach(), rtol=1e-4, atol=1e-4)
    assert loss.parts["divergence"] == pytest.approx(float(loss.total.detach()), rel=1e-5)
    for name, value in student.named_parameters():  # the tied embedding has both its gradients
        torch.testing.assert_close(value.grad, gradients[name], rtol=1e-3, atol=1e-4)


def test_a_full_cache_equals_the_teacher_itself(loaded, student, lessons, make_cache):
    teacher, _ = loaded
    rows = teacher.config.vocab_size
    cache = make_cache(width=rows - 1)
    method = METHODS.build("reverse_kl")
    online = DistillationLoss(method, rows=rows, teacher=teacher)
    cached = DistillationLoss(method, rows=rows)
    one = online(student, make_batch(lessons, None)).total
    two = cached(student, make_batch(lessons, cache.target(lessons))).total
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-4)


def test_a_student_that_is_the_teacher_has_nothing_to_learn(loaded, lessons):
    teacher, _ = loaded
    student = copy.deepcopy(teacher).requires_grad_(True)
    batch = make_batch(lessons, None)
    for name in METHODS.names():
        if METHODS.get(name).needs_rollouts:
            continue
        objective = DistillationLoss(
            METHODS.build(name), rows=teacher.config.vocab_size, teacher=teacher
        )
        student.zero_grad()
        loss = objective(student, batch).total
        loss.backward()
        assert float(loss.detach()) == pytest.approx(0, abs=1e-3)
        assert max(float(value.grad.abs().max()) for value in student.parameters()) < 1e-2


def test_bfloat16_products_are_near(loaded, student, lessons):
    teacher, _ = loaded
    batch = make_batch(lessons, None)
    found = [
        float(
            DistillationLoss(
                METHODS.build("forward_kl"),
                rows=teacher.config.vocab_size,
                precision=precision,
                teacher=teacher,
            )(student, batch).total.detach()
        )
        for precision in ("float32", "bfloat16")
    ]
    assert found[1] == pytest.approx(found[0], rel=0.05)


def with_rollouts(batch, rollout):
    """Mark positions as the student's own, with numbers that follow from the token alone."""
    some = torch.where(rollout, (batch.labels % 7).float() / 7, 0.0)
    return replace(
        batch, rollout=rollout, sampling=SamplingInfo(-5 * some, some + 0.5, some, some - 0.4)
    )


def test_a_contrastive_pair_needs_to_know_whose_text_it_is(loaded, student, lessons):
    teacher, _ = loaded
    rows, batch = teacher.config.vocab_size, make_batch(lessons, None)
    objective = DistillationLoss(METHODS.build("distillm2"), rows=rows, teacher=teacher)
    with pytest.raises(RecipeError, match="distillm2") as caught:
        objective(student, batch)
    assert caught.value.code == "distill.rollouts"
    own = torch.arange(batch.valid) % 3 == 0
    loss = objective(student, with_rollouts(batch, own))
    assert loss.parts["student_text"] == float(own.sum())
    wanted = 0.0
    for direction, part in (("forward", ~own), ("reverse", own)):
        method = METHODS.build({"name": "skew_kl", "direction": direction})
        some = Batch(
            batch.input_ids, batch.flat[part], batch.labels[part], batch.record_ids, batch.tokens
        )
        wanted += float(
            DistillationLoss(method, rows=rows, teacher=teacher)(student, some).total.detach()
        )
    assert float(loss.total.detach()) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("name", sorted(METHODS.names()))
def test_neither_chunks_nor_micro_batches_change_the_gradient(loaded, student, lessons, name):
    """The step's loss is a sum over its positions, divided once by their number."""
    teacher, _ = loaded
    rows, gradients = teacher.config.vocab_size, []
    whole = make_batch(lessons, None)
    for chunk_rows, groups in ((1000, [lessons]), (7, [lessons]), (64, [[x] for x in lessons])):
        objective = DistillationLoss(
            METHODS.build({"name": name, "ce_weight": 0.2}),
            rows=rows,
            teacher=teacher,
            chunk_rows=chunk_rows,
        )
        student.zero_grad()
        for group in groups:
            batch = make_batch(group, None)
            if objective.objective.needs_rollouts:
                batch = with_rollouts(batch, batch.labels % 2 == 0)
            (objective(student, batch).total / whole.valid).backward()
        gradients.append([value.grad.clone() for value in student.parameters()])
    for other in gradients[1:]:
        for one, two in zip(gradients[0], other, strict=True):
            torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-6)


def test_names_record_and_position_of_a_teacher_that_is_not_finite(loaded, student, lessons):
    batch = make_batch(lessons, None)
    at = len(lessons[0].positions) + 2  # the third position of the second record
    logits = torch.zeros(batch.valid, loaded[0].config.vocab_size)
    logits[at, 0] = float("nan")
    objective = DistillationLoss(METHODS.build("jsd"), rows=logits.shape[1], chunk_rows=4)
    with pytest.raises(DataError) as caught:
        objective(student, make_batch(lessons, DenseTargets(logits)))
    assert caught.value.code == "distill.teacher-not-finite"
    assert lessons[1].record_id in str(caught.value)
    assert f"position {lessons[1].positions[2]} " in str(caught.value)


@pytest.mark.parametrize("name", ["forward_kl", "jsd"])
def test_every_source_of_targets_goes_through_one_engine(name):
    rng = torch.Generator().manual_seed(0)
    hidden, taught = (torch.randn(9, size, generator=rng).double() for size in (4, 6))
    head = LMHead(torch.randn(31, 4, generator=rng).double().requires_grad_(), None, 29)
    teacher = LMHead(torch.randn(31, 6, generator=rng).double(), None, 29, cap=2.0)
    labels = torch.zeros(9, dtype=torch.int64)
    logits = teacher.logits(taught)
    own = torch.log_softmax(logits, -1)
    every = torch.arange(29).expand(9, 29)
    losses = [
        compute_position_loss(METHODS.build(name), hidden, head, target, labels, chunk_rows=4)[0]
        for target in (
            TeacherStates(taught, teacher),
            DenseTargets(logits),
            keep_top(logits, 28),
            SampledTargets(every, own.exp(), own),
        )
    ]
    gradients = [torch.autograd.grad(loss, head.weight)[0] for loss in losses]
    for loss, gradient in zip(losses[1:], gradients[1:], strict=True):
        torch.testing.assert_close(loss, losses[0], rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-7, atol=1e-8)


def test_a_batch_without_target_needs_the_teacher(student, lessons):
    objective = DistillationLoss(METHODS.build("forward_kl"), rows=10)
    with pytest.raises(ValueError, match="needs the teacher"):
        objective(student, make_batch(lessons, None))


def test_slices_keep_form_and_temperature():
    logits = torch.randn(6, 9)
    for target in (
        DenseTargets(logits),
        keep_top(logits, 3, temperature=2.0),
        draw_any(logits, 3, torch.Generator(), temperature=2.0),
    ):
        part = slice_target(target, 2, 5)
        assert type(part) is type(target)
        for name in target.__dataclass_fields__:
            whole, some = getattr(target, name), getattr(part, name)
            assert torch.equal(some, whole[2:5]) if isinstance(whole, Tensor) else some == whole


def test_no_tensor_is_as_large_as_all_logits(monkeypatch):
    """The loss's own memory does not grow with the positions: only their hidden states do."""
    rows, chunk = 5000, 16
    head = LMHead(torch.zeros(rows, 4), None, rows)
    teacher = LMHead(torch.ones(rows, 4), None, rows)
    largest = []
    made = torch.empty

    def watch(*shape, **more):
        tensor = made(*shape, **more)
        largest.append(tensor.numel())
        return tensor

    monkeypatch.setattr(torch, "empty", watch)
    for positions in (40, 400):
        hidden = torch.ones(positions, 4, requires_grad=True)
        labels = torch.zeros(positions, dtype=torch.int64)
        total, _ = compute_position_loss(
            METHODS.build("forward_kl"),
            hidden,
            head,
            TeacherStates(hidden.detach(), teacher),
            labels,
            chunk_rows=chunk,
        )
        total.backward()
    assert max(largest) == chunk * rows


def test_a_lessons_weight_multiplies_its_loss_and_gradient(loaded, student, lessons):
    teacher, _ = loaded
    objective = DistillationLoss(
        METHODS.build("jsd"), rows=teacher.config.vocab_size, teacher=teacher, chunk_rows=5
    )
    weights = (0.25, 2.0)
    wanted = torch.zeros(())
    for lesson, weight in zip(lessons[:2], weights, strict=True):
        wanted = wanted + weight * objective(student, make_batch([lesson], None)).total
    wanted.backward()
    gradients = [value.grad.clone() for value in student.parameters()]
    student.zero_grad()
    weighed = [
        replace(lesson, weight=weight) for lesson, weight in zip(lessons, weights, strict=False)
    ]
    total = objective(student, make_batch(weighed, None)).total
    total.backward()
    torch.testing.assert_close(total, wanted.detach(), rtol=1e-4, atol=1e-5)
    for value, gradient in zip(student.parameters(), gradients, strict=True):
        torch.testing.assert_close(value.grad, gradient, rtol=1e-3, atol=1e-5)
