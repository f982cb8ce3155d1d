"""Losses between two vocabularies: their values, gradients, identities, and what they refuse."""

import copy

import numpy as np
import pytest
import torch

from stillroom.distill.cross_tokenizer.data import (
    TokenizerView,
    encode_aligned,
    get_row_pairing,
    make_aligned_batch,
)
from stillroom.distill.cross_tokenizer.loss import AlignedBatchLoss
from stillroom.distill.cross_tokenizer.spans import TokenMap, map_tokens
from stillroom.distill.interfaces import CROSS_TOKENIZER_LOSSES
from stillroom.distill.losses.lm_head import (
    LMHead,
    compute_teacher_hidden,
    compute_token_logprobs,
)
from stillroom.errors import DataError, ShapeError
from stillroom.models import load_causal_lm
from stillroom.models.tokenization.token_bytes import read_token_bytes
from stillroom.records import Message, Record
from stillroom.testing import tiny_checkpoint

MAP = TokenMap(np.array([0, 1, 2, 2, 0, 3, 0]), np.array([1, 0, 3, 2, 0]), 4)


def rows(seed=0, n=4, teacher=7, student=5):
    rng = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, student, generator=rng, dtype=torch.float64),
        torch.randn(n, teacher, generator=rng, dtype=torch.float64),
    )


@pytest.mark.parametrize(
    "chosen",
    ["projected_kl", "uld", {"name": "uld", "top": 3}, {"name": "uld", "top": 1}],
)
def test_row_gradients_are_those_of_the_loss(chosen):
    crossing = CROSS_TOKENIZER_LOSSES.build(chosen)
    student, teacher = rows()
    log_p = teacher.log_softmax(-1)

    def value(logits):
        return crossing.compare(logits.log_softmax(-1), log_p.clone(), MAP)[0]

    _, gradient = crossing.compare(student.log_softmax(-1), log_p.clone(), MAP)
    step = 1e-6
    for at in range(student.shape[1]):
        moved = torch.zeros_like(student)
        moved[:, at] = step
        slope = (value(student + moved) - value(student - moved)) / (2 * step)
        torch.testing.assert_close(slope, gradient[:, at], atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("divergence", ["binary_kl", "squared"])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 20.0])
def test_chunk_slopes_are_those_of_the_loss(divergence, temperature):
    crossing = CROSS_TOKENIZER_LOSSES.build(
        {"name": "chunk_likelihood", "divergence": divergence, "temperature": temperature}
    )
    log_q = torch.tensor([-0.01, -1.0, -7.0, -30.0], dtype=torch.float64, requires_grad=True)
    log_p = torch.tensor([-2.0, -0.5, -7.0, -0.001], dtype=torch.float64)
    loss, slope, _ = crossing.compare(log_q, log_p)
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), log_q)[0], slope.detach())
    assert (loss >= 0).all()
    assert loss[2].item() == pytest.approx(0)


def test_chunks_at_certainty_are_counted_and_finite():
    crossing = CROSS_TOKENIZER_LOSSES.build("chunk_likelihood")
    loss, slope, sums = crossing.compare(torch.tensor([0.0, -1.0]), torch.tensor([0.0, 0.0]))
    assert loss.isfinite().all()
    assert slope.isfinite().all()
    assert loss[0] == slope[0] == 0
    assert sums == {"certain": 1.0}


def test_uld_matches_its_formula_with_the_shorter_side_filled_up():
    student, teacher = rows()
    q, p = student.softmax(-1), teacher.softmax(-1)
    filled = torch.nn.functional.pad(q, (0, 2)).sort(-1, descending=True).values
    expected = (filled - p.sort(-1, descending=True).values).abs().sum(-1)
    loss, _ = CROSS_TOKENIZER_LOSSES.build("uld").compare(q.log(), p.log(), MAP)
    torch.testing.assert_close(loss, expected)


def test_projected_kl_is_a_divergence_between_groups():
    student, teacher = rows()
    q, p = student.softmax(-1), teacher.softmax(-1)
    ours = torch.stack([q[:, 1] + q[:, 4], q[:, 0], q[:, 3], q[:, 2]], -1)
    theirs = torch.stack([p[:, 0] + p[:, 4] + p[:, 6], p[:, 1], p[:, 2] + p[:, 3], p[:, 5]], -1)
    loss, _ = CROSS_TOKENIZER_LOSSES.build("projected_kl").compare(q.log(), p.log(), MAP)
    torch.testing.assert_close(loss, (theirs * (theirs / ours).log()).sum(-1))


def test_projected_kl_leaves_out_a_bucket_that_the_student_has_not():
    whole = TokenMap(np.array([1, 2, 0]), np.array([2, 1]), 3)
    q = torch.tensor([[0.25, 0.75]], dtype=torch.float64)
    p = torch.tensor([[0.6, 0.2, 0.2]], dtype=torch.float64)
    loss, gradient = CROSS_TOKENIZER_LOSSES.build("projected_kl").compare(q.log(), p.log(), whole)
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert gradient.abs().max() < 1e-12


# --- the engine, on models ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Return two tiny models whose vocabularies differ, in float64, and their readers."""
    root = tmp_path_factory.mktemp("pair")
    sides = []
    for name, size in (("teacher", 600), ("student", 300)):
        folder = tiny_checkpoint(root / name, vocabulary=size, seed=size)
        model, tokenizer = load_causal_lm(folder, dtype="float32", device="cpu")
        reader = TokenizerView(tokenizer, read_token_bytes(tokenizer), 128)
        sides.append((model.double(), reader))
    return sides


def make_lessons(teacher, student, *, include_prompt=True):
    records = [
        Record((Message("user", f"Which {n}?"), Message("assistant", f"A still, the {n}th one.")))
        for n in (7, 12, 345)
    ]
    return encode_aligned(teacher, student, records, include_prompt=include_prompt)


def autograd_chunk_loss(model, teacher, batch, crossing):
    """Return the same loss with whole tensors and autograd."""
    logits = model(input_ids=batch.student_ids).logits.log_softmax(-1)
    own = logits.reshape(-1, logits.shape[-1])[batch.flat]
    own = own.gather(-1, batch.labels.unsqueeze(-1)).squeeze(-1)
    with torch.no_grad():
        taught = teacher(input_ids=batch.teacher_ids).logits.log_softmax(-1)
        taught = taught.reshape(-1, taught.shape[-1])[batch.teacher_flat]
        taught = taught.gather(-1, batch.teacher_labels.unsqueeze(-1)).squeeze(-1)
    total = own.new_zeros(())
    for chunk in range(batch.chunks):
        q = own[batch.chunk_of == chunk].sum()
        p = taught[batch.teacher_chunk_of == chunk].sum()
        total = total + crossing.compare(q, p)[0]
    return crossing.kd_weight * total - crossing.ce_weight * own.sum()


@pytest.mark.parametrize("ce_weight", [0.0, 0.3])
@pytest.mark.parametrize("chunk_rows", [5, 256])
def test_chunk_loss_and_gradients_equal_autograd(pair, ce_weight, chunk_rows):
    (teacher, taught), (model, read) = pair
    model = copy.deepcopy(model)
    crossing = CROSS_TOKENIZER_LOSSES.build(
        {"name": "chunk_likelihood", "ce_weight": ce_weight, "kd_weight": 0.5}
    )
    lessons, _ = make_lessons(taught, read)
    batch = make_aligned_batch(lessons)
    objective = AlignedBatchLoss(
        crossing,
        tokens=map_tokens(taught.tokens, read.tokens),
        teacher=teacher,
        chunk_rows=chunk_rows,
    )
    expected = autograd_chunk_loss(model, teacher, batch, crossing)
    wanted = torch.autograd.grad(expected, list(model.parameters()))
    loss = objective(model, batch)
    found = torch.autograd.grad(loss.total, list(model.parameters()))
    torch.testing.assert_close(loss.total, expected)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-6)


def test_row_losses_reach_the_weights(pair):
    (teacher, taught), (model, read) = pair
    model = copy.deepcopy(model)
    lessons, _ = make_lessons(taught, read)
    tokens = map_tokens(taught.tokens, read.tokens)
    for chosen in ("projected_kl", "uld", {"name": "uld", "pair_by": "index"}):
        crossing = CROSS_TOKENIZER_LOSSES.build(chosen)
        batch = make_aligned_batch(lessons, rows=get_row_pairing(crossing))
        loss = AlignedBatchLoss(crossing, tokens=tokens, teacher=teacher, chunk_rows=7)(
            model, batch
        )
        weight = model.get_output_embeddings().weight
        (gradient,) = torch.autograd.grad(loss.total, [weight])
        entry = tuple(np.unravel_index(int(gradient.abs().argmax()), gradient.shape))
        values = []
        for step in (1e-3, -1e-3):
            with torch.no_grad():
                weight[entry] += step
                values.append(
                    AlignedBatchLoss(crossing, tokens=tokens, teacher=teacher)(model, batch).total
                )
                weight[entry] -= step
        assert ((values[0] - values[1]) / 2e-3).item() == pytest.approx(
            gradient[entry].item(), rel=2e-3
        )


@pytest.mark.parametrize("chosen", ["chunk_likelihood", "projected_kl"])
def test_same_model_and_tokenizer_have_nothing_to_learn(pair, chosen):
    (teacher, reader), _ = pair
    model = copy.deepcopy(teacher)
    lessons, counts = make_lessons(reader, reader)
    assert counts["positions_outside"] == 0
    rows = get_row_pairing(CROSS_TOKENIZER_LOSSES.build(chosen))
    objective = AlignedBatchLoss(
        CROSS_TOKENIZER_LOSSES.build(chosen),
        tokens=map_tokens(reader.tokens, reader.tokens),
        teacher=teacher,
    )
    loss = objective(model, make_aligned_batch(lessons, rows=rows))
    loss.total.backward()
    assert loss.total.item() == pytest.approx(0, abs=1e-9)
    assert max(part.grad.abs().max() for part in model.parameters()) < 1e-9


def capture(teacher, lesson):
    """Return the teacher's log-probability of its label at each of its positions."""
    batch = make_aligned_batch([lesson])
    hidden = compute_teacher_hidden(teacher, batch.teacher_ids, batch.teacher_flat)
    return compute_token_logprobs(hidden, LMHead.of(teacher), batch.teacher_labels).numpy()


def test_captured_logprobs_stand_in_for_the_teacher(pair):
    (teacher, taught), (model, read) = pair
    lessons, _ = make_lessons(taught, read)
    batch = make_aligned_batch(lessons)
    tokens = map_tokens(taught.tokens, read.tokens)
    crossing = CROSS_TOKENIZER_LOSSES.build("chunk_likelihood")
    live = AlignedBatchLoss(crossing, tokens=tokens, teacher=teacher)(model, batch).total
    known = [capture(teacher, lesson) for lesson in lessons]
    assert [len(one) for one in known] == [len(lesson.teacher_positions) for lesson in lessons]
    captured = make_aligned_batch(lessons, teacher_logprobs=known)
    dead = AlignedBatchLoss(crossing, tokens=tokens)(model, captured).total
    torch.testing.assert_close(live, dead, rtol=1e-5, atol=1e-6)
    wrong = make_aligned_batch(lessons, teacher_logprobs=known[:-1])
    with pytest.raises(ShapeError, match="the batch expects") as error:
        AlignedBatchLoss(crossing, tokens=tokens)(model, wrong)
    assert error.value.code == "distill.shape"


@pytest.mark.parametrize("chosen", ["chunk_likelihood", "uld"])
def test_a_broken_teacher_is_named_with_its_record(pair, chosen):
    (teacher, taught), (model, read) = pair
    broken = copy.deepcopy(teacher)
    broken.get_output_embeddings().weight.data[3] = float("nan")
    lessons, _ = make_lessons(taught, read)
    rows = get_row_pairing(CROSS_TOKENIZER_LOSSES.build(chosen))
    objective = AlignedBatchLoss(
        CROSS_TOKENIZER_LOSSES.build(chosen),
        tokens=map_tokens(taught.tokens, read.tokens),
        teacher=broken,
    )
    with pytest.raises(DataError, match="not finite") as error:
        objective(model, make_aligned_batch(lessons, rows=rows))
    assert error.value.code == "distill.teacher-not-finite"
    assert lessons[0].record_id in str(error.value)


def test_only_the_answers_bear_loss_when_asked(pair):
    (_, taught), (_, read) = pair
    every, _ = make_lessons(taught, read)
    answers, counts = make_lessons(taught, read, include_prompt=False)
    for more, fewer in zip(every, answers, strict=True):
        assert set(fewer.positions) < set(more.positions)
        said = read.tokenizer.decode(fewer.student_ids[fewer.positions + 1])
        assert said.startswith("A still")
        assert "Which" not in said
        assert said.endswith("<|im_end|>")
    assert counts["chunks_masked"] > 0


def test_loss_of_a_batch_is_the_sum_of_its_records(pair):
    (teacher, taught), (model, read) = pair
    lessons, _ = make_lessons(taught, read)
    objective = AlignedBatchLoss(
        CROSS_TOKENIZER_LOSSES.build("chunk_likelihood"),
        tokens=map_tokens(taught.tokens, read.tokens),
        teacher=teacher,
    )
    together = objective(model, make_aligned_batch(lessons)).total
    apart = sum(objective(model, make_aligned_batch([lesson])).total for lesson in lessons)
    torch.testing.assert_close(together, apart)


def test_index_pairing_stops_at_the_shorter(pair):
    (_, taught), (_, read) = pair
    lesson = make_lessons(taught, read)[0][0]
    at, positions = lesson.rows(one_to_one=False, by_index=True)
    assert len(at) == min(len(lesson.positions), len(lesson.teacher_positions))
    assert list(positions) == list(lesson.teacher_positions[: len(at)])


def test_long_records_are_cut_on_either_side_and_counted(pair):
    (_, taught), (_, read) = pair
    short = TokenizerView(read.tokenizer, read.tokens, 12)
    lessons, counts = make_lessons(taught, short)
    assert counts["chunks_cut"] > 0
    for lesson in lessons:
        assert len(lesson.student_ids) == 12
        assert lesson.positions.max() < 11
        assert (np.bincount(lesson.teacher_chunk_of) > 0).all()
