"""The teacher cache: what capturing adds to a forward pass, what a cached step costs, and reading.

Capture: SmolLM2-135M over one text of 256 tokens, all positions kept, against the same model's bare
forward pass with its logits, in one precision each. Step: a Llama of 28M parameters with the same
vocabulary, forward and backward over 4 x 256 tokens, learning from the cache against plain
cross-entropy, as transformers computes it and through our own chunked head. Reading: 4,080
positions, against DistillKit's layout: its byte strings in parquet lists, written here and read by
the importer's decoder, which makes no Python numbers on the way and so is faster than DistillKit's
own. One thread; processor seconds; ways in turn. The bound of reading is a copy of the bytes.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from commands import print_figure

from stillroom.distill.data.tokenized import TokenizedRecord, make_batch
from stillroom.distill.interfaces import METHODS
from stillroom.distill.logit_cache.cache import LogitCache
from stillroom.distill.logit_cache.capture import LogitCapturer
from stillroom.distill.logit_cache.distillkit import CompressionConfig, read_distillkit
from stillroom.distill.logit_cache.storage import CacheHeader, row_bytes
from stillroom.distill.losses.lm_head import LMHead, compute_chunked_loss, get_body
from stillroom.distill.trainers.loss import DistillationLoss
from stillroom.models import load_causal_lm, resolve_checkpoint
from stillroom.models.hub import DEFAULT_TEACHER
from stillroom.train.precision import autocast_body

REPEATS = int(os.environ.get("STILLROOM_BENCH_REPEATS", "7"))
VOCABULARY, TOKENS = 49152, 256
K, DRAWS, KIT_K = 64, 12, 128


def header(mode: str, width: int, precision: str = "float32") -> CacheHeader:
    """Return a header whose names do not matter here."""
    return CacheHeader(
        teacher="t",
        tokenizer="t",
        template="t",
        vocabulary=VOCABULARY,
        mode=mode,
        width=width,
        precision=precision,
        logprob_dtype="float16",
    )


def take_turns(
    ways: dict[str, Callable[[], Any]], repeats: int = REPEATS
) -> dict[str, list[float]]:
    """Run every way once, then all in turn; return processor seconds of each."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for _ in range(repeats):
        for name, way in ways.items():
            begun = time.process_time()
            way()
            seconds[name].append(time.process_time() - begun)
    return seconds


def lesson_of(seed: int, tokens: int = TOKENS) -> TokenizedRecord:
    """Return random token ids, all positions wanted."""
    ids = np.random.default_rng(seed).integers(0, VOCABULARY, tokens)
    return TokenizedRecord(f"r{seed}", ids.astype(np.int64), np.arange(tokens - 1))


def measure_capture() -> None:
    """Say what keeping costs beside a forward pass that only makes logits."""
    folder = resolve_checkpoint(DEFAULT_TEACHER)
    lesson = lesson_of(0)
    for precision in ("float32", "bfloat16"):
        model, _ = load_causal_lm(folder, dtype="float32", device="cpu")
        head = model.get_output_embeddings()
        if precision == "bfloat16":
            for module in model.modules():
                if isinstance(module, torch.nn.Linear) and module is not head:
                    module.to(torch.bfloat16)
        batch = make_batch([lesson], None)
        weight = head.weight.detach().to(
            torch.bfloat16 if precision == "bfloat16" else torch.float32
        )

        def bare(
            model: Any = model, batch: Any = batch, weight: Any = weight, precision: str = precision
        ) -> object:
            with torch.no_grad(), autocast_body(precision, torch.device("cpu")):
                hidden = get_body(model)(input_ids=batch.input_ids, use_cache=False)
                return hidden.last_hidden_state[0].to(weight.dtype) @ weight.t()

        ways: dict[str, Callable[[], Any]] = {"bare": bare}
        for mode, width in (("top_k", K), ("sampled", DRAWS)):
            scorer = LogitCapturer(model, header(mode, width, precision))
            ways[mode] = lambda scorer=scorer: scorer.rows(lesson)
        seconds = take_turns(ways)
        for mode in ("top_k", "sampled"):
            over = [
                ours / plain for ours, plain in zip(seconds[mode], seconds["bare"], strict=True)
            ]
            print_figure(
                f"distill/capture/overhead/{mode}/{precision}",
                "of a bare forward",
                [ratio - 1 for ratio in over],
                None,
                None,
                cpu_s=round(statistics.median(seconds[mode]), 4),
                bare_cpu_s=round(statistics.median(seconds["bare"]), 4),
            )


def fill(cache: LogitCache, lessons: list[TokenizedRecord], seed: int = 0) -> None:
    """Write rows of a long-tailed teacher."""
    rng = np.random.default_rng(seed)
    width, mode = cache.header.width, cache.header.mode
    with cache.writing():
        for lesson in lessons:
            count = len(lesson.positions)
            rows = np.zeros(count, cache.dtype)
            rows["ids"] = np.argsort(rng.random((count, 4 * width)), -1)[:, :width] * 150
            likely = -1.1 * np.log(np.arange(1, width + 1)) - 2 + 0.05 * rng.random((count, 1))
            rows["logprobs"] = likely
            if mode == "top_k":
                rows["tail"] = np.log1p(-np.exp(likely).sum(-1))
            else:
                rows["scale"] = 4.0
            cache.add(lesson, rows)


def measure_step(work: Path) -> None:
    """Say what a step on cached targets costs beside one on the records' own tokens."""
    torch.manual_seed(0)
    student = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=384,
            intermediate_size=1024,
            num_hidden_layers=5,
            num_attention_heads=6,
            num_key_value_heads=6,
            tie_word_embeddings=True,
        )
    )
    lessons = [lesson_of(seed) for seed in range(4)]
    ways: dict[str, Callable[[], Any]] = {}
    plain = make_batch(lessons, None)

    def ce() -> None:
        student.zero_grad()
        student(input_ids=plain.input_ids, labels=plain.input_ids).loss.backward()

    ways["transformers"] = ce
    for mode, width in (("top_k", K), ("sampled", DRAWS)):
        cache = LogitCache.open(work / mode, header(mode, width))
        fill(cache, lessons)
        objective = DistillationLoss(METHODS.build("forward_kl"), rows=VOCABULARY)

        def learn(cache: LogitCache = cache, objective: DistillationLoss = objective) -> None:
            student.zero_grad()
            loss = objective(student, make_batch(lessons, cache.target(lessons)))
            (loss.total / plain.valid).backward()

        ways[mode] = learn

    def score(logits: torch.Tensor, start: int, stop: int) -> tuple[Any, Any, dict[str, float]]:
        log_q = torch.log_softmax(logits, -1)
        own = plain.labels[start:stop].unsqueeze(-1)
        nats = -log_q.gather(-1, own)
        gradient = log_q.exp_().scatter_add_(-1, own, torch.full_like(nats, -1.0))
        return nats.squeeze(-1), gradient, {}

    def chunked() -> None:
        student.zero_grad()
        hidden = get_body(student)(input_ids=plain.input_ids, use_cache=False).last_hidden_state
        picked = hidden.reshape(-1, hidden.shape[-1])[plain.flat]
        total, _ = compute_chunked_loss(picked, LMHead.of(student), score, tiles=True)
        (total / plain.valid).backward()

    ways["chunked"] = chunked
    seconds = take_turns(ways)
    for mode in ("top_k", "sampled"):
        for name, peer in (
            (f"distill/step/cached_over_ce/{mode}", "transformers"),
            (f"distill/step/cached_over_own_ce/{mode}", "chunked"),
        ):
            ratio = [a / b for a, b in zip(seconds[mode], seconds[peer], strict=True)]
            cpu = round(statistics.median(seconds[mode]), 3)
            print_figure(name, "of a CE step", ratio, (f"CE step, {peer}", [1.0]), None, cpu_s=cpu)


def write_kit(folder: Path, lessons: list[TokenizedRecord]) -> None:
    """Write the same number of positions in DistillKit's layout, k 128, its recommended fields."""
    folder.mkdir()
    fields = {
        "d": VOCABULARY,
        "k": KIT_K,
        "exact_k": 16,
        "exact_dtype": "bfloat16",
        "polynomial_terms": [0, 1, 2, 3, 4, "sqrt"],
        "term_dtype": "float32",
        "delta_encoding": False,
    }
    CompressionConfig.model_validate(fields)
    lines = [f"{name}: {value}" for name, value in fields.items()]
    (folder / "compression_config.yaml").write_text("\n".join(lines).replace("'", '"') + "\n")
    rng, size = np.random.default_rng(1), 16 * 2 + 6 * 4
    rows = {"input_ids": [], "compressed_logprobs": [], "bytepacked_indices": []}
    for lesson in lessons:
        count = len(lesson.ids)
        rows["input_ids"].append(lesson.ids.tolist())
        data = np.zeros((count, size), np.uint8)
        data[:, :32] = np.full((count, 16), 0xC000, "<u2").view(np.uint8)
        rows["compressed_logprobs"].append(data.tolist())
        rows["bytepacked_indices"].append(rng.integers(0, 256, (count, KIT_K * 2)).tolist())
    lists = pa.list_(pa.list_(pa.uint8()))
    schema = pa.schema(
        [("input_ids", pa.list_(pa.uint64())), *((n, lists) for n in list(rows)[1:])]
    )
    pq.write_table(pa.table(rows, schema=schema), folder / "data_0.parquet")


def measure_reading(work: Path) -> None:
    """Say what a position costs to read and decode, a micro-batch of four records at a time."""
    lessons = [lesson_of(seed) for seed in range(16)]
    positions = sum(len(lesson.positions) for lesson in lessons)
    write_kit(work / "kit", lessons)

    def kit() -> list[Any]:
        found = list(read_distillkit(work / "kit")[0])
        return [(torch.from_numpy(one.tokens), torch.from_numpy(one.logprobs)) for one in found]

    for mode, width in (("top_k", K), ("sampled", DRAWS)):
        cache = LogitCache.open(work / f"read-{mode}", header(mode, width))
        fill(cache, lessons)
        size = sum(path.stat().st_size for path in cache.folder.glob("*.bin")) / positions
        groups = [lessons[at : at + 4] for at in range(0, len(lessons), 4)]
        raw = np.concatenate([np.fromfile(p, np.uint8) for p in cache.folder.glob("*.bin")])
        ways = {
            "ours": lambda cache=cache, groups=groups: [cache.target(group) for group in groups],
            "kit": kit,
            "bound": lambda raw=raw: raw.copy(),
        }
        seconds = take_turns(ways, max(REPEATS, 15))
        micro = {name: [each / positions * 1e6 for each in seconds[name]] for name in seconds}
        print_figure(
            f"distill/cache/read_us_per_token/{mode}",
            "CPU us",
            micro["ours"],
            (f"DistillKit's layout, k {KIT_K}, our decoder", micro["kit"]),
            statistics.median(micro["bound"]),
        )
        print_figure(
            f"distill/cache/bytes_per_token/{mode}",
            "bytes",
            [size],
            (f"DistillKit's layout, k {KIT_K}", [KIT_K * 2 + 56.0]),
            float(row_bytes(cache.header)[0]),
        )


def main() -> None:
    """Reading, step, capture."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        measure_reading(Path(folder))
        measure_step(Path(folder))
    measure_capture()


if __name__ == "__main__":
    main()
