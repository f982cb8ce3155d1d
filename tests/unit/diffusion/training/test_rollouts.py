"""Own answers and their rewards: the loss is the paper's, and on a toy task the reward rises."""

import json
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.unit.diffusion.conftest import say_diffusion

from stillroom.diffusion.jobs.reward import DiffusionRewardRecipe
from stillroom.diffusion.jobs.train import DiffusionTrainRecipe
from stillroom.diffusion.training.data import TrainingContext
from stillroom.diffusion.training.loss import DiffusionLoss
from stillroom.diffusion.training.rollouts import (
    RolloutDataSource,
    compute_advantages,
    compute_policy_loss,
    tokenize_prompts,
)
from stillroom.errors import DataError, IntegrityError
from stillroom.flow import run_recipe
from stillroom.jobs import Job
from stillroom.provenance import read_artifact
from stillroom.records import Message, Record, write_records
from stillroom.testing import tiny_checkpoint
from stillroom.train.distributed import ProcessGroup

WORDS = ("plum", "pear", "fig", "quince")


def grpo(**settings):
    said = {"verifier": {"name": "regex", "pattern": "plum"}, "num_generations": 4}
    decode = {"max_new_tokens": 3, "temperature": 1.0, "commit": {"name": "top_k", "k": 1}}
    return recipe_of("m", **{**said, "decode": decode, **settings})


# -- the loss -----------------------------------------------------------------------------------


def plain_loss(now, wrote, reference, advantage, clip, weight):
    """Clipped ratio and k3 penalty, a token at a time."""
    found = []
    for n, w, r, a in zip(now, wrote, reference, advantage, strict=True):
        ratio = torch.exp(n - w)
        kept = torch.clamp(ratio, 1 - clip, 1 + clip)
        found.append(weight * (torch.exp(r - n) - (r - n) - 1) - torch.minimum(ratio * a, kept * a))
    return torch.stack(found)


def test_the_loss_is_clipped_and_penalized_by_token():
    torch.manual_seed(0)
    now, wrote, reference = (torch.randn(40, dtype=torch.float64) for _ in range(3))
    advantage = torch.randn(40, dtype=torch.float64)
    plain = plain_loss(now, wrote, reference, advantage, 0.3, 0.2)
    loss = compute_policy_loss(now, wrote, reference, advantage, epsilon=0.3, beta=0.2)
    assert torch.allclose(loss, plain)
    leaf = wrote.clone().requires_grad_(True)
    compute_policy_loss(leaf, wrote, None, advantage, epsilon=0.2, beta=0).sum().backward()
    assert torch.allclose(leaf.grad, -advantage)  # on policy: the plain policy gradient


def test_advantages_are_rewards_less_the_groups_mean():
    rewards = torch.tensor([[1.0, 0, 0, 1], [1, 1, 1, 1]], dtype=torch.float64)
    found = compute_advantages(rewards, scale_rewards=False)
    assert found.tolist() == [[0.5, -0.5, -0.5, 0.5], [0, 0, 0, 0]]
    scaled = compute_advantages(rewards, scale_rewards=True)
    assert scaled[0].tolist() == pytest.approx([1, -1, -1, 1], abs=1e-3)
    assert scaled[1].tolist() == [0, 0, 0, 0]


# -- the source ---------------------------------------------------------------------------------


def task_record(n, answer="plum", **fields):
    return Record(
        (Message("user", f"Which fruit {n % 3} ?"), Message("assistant", answer)),
        {"split": "held_out" if n % 4 == 3 else "train", **fields},
    )


def recipe_of(folder, records="unused", kind=DiffusionRewardRecipe, **settings):
    said = {"model": str(folder), "records": str(records), "out": {"dtype": "float32"}, **settings}
    train = {"steps": 4, "threads": 1, "batch_size": 2, "warmup": 0, "schedule": "constant"}
    said["train"] = {**train, **settings.get("train", {})}
    return kind.model_validate(said)


@pytest.fixture
def model(tmp_path):
    from stillroom.diffusion.model.loading import open_diffusion

    folder = say_diffusion(tiny_checkpoint(tmp_path / "m", hidden=32))
    found = open_diffusion(str(folder), dtype="float32")
    found.network.double()
    return found


def test_the_gradient_is_that_of_the_plain_loss_off_policy_too(model, tmp_path):
    method = grpo(beta=0.3, epsilon=0.1, num_iterations=2)
    tasks = tokenize_prompts(
        model.tokenizer, [task_record(n) for n in range(5)], method.verifier, max_tokens=99
    ).items
    with closing(Job.start(tmp_path / "job", "kind: diffusion.reward\n")) as job:
        source = RolloutDataSource(method, TrainingContext(model, tasks, 4, job))
        alone = ProcessGroup(alone=True)
        source.begin(0, model.network, alone)
        round_ = source._round
        drawn = [replace(one, reward=float(at % 3 == 0)) for at, one in enumerate(round_.answers)]
        source._round = replace(round_, answers=tuple(drawn))
        rng = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for value in model.network.parameters():
                value += 0.02 * torch.randn(value.shape, generator=rng, dtype=value.dtype)
        notes = source.begin(1, model.network, alone)
        objective = DiffusionLoss(model, has_times=False)
        losses = [objective(model.network, source.load(group)) for group in source.plan(1)]
        sum(loss.total for loss in losses).backward()
        ours = {name: p.grad.clone() for name, p in model.network.named_parameters()}
        model.network.zero_grad()
        plain = _plain_total(source, method, model)
        plain.backward()
    total = float(sum(loss.total.detach() for loss in losses))
    assert total == pytest.approx(float(plain.detach()), rel=1e-4, abs=1e-6)
    assert notes["ratio/clipped"] > 0
    for name, parameter in model.network.named_parameters():
        assert torch.allclose(ours[name], parameter.grad, rtol=1e-3, atol=1e-5), name


def _plain_total(source, method, model):
    rewards = [answer.reward for answer in source._round.answers]
    groups = np.array(rewards).reshape(-1, method.num_generations)
    advantages = (groups - groups.mean(1, keepdims=True)).flatten()
    total = 0
    for at, text in enumerate(source._texts_of(1)):
        ids = torch.from_numpy(np.where(text.is_masked, model.metadata.mask_token_id, text.ids))
        seen = torch.ones(1, 1, len(ids), len(ids), dtype=torch.bool)
        logits = model.network(input_ids=ids[None], attention_mask=seen, use_cache=False).logits[0]
        logits[:, model.metadata.mask_token_id] = -torch.inf
        picked = torch.from_numpy(text.is_learned)
        own = logits.log_softmax(-1).gather(-1, torch.from_numpy(text.ids)[:, None])[picked, 0]
        wrote, reference = source._round.wrote[1][at], source._round.reference[1][at]
        advantage = torch.full_like(own, float(advantages[at]))
        total = total + plain_loss(own, wrote, reference, advantage, 0.1, 0.3).mean()
    return total


def test_answers_are_masked_whole_and_prompts_in_part(model, tmp_path):
    method = grpo(p_mask_prompt=0.5, num_iterations=2)
    tasks = tokenize_prompts(
        model.tokenizer, [task_record(0)], method.verifier, max_tokens=99
    ).items
    with closing(Job.start(tmp_path / "job", "kind: diffusion.reward\n")) as job:
        source = RolloutDataSource(method, TrainingContext(model, tasks, 4, job))
        source.begin(0, model.network, ProcessGroup(alone=True))
        tail = len(tasks[0].ids)
        first, second = source._texts_of(0), source._texts_of(1)
    for text in first:
        assert text.is_masked[tail:].all()
        assert 0 < text.is_masked[:tail].mean() < 1
        assert not text.is_learned[:tail].any()
        assert text.is_learned[tail:].sum() >= 1
    assert any((a.is_masked != b.is_masked).any() for a, b in zip(first, second, strict=True))
    assert source._round.wrote[0][0].shape == (int(first[0].is_learned.sum()),)


def test_tasks_show_the_tools_of_their_records(plain):
    from stillroom.models.local.causal_lm import load_tokenizer

    tokenizer = load_tokenizer(plain)
    tokenizer.chat_template = "{{ tools[0].name if tools }}\n" + tokenizer.chat_template
    record = Record((Message("user", "How many?"),), {"tools": [{"name": "count"}]})
    (task,) = tokenize_prompts(tokenizer, [record], grpo().verifier, max_tokens=99).items
    assert tokenizer.decode(task.ids).startswith("count\n")


def test_tasks_are_what_the_verifier_can_check(plain):
    from stillroom.models.local.causal_lm import load_tokenizer

    tokenizer, maths = load_tokenizer(plain), grpo(verifier="maths").verifier
    records = [
        task_record(0, "7"),
        Record((Message("user", "2 + 2 ?"),), {"answer": "4"}),
        Record((Message("user", "why?"),)),
        Record((Message("assistant", "so"),)),
        task_record(1, "x" * 400),
        Record((Message("user", "y" * 400), Message("assistant", "3"))),
    ]
    found = tokenize_prompts(tokenizer, records, maths, max_tokens=100)
    assert [task.fields["answer"] for task in found.items] == ["7", "4", "x" * 400]
    assert found.counts["records_unverifiable"] == 2
    assert found.counts["records_too_long"] == 1


# -- the job ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def talker(tmp_path_factory):
    """A model that has learned to name any of four fruits."""
    folder = tmp_path_factory.mktemp("talker")
    records = [task_record(n, WORDS[n // 4 % 4]) for n in range(48)]
    write_records(folder / "records.jsonl", [r for r in records if r.fields["split"] == "train"])
    scratch = {
        "tokenizer": "builtin:words",
        "num_hidden_layers": 1,
        "hidden_size": 32,
        "num_attention_heads": 2,
    }
    recipe = recipe_of(
        "unused",
        folder / "records.jsonl",
        DiffusionTrainRecipe,
        train={"steps": 60, "batch_size": 16, "learning_rate": 1e-2},
        validation={"records": 0},
        padding={"multiple": 16},
    ).model_dump(mode="json")
    recipe["model"] = {**scratch, "context_length": 32}
    run_recipe(DiffusionTrainRecipe.model_validate(recipe), folder / "model")
    write_records(folder / "tasks.jsonl", records)
    return folder


def reinforce(talker, out, resume=False, **settings):
    method = {
        "verifier": {"name": "regex", "pattern": "plum"},
        "num_generations": 8,
        "decode": {"max_new_tokens": 2, "temperature": 1.0, "rows": 32},
        "validation": {"records": 4, "samples": 2},
    }
    recipe = recipe_of(talker / "model", talker / "tasks.jsonl", **{**method, **settings})
    return run_recipe(recipe, out, resume=resume)


def metrics(folder, name):
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row["value"] for row in rows if row["name"] == name]


def test_the_reward_rises(talker, tmp_path):
    train = {"steps": 30, "batch_size": 4, "learning_rate": 5e-3}
    artifact = reinforce(talker, tmp_path / "out", train=train)
    rewards = metrics(tmp_path / "out", "reward/mean")
    assert rewards[0] < 0.6
    assert np.mean(rewards[-4:]) > 0.95
    assert artifact.details["after"]["reward/greedy"] == 1
    assert metrics(tmp_path / "out", "reference/kl")[0] == 0
    assert artifact.origin["chain"][0]["method"] == "diffusion.reward"


def test_a_run_stopped_within_a_round_ends_with_the_same_bytes(talker, tmp_path, monkeypatch):
    train = {"steps": 6, "save_every_s": 0}
    whole = reinforce(talker, tmp_path / "whole", train=train)
    calls = []

    def stop(self, step, ranks, plain=RolloutDataSource.weigh):
        calls.append(step)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return plain(self, step, ranks)

    monkeypatch.setattr(RolloutDataSource, "weigh", stop)
    with pytest.raises(KeyboardInterrupt):
        reinforce(talker, tmp_path / "stopped", train=train)
    monkeypatch.undo()
    (journal,) = (tmp_path / ".stopped.partial").rglob("rollouts*")
    kept = journal.read_bytes()
    resumed = reinforce(talker, tmp_path / "stopped", resume=True, train=train)
    assert resumed.details["fingerprint"] == whole.details["fingerprint"]
    assert metrics(tmp_path / "stopped", "reward/mean") == metrics(
        tmp_path / "whole", "reward/mean"
    )
    assert kept
    assert read_artifact(tmp_path / "stopped").kind == "checkpoint"


def test_lost_answers_and_lacking_tasks_are_said(talker, tmp_path, monkeypatch, model):
    with pytest.raises(DataError) as caught:
        reinforce(talker, tmp_path / "none", verifier="code")
    assert caught.value.code == "diffusion.no-tasks"
    method = grpo(num_iterations=2)
    tasks = tokenize_prompts(
        model.tokenizer, [task_record(0)], method.verifier, max_tokens=99
    ).items
    with closing(Job.start(tmp_path / "job", "kind: diffusion.reward\n")) as job:
        source = RolloutDataSource(method, TrainingContext(model, tasks, 4, job))
        with pytest.raises(IntegrityError) as lost:
            source.begin(3, model.network, ProcessGroup(alone=True))
    assert lost.value.code == "diffusion.rollouts-lost"
