"""Pruning the width, in float64: what must not change a logit does not, in every family."""

import pytest
import torch
from tests.unit.distill import families
from tests.unit.distill.conftest import make_records

from stillroom.checkpoints import Checkpoint
from stillroom.distill.data.tokenized import tokenize_records
from stillroom.distill.pruning.importance import WidthStatistics, gather_width_statistics
from stillroom.distill.pruning.shapes import StudentShape
from stillroom.distill.pruning.student import (
    count_student_parameters,
    initialize_student,
    plan_student,
)
from stillroom.distill.pruning.width import select_width
from stillroom.distill.settings import PruneSettings
from stillroom.errors import CheckpointError, DataError, RecipeError
from stillroom.models.local.causal_lm import load_tokenizer
from stillroom.testing import tiny_checkpoint

IDS = torch.tensor([[1, 17, 300, 42, 9, 77, 5, 250, 31, 8, 120, 4]])
GONE = {"ffn": [3, 50, 95], "hidden": list(range(28)), "kv": [1]}


@pytest.fixture(scope="module")
def lessons(tmp_path_factory):
    folder = tiny_checkpoint(tmp_path_factory.mktemp("w") / "t", vocabulary=families.VOCABULARY)
    found, _ = tokenize_records(
        load_tokenizer(folder), make_records(3), max_tokens=48, include_prompt=True
    )
    return found


def prune(model, folder, lessons, **settings):
    """Save a model, prune it, and return the student with what transformers found odd in it."""
    teacher = families.save(model, folder / "teacher")
    checkpoint, wanted = Checkpoint.open(teacher), PruneSettings(max_parameters=1.0, **settings)
    plan = plan_student(checkpoint, wanted, lambda: model, lessons)
    student = initialize_student(teacher, folder / "student", plan)
    opened = Checkpoint.open(student)
    assert opened.parameters == count_student_parameters(checkpoint, wanted)
    return *families.load(student), plan, opened


def logits(model):
    with torch.inference_mode():
        return model(input_ids=IDS, use_cache=False).logits


def linear(model, ending):
    """Return the layers of a name as (out, in) views, with their biases."""
    for name, module in model.named_modules():
        if name.endswith(ending):
            across = type(module).__name__ == "Conv1D"
            yield module.weight.t() if across else module.weight, module.bias


def silence(parts, rows):
    for weight, bias in parts:
        weight[rows] = 0
        if bias is not None:
            bias[rows] = 0


@torch.no_grad()
def silence_ffn(model):
    rows = torch.tensor(GONE["ffn"])
    for ending in ("gate_proj", "up_proj", "c_fc"):
        silence(linear(model, f"mlp.{ending}"), rows)
    silence(linear(model, "gate_up_proj"), torch.cat([rows, rows + 96]))


@torch.no_grad()
def silence_group(model, shape):
    """Let the second key-value head (the second head of GPT-2) say nothing."""
    size = shape.head_dim
    rows = torch.arange(size, 2 * size)
    silence(linear(model, "v_proj"), rows)
    before = (shape.attention_heads + shape.kv_heads) * size
    for ending in ("qkv_proj", "attn.c_attn"):
        silence(linear(model, ending), before + rows)


@torch.no_grad()
def silence_hidden(model, family):
    """Let nothing be written to some channels; for a LayerNorm let the others' mean be zero."""
    gone = torch.tensor(GONE["hidden"] if family != "gpt2" else list(range(16)))
    kept = torch.tensor([at for at in range(64) if at not in set(gone.tolist())])
    writers = [(table.t(), None) for table in tables(model)]
    for ending in ("o_proj", "down_proj", "attn.c_proj", "mlp.c_proj"):
        writers += list(linear(model, ending))
    silence(writers, gone)
    for name, module in model.named_modules():
        if "ln_" in name:
            module.bias[gone] = 0
    if family in families.CENTERED:
        for weight, bias in writers:
            weight[kept] -= weight[kept].mean(0)
            if bias is not None:
                bias[kept] -= bias[kept].mean()


def tables(model):
    return [module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)]


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_same_sizes_give_the_same_bits(family, tmp_path, lessons):
    model = families.make_model(family)
    _, odd, plan, student = prune(
        model, tmp_path, lessons, hidden_size=64, intermediate_size=96, attention_heads=4
    )
    assert not odd
    assert plan.layers == (0, 1, 2, 3)
    assert student.fingerprint == Checkpoint.open(tmp_path / "teacher").fingerprint


@pytest.mark.parametrize("family", families.FAMILIES)
def test_feed_forward_channels_that_say_nothing_go_without_a_trace(family, tmp_path, lessons):
    model = families.make_model(family)
    silence_ffn(model)
    student, odd, plan, _ = prune(model, tmp_path, lessons, intermediate_size=93)
    assert not odd
    for layer in plan.cut.kept.layers.values():
        assert not set(GONE["ffn"]) & set(layer.ffn)
    torch.testing.assert_close(logits(student), logits(model), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", families.GROUPED)
def test_a_group_of_heads_that_says_nothing_goes_without_a_trace(family, tmp_path, lessons):
    model = families.make_model(family)
    head_dim = getattr(model.config, "head_dim", None) or 16
    silence_group(model, StudentShape(4, 64, 96, 4, 2, head_dim))
    student, odd, plan, _ = prune(model, tmp_path, lessons, kv_heads=1)
    assert not odd
    assert student.config.num_attention_heads == 2
    assert {layer.heads for layer in plan.cut.kept.layers.values()} == {(0, 1)}
    torch.testing.assert_close(logits(student), logits(model), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_hidden_channels_that_carry_nothing_go_without_a_trace(family, tmp_path, lessons):
    model = families.make_model(family)
    silence_hidden(model, family)
    size = 48 if family == "gpt2" else 36  # 36: Gemma keeps its root in float32
    if family == "gpt2":  # its width is its heads': one of them goes, and must say nothing
        silence_group(model, StudentShape(4, 64, 96, 4, 4, 16))
    student, odd, plan, _ = prune(model, tmp_path, lessons, hidden_size=size)
    assert not odd
    assert plan.cut.kept.hidden == tuple(range(64 - size, 64))
    torch.testing.assert_close(logits(student), logits(model), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_student_loads_whole_and_speaks(family, tmp_path, lessons):
    model = families.make_model(family)
    sizes = {"hidden_size": 48, "intermediate_size": 40, "layers": 3}
    student, odd, plan, opened = prune(model, tmp_path, lessons, **sizes)
    assert not odd
    assert student.generate(IDS, max_new_tokens=4, do_sample=False).shape[1] > IDS.shape[1]
    assert len(plan.layers) == 3
    assert {0, 3} < set(plan.layers)
    assert opened.tokenizer_digest == Checkpoint.open(tmp_path / "teacher").tokenizer_digest
    assert load_tokenizer(opened.folder).chat_template
    if family != "gpt2":
        assert opened.config["head_dim"] == (model.config.to_dict().get("head_dim") or 16)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_layers_compute_as_they_did_at_their_old_place(family, tmp_path, lessons):
    model = families.make_model(family)
    student, odd, _, _ = prune(model, tmp_path, lessons, keep=(0, 3))
    assert not odd
    layers = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
    for number in (1, 2):
        layers[number].register_forward_hook(
            lambda module, inputs, output: (
                (inputs[0], *output[1:]) if isinstance(output, tuple) else inputs[0]
            )
        )
    torch.testing.assert_close(logits(student), logits(model), rtol=1e-12, atol=1e-12)


def test_the_order_of_channels_does_not_matter(tmp_path, lessons):
    plain, mixed = families.make_model("llama"), families.make_model("llama")
    order = torch.randperm(96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for layer in mixed.model.layers:
            for part in (layer.mlp.gate_proj, layer.mlp.up_proj):
                part.weight.copy_(part.weight[order])
                part.bias.copy_(part.bias[order])
            layer.mlp.down_proj.weight.copy_(layer.mlp.down_proj.weight[:, order])
    torch.testing.assert_close(logits(mixed), logits(plain))
    found = []
    for name, model in (("plain", plain), ("mixed", mixed)):
        (tmp_path / name).mkdir()
        student, _, _, _ = prune(model, tmp_path / name, lessons, intermediate_size=40)
        found.append(logits(student))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(found[0], logits(plain), atol=1e-2)


def test_statistics_are_those_of_the_paper(lessons):
    """Minitron, section 2.2, on GPT-2 written out: 4 layers, 4 heads of 16."""
    model = families.make_model("gpt2")
    ours = gather_width_statistics(model, lessons)
    w = dict(model.transformer.named_parameters())

    def norm(x, name):
        x = (x - x.mean(-1, keepdim=True)) / (
            x.var(-1, unbiased=False, keepdim=True) + 1e-12
        ).sqrt()
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def squares(a):
        return a.abs().mean(0) ** 2

    ffn, heads, norms = (torch.zeros(4, n, dtype=torch.float64) for n in (96, 64, 128))
    for lesson in lessons:
        ids = torch.from_numpy(lesson.ids)
        x = w["wte.weight"][ids] + w["wpe.weight"][: len(ids)]
        for n in range(4):
            first = norm(x, f"h.{n}.ln_1")
            qkv = first @ w[f"h.{n}.attn.c_attn.weight"] + w[f"h.{n}.attn.c_attn.bias"]
            q, k, v = (part.view(-1, 4, 16).transpose(0, 1) for part in qkv.split(64, -1))
            scores = q @ k.transpose(1, 2) / 4 + torch.full((len(ids),) * 2, -1e9).triu(1)
            mixed = (scores.softmax(-1) @ v).transpose(0, 1).reshape(-1, 64)
            x = x + mixed @ w[f"h.{n}.attn.c_proj.weight"] + w[f"h.{n}.attn.c_proj.bias"]
            second = norm(x, f"h.{n}.ln_2")
            inner = second @ w[f"h.{n}.mlp.c_fc.weight"] + w[f"h.{n}.mlp.c_fc.bias"]
            inner = torch.nn.functional.gelu(inner, approximate="tanh")
            x = x + inner @ w[f"h.{n}.mlp.c_proj.weight"] + w[f"h.{n}.mlp.c_proj.bias"]
            ffn[n] += squares(inner)
            heads[n] += squares(mixed)
            norms[n] += squares(torch.cat([first, second], -1))
    for n in range(4):
        torch.testing.assert_close(ours.ffn[n], ffn[n].sqrt(), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(ours.attention[n], heads[n].sqrt(), rtol=1e-9, atol=1e-12)
    hidden = norms.sqrt().view(4, 2, 64).sum((0, 1))
    torch.testing.assert_close(ours.hidden, hidden, rtol=1e-9, atol=1e-12)


def test_heads_are_compared_within_their_group():
    teacher = StudentShape(1, 8, 4, 6, 3, 1)
    scores = torch.tensor([9.0, 8.0, 1.0, 2.0, 5.0, 4.0], dtype=torch.float64)
    statistics = WidthStatistics({0: torch.arange(4.0)}, {0: scores}, torch.arange(8.0))
    kept = select_width(teacher, StudentShape(1, 4, 2, 3, 3, 1), statistics, [0])
    assert kept.layers[0].heads == (0, 3, 4)  # globally 0, 1, 4 are the largest
    assert kept.layers[0].ffn == (2, 3)
    assert kept.hidden == (4, 5, 6, 7)
    kept = select_width(teacher, StudentShape(1, 8, 4, 2, 2, 1), statistics, [0])
    assert kept.layers[0].kv_heads == (0, 2)
    assert kept.layers[0].heads == (0, 4)
    assert kept.index("qkv", 0).tolist() == [0, 4, 6, 8, 9, 11]
    assert kept.index("hidden", None) is None


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"attention_heads": 3}, "student.attention_heads"),
        ({"kv_heads": 1, "attention_heads": 4}, "student.kv_heads"),
        ({"hidden_size": 42}, "student.hidden_size"),
        ({"hidden_size": 128}, "student.hidden_size"),
        ({"intermediate_size": 500}, "student.intermediate_size"),
        ({"kv_heads": 4}, "student.kv_heads"),
        ({"attention_heads": 8}, "student.attention_heads"),
    ],
)
def test_refuses_sizes_that_no_model_can_have(tmp_path, settings, where):
    teacher = Checkpoint.open(tiny_checkpoint(tmp_path / "t"))
    with pytest.raises(RecipeError) as caught:
        count_student_parameters(teacher, PruneSettings(max_parameters=1.0, **settings))
    assert caught.value.code == "distill.prune-shape"
    assert caught.value.problems[0].where == where


def test_gpt2_ties_its_heads_to_its_width(tmp_path):
    teacher = Checkpoint.open(families.save(families.make_model("gpt2"), tmp_path / "t"))
    settings = PruneSettings(max_parameters=1.0, hidden_size=32, attention_heads=4)
    with pytest.raises(RecipeError) as caught:
        count_student_parameters(teacher, settings)
    assert caught.value.code == "distill.prune-shape"


@pytest.mark.parametrize("prune", ["inner", "width", "both"])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_sizes_are_found_for_a_share(prune, family, tmp_path):
    teacher = Checkpoint.open(families.save(families.make_model(family), tmp_path / "t"))
    for share in (0.9, 0.6, 0.45):
        parameters = count_student_parameters(
            teacher, PruneSettings(max_parameters=share, prune=prune)
        )
        assert 0.8 * share < parameters / teacher.parameters <= share
    with pytest.raises(RecipeError) as caught:
        count_student_parameters(teacher, PruneSettings(max_parameters=0.01, prune=prune))
    assert caught.value.code == "distill.too-large"


def rewrite(folder, change):
    import json

    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def test_refuses_a_family_it_does_not_know(tmp_path):
    teacher = tiny_checkpoint(tmp_path / "t")
    rewrite(teacher, lambda config: config.update(model_type="olmo3"))
    with pytest.raises(CheckpointError) as caught:
        count_student_parameters(Checkpoint.open(teacher), PruneSettings(prune="width"))
    assert caught.value.code == "distill.prune-family"
    assert count_student_parameters(
        Checkpoint.open(teacher), PruneSettings(layers=1, max_parameters=1.0)
    )


def test_refuses_a_tensor_it_does_not_know_by_name(tmp_path):
    from safetensors.torch import load_file, save_file

    teacher = tiny_checkpoint(tmp_path / "t")
    tensors = load_file(teacher / "model.safetensors")
    tensors["model.layers.0.mlp.experts.0.down_proj.weight"] = torch.zeros(64, 128)
    save_file(tensors, teacher / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        count_student_parameters(Checkpoint.open(teacher), PruneSettings(prune="width"))
    assert caught.value.code == "distill.prune-tensor"
    assert caught.value.problems[0].where == "model.layers.0.mlp.experts.0.down_proj.weight"


def test_refuses_a_config_that_does_not_say_its_heads(tmp_path):
    teacher = tiny_checkpoint(tmp_path / "t")
    rewrite(teacher, lambda config: config.pop("num_attention_heads"))
    with pytest.raises(CheckpointError) as caught:
        count_student_parameters(Checkpoint.open(teacher), PruneSettings(prune="width"))
    assert caught.value.code == "distill.prune-tensor"


def test_reads_gpt2_as_the_hub_has_it(tmp_path, lessons):
    """Without a prefix, and with causal masks among the weights."""
    from safetensors.torch import load_file, save_file

    model = families.make_model("gpt2")
    silence_ffn(model)
    teacher = families.save(model, tmp_path / "t")
    path = teacher / "model.safetensors"
    tensors = {name.removeprefix("transformer."): t for name, t in load_file(path).items()}
    tensors |= {f"h.{n}.attn.bias": torch.ones(1, 1, 8, 8).tril() for n in range(4)}
    save_file(tensors, path, metadata={"format": "pt"})
    settings = PruneSettings(max_parameters=1.0, intermediate_size=93)
    plan = plan_student(Checkpoint.open(teacher), settings, lambda: model, lessons)
    folder = initialize_student(teacher, tmp_path / "s", plan)
    assert Checkpoint.open(folder).shape("h.3.attn.bias") == (1, 1, 8, 8)
    student, odd = families.load(folder)
    assert not odd
    torch.testing.assert_close(logits(student), logits(model), rtol=1e-10, atol=1e-10)


def test_says_when_kernels_will_be_slow(tmp_path, lessons):
    model = families.make_model("llama")
    _, _, plan, _ = prune(model, tmp_path, lessons, hidden_size=44)
    assert any("44 is not a multiple of 8" in note for note in plan.notes)


@pytest.mark.parametrize(
    "settings", [{"hidden_size": 48}, {"layers": 3}, {"layers": 3, "choose": "kl"}]
)
def test_refuses_to_choose_by_what_is_no_number(tmp_path, lessons, settings):
    model = families.make_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(DataError) as caught:
        prune(model, tmp_path, lessons, **settings)
    assert caught.value.problems[0].code == "distill.teacher-not-finite"
