import copy

import pytest
import torch

from stillroom.distill.interfaces import METHODS
from stillroom.distill.losses.lm_head import LMHead, LoraBranch, compute_chunked_loss, get_body
from stillroom.distill.losses.targets import DenseTargets
from stillroom.errors import CheckpointError

N, V, H = 9, 23, 5


def draw(*shape, seed=0, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=dtype)


def score_against(teacher, name="forward_kl"):
    objective = METHODS.build(name)
    labels = torch.zeros(len(teacher), dtype=torch.int64)

    def score(logits, start, stop):
        return objective.score(logits, DenseTargets(teacher[start:stop]), labels[start:stop])

    return score


def dense_kl(logits, teacher):
    p = torch.softmax(teacher, -1)
    return (p * (p.log() - torch.log_softmax(logits, -1))).sum()


@pytest.mark.parametrize("tiles", [False, True])
@pytest.mark.parametrize("chunk_rows", [1, 4, 100])
@pytest.mark.parametrize("cap", [0.0, 3.0])
@pytest.mark.parametrize("has_bias", [False, True])
def test_equals_a_dense_head(cap, has_bias, chunk_rows, tiles):
    rows = V - 2  # two rows are padding of the vocabulary
    weight, bias = draw(V, H).requires_grad_(), draw(V, seed=1).requires_grad_()
    hidden, teacher = draw(N, H, seed=2).requires_grad_(), draw(N, rows, seed=3)
    logits = (hidden @ weight[:rows].t() + (bias[:rows] if has_bias else 0.0)) * 0.5
    wanted = dense_kl(cap * torch.tanh(logits / cap) if cap else logits, teacher)
    leaves = [hidden, weight, *([bias] if has_bias else [])]
    gradients = torch.autograd.grad(wanted, leaves)
    total, _ = compute_chunked_loss(
        hidden,
        LMHead(weight, bias if has_bias else None, rows, 0.5, cap),
        score_against(teacher),
        chunk_rows=chunk_rows,
        tiles=tiles,
    )
    torch.testing.assert_close(total, wanted)
    for ours, theirs in zip(torch.autograd.grad(total, leaves), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_low_rank_branches_are_part_of_the_product():
    weight, hidden = draw(V, H), draw(N, H, seed=1).requires_grad_()
    down, up = draw(2, H, seed=2).requires_grad_(), draw(V, 2, seed=3).requires_grad_()
    teacher = draw(N, V, seed=4)
    wanted = dense_kl(hidden @ (weight + 0.5 * up @ down).t(), teacher)
    gradients = torch.autograd.grad(wanted, [hidden, down, up])
    head = LMHead(weight, None, V, branches=(LoraBranch(down, up, 0.5),))
    total, _ = compute_chunked_loss(hidden, head, score_against(teacher), chunk_rows=4)
    torch.testing.assert_close(total, wanted)
    for ours, theirs in zip(torch.autograd.grad(total, [hidden, down, up]), gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(head.logits(hidden), hidden @ (weight + 0.5 * up @ down).t())


@pytest.mark.parametrize("has_branch", [False, True])
def test_no_position_is_zero_with_a_graph_and_zero_gradients(has_branch):
    weight, bias = draw(V, H).requires_grad_(), draw(V).requires_grad_()
    hidden = torch.zeros(0, H, dtype=torch.float64, requires_grad=True)
    down, up = draw(2, H).requires_grad_(), draw(V, 2).requires_grad_()
    branches = (LoraBranch(down, up),) if has_branch else ()

    def never(logits, start, stop):
        raise AssertionError("no row, no score")

    total, parts = compute_chunked_loss(
        hidden, LMHead(weight, bias, V - 1, branches=branches), never
    )
    total.backward()
    assert (float(total.detach()), parts) == (0.0, {})
    for value in (weight, bias, *([down, up] if has_branch else [])):
        assert torch.equal(value.grad, torch.zeros_like(value))


def test_what_is_frozen_gets_no_gradient():
    weight, bias = draw(V, H), draw(V)
    hidden, teacher = draw(N, H, seed=1).requires_grad_(), draw(N, V, seed=2)
    total, _ = compute_chunked_loss(hidden, LMHead(weight, bias, V), score_against(teacher))
    total.backward()
    assert hidden.grad is not None
    assert weight.grad is None
    assert bias.grad is None
    frozen_body, weight = hidden.detach(), weight.requires_grad_()
    total, _ = compute_chunked_loss(frozen_body, LMHead(weight, None, V), score_against(teacher))
    total.backward()
    assert float(weight.grad.abs().sum()) > 0


def test_gradients_add_up_over_micro_batches_and_scale():
    teacher, hidden = draw(N, V, seed=1), draw(N, H, seed=2)
    whole, parts = draw(V, H).requires_grad_(), draw(V, H).requires_grad_()
    total, _ = compute_chunked_loss(hidden, LMHead(whole, None, V), score_against(teacher))
    (total / N).backward()
    for cut in (slice(0, 2), slice(2, 3), slice(3, N)):
        part, _ = compute_chunked_loss(
            hidden[cut], LMHead(parts, None, V), score_against(teacher[cut])
        )
        (part / N).backward()
    torch.testing.assert_close(parts.grad, whole.grad)


def test_a_kept_graph_gives_its_gradient_again():
    weight, hidden, teacher = draw(V, H).requires_grad_(), draw(N, H, seed=1), draw(N, V, seed=2)
    total, _ = compute_chunked_loss(hidden, LMHead(weight, None, V), score_against(teacher))
    total.backward(retain_graph=True)
    once = weight.grad.clone()
    total.backward()
    torch.testing.assert_close(weight.grad, 2 * once)


def test_there_is_no_second_derivative():
    weight, hidden = draw(V, H).requires_grad_(), draw(N, H, seed=1)
    total, _ = compute_chunked_loss(
        hidden, LMHead(weight, None, V), score_against(draw(N, V, seed=2))
    )
    (first,) = torch.autograd.grad(total, weight, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        first.sum().backward()


def test_a_bfloat16_head_gathers_its_gradient_in_float32():
    """Many small shares of a gradient would be lost one by one in bfloat16."""
    weight = draw(V, H, dtype=torch.float32).bfloat16().requires_grad_()
    hidden = draw(400, H, seed=1, dtype=torch.float32).bfloat16()
    teacher = draw(400, V, seed=2, dtype=torch.float32)
    total, _ = compute_chunked_loss(
        hidden, LMHead(weight, None, V), score_against(teacher), chunk_rows=1
    )
    total.backward()
    exact = weight.detach().float().requires_grad_()
    dense_kl(hidden.float() @ exact.t(), teacher).backward()
    assert weight.grad.dtype == torch.bfloat16
    worst = (weight.grad.float() - exact.grad).abs().max() / exact.grad.abs().max()
    assert float(worst) < 0.02


def test_tiles_cover_every_row_once_and_prepare_comes_before_them():
    seen, prepared = [], []

    def score(logits, start, stop):
        seen.append((start, stop, len(prepared)))
        assert len(logits) == stop - start
        return logits.sum(-1) * 0, torch.zeros_like(logits), {"rows": float(len(logits))}

    hidden = torch.zeros(10, 2, requires_grad=True)
    _, parts = compute_chunked_loss(
        hidden,
        LMHead(torch.zeros(50_000, 2), None, 50_000),
        score,
        prepare=lambda start, stop: prepared.append((start, stop)),
        tiles=True,
        chunk_rows=4,
    )
    assert prepared == [(0, 4), (4, 8), (8, 10)]
    assert [row for start, stop, _ in seen for row in range(start, stop)] == list(range(10))
    assert all(prepared[known - 1][0] <= start for start, _, known in seen)
    assert parts == {"rows": 10.0}


@pytest.mark.parametrize(
    ("name", "value", "scale"),
    [("logit_scale", 0.25, 0.25), ("logits_scaling", 8.0, 0.125), ("lm_head_multiplier", 2.0, 2.0)],
)
def test_reads_the_scale_from_the_config(loaded, name, value, scale):
    model = copy.deepcopy(loaded[0])
    setattr(model.config, name, value)
    model.config.final_logit_softcapping = 2.0
    head = LMHead.of(model, rows=10)
    assert (head.scale, head.cap, head.rows) == (scale, 2.0, 10)
    logits = head.logits(torch.randn(3, model.config.hidden_size) * 50)
    assert logits.shape == (3, 10)
    assert float(logits.detach().abs().max()) <= 2.0


def with_adapter(loaded, **settings):
    import peft

    model = copy.deepcopy(loaded[0])
    config = peft.LoraConfig(r=2, lora_alpha=6, task_type="CAUSAL_LM", **settings)
    model = peft.get_peft_model(model, config)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                value.add_(torch.randn(value.shape, generator=rng) * 0.05)
    return model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["lm_head"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
    ids=["head", "both", "whole head"],
)
def test_an_adapted_head_gives_the_models_own_logits(loaded, settings):
    model = with_adapter(loaded, **settings).eval()
    ids = torch.arange(12)[None]
    with torch.no_grad():
        hidden = get_body(model)(input_ids=ids, use_cache=False).last_hidden_state
        torch.testing.assert_close(
            LMHead.of(model).logits(hidden[0]), model(input_ids=ids).logits[0]
        )


@pytest.mark.filterwarnings("ignore")
def test_a_lora_on_the_head_learns_as_in_the_whole_model(loaded):
    model = with_adapter(loaded, target_modules=["lm_head"])
    ids = torch.arange(12)[None]
    learned = [value for value in model.parameters() if value.requires_grad]
    teacher = draw(12, loaded[0].config.vocab_size, dtype=torch.float32)
    wanted = torch.autograd.grad(dense_kl(model(input_ids=ids).logits[0], teacher), learned)
    hidden = get_body(model)(input_ids=ids, use_cache=False).last_hidden_state[0]
    total, _ = compute_chunked_loss(hidden, LMHead.of(model), score_against(teacher), chunk_rows=5)
    for ours, theirs in zip(torch.autograd.grad(total, learned), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("more", [{"use_dora": True}, {"lora_bias": True}], ids=str)
def test_refuses_an_adapter_that_is_more_than_low_rank(loaded, more):
    model = with_adapter(loaded, target_modules=["lm_head"], **more)
    with pytest.raises(CheckpointError) as caught:
        LMHead.of(model)
    assert caught.value.code == "distill.head-adapter"


def test_refuses_a_model_without_a_head_or_with_a_quantized_one():
    class Odd(torch.nn.Module):
        def __init__(self, head):
            super().__init__()
            self.held = [head]

        def get_output_embeddings(self):
            return self.held[0]

    whole_numbers = torch.nn.Module()
    whole_numbers.register_buffer("weight", torch.zeros(3, 2, dtype=torch.int8))
    for model in (Odd(None), Odd(whole_numbers)):
        with pytest.raises(CheckpointError) as caught:
            LMHead.of(model)
        assert caught.value.code == "distill.no-head"
