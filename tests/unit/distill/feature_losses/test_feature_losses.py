"""Losses beside the logits, against references of a few lines in float64."""

import copy
import math

import pytest
import torch
from tests.unit.distill.kinds import build
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from stillroom.distill.data.tokenized import TokenizedRecord, make_batch
from stillroom.distill.interfaces import FEATURE_LOSSES, METHODS
from stillroom.distill.trainers.feature_set import CaptureSpec, FeatureSet, capture_activations
from stillroom.distill.trainers.loss import DistillationLoss
from stillroom.errors import CheckpointError, RecipeError, ShapeError
from stillroom.train.precision import deterministic_torch
from stillroom.train.settings import TrainSettings

SHAPES = {
    "llama": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 1, "head_dim": 8},
    "gemma2": {
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 3,
        "query_pre_attn_scalar": 8,
    },
    "gpt2": {},
    "phi3": {"num_key_value_heads": 2, "pad_token_id": 0},
}
FAMILIES = sorted(SHAPES)


def make_model(family="llama", *, layers=2, hidden=32, heads=4, seed=0, **changes):
    fields = {
        "vocab_size": 40,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 24,
        "max_position_embeddings": 64,
    }
    if family == "gpt2":
        fields = {**fields, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
    fields = {**fields, **SHAPES[family], **changes}
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **fields)
    model = AutoModelForCausalLM.from_config(config).double().eval()
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(3.0) if value.ndim > 1 else value.add_(torch.randn_like(value) * 0.1)
    return model


def make_lessons(count=3):
    generator = torch.Generator().manual_seed(7)
    found = []
    for number in range(count):
        ids = torch.randint(0, 40, (4 + 2 * number,), generator=generator).numpy()
        positions = torch.arange(1 + number % 2, len(ids) - 1).numpy()
        found.append(TokenizedRecord(f"r{number}", ids, positions))
    return found


def features_only(losses, student, teacher, **more):
    features = FeatureSet([FEATURE_LOSSES.build(loss) for loss in losses], student, teacher)
    method = METHODS.build({"name": "forward_kl", "kd_weight": 0.0})
    objective = DistillationLoss(method, rows=40, teacher=teacher, features=features, **more)
    return objective, features


def each_record(lessons, student, teacher):
    """Yield, record by record, the two models' own outputs with every attention and state."""
    for lesson in lessons:
        ids = torch.from_numpy(lesson.ids)[None]
        yield (
            torch.from_numpy(lesson.positions),
            student.model(input_ids=ids, output_hidden_states=True),
            teacher.model(input_ids=ids, output_hidden_states=True),
            ids,
        )


def test_hidden_states_equal_a_reference_of_a_few_lines():
    student, teacher = make_model(layers=2, hidden=16), make_model(layers=4, seed=1)
    pairs = [[0, 0], [1, 2], [2, 4]]
    objective, features = features_only(
        [{"name": "hidden_state", "layers": pairs, "weight": 0.5}], student, teacher
    )
    features.double()
    lessons, wanted = make_lessons(), 0.0
    for rows, own, taught, _ in each_record(lessons, student, teacher):
        for a, b in pairs:
            matrix = features.projectors[f"0-{a}-{b}"].weight
            gap = own.hidden_states[a][0, rows] @ matrix.T - taught.hidden_states[b][0, rows]
            wanted = wanted + 0.5 * gap.square().mean(-1).sum() / len(pairs)
    loss = objective(student, make_batch(lessons, None))
    torch.testing.assert_close(loss.total, wanted.detach(), rtol=1e-10, atol=0)
    assert loss.parts["feature_hidden_state"] == pytest.approx(2 * float(wanted.detach()))
    loss.total.backward()
    assert all(value.grad.abs().max() > 0 for value in features.parameters())
    cosine, _ = features_only(
        [{"name": "hidden_state", "layers": "last", "distance": "cosine", "projector": "none"}],
        make_model(layers=2),
        teacher,
    )
    for lesson in lessons:
        loss = cosine(make_model(layers=2), make_batch([lesson], None)).total
        assert float(loss.detach()) > 0


def rotary_scores(model, layer, hidden):
    """The scores of one llama layer before the softmax, (H, T, T), by the textbook."""
    attention, config = model.model.layers[layer].self_attn, model.config
    x = model.model.layers[layer].input_layernorm(hidden)[0]
    size = config.hidden_size // config.num_attention_heads
    angles = torch.arange(len(x)).double()[:, None] * 10000.0 ** (
        -torch.arange(0, size, 2).double() / size
    )
    cos, sin = (torch.cat([f(angles)] * 2, -1) for f in (torch.cos, torch.sin))
    turned = []
    for linear in (attention.q_proj, attention.k_proj):
        heads = linear(x).view(len(x), -1, size).transpose(0, 1)
        left, right = heads.chunk(2, -1)
        turned.append(heads * cos + torch.cat([-right, left], -1) * sin)
    query, key = turned
    key = key.repeat_interleave(len(query) // len(key), 0)
    return query @ key.transpose(1, 2) / math.sqrt(size)


@pytest.mark.parametrize("form", ["scores", "probabilities"])
def test_attention_equals_a_reference_of_a_few_lines(form):
    student, teacher = make_model(layers=1, hidden=16), make_model(layers=2, seed=1)
    objective, _ = features_only(
        [{"name": "attention", "form": form, "layers": [[1, 2]]}], student, teacher
    )
    lessons, wanted = make_lessons(), 0.0
    for rows, own, taught, _ in each_record(lessons, student, teacher):
        left = rotary_scores(student, 0, own.hidden_states[0])
        right = rotary_scores(teacher, 1, taught.hidden_states[1])
        for row in rows.tolist():
            a, b = left[:, row, : row + 1], right[:, row, : row + 1]
            if form == "scores":
                wanted = wanted + (a - b).square().mean()
            else:
                log_q, log_p = a.log_softmax(-1), b.log_softmax(-1)
                wanted = wanted + (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    loss = objective(student, make_batch(lessons, None)).total
    torch.testing.assert_close(loss, wanted.detach(), rtol=1e-5, atol=0)  # rotary is in float32


def test_relations_equal_a_reference_of_a_few_lines():
    student, teacher = make_model(layers=1, hidden=24, heads=3, num_key_value_heads=3), make_model()
    losses = [{"name": "relation", "relation_heads": 4, "value_weight": 2.0}]
    objective, _ = features_only(losses, student, teacher)
    lessons, wanted = make_lessons(), 0.0
    for rows, own, taught, _ in each_record(lessons, student, teacher):
        for name, weight in (("q_proj", 1.0), ("k_proj", 1.0), ("v_proj", 2.0)):
            logs = []
            for model, states, at in ((student, own, 0), (teacher, taught, 1)):
                layer = model.model.layers[at]
                x = layer.input_layernorm(states.hidden_states[at])[0]
                heads = getattr(layer.self_attn, name)(x).view(len(x), 4, -1).transpose(0, 1)
                scores = heads @ heads.transpose(1, 2) / math.sqrt(heads.shape[-1])
                later = torch.ones(len(x), len(x)).triu(1).bool()
                logs.append(scores.masked_fill(later, -1e30).log_softmax(-1)[:, rows])
            log_q, log_p = logs
            wanted = wanted + weight * (log_p.exp() * (log_p - log_q)).sum((-1, 1)).mean()
    loss = objective(student, make_batch(lessons, None)).total
    torch.testing.assert_close(loss, wanted.detach(), rtol=1e-9, atol=0)


ALL = [
    {"name": "hidden_state", "layers": [[0, 0], [1, 1], [2, 2]]},
    {"name": "hidden_state", "distance": "cosine", "layers": "last"},
    {"name": "attention"},
    {"name": "attention", "form": "probabilities"},
    {"name": "relation", "layers": "uniform"},
]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(family):
    teacher = make_model(family)
    student = copy.deepcopy(teacher)
    objective, features = features_only(ALL, student, teacher)
    features.double()
    loss = objective(student, make_batch(make_lessons(), None)).total
    assert abs(float(loss.detach())) < 1e-9
    loss.backward()
    for value in [*student.parameters(), *features.parameters()]:
        assert value.grad is None or value.grad.abs().max() < 1e-9
    other = make_model(family, seed=5)
    for loss in ALL:  # and what differs is seen by each of them
        objective, features = features_only([loss], other, teacher)
        features.double()
        assert float(objective(other, make_batch(make_lessons(), None)).total.detach()) > 1e-4


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_neither_padding_nor_the_split_into_micro_batches_counts(family):
    student, teacher = make_model(family, seed=3), make_model(family)
    objective, features = features_only(ALL, student, teacher)
    features.double()
    lessons = make_lessons()
    whole = objective(student, make_batch(lessons, None)).total
    whole.backward()
    wanted = [value.grad.clone() for value in features.parameters()]
    parts = [objective(student, make_batch([lesson], None)).total for lesson in lessons]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-9, atol=1e-12)
    features.zero_grad()
    for part in parts:
        part.backward()
    for value, gradient in zip(features.parameters(), wanted, strict=True):
        torch.testing.assert_close(value.grad, gradient, rtol=1e-8, atol=1e-12)
    padded = make_batch(lessons, None)
    ids = padded.input_ids.clone()
    for row, lesson in enumerate(lessons):
        ids[row, len(lesson.ids) :] = 39
    other = objective(student, type(padded)(ids, *_rest(padded))).total
    torch.testing.assert_close(other, whole, rtol=1e-9, atol=1e-12)


def _rest(batch):
    return batch.flat, batch.labels, batch.record_ids, batch.tokens


@pytest.mark.parametrize("loss", ALL, ids=str)
def test_gradients_are_those_of_the_loss(loss):
    # of the families this one computes everything in the type of its weights
    student, teacher = make_model("gpt2", seed=3), make_model("gpt2")
    objective, features = features_only([loss], student, teacher)
    features.double()
    batch = make_batch(make_lessons(2), None)
    weight = student.transformer.h[1].attn.c_attn.weight
    values = [weight, *features.parameters()]
    gradients = torch.autograd.grad(objective(student, batch).total, values, allow_unused=True)
    generator = torch.Generator().manual_seed(0)
    for value, gradient in zip(values, gradients, strict=True):
        way = torch.randn(value.shape, generator=generator, dtype=value.dtype)
        ends = []
        for step in (1e-5, -2e-5):
            with torch.no_grad():
                value.add_(step * way)
            ends.append(float(objective(student, batch).total.detach()))
        with torch.no_grad():
            value.add_(1e-5 * way)
        slope = (ends[0] - ends[1]) / 2e-5
        told = 0.0 if gradient is None else float((gradient * way).sum())
        assert told == pytest.approx(slope, rel=1e-4, abs=1e-6)


def test_weights_of_lessons_multiply_their_losses():
    student, teacher = make_model(seed=3), make_model()
    objective, features = features_only(ALL, student, teacher)
    features.double()
    one, two, _ = make_lessons()
    wanted = (
        objective(student, make_batch([one], None)).total
        + 3 * objective(student, make_batch([two], None)).total
    )
    heavy = TokenizedRecord(two.record_id, two.ids, two.positions, weight=3.0)
    total = objective(student, make_batch([one, heavy], None)).total
    torch.testing.assert_close(total, wanted, rtol=1e-9, atol=1e-12)


def test_a_checkpointed_student_gets_the_same_gradient():
    teacher, found = make_model(), []
    for checkpointed in (False, True):
        student = make_model(seed=3)
        objective, features = features_only(ALL, student, teacher)
        features.double()
        with deterministic_torch(
            TrainSettings(gradient_checkpointing=checkpointed, threads=1), student
        ):
            objective(student, make_batch(make_lessons(), None)).total.backward()
        found.append([v.grad for v in student.parameters() if v.grad is not None])
    for left, right in zip(*found, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)


def test_logits_and_features_add_up():
    student, teacher = make_model(seed=3), make_model()
    batch = make_batch(make_lessons(), None)
    features = FeatureSet([FEATURE_LOSSES.build("relation")], student, teacher)
    method = METHODS.build("jsd")
    plain = DistillationLoss(method, rows=40, teacher=teacher)
    both = DistillationLoss(method, rows=40, teacher=teacher, features=features)
    beside, _ = features_only(["relation"], student, teacher)
    wanted = plain(student, batch).total + beside(student, batch).total
    torch.testing.assert_close(both(student, batch).total, wanted)
    assert "feature_relation" in both(student, batch).parts


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_observed_is_what_the_layer_makes(family):
    model = make_model(family)
    ids = torch.arange(5)[None]
    seen = capture_activations(
        model, ids, CaptureSpec(frozenset({0, 2}), frozenset({1}), frozenset({2}))
    )
    assert set(seen.states) == {0, 2}
    torch.testing.assert_close(seen.states[2], seen.last)
    queries, keys, values = seen.projections[2]
    assert keys.shape == values.shape
    size = seen.attention[1].queries.shape[-1]
    assert queries.shape[-1] == 4 * size
    assert keys.shape[-1] == seen.attention[1].keys.shape[1] * size


def test_says_which_pair_of_layers_is_not_there():
    student, teacher = make_model(), make_model(layers=3)
    for pair in ([3, 1], [1, 4]):
        with pytest.raises(RecipeError) as caught:
            features_only([{"name": "relation", "layers": [pair]}], student, teacher)
        assert caught.value.code == "distill.feature-layers"
    for wrong in ([], [[0, 1]], [[1, 1], [1, 1]]):
        with pytest.raises(ValueError, match="layers"):
            FEATURE_LOSSES.build({"name": "attention", "layers": wrong})


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        ("attention", "attention heads"),
        ({"name": "hidden_state", "projector": "none"}, "need a projector"),
        ({"name": "relation", "relation_heads": 5}, "cannot be split"),
    ],
)
def test_refuses_shapes_that_cannot_be_compared(loss, said):
    student, teacher = make_model(hidden=16, heads=2), make_model()
    with pytest.raises(ShapeError, match=said) as caught:
        features_only([loss], student, teacher)
    assert caught.value.code == "distill.feature-shape"


@pytest.mark.parametrize("loss", ["attention", "relation"])
def test_refuses_attention_of_an_unknown_layout_by_name(loss):
    config = AutoConfig.for_model(
        "bloom", vocab_size=40, hidden_size=16, n_layer=2, n_head=2, hidden_dropout=0.0
    )
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(CheckpointError, match="self_attention") as caught:
        features_only([loss], model, make_model())
    assert caught.value.code == "distill.attention-layout"
    features_only([{"name": "hidden_state"}], model, make_model())  # needs none of it


def test_uniform_pairs_span_the_depth():
    student, teacher = make_model(layers=2), make_model(layers=5)
    _, features = features_only(["attention", "relation"], student, teacher)
    assert features.pairs == [((1, 3), (2, 5)), ((2, 5),)]


def test_projectors_start_as_told():
    wide, narrow = make_model(), make_model(hidden=16)
    _, features = features_only([{"name": "hidden_state", "layers": "last"}], wide, wide)
    (linear,) = features.projectors.values()
    assert torch.equal(linear.weight, torch.eye(32))
    _, features = features_only([{"name": "hidden_state", "layers": "last"}], narrow, wide)
    (linear,) = features.projectors.values()
    torch.testing.assert_close(linear.weight.T @ linear.weight, torch.eye(16))
    assert isinstance(linear, nn.Linear)
    assert linear.bias is None
    _, again = features_only([{"name": "hidden_state", "layers": "last"}], narrow, wide)
    (same,) = again.projectors.values()
    assert torch.equal(linear.weight, same.weight)


def test_features_have_no_stored_targets_and_no_context_of_the_teacher():
    fields = {"teacher": "t", "records": "r", "feature_losses": ["hidden_state"]}
    build(fields)
    for name, value in {"targets": {"mode": "top_k"}, "context": {"text": "Be brief."}}.items():
        with pytest.raises(ValueError, match=name):
            build({**fields, name: value})
