import numpy as np
import pytest
import torch

from stillroom.evaluate import held_out_loss, measure_agreement
from stillroom.evaluate.lm.divergence import compare_distributions
from stillroom.models import load_causal_lm
from stillroom.models.tokenization.assistant_mask import EncodedConversation, encode_conversations
from stillroom.records import Message, Record
from stillroom.testing import tiny_checkpoint


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    teacher, tokenizer = load_causal_lm(tiny_checkpoint(folder / "t"), dtype="float32")
    student, _ = load_causal_lm(tiny_checkpoint(folder / "s", layers=1, seed=3), dtype="float32")
    return student, teacher, tokenizer


@pytest.fixture(scope="module")
def records():
    return [
        Record((Message("user", f"What is {n}?"), Message("assistant", f"{n} is {n * n}, {n}.")))
        for n in range(6)
    ]


def reference(student, teacher, record):
    """Everything in float64 from whole logits, one record."""
    ids = torch.tensor([record.ids])
    at = torch.tensor(record.targets)
    sides = [
        torch.log_softmax(model(input_ids=ids).logits[0, at - 1].double(), -1)
        for model in (student, teacher)
    ]
    (q, p), labels = sides, torch.tensor(record.ids)[at]
    came = q.gather(1, labels[:, None])[:, 0]
    truth = torch.nn.functional.one_hot(labels, q.shape[-1])
    shared = [
        len(set(a.topk(5).indices.tolist()) & set(b.topk(5).indices.tolist())) / 5
        for a, b in zip(q, p, strict=True)
    ]
    return {
        "kl": (p.exp() * (p - q)).sum(-1).mean(),
        "reverse_kl": (q.exp() * (q - p)).sum(-1).mean(),
        "agreement": (q.argmax(-1) == p.argmax(-1)).double().mean(),
        "top5_overlap": np.mean(shared),
        "loss": -came.mean(),
        "entropy": -(q.exp() * q).sum(-1).mean(),
        "teacher_entropy": -(p.exp() * p).sum(-1).mean(),
        "brier": (q.exp() - truth).square().sum(-1).mean(),
    }


def test_every_value_is_the_references(pair, records):
    student, teacher, tokenizer = pair
    encoded = encode_conversations(tokenizer, records, max_tokens=64)
    found, temperature = compare_distributions(student, teacher, encoded)
    assert temperature is None
    with torch.inference_mode():
        for record, row in zip(encoded, found, strict=True):
            for name, value in reference(student, teacher, record).items():
                assert getattr(row, name) == pytest.approx(float(value), abs=2e-5), name
            assert row.kl_by_position.mean() == pytest.approx(row.kl)
            assert row.bins[0].sum() == row.tokens == len(record.targets)


def test_loss_is_that_of_the_measure_beside_it(pair, records):
    student, teacher, tokenizer = pair
    found = measure_agreement(student, teacher, tokenizer, records, max_tokens=64)
    losses = held_out_loss(student, tokenizer, records, max_tokens=64)
    for row, (nats, tokens) in zip(found, losses, strict=True):
        assert row.tokens == tokens
        assert row.loss * tokens == pytest.approx(nats, rel=1e-5)


def test_kept_states_change_nothing_and_spare_the_teachers_body(pair, records):
    student, teacher, tokenizer = pair
    encoded, kept = encode_conversations(tokenizer, records, max_tokens=64), {}
    plain, _ = compare_distributions(student, teacher, encoded)
    first, _ = compare_distributions(student, teacher, encoded, kept=kept)
    assert len(kept) == len(records)
    runs = []
    hook = teacher.model.layers[0].register_forward_hook(lambda *_: runs.append(1))
    second, _ = compare_distributions(student, teacher, encoded, kept=kept)
    hook.remove()
    assert [row.kl for row in plain] == [row.kl for row in first] == [row.kl for row in second]
    assert len(runs) <= 2  # the check of the head alone


def test_temperature_is_fitted_on_one_half_and_told_of_the_other(pair, records):
    student, teacher, tokenizer = pair
    empty = EncodedConversation((1, 2, 3), (False, False, False))
    encoded = [empty, *encode_conversations(tokenizer, records, max_tokens=64)]
    found, temperature = compare_distributions(student, teacher, encoded, calibrate=True)
    assert [row.scaled_loss is not None for row in found] == [False] * 2 + [True, False] * 2 + [
        True
    ]
    row, record = found[2], encoded[2]
    with torch.inference_mode():
        logits = student(input_ids=torch.tensor([record.ids])).logits[0]
    at = torch.tensor(record.targets)
    labels = torch.tensor(record.ids)[at]
    wanted = torch.nn.functional.cross_entropy(logits[at - 1] / temperature, labels)
    assert row.scaled_loss == pytest.approx(float(wanted), rel=1e-4)
    assert row.scaled_loss < row.loss  # of a model that knows nothing, any flattening helps
    assert found[0].tokens == 0


def test_models_come_back_in_their_modes(pair, records):
    student, teacher, tokenizer = pair
    student.train()
    compare_distributions(
        student, teacher, encode_conversations(tokenizer, records[:1], max_tokens=64)
    )
    assert student.training
    assert not teacher.training
    student.eval()


def test_without_a_teacher_a_model_is_read_by_itself(pair, records):
    student, teacher, tokenizer = pair
    encoded = encode_conversations(tokenizer, records, max_tokens=64)
    alone, heat = compare_distributions(student, None, encoded, calibrate=True)
    beside, same = compare_distributions(student, teacher, encoded, calibrate=True)
    assert heat == same
    for one, other in zip(alone, beside, strict=True):
        assert (one.tokens, one.kl, len(one.kl_by_position)) == (other.tokens, 0.0, 0)
        for name in ("loss", "entropy", "brier", "scaled_loss"):
            assert getattr(one, name) == getattr(other, name)
        assert np.array_equal(one.bins, other.bins)
