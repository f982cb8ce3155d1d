"""A student of 512 tokens learns chunk likelihoods from SmolLM2, which has 49,152.

Run it as ``python benchmarks/distill/cross_tokenizer.py [FOLDER]``. FOLDER holds llama2.c's
``stories260K.bin`` and ``tok512.bin``: the student then starts from that trained model and reads
stories that it wrote itself. Without it the student is a new Llama with a tokenizer that is trained
here, on Python's own documentation. Every line is a whole distillation job by recipe, several seeds
each; the teacher is run once into a shared cache; an equal budget of cross-entropy alone is the
baseline. Every figure is of records that no run has seen.
"""

import argparse
import json
import pydoc_data.topics
import re
import struct
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from stillroom.distill.jobs.cross_tokenizer import JOB_KIND, CrossTokenizerRecipe
from stillroom.jobs import Job
from stillroom.models import load_causal_lm, resolve_checkpoint
from stillroom.models.hub import DEFAULT_TEACHER
from stillroom.records import Message, Record, write_records

RECORDS, HELD_OUT, SEED = 200, 32, 0
MAX_TOKENS = 224
RUNS = {
    "chunk_likelihood": {},
    "with_cross_entropy": {"ce_weight": 0.2},
    "cross_entropy": {"kd_weight": 0.0, "ce_weight": 1.0},
}
SPECIAL = ("<unk>", "<s>", "</s>")


def special(text: str) -> AddedToken:
    return AddedToken(text, special=True, normalized=False)


def read_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """Return llama2.c's tokenizer file as a fast tokenizer: SentencePiece BPE with byte tokens."""
    raw, at = path.read_bytes(), 4
    pieces, scores = [], []
    while at < len(raw):
        score, size = struct.unpack_from("<fi", raw, at)
        at += 8 + size
        pieces.append(raw[at - size : at].decode().replace(" ", "▁"))
        scores.append(score)
    pieces[:3] = SPECIAL
    vocabulary = {piece: at for at, piece in enumerate(pieces)}
    merges = []
    for piece, score in zip(pieces[259:], scores[259:], strict=True):
        splits = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        merges += [(-score, s) for s in splits if s[0] in vocabulary and s[1] in vocabulary]
    ordered = [split for _, split in sorted(merges, key=lambda pair: pair[0])]
    tokenizer = Tokenizer(
        models.BPE(vocabulary, ordered, unk_token=SPECIAL[0], byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return wrap(tokenizer, "<s>", "</s>")


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[special("<s>"), special("</s>")],
    )
    tokenizer.train_from_iterator(texts, trainer)
    return wrap(tokenizer, "<s>", "</s>")


def wrap(tokenizer: Tokenizer, bos: str, eos: str) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens([special(bos), special(eos)])
    at = tokenizer.token_to_id(bos)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, at)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=eos
    )


def read_model(path: Path) -> LlamaForCausalLM:
    """Return llama2.c's model file as a Hugging Face Llama; q and k come interleaved there."""
    raw = path.read_bytes()
    dim, hidden, layers, heads, kv_heads, vocabulary, length = struct.unpack_from("<7i", raw)
    numbers = torch.frombuffer(bytearray(raw), dtype=torch.float32, offset=28)
    head, kv = dim // heads, dim // heads * kv_heads
    cursor = 0

    def take(*shape: int) -> torch.Tensor:
        nonlocal cursor
        size = int(np.prod(shape))
        cursor += size
        return numbers[cursor - size : cursor].view(*shape)

    def turn(weight: torch.Tensor, count: int) -> torch.Tensor:
        pairs = weight.view(count, head // 2, 2, dim)
        return pairs.transpose(1, 2).reshape(count * head, dim)

    made = make_model(abs(vocabulary), dim, hidden, layers, heads, kv_heads, length)
    state = {"model.embed_tokens.weight": take(abs(vocabulary), dim)}
    for name, shape in (
        ("input_layernorm", (dim,)),
        ("self_attn.q_proj", (dim, dim)),
        ("self_attn.k_proj", (kv, dim)),
        ("self_attn.v_proj", (kv, dim)),
        ("self_attn.o_proj", (dim, dim)),
        ("post_attention_layernorm", (dim,)),
        ("mlp.gate_proj", (hidden, dim)),
        ("mlp.down_proj", (dim, hidden)),
        ("mlp.up_proj", (hidden, dim)),
    ):
        for layer, weight in enumerate(take(layers, *shape)):
            turned = weight
            if name.endswith("q_proj"):
                turned = turn(weight, heads)
            elif name.endswith("k_proj"):
                turned = turn(weight, kv_heads)
            state[f"model.layers.{layer}.{name}.weight"] = turned
    state["model.norm.weight"] = take(dim)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    made.load_state_dict(state)
    return made


def make_model(
    vocabulary: int, dim: int, hidden: int, layers: int, heads: int, kv_heads: int, length: int
) -> LlamaForCausalLM:
    torch.manual_seed(SEED)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=dim,
            intermediate_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            max_position_embeddings=length,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
        )
    ).eval()


def write_stories(model: Any, tokenizer: Any, count: int) -> list[str]:
    """Return stories that the student writes itself, at temperature 1."""
    torch.manual_seed(SEED)
    start = torch.full((count, 1), tokenizer.bos_token_id)
    out = model.generate(
        start,
        attention_mask=torch.ones_like(start),
        do_sample=True,
        top_k=0,
        max_new_tokens=200,
        pad_token_id=tokenizer.eos_token_id,
    )
    texts = [tokenizer.decode(row[1:].tolist(), skip_special_tokens=True) for row in out]
    return [text.strip() for text in texts]


def continue_text(model: Any, tokenizer: Any, prompt: str, count: int = 12) -> list[str]:
    """Return the likeliest continuation of a prompt, then ``count`` drawn ones."""
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    torch.manual_seed(SEED)
    texts = []
    for copies, settings in ((1, {"do_sample": False}), (count, {"do_sample": True, "top_k": 0})):
        rows = ids.repeat(copies, 1)
        out = model.generate(
            rows,
            attention_mask=torch.ones_like(rows),
            max_new_tokens=120,
            pad_token_id=tokenizer.eos_token_id,
            **settings,
        )
        texts += [tokenizer.decode(row.tolist(), skip_special_tokens=True) for row in out]
    return texts


def nats_a_byte(teacher: Any, tokenizer: Any, texts: list[str]) -> float:
    """Return how surprising the teacher finds texts: a rough measure of coherence."""
    nats = size = 0.0
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            nats += float(teacher(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        size += len(text.encode())
    return nats / size


def make_student(folder: Path, stories: Path | None) -> tuple[list[str], str]:
    """Write the student's checkpoint; return texts to learn from and a prompt to continue."""
    if stories:
        student = read_model(stories / "stories260K.bin")
        tokenizer = read_tokenizer(stories / "tok512.bin")
        texts, prompt = write_stories(student, tokenizer, RECORDS), "Once upon a time, Lily"
    else:
        topics = "\n".join(pydoc_data.topics.topics.values())
        texts = re.findall(r".{300,400}?\s", topics, flags=re.DOTALL)[:RECORDS]
        tokenizer = train_tokenizer(texts)
        student = make_model(len(tokenizer), 64, 172, 5, 8, 4, 512)
        prompt = "The statement"
    student.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return texts, prompt


def distill(root: Path, crossing: dict[str, Any], seed: int, options: Any) -> tuple[Any, Path]:
    """Run one whole job and return its details and the folder of the student."""
    out = root / f"{len(list(root.iterdir())):03d}"
    recipe = CrossTokenizerRecipe.model_validate(
        {
            "teacher": DEFAULT_TEACHER,
            "records": str(root / "records.jsonl"),
            "student": str(root / "student"),
            "cross_tokenizer_loss": {"name": "chunk_likelihood", **crossing},
            "cache": str(root / "cache"),
            "train": {"epochs": options.epochs, "learning_rate": options.rate, "threads": 1},
            "max_tokens": 512 if options.stories is None else MAX_TOKENS,
            "keep_checkpoints": 0,
            "fidelity": {"baseline": False},  # the run cross_entropy is one
            "seed": seed,
            "output": {"dtype": "float32"},
        }
    )
    job = Job.start(out, "kind: experiment\n")
    try:
        return JOB_KIND.run(recipe, job).details, out / "output"
    finally:
        job.close()


def describe(folder: Path, prompt: str, teacher: Any) -> dict[str, Any]:
    """Return how the teacher finds what a student writes, and its likeliest continuation."""
    model, tokenizer = load_causal_lm(folder, dtype="float32", device="cpu")
    written = continue_text(model, tokenizer, prompt)
    return {
        "teacher_nats_a_byte_of_its_text": nats_a_byte(*teacher, written[1:]),
        "writes": written[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stories", type=Path, nargs="?")
    parser.add_argument("--epochs", type=float, default=4.0)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        texts, prompt = make_student(root / "student", options.stories)
        write_records(
            root / "records.jsonl",
            [
                Record(
                    (Message("assistant", text),),
                    {"split": "held_out" if at < HELD_OUT else "train"},
                )
                for at, text in enumerate(texts)
            ],
        )
        path = resolve_checkpoint(DEFAULT_TEACHER)
        teacher = load_causal_lm(path, dtype="float32", device="cpu")
        print(json.dumps({"run": "start", **describe(root / "student", prompt, teacher)}))
        for name, crossing in RUNS.items():
            for seed in range(options.seeds):
                details, out = distill(root, crossing, seed, options)
                summary = details["cross_tokenizer_fidelity"]["summary"]
                line = {
                    "run": name,
                    "seed": seed,
                    "compared": details["alignment"]["compared"]["share"],
                    "steps": details["train"]["steps"],
                    **{
                        f"{key}_{when}": summary[when][key]["value"]
                        for key in ("divergence", "gap", "student_bits", "teacher_bits")
                        for when in ("initial", "final")
                    },
                    **describe(out, prompt, teacher),
                }
                print(json.dumps(line), flush=True)
    print(json.dumps({"seconds": round(time.perf_counter() - begun, 1)}))


if __name__ == "__main__":
    main()
