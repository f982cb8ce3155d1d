import copy

import pytest
import torch

from stillroom.distill.encode import make_batch
from stillroom.distill.engine import DistillObjective
from stillroom.distill.head import Head, chunked_loss
from stillroom.distill.method import METHODS
from stillroom.distill.targets import Dense, Sampled, TopKTail
from stillroom.errors import CheckpointError, RecipeError, ShapeError


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
    objective = DistillObjective(
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
    online = DistillObjective(method, rows=rows, teacher=teacher)
    cached = DistillObjective(method, rows=rows)
    one = online(student, make_batch(lessons, None)).total
    two = cached(student, make_batch(lessons, cache.target(lessons))).total
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-4)


def test_a_student_that_is_the_teacher_has_nothing_to_learn(loaded, lessons):
    teacher, _ = loaded
    student = copy.deepcopy(teacher).requires_grad_(True)
    batch = make_batch(lessons, None)
    for name in METHODS.names():
        objective = DistillObjective(
            METHODS.build(name), rows=teacher.config.vocab_size, teacher=teacher
        )
        student.zero_grad()
        loss = objective(student, batch).total
        loss.backward()
        assert float(loss.detach()) == pytest.approx(0, abs=1e-3)
        assert max(float(value.grad.abs().max()) for value in student.parameters()) < 1e-2


def test_nothing_valid_is_zero_with_a_graph():
    weight = torch.randn(7, 3, requires_grad=True)
    hidden = torch.randn(0, 3, requires_grad=True)

    def never(logits, start, stop):
        raise AssertionError("no row, no score")

    total, parts = chunked_loss(hidden, Head(weight, None, 7), never)
    total.backward()
    assert (float(total.detach()), parts) == (0.0, {})
    assert torch.equal(weight.grad, torch.zeros(7, 3))


def test_a_frozen_head_costs_no_gradient(loaded):
    weight = torch.randn(7, 3)
    hidden = torch.randn(4, 3, requires_grad=True)
    objective = METHODS.build("forward_kl")
    teacher, labels = torch.randn(4, 7), torch.zeros(4, dtype=torch.int64)
    total, _ = chunked_loss(
        hidden,
        Head(weight, None, 7),
        lambda z, a, b: objective.score(z, Dense(teacher[a:b]), labels[a:b]),
    )
    total.backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_reads_scale_and_cap_from_the_config(loaded):
    model = copy.deepcopy(loaded[0])
    model.config.logits_scaling = 4.0
    model.config.final_logit_softcapping = 2.0
    head = Head.of(model, rows=10)
    assert (head.scale, head.cap, head.rows) == (0.25, 2.0, 10)
    logits = head.logits(torch.randn(3, model.config.hidden_size) * 50)
    assert logits.shape == (3, 10)
    assert float(logits.detach().abs().max()) <= 2.0


def test_refuses_a_model_without_a_head():
    class Headless(torch.nn.Module):
        def get_output_embeddings(self):
            return None

    with pytest.raises(CheckpointError) as caught:
        Head.of(Headless())
    assert caught.value.code == "distill.no-head"


def test_bfloat16_products_are_near(loaded, student, lessons):
    teacher, _ = loaded
    batch = make_batch(lessons, None)
    found = [
        float(
            DistillObjective(
                METHODS.build("forward_kl"),
                rows=teacher.config.vocab_size,
                precision=precision,
                teacher=teacher,
            )(student, batch).total.detach()
        )
        for precision in ("float32", "bfloat16")
    ]
    assert found[1] == pytest.approx(found[0], rel=0.05)


TOP = TopKTail(torch.zeros(2, 1).long(), torch.zeros(2, 1), torch.full((2,), -9.0))


def test_refuses_targets_that_do_not_fit():
    objective = METHODS.build("forward_kl")
    for target in (Dense(torch.zeros(2, 6)), Dense(torch.zeros(3, 5))):
        with pytest.raises(ShapeError) as caught:
            objective.divergence(torch.zeros(2, 5), target)
        assert caught.value.code == "distill.shape"
    wide = TopKTail(torch.zeros(2, 6).long(), torch.zeros(2, 6), torch.zeros(2))
    with pytest.raises(ShapeError):
        objective.divergence(torch.zeros(2, 5), wide)


def test_refuses_a_tail_of_another_temperature():
    with pytest.raises(RecipeError) as caught:
        METHODS.build({"name": "forward_kl", "temperature": 2.0}).divergence(torch.zeros(2, 5), TOP)
    assert caught.value.code == "distill.temperature"


@pytest.mark.parametrize("name", ["reverse_kl", "jsd", "skew_kl", "tvd"])
def test_refuses_samples_where_the_divergence_needs_more(name):
    target = Sampled(torch.zeros(2, 1).long(), torch.ones(2, 1), torch.zeros(2, 1))
    with pytest.raises(RecipeError) as caught:
        METHODS.build(name).divergence(torch.zeros(2, 5), target)
    assert caught.value.code == "distill.target"
