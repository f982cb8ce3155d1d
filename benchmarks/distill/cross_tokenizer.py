"""A student of 512 tokens learns chunk likelihoods from SmolLM2, which has 49,152.

Run it as ``python benchmarks/distill/cross_tokenizer.py [FOLDER]``. FOLDER holds llama2.c's
``stories260K.bin`` and ``tok512.bin``: the student then starts from that trained model and reads
stories that it wrote itself. Without it the student is a new Llama with a tokenizer that is trained
here, on Python's own documentation. The teacher is run once; an equal budget of cross-entropy alone
is the control. Every figure is of records that neither run has seen.
"""

import argparse
import copy
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

from stillroom.distill.alignment_report import AlignmentReport
from stillroom.distill.cross_lessons import CrossLesson, Reader, encode_cross, make_cross_batch
from stillroom.distill.cross_loss import CrossObjective, score_lesson
from stillroom.distill.crossing import CROSSINGS, Crossing
from stillroom.distill.token_bytes import read_token_bytes
from stillroom.distill.token_map import map_tokens
from stillroom.jobs import Job
from stillroom.models import load_causal_lm, resolve_checkpoint
from stillroom.models.hub import DEFAULT_TEACHER
from stillroom.records import Message, Record
from stillroom.train.loop import train
from stillroom.train.settings import TrainSettings
from stillroom.train.source import RecordSource

RECORDS, HELD_OUT, SEED = 200, 32, 0
MAX_TOKENS = 224
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


class Trial:
    """One start, one set of lessons, several losses."""

    def __init__(
        self, start: Any, lessons: list[CrossLesson], known: dict[str, np.ndarray]
    ) -> None:
        self.start, self.known = start, known
        self.held_out, self.lessons = lessons[:HELD_OUT], lessons[HELD_OUT:]

    def load(self, lessons: Any) -> Any:
        return make_cross_batch(
            lessons, teacher_logprobs=[self.known[lesson.record_id] for lesson in lessons]
        )

    def measure(self, model: Any, tokens: Any) -> dict[str, float]:
        """Return nats a chunk between student and teacher, and nats a token of the text."""
        crossing = CROSSINGS.build("chunk_likelihood")
        sums = dict.fromkeys(("divergence", "cross_entropy", "chunks", "positions"), 0.0)
        gaps = []
        with torch.no_grad():
            for lesson in self.held_out:
                batch = self.load([lesson])
                loss = CrossObjective(crossing, tokens=tokens)(model, batch)
                for name in ("divergence", "cross_entropy", "chunks"):
                    sums[name] += loss.parts[name]
                sums["positions"] += batch.valid
                gaps.append(loss.parts["divergence"] / max(loss.parts["chunks"], 1))
        return {
            "chunk_divergence": sums["divergence"] / sums["chunks"],
            "standard_error": float(np.std(gaps, ddof=1) / len(gaps) ** 0.5),
            "nats_a_token": sums["cross_entropy"] / sums["positions"],
        }

    def run(self, crossing: Crossing, tokens: Any, epochs: float, rate: float) -> Any:
        model = copy.deepcopy(self.start)
        source: Any = RecordSource(
            self.lessons,
            ids=[lesson.key for lesson in self.lessons],
            lengths=[len(lesson.student_ids) for lesson in self.lessons],
            valid=[len(lesson.positions) for lesson in self.lessons],
            load=self.load,
            batch_size=8,
            micro_tokens=4096,
            seed=SEED,
        )
        settings = TrainSettings(epochs=epochs, learning_rate=rate, batch_size=8, threads=1)
        with tempfile.TemporaryDirectory() as folder:
            job = Job.start(Path(folder) / "job", "kind: experiment\n")
            try:
                summary = train(
                    model, source, CrossObjective(crossing, tokens=tokens), settings, job, seed=SEED
                )
            finally:
                job.close()
        return model.eval(), summary


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stories", type=Path, nargs="?")
    parser.add_argument("--epochs", type=float, default=4.0)
    parser.add_argument("--rate", type=float, default=5e-4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.perf_counter()
    teacher, teacher_tokenizer = load_causal_lm(
        resolve_checkpoint(DEFAULT_TEACHER), dtype="float32", device="cpu"
    )
    teacher.requires_grad_(False)
    if options.stories:
        student = read_model(options.stories / "stories260K.bin")
        tokenizer = read_tokenizer(options.stories / "tok512.bin")
        texts, prompt = write_stories(student, tokenizer, RECORDS), "Once upon a time, Lily"
    else:
        topics = "\n".join(pydoc_data.topics.topics.values())
        texts = re.findall(r".{300,400}?\s", topics, flags=re.DOTALL)[:RECORDS]
        tokenizer = train_tokenizer(texts)
        student = make_model(len(tokenizer), 64, 172, 5, 8, 4, 512)
        prompt = "The statement"
    sides = [
        Reader(one, read_token_bytes(one), limit)
        for one, limit in ((teacher_tokenizer, 512), (tokenizer, MAX_TOKENS))
    ]
    report = AlignmentReport(sides[0].tokens, sides[1].tokens)
    records = [Record((Message("assistant", text),)) for text in texts]
    lessons, counts = encode_cross(
        sides[0], sides[1], records, include_prompt=True, on_aligned=report.add
    )
    print(report)
    print(json.dumps({"lessons": counts}))
    known = {lesson.record_id: score_lesson(teacher, lesson) for lesson in lessons}
    print(json.dumps({"teacher_s": round(time.perf_counter() - begun, 1)}), flush=True)
    tokens = map_tokens(sides[0].tokens, sides[1].tokens)
    trial = Trial(student, lessons, known)
    runs = {
        "start": None,
        "chunk_likelihood": CROSSINGS.build("chunk_likelihood"),
        "with_cross_entropy": CROSSINGS.build({"name": "chunk_likelihood", "ce_weight": 0.2}),
        "cross_entropy": CROSSINGS.build(
            {"name": "chunk_likelihood", "kd_weight": 0.0, "ce_weight": 1.0}
        ),
    }
    for name, crossing in runs.items():
        model, line = student, {}
        if crossing is not None:
            model, summary = trial.run(crossing, tokens, options.epochs, options.rate)
            line = {"first": summary.first_loss, "last": summary.last_loss, "steps": summary.steps}
        written = continue_text(model, tokenizer, prompt)
        line |= trial.measure(model, tokens)
        line["teacher_nats_a_byte_of_its_text"] = nats_a_byte(
            teacher, teacher_tokenizer, written[1:]
        )
        print(json.dumps({"run": name, **{key: round(value, 4) for key, value in line.items()}}))
        print(f"  {written[0]!r}", flush=True)
    print(json.dumps({"seconds": round(time.perf_counter() - begun, 1)}))


if __name__ == "__main__":
    main()
