"""Published formats on random weights: our logits are those of a forward by their papers."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from stillroom.diffusion.model.loading import open_diffusion
from stillroom.diffusion.model.network import ForwardRequest
from stillroom.errors import CheckpointError

D, HEADS, INNER, LAYERS, VOCAB, T = 32, 4, 48, 2, 64, 11
IDS = (torch.arange(T) * 7) % VOCAB


def ours(folder, **given):
    model = open_diffusion(str(folder), dtype="float32", **given)
    at = torch.arange(T)
    with torch.inference_mode():
        (states,) = model.read([ForwardRequest(IDS, at, model.attention_mask(at, at), at)])
        return model, model.logits(states)


def write(folder, config, tensors):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(
        {name: value.contiguous() for name, value in tensors.items()}, folder / "m.safetensors"
    )
    (folder / "m.safetensors").rename(folder / "model.safetensors")
    return folder


def draw(shapes, scale=0.2):
    rng = torch.Generator().manual_seed(5)
    return {
        name: 1 + 0.1 * torch.randn(shape, generator=rng)
        if len(shape) == 1 and "norm" in name
        else scale * torch.randn(shape, generator=rng)
        for name, shape in shapes.items()
    }


# -- LLaDA ------------------------------------------------------------------------------------


LLADA = {
    "model_type": "llada",
    "d_model": D,
    "n_heads": HEADS,
    "n_kv_heads": HEADS,
    "n_layers": LAYERS,
    "mlp_hidden_size": INNER,
    "vocab_size": VOCAB,
    "embedding_size": VOCAB,
    "max_sequence_length": 64,
    "rope": True,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "block_type": "llama",
    "layer_norm_type": "rms",
    "activation_type": "silu",
    "weight_tying": False,
    "include_bias": False,
    "mask_token_id": 60,
    "eos_token_id": 1,
    "pad_token_id": 1,
}


def llada_tensors(kv_heads=HEADS):
    kv = D // HEADS * kv_heads
    shapes = {"model.transformer.wte.weight": (VOCAB, D), "model.transformer.ln_f.weight": (D,)}
    shapes["model.transformer.ff_out.weight"] = (VOCAB, D)
    for layer in range(LAYERS):
        at = f"model.transformer.blocks.{layer}"
        shapes |= {
            f"{at}.attn_norm.weight": (D,),
            f"{at}.ff_norm.weight": (D,),
            f"{at}.q_proj.weight": (D, D),
            f"{at}.k_proj.weight": (kv, D),
            f"{at}.v_proj.weight": (kv, D),
            f"{at}.attn_out.weight": (D, D),
            f"{at}.ff_proj.weight": (INNER, D),
            f"{at}.up_proj.weight": (INNER, D),
            f"{at}.ff_out.weight": (D, INNER),
        }
    tensors = draw(shapes)
    for name in tensors:
        if name.endswith(("norm.weight", "ln_f.weight")):
            tensors[name] = 1 + tensors[name] * 0.1 if "ln_f" in name else tensors[name]
    return tensors


def rms(x, weight, eps):
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


def rotate(x, theta):
    """Turn (B, H, T, d) by position; halves are paired."""
    dim = x.shape[-1]
    freqs = 1.0 / (theta ** (torch.arange(0, dim, 2).float() / dim))
    angles = torch.arange(x.shape[2]).float()[:, None] * freqs
    angles = torch.cat([angles, angles], -1)
    first, second = x[..., : dim // 2], x[..., dim // 2 :]
    return x * angles.cos() + torch.cat([-second, first], -1) * angles.sin()


def llada_forward(tensors, ids, kv_heads=HEADS):
    """LLaDA's network as its paper and config describe it: pre-norm, SwiGLU, no causal mask."""
    at = "model.transformer"
    x = tensors[f"{at}.wte.weight"][ids][None]

    def heads(y, count):
        return y.view(1, len(ids), count, D // HEADS).transpose(1, 2)

    for layer in range(LAYERS):
        w = {k.split(".")[4]: v for k, v in tensors.items() if f".blocks.{layer}." in k}
        h = rms(x, w["attn_norm"], 1e-5)
        q = rotate(heads(functional.linear(h, w["q_proj"]), HEADS), 500000.0)
        k = rotate(heads(functional.linear(h, w["k_proj"]), kv_heads), 500000.0)
        v = heads(functional.linear(h, w["v_proj"]), kv_heads)
        k, v = (each.repeat_interleave(HEADS // kv_heads, 1) for each in (k, v))
        a = functional.scaled_dot_product_attention(q, k, v, is_causal=False)
        x = x + functional.linear(a.transpose(1, 2).reshape(1, len(ids), D), w["attn_out"])
        h = rms(x, w["ff_norm"], 1e-5)
        x = x + functional.linear(
            functional.silu(functional.linear(h, w["ff_proj"]))
            * functional.linear(h, w["up_proj"]),
            w["ff_out"],
        )
    return functional.linear(
        rms(x, tensors[f"{at}.ln_f.weight"], 1e-5), tensors[f"{at}.ff_out.weight"]
    )[0]


def test_llada_gives_the_published_forward_bit_for_bit(tmp_path):
    tensors = llada_tensors()
    model, logits = ours(write(tmp_path / "llada", LLADA, tensors))
    assert torch.equal(logits, llada_forward(tensors, IDS))
    assert model.metadata.mask_token_id == 60
    assert (model.metadata.attention, model.metadata.logit_shift) == ("full", False)
    assert model.metadata.end_token_ids == (1,)


def test_a_llada_with_grouped_heads_and_tied_embeddings(tmp_path):
    tensors = llada_tensors(kv_heads=2)
    config = {**LLADA, "n_kv_heads": 2, "weight_tying": True, "mask_token_id": 5}
    tied = {
        name: value for name, value in tensors.items() if name != "model.transformer.ff_out.weight"
    }
    _, logits = ours(write(tmp_path / "llada", config, tied))
    tensors["model.transformer.ff_out.weight"] = tensors["model.transformer.wte.weight"]
    assert torch.allclose(logits, llada_forward(tensors, IDS, kv_heads=2), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop("model.transformer.blocks.1.ff_proj.weight"), "layers.1.mlp.gate_proj"),
        (lambda t: t.update({"model.transformer.blocks.0.extra.weight": torch.ones(3)}), "extra"),
        (lambda t: t.update({"model.transformer.ln_f.weight": torch.ones(3)}), "model.norm.weight"),
    ],
)
def test_a_tensor_missing_left_over_or_misshapen_is_named(tmp_path, change, named):
    tensors = llada_tensors()
    change(tensors)
    with pytest.raises(CheckpointError) as caught:
        ours(write(tmp_path / "llada", LLADA, tensors))
    assert caught.value.code == "checkpoint.tensors"
    assert named in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [{"alibi": True}, {"block_type": "sequential"}, {"mask_token_id": None}, {"rope": False}],
)
def test_a_llada_that_llama_does_not_compute_is_refused(tmp_path, change):
    with pytest.raises(CheckpointError) as caught:
        ours(write(tmp_path / "llada", {**LLADA, **change}, llada_tensors()))
    assert caught.value.code == "diffusion.layout"


# -- Dream and A2D ----------------------------------------------------------------------------


def stock(kind, **more):
    """Return a stock model's config and tensors, random."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(3)
    config = AutoConfig.for_model(
        kind,
        vocab_size=VOCAB,
        hidden_size=D,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        **more,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    return model


def bidirectional(model, ids):
    seen = torch.ones(1, 1, len(ids), len(ids), dtype=torch.bool)
    with torch.inference_mode():
        return model(input_ids=ids[None], attention_mask=seen).logits[0]


def test_dream_is_qwen2_with_shifted_logits(tmp_path):
    model = stock("qwen2", rope_theta=1e6)
    config = {
        **json.loads(model.config.to_json_string(use_diff=False)),
        "model_type": "Dream",
        "architectures": ["DreamModel"],
        "auto_map": {"AutoModel": "modeling_dream.DreamModel"},
        "mask_token_id": 62,
        "eos_token_id": 61,
        "pad_token_id": 61,
    }
    found, logits = ours(write(tmp_path / "dream", config, dict(model.named_parameters())))
    assert torch.equal(logits, bidirectional(model, IDS))
    assert found.metadata.logit_shift
    assert found.metadata.mask_token_id == 62


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_a2d_is_a_stock_model_that_sees_both_ways(tmp_path, kind):
    model = stock(kind)
    config = {
        **json.loads(model.config.to_json_string(use_diff=False)),
        "model_type": f"a2d-{kind}",
        "eos_token_id": 1,
        "pad_token_id": 63,
    }
    folder = write(tmp_path / "a2d", config, dict(model.named_parameters()))
    token = {"id": 63, "content": "<|mask|>", "special": True}
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": [token]}))
    from stillroom.checkpoints import Checkpoint
    from stillroom.diffusion.model.loading import convert_format

    said = convert_format(Checkpoint.open(folder)).metadata
    assert (said.mask_token_id, said.pad_token_id, said.logit_shift) == (63, None, False)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError) as caught:
        ours(folder)
    assert caught.value.code == "diffusion.layout"
    config["mask_token_id"] = 63
    (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": 1}))
    _, logits = ours(folder)
    assert torch.equal(logits, bidirectional(model, IDS))
    found, logits = ours(folder, overrides={"attention": "block_causal", "block_size": 4})
    assert found.metadata.block_size == 4
    assert torch.equal(logits[:4], ours(folder)[1][:4]) is False


# -- MDLM and BD3-LM --------------------------------------------------------------------------


def dit_tensors(adaptive=True):
    shapes = {
        "backbone.vocab_embed.embedding": (VOCAB, D),
        "backbone.sigma_map.mlp.0.weight": (16, 256),
        "backbone.sigma_map.mlp.0.bias": (16,),
        "backbone.sigma_map.mlp.2.weight": (16, 16),
        "backbone.sigma_map.mlp.2.bias": (16,),
        "backbone.output_layer.norm_final.weight": (D,),
        "backbone.output_layer.linear.weight": (VOCAB, D),
        "backbone.output_layer.linear.bias": (VOCAB,),
    }
    if adaptive:
        shapes["backbone.output_layer.adaLN_modulation.weight"] = (2 * D, 16)
        shapes["backbone.output_layer.adaLN_modulation.bias"] = (2 * D,)
    for layer in range(LAYERS):
        at = f"backbone.blocks.{layer}"
        shapes |= {
            f"{at}.norm1.weight": (D,),
            f"{at}.norm2.weight": (D,),
            f"{at}.attn_qkv.weight": (3 * D, D),
            f"{at}.attn_out.weight": (D, D),
            f"{at}.mlp.0.weight": (4 * D, D),
            f"{at}.mlp.0.bias": (4 * D,),
            f"{at}.mlp.2.weight": (D, 4 * D),
            f"{at}.mlp.2.bias": (D,),
        }
        if adaptive:
            shapes[f"{at}.adaLN_modulation.weight"] = (6 * D, 16)
            shapes[f"{at}.adaLN_modulation.bias"] = (6 * D,)
    return draw(shapes, 0.3)


def dit_forward(tensors, ids, mask, adaptive=True):
    """The diffusion transformer as its paper describes it, its time embedding at 0."""
    w = {name.removeprefix("backbone."): value for name, value in tensors.items()}
    time = torch.cat([torch.ones(128), torch.zeros(128)])
    c = functional.linear(time, w["sigma_map.mlp.0.weight"], w["sigma_map.mlp.0.bias"])
    c = functional.linear(
        functional.silu(c), w["sigma_map.mlp.2.weight"], w["sigma_map.mlp.2.bias"]
    )
    c = functional.silu(c)

    def modulation(at, parts):
        if not adaptive:
            return (0.0, 0.0, 1.0) * 2 if parts == 6 else (0.0, 0.0)
        return functional.linear(
            c, w[f"{at}.adaLN_modulation.weight"], w[f"{at}.adaLN_modulation.bias"]
        ).chunk(parts)

    def norm(x, weight, shift, scale):
        return functional.layer_norm(x, [D]) * weight * (1 + scale) + shift

    x = w["vocab_embed.embedding"][ids][None]
    for layer in range(LAYERS):
        at = f"blocks.{layer}"
        s1, c1, g1, s2, c2, g2 = modulation(at, 6)
        qkv = functional.linear(
            norm(x, w[f"{at}.norm1.weight"], s1, c1), w[f"{at}.attn_qkv.weight"]
        )
        q, k, v = qkv.view(1, len(ids), 3, HEADS, D // HEADS).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, 10000.0), rotate(k, 10000.0)
        a = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        a = a.transpose(1, 2).reshape(1, len(ids), D)
        x = x + g1 * functional.linear(a, w[f"{at}.attn_out.weight"])
        h = norm(x, w[f"{at}.norm2.weight"], s2, c2)
        h = functional.gelu(
            functional.linear(h, w[f"{at}.mlp.0.weight"], w[f"{at}.mlp.0.bias"]), approximate="tanh"
        )
        x = x + g2 * functional.linear(h, w[f"{at}.mlp.2.weight"], w[f"{at}.mlp.2.bias"])
    x = norm(x, w["output_layer.norm_final.weight"], *modulation("output_layer", 2))
    return functional.linear(x, w["output_layer.linear.weight"], w["output_layer.linear.bias"])[0]


MDLM = {"model_type": "mdlm", "vocab_size": VOCAB, "model_length": 64, "n_heads": HEADS}


@pytest.mark.parametrize("adaptive", [True, False])
def test_mdlm_folded_into_gpt_neox_gives_the_published_forward(tmp_path, adaptive):
    tensors = dit_tensors(adaptive)
    mask = torch.ones(T, T, dtype=torch.bool)
    model, logits = ours(write(tmp_path / "mdlm", MDLM, tensors))
    wanted = dit_forward(tensors, IDS, mask, adaptive)
    assert (logits - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert model.metadata.mask_token_id == VOCAB - 1
    assert model.metadata.head_bias


def test_bd3lm_is_block_causal(tmp_path):
    tensors = dit_tensors()
    block = torch.arange(T) // 4
    config = {**MDLM, "model_type": "bd3lm", "block_size": 4}
    _, logits = ours(write(tmp_path / "bd3lm", config, tensors))
    wanted = dit_forward(tensors, IDS, block[:, None] >= block[None])
    assert (logits - wanted).abs().max() < 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("change", [{"time_conditioning": True}, {"causal": True}])
def test_a_network_that_needs_the_time_is_refused(tmp_path, change):
    with pytest.raises(CheckpointError) as caught:
        ours(write(tmp_path / "mdlm", {**MDLM, **change}, dit_tensors()))
    assert caught.value.code == "diffusion.layout"


def test_an_unused_tensor_of_mdlm_is_named(tmp_path):
    with pytest.raises(CheckpointError) as caught:
        ours(write(tmp_path / "mdlm", MDLM, {**dit_tensors(), "backbone.more": torch.ones(2)}))
    assert "more" in str(caught.value)
