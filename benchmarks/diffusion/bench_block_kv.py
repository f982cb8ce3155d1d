"""Writing by blocks with an exact cache, beside diffusers' LLaDA2Pipeline on the same network.

Both are given the same weights and the same rule (32 steps a block, threshold 0.9, no mask token),
and must write the same tokens. An autoregressive model of the same network with its own cache is
timed beside them: on a processor it stays the faster writer.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from measuring import measure
from peers import peer_folder

from stillroom.diffusion.model.metadata import DiffusionMetadata
from stillroom.diffusion.model.network import DiffusionModel
from stillroom.diffusion.sampling.sampler import generate
from stillroom.diffusion.sampling.sequence import InfillRequest
from stillroom.diffusion.sampling.settings import DecodeSettings
from stillroom.models.local.causal_lm import build_causal_lm

VERSION, BLOCK, VOCABULARY = "0.42.1", 32, 8192
MASK, END = VOCABULARY - 1, VOCABULARY - 2
CASES = (("p256", 256, 64, 5), ("p512", 512, 128, 3), ("p1024", 1024, 64, 3))
ASKED = os.environ.get("STILLROOM_BENCH_CASES", "p256,p512,p1024").split(",")


def make_model() -> DiffusionModel:
    """Return a block-causal Llama of 8 layers of width 256, random weights."""
    from stillroom.diffusion.model.initialization import init_weights

    config = {
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 680,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    }
    tensors = init_weights(config, 0)
    # wider weights: else every logit is alike, and the order is noise
    tensors = {name: t * 3 if t.dim() > 1 else t for name, t in tensors.items()}
    network = build_causal_lm(
        config, tensors, tensors.__getitem__, where="benchmark", dtype="float32", device="cpu"
    )
    metadata = DiffusionMetadata(
        mask_token_id=MASK, attention="block_causal", block_size=BLOCK, end_token_ids=(END,)
    )
    return DiffusionModel(network, metadata)


class Peer(nn.Module):
    """The same network as the peer's pipeline calls it: logits of the whole window."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, model: DiffusionModel) -> None:
        super().__init__()
        self.model = [model]  # hidden from the module's own parameters
        self.config = SimpleNamespace()

    def forward(
        self, ids: torch.Tensor, attention_mask: object = None, position_ids: object = None
    ) -> SimpleNamespace:
        model, at = self.model[0], torch.arange(ids.shape[1])
        logits = model.logits(model.states(ids, at[None], model.attention_mask(at, at)[None]))
        logits[..., MASK] = -1e9
        return SimpleNamespace(logits=logits)


def main() -> None:
    """Print one figure a case."""
    warnings.filterwarnings("ignore")
    sys.path.append(str(peer_folder("diffusers", VERSION)))
    from diffusers import BlockRefinementScheduler, LLaDA2Pipeline

    torch.set_num_threads(1)
    model = make_model()
    pipe = LLaDA2Pipeline(model=Peer(model), scheduler=BlockRefinementScheduler(), tokenizer=None)
    pipe.set_progress_bar_config(disable=True)
    for name, prompt, length, repeats in CASES:
        if name not in ASKED:
            continue
        rng = torch.Generator().manual_seed(prompt)
        ids = torch.randint(0, END, (1, prompt), generator=rng)
        settings = DecodeSettings(end={"stop_early": False, "never": False})
        request = InfillRequest(tuple(ids[0].tolist()), length)

        def ours(
            request: InfillRequest = request, settings: DecodeSettings = settings
        ) -> list[int]:
            (sample,) = generate(model, [request], settings)
            return list(sample.ids[len(request.ids) :])

        @torch.no_grad()
        def theirs(ids: torch.Tensor = ids, length: int = length) -> list[int]:
            found = pipe(
                input_ids=ids,
                gen_length=length,
                block_length=BLOCK,
                num_inference_steps=BLOCK,
                temperature=0.0,
                threshold=0.9,
                editing_threshold=None,
                eos_early_stop=False,
                eos_token_id=END,
                mask_token_id=MASK,
                output_type="seq",
            )
            return list(found.sequences[0, -length:].tolist())

        @torch.inference_mode()
        def autoregressive(ids: torch.Tensor = ids, length: int = length) -> None:
            given = model.network(input_ids=ids, use_cache=True, logits_to_keep=1)
            for _ in range(length):
                token = given.logits[:, -1].argmax(-1, keepdim=True)
                given = model.network(
                    input_ids=token, use_cache=True, cache=given.cache, logits_to_keep=1
                )

        if ours() != theirs():
            raise SystemExit(f"{name}: the tokens differ")
        measure(
            f"diffusion/block_kv/vs_diffusers/{name}",
            ours,
            (f"diffusers {VERSION}", theirs),
            autoregressive,  # the same network writing one token at a time with its own cache
            repeats=repeats,
        )


if __name__ == "__main__":
    main()
