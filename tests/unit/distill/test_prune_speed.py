"""A student that starts from its teacher needs a third of the steps of one that starts from noise.

The language: tokens whose next one depends on the two before. The teacher is trained here.
"""

import copy

import numpy as np
import pytest
import torch
import transformers

from stillroom.checkpoints import Checkpoint
from stillroom.distill.data.tokenized import TokenizedRecord
from stillroom.distill.pruning.student import initialize_student, plan_student
from stillroom.distill.settings import PruneSettings
from stillroom.testing import tiny_checkpoint

TOKENS, WIDTH, ROWS, LIMIT, STRIDE = 24, 48, 16, 360, 4


class Language:
    """Draws rows of a second-order chain whose next token has three likely values."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.follow = rng.integers(0, TOKENS, (TOKENS, TOKENS, 3))

    def rows(self, rng, count):
        found = rng.integers(0, TOKENS, (count, WIDTH))
        for at in range(2, WIDTH):
            pick = rng.choice(3, count, p=(0.8, 0.15, 0.05))
            found[:, at] = self.follow[found[:, at - 2], found[:, at - 1], pick]
        return torch.from_numpy(found)


def loss_of(model, rows):
    logits = model(input_ids=rows, use_cache=False).logits[:, 1:-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 2:].flatten())


def train(model, language, seed, *, steps, until=None):
    """Train, and return the steps that it took to come below ``until`` on other rows."""
    rng = np.random.default_rng(seed)
    held_out = language.rows(np.random.default_rng(10_000 + seed), 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        if until is not None and step % STRIDE == 0:
            with torch.no_grad():
                if loss_of(model, held_out).item() <= until:
                    return step
        optimizer.zero_grad()
        loss_of(model, language.rows(rng, ROWS)).backward()
        optimizer.step()
    with torch.no_grad():
        return loss_of(model, held_out).item() if until is None else steps


def load(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_pruned_start_needs_a_third_of_the_steps(seed, tmp_path):
    torch.set_num_threads(1)
    language = Language(seed)
    folder = tiny_checkpoint(tmp_path / "fresh", layers=4, seed=seed)
    teacher = load(folder)
    reached = train(teacher, language, seed, steps=500)
    teacher.save_pretrained(tmp_path / "teacher")
    rows = language.rows(np.random.default_rng(99), 16).numpy()
    lessons = [TokenizedRecord(str(n), row, np.arange(1, WIDTH - 1)) for n, row in enumerate(rows)]
    checkpoint, until = Checkpoint.open(tmp_path / "teacher"), reached + 0.15
    for prune, share in (("depth", 0.7), ("width", 0.7), ("both", 0.5)):
        settings = PruneSettings(prune=prune, max_parameters=share, choose="kl")
        plan = plan_student(checkpoint, settings, lambda: teacher.eval(), lessons)
        student = load(initialize_student(checkpoint.folder, tmp_path / prune, plan))
        torch.manual_seed(seed)
        noise = type(student)(copy.deepcopy(student.config))
        assert noise.num_parameters() == student.num_parameters()
        pruned, random = (
            train(model, language, seed, steps=LIMIT, until=until) for model in (student, noise)
        )
        assert pruned <= random / 3
