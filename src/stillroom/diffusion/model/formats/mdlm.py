"""MDLM and BD3-LM checkpoints (diffusion transformers), loaded as GPT-NeoX.

Source: Sahoo et al. 2024, arXiv:2406.07524; Arriola et al. 2025, arXiv:2503.09573. Without time
conditioning the input of the adaptive norms is constant, so shifts, scales and gates are constants:
they are folded into norms and output matrices. Folding rounds; logits agree within 1e-4, not
bitwise.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.checkpoints import Checkpoint
from stillroom.diffusion.interfaces import CheckpointFormat, ConvertedCheckpoint
from stillroom.diffusion.model.metadata import DiffusionMetadata, unsupported_config_error

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Mdlm"]

_FREQUENCIES = 256
_UNUSED = re.compile(r"(backbone\.)?(rotary_emb\.inv_freq|block_diff_mask|noise\..*)")
_USED = re.compile(
    r"(vocab_embed\.embedding|sigma_map\.mlp\.[02]\.(weight|bias)"
    r"|blocks\.\d+\.(norm[12]\.weight|attn_qkv\.weight|attn_out\.weight|mlp\.[02]\.(weight|bias)"
    r"|adaLN_modulation\.(weight|bias))"
    r"|output_layer\.(norm_final\.weight|linear\.(weight|bias)|adaLN_modulation\.(weight|bias)))"
)


class Mdlm(CheckpointFormat):
    """The diffusion transformer of MDLM and BD3-LM, without time conditioning."""

    paper: ClassVar[str] = "arXiv:2406.07524"
    model_types: ClassVar[tuple[str, ...]] = ("mdlm", "bd3lm", "BD3LM")

    @override
    def translate(self, stored: Checkpoint) -> ConvertedCheckpoint:
        config = stored.config
        if config.get("time_conditioning"):
            raise unsupported_config_error(
                stored, "time_conditioning is set: the network takes the time as input"
            )
        if config.get("causal"):
            raise unsupported_config_error(stored, "it is the autoregressive baseline")
        folding = _Folding(stored)
        size = config.get("block_size") if config["model_type"] != "mdlm" else None
        vocabulary = int(config["vocab_size"])
        is_block = size is not None and int(size) < int(config.get("model_length", 1024))
        return ConvertedCheckpoint(
            {
                "architectures": ["GPTNeoXForCausalLM"],
                "model_type": "gpt_neox",
                "vocab_size": vocabulary,
                "hidden_size": folding.width,
                "intermediate_size": folding.inner,
                "num_hidden_layers": folding.layers,
                "num_attention_heads": int(config["n_heads"]),
                "hidden_act": "gelu_pytorch_tanh",
                "rotary_pct": 1.0,
                "rotary_emb_base": 10000,
                "max_position_embeddings": int(config.get("model_length", 1024)),
                "layer_norm_eps": 1e-5,
                "use_parallel_residual": False,
                "attention_bias": False,
                "tie_word_embeddings": False,
                "bos_token_id": None,
                "eos_token_id": vocabulary - 2,
            },
            DiffusionMetadata(
                mask_token_id=vocabulary - 1,
                attention="block_causal" if is_block else "full",
                block_size=int(size) if is_block and size is not None else None,
                end_token_ids=(vocabulary - 2,),
                head_bias=True,
                schedule="linear",
                layout="mdlm",
            ),
            tuple(folding.names()),
            folding.tensor,
        )


class _Folding:
    """Converts the tensors of a diffusion transformer to GPT-NeoX."""

    def __init__(self, stored: Checkpoint) -> None:
        self.stored = stored
        names = stored.names()
        self.prefix = "backbone." if any(name.startswith("backbone.") for name in names) else ""
        self.own = {name.removeprefix(self.prefix) for name in names if not _UNUSED.fullmatch(name)}
        self.heads = int(stored.config["n_heads"])
        blocks = {name.split(".")[1] for name in self.own if name.startswith("blocks.")}
        self.layers = len(blocks)
        if "vocab_embed.embedding" not in self.own or "blocks.0.mlp.0.weight" not in self.own:
            raise unsupported_config_error(stored, "it has no vocab_embed.embedding or no blocks")
        self.width = int(self._read("vocab_embed.embedding").shape[1])
        self.inner = int(self._read("blocks.0.mlp.0.weight").shape[0])
        self._condition: Tensor | None = None

    def names(self) -> list[str]:
        """Return the stock tensor names; tensors without an equivalent keep their names."""
        unmapped = [name for name in self.own if not _USED.fullmatch(name)]
        sources = {"gpt_neox.embed_in.weight": "vocab_embed.embedding"}
        for layer in range(self.layers):
            target, block = f"gpt_neox.layers.{layer}", f"blocks.{layer}"
            for part, norm in (("input", "norm1"), ("post_attention", "norm2")):
                sources[f"{target}.{part}_layernorm.weight"] = f"{block}.{norm}.weight"
                sources[f"{target}.{part}_layernorm.bias"] = f"{block}.{norm}.weight"
            sources[f"{target}.attention.query_key_value.weight"] = f"{block}.attn_qkv.weight"
            sources[f"{target}.attention.dense.weight"] = f"{block}.attn_out.weight"
            for part, number in (("dense_h_to_4h", 0), ("dense_4h_to_h", 2)):
                for leaf in ("weight", "bias"):
                    sources[f"{target}.mlp.{part}.{leaf}"] = f"{block}.mlp.{number}.{leaf}"
        for leaf in ("weight", "bias"):
            sources[f"gpt_neox.final_layer_norm.{leaf}"] = "output_layer.norm_final.weight"
            sources[f"lm_head.{leaf}"] = f"output_layer.linear.{leaf}"
        return unmapped + [name for name, source in sources.items() if source in self.own]

    def tensor(self, name: str) -> Tensor:
        """Return one stock tensor."""
        parts = name.split(".")
        if name == "gpt_neox.embed_in.weight":
            return self._read("vocab_embed.embedding")
        if name.startswith("lm_head."):
            return self._read(f"output_layer.linear.{parts[-1]}")
        if parts[1] == "final_layer_norm":
            shift, scale = self._modulation("output_layer", 2)
            weight = self._read("output_layer.norm_final.weight") * (1 + scale)
            return weight if parts[-1] == "weight" else shift
        return self._of_block(f"blocks.{parts[2]}", ".".join(parts[3:]))

    def _of_block(self, block: str, leaf: str) -> Tensor:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self._modulation(block, 6)
        if leaf.startswith("input_layernorm"):
            return self._norm(block, "norm1", leaf, shift, scale)
        if leaf.startswith("post_attention_layernorm"):
            return self._norm(block, "norm2", leaf, mlp_shift, mlp_scale)
        if leaf == "attention.query_key_value.weight":
            rows = self._read(f"{block}.attn_qkv.weight")
            shape = (3, self.heads, self.width // self.heads, self.width)
            # rows (3, H, d) -> (H, 3, d)
            return rows.reshape(shape).transpose(0, 1).reshape(rows.shape)
        if leaf == "attention.dense.weight":
            return self._read(f"{block}.attn_out.weight") * gate[:, None]
        kind = leaf.rsplit(".", 1)[-1]
        if leaf.startswith("mlp.dense_h_to_4h"):
            return self._read(f"{block}.mlp.0.{kind}")
        output = self._read(f"{block}.mlp.2.{kind}")
        return output * (mlp_gate[:, None] if kind == "weight" else mlp_gate)

    def _norm(self, block: str, norm: str, leaf: str, shift: Tensor, scale: Tensor) -> Tensor:
        if leaf.endswith("bias"):
            return shift
        return self._read(f"{block}.{norm}.weight") * (1 + scale)

    def _modulation(self, owner: str, parts: int) -> tuple[Tensor, ...]:
        """Return shifts, scales and gates of a block; without adaptive norms 0, 0 and 1."""
        import torch

        if f"{owner}.adaLN_modulation.weight" not in self.own:
            zero, ones = torch.zeros(self.width), torch.ones(self.width)
            return (zero, zero, ones) * 2 if parts == 6 else (zero, zero)
        weight = self._read(f"{owner}.adaLN_modulation.weight")
        bias = self._read(f"{owner}.adaLN_modulation.bias")
        return tuple((weight @ self._conditioned() + bias).chunk(parts))

    def _conditioned(self) -> Tensor:
        """Return the input of the adaptive norms at time 0, (C,)."""
        import torch

        if self._condition is None:
            half = _FREQUENCIES // 2
            state = torch.cat([torch.ones(half), torch.zeros(half)])  # cosines and sines of 0
            silu = torch.nn.functional.silu
            for number in (0, 2):
                state = self._read(f"sigma_map.mlp.{number}.weight") @ state
                state = silu(state + self._read(f"sigma_map.mlp.{number}.bias"))
            self._condition = state  # the second SiLU is that of the adaptive norms
        return self._condition

    def _read(self, name: str) -> Tensor:
        return self.stored.tensor(self.prefix + name).float()
