"""A tiny checkpoint of every family whose width can be pruned, with a real tokenizer."""

import shutil

import torch
import transformers

from stillroom.testing import tiny_checkpoint

VOCABULARY = 384
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-12,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
OWN = {
    "llama": {"tie_word_embeddings": True, "mlp_bias": True, "attention_bias": True},
    "mistral": {"head_dim": 24, "tie_word_embeddings": False, "sliding_window": 8},
    "qwen2": {"tie_word_embeddings": True, "use_sliding_window": True, "max_window_layers": 2},
    "qwen3": {"head_dim": 8, "tie_word_embeddings": False},
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8},
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8},
    "phi3": {"tie_word_embeddings": False},
    "gpt2": {
        "vocab_size": VOCABULARY,
        "n_embd": 64,
        "n_inner": 96,
        "n_layer": 4,
        "n_head": 4,
        "n_positions": 256,
        "layer_norm_epsilon": 1e-12,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
}
FAMILIES = tuple(OWN)
GROUPED = tuple(name for name in FAMILIES if name != "gpt2")
CENTERED = ("gpt2",)
OFFSET = ("gemma", "gemma2", "gemma3_text")


def make_model(family, seed=0):
    """Return a model in float64 whose every weight and bias is drawn; norms are not all one."""
    values = OWN[family] if family == "gpt2" else {**SIZES, **OWN[family]}
    config = transformers.AutoConfig.for_model(family, **values)
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3 if parameter.dim() > 1 else 0.1)
            if parameter.dim() == 1:
                parameter.add_(0.5)
    return make_exact(model)


def make_exact(model):
    """Let RMS norms, which transformers computes in float32, compute in float64."""

    def forward_of(norm):
        def forward(state):
            epsilon = getattr(norm, "variance_epsilon", None) or norm.eps
            state = state * (state.square().mean(-1, keepdim=True) + epsilon).rsqrt()
            return state * (norm.weight + ("Gemma" in type(norm).__name__))

        return forward

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = forward_of(module)
    return model


def save(model, folder):
    """Write a model with its tokenizer, generation config and chat template."""
    model.save_pretrained(folder)
    like = tiny_checkpoint(folder.with_name(f"{folder.name}-like"), vocabulary=VOCABULARY)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(like / name, folder / name)
    return folder


def load(folder):
    """Return a model in float64, and what transformers missed or did not expect."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, output_loading_info=True, attn_implementation="eager"
    )
    odd = {key: value for key, value in info.items() if value}
    return make_exact(model.eval()), odd
