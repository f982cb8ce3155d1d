"""On its own text a student stays nearer to its teacher if it learned there: at equal tokens."""

import copy

import numpy as np
import pytest
import torch
import transformers

from stillroom.distill.data.tokenized import TokenizedRecord, make_batch
from stillroom.distill.interfaces import METHODS, ROLLOUT_POLICIES
from stillroom.distill.on_policy.collators import SameTokenizerCollator
from stillroom.distill.on_policy.generation import GenerationModel, RolloutGenerator
from stillroom.distill.on_policy.rollout import OnPolicyPrompt
from stillroom.distill.on_policy.source import RolloutBatchSource
from stillroom.distill.trainers.loss import DistillationLoss
from stillroom.jobs import Journal
from stillroom.records import Record
from stillroom.train.data import RecordSource
from stillroom.train.loop import Loss, train
from stillroom.train.settings import TrainSettings

LETTERS, LENGTH, OPENING, STEPS = 16, 24, 2, 200


def make_model(layers, width, seed):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=LETTERS, hidden_size=width, intermediate_size=2 * width,
        num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=2,
        max_position_embeddings=64, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def make_texts(count, rng):
    """Letters that follow from the two before, with one slip in ten: a chain of order two."""
    chain = np.random.default_rng(7).integers(LETTERS, size=(LETTERS, LETTERS))
    texts = rng.integers(LETTERS, size=(count, LENGTH))
    for at in range(2, LENGTH):
        follows = rng.random(count) < 0.9
        texts[:, at] = np.where(follows, chain[texts[:, at - 2], texts[:, at - 1]], texts[:, at])
    return texts


def settings(steps, rate):
    return TrainSettings(
        steps=steps, batch_size=16, threads=1, precision="float32", learning_rate=rate
    )


def source_of(lessons, seed):
    return RecordSource(
        lessons,
        ids=[lesson.key for lesson in lessons],
        lengths=[LENGTH] * len(lessons),
        valid=[len(lesson.positions) for lesson in lessons],
        load=lambda chosen: make_batch(chosen, None),
        batch_size=16,
        micro_tokens=4096,
        seed=seed,
    )


def lessons_of(texts):
    positions = np.arange(OPENING - 1, LENGTH - 1)
    return [
        TokenizedRecord(f"text-{at}", row.astype(np.int64), positions)
        for at, row in enumerate(texts)
    ]


def prompts_of(texts):
    return [
        OnPolicyPrompt(Record(()), f"text-{at}", (), tuple(int(one) for one in row[:OPENING]))
        for at, row in enumerate(texts)
    ]


def generator_of(model, seed, **fields):
    policy = ROLLOUT_POLICIES.build(
        {"name": "on_policy", "max_new_tokens": LENGTH - OPENING, "rows": 16, **fields}
    )
    author = GenerationModel(model, rows=LETTERS, precision="float32")
    return RolloutGenerator(policy, author, None, ends=frozenset(), max_tokens=LENGTH, seed=seed)


def gaps(student, teacher, texts, seed):
    """Return KL(teacher || student) a token, on the student's own text and on the records'."""
    own = generator_of(student, 1000 + seed).generate(prompts_of(texts), 0, 0.0)
    free = np.stack([[*row[:OPENING], *one.ids] for row, one in zip(texts, own, strict=True)])
    found = []
    for ids in (free, texts):
        with torch.no_grad():
            q, p = (
                model(input_ids=torch.from_numpy(ids)).logits[:, OPENING - 1 : -1].log_softmax(-1)
                for model in (student.eval(), teacher)
            )
        found.append(float((p.exp() * (p - q)).sum(-1).mean()))
    return found


@pytest.fixture(scope="module")
def teacher():
    model = make_model(2, 64, 0)
    texts = make_texts(4000, np.random.default_rng(1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rng = np.random.default_rng(2)
    for _ in range(500):
        ids = torch.from_numpy(texts[rng.integers(len(texts), size=32)])
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def learn(teacher, job, seed, share, count=48):
    """Train a student on few records, or in half the steps on its own text; return its gaps."""
    texts = make_texts(count, np.random.default_rng(100 + seed))
    student = make_model(1, 24, seed)
    lessons = lessons_of(texts)
    records = source_of(lessons, seed)
    source = records
    if share:
        generator = generator_of(student, seed, student_share=share)
        source = RolloutBatchSource(
            records, lessons, prompts_of(texts), generator.policy, generator,
            Journal(job.scratch / f"own-{seed}.jsonl"),
            collator=SameTokenizerCollator(), size=len(lessons), steps=STEPS, warn=job.warn,
        )  # fmt: skip
    objective = DistillationLoss(METHODS.build("forward_kl"), rows=LETTERS, teacher=teacher)
    seen = [0]

    def tally(model, batch):
        seen[0] += batch.valid
        loss = objective(model, batch)
        return Loss(loss.total)

    job = copy.copy(job)
    job.work = job.work / f"{seed}-{share}"
    (job.work / "scratch").mkdir(parents=True)
    train(student, source, tally, settings(STEPS, 1e-2), job, seed=seed)
    if share:
        source.journal.close()
    held_out = make_texts(64, np.random.default_rng(500 + seed))
    return seen[0], gaps(student, teacher, held_out, seed)


@pytest.mark.slow
def test_on_policy_shrinks_exposure_bias_at_equal_tokens(teacher, job):
    """The excess of the error on own text over that on the records' is what exposure bias is."""
    rows = []
    for seed in range(4, 8):
        tokens, off = learn(teacher, job, seed, 0.0, 3200)
        again, on = learn(teacher, job, seed, 0.5, 3200)
        assert tokens == again
        rows.append([*off, *on])
        print(f"seed {seed}: free, forced off-policy {off}; on-policy {on}; {tokens} tokens")
    free_off, forced_off, free_on, forced_on = np.array(rows).T
    assert (free_on / forced_on).mean() < (free_off / forced_off).mean()
    assert free_on.mean() < free_off.mean()
