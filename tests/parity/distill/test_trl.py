"""Our losses beside trl 1.16's: generalized JSD over whole logits, and its chunked path.

``STILLROOM_PEER_TRL`` is a python that has trl 1.16; its two losses are run as they are. trl takes
no T² factor and divides by the positions that bear loss.
"""

import itertools
import os
import subprocess
from pathlib import Path

import pytest
import torch

from stillroom.distill.interfaces import METHODS
from stillroom.distill.losses.lm_head import LMHead
from stillroom.distill.trainers.loss import TeacherStates, compute_position_loss

pytestmark = pytest.mark.peer

POSITIONS, VOCABULARY, STUDENT, TEACHER = 40, 499, 24, 32
BETAS = (0.0, 0.1, 0.5, 0.9, 1.0)
TEMPERATURES = (0.7, 1.0, 2.5)
MASKS = ("all", "half", "one")
HEADS = {
    "cap": {"student_final_logit_softcapping": 3.0, "teacher_final_logit_softcapping": 5.0},
    "scale": {"student_logit_scale": 0.5, "teacher_logit_scale": 1.5},
}
CASES = {
    f"{path}-{beta}-{heat}-{mask}": {
        "path": path, "beta": beta, "temperature": heat, "mask": mask
    }
    for path, beta, heat, mask in itertools.product(
        ("gkd", "chunked"), BETAS, TEMPERATURES, MASKS
    )
} | {
    f"chunked-{name}-{beta}": {
        "path": "chunked", "beta": beta, "temperature": 1.0, "mask": "half", "head": head
    }
    for (name, head), beta in itertools.product(HEADS.items(), (0.0, 0.5, 1.0))
}  # fmt: skip


def make_tensors(mask, seed):
    rng = torch.Generator().manual_seed(seed)
    valid = {
        "all": torch.ones(POSITIONS, dtype=torch.bool),
        "half": torch.rand(POSITIONS, generator=rng) < 0.5,
        "one": torch.arange(POSITIONS) == 7,
    }[mask]
    labels = torch.randint(0, VOCABULARY, (POSITIONS,), generator=rng)
    return {
        "hidden": torch.randn(POSITIONS, STUDENT, generator=rng),
        "head": torch.randn(VOCABULARY, STUDENT, generator=rng) * 0.4,
        "teacher_hidden": torch.randn(POSITIONS, TEACHER, generator=rng),
        "teacher_head": torch.randn(VOCABULARY, TEACHER, generator=rng) * 0.4,
        "labels": torch.where(valid, labels, -100),
    }


@pytest.fixture(scope="module")
def cases():
    return {
        name: (case, make_tensors(case["mask"], seed))
        for seed, (name, case) in enumerate(CASES.items())
    }


@pytest.fixture(scope="module")
def theirs(cases, tmp_path_factory):
    python = os.environ.get("STILLROOM_PEER_TRL", "")
    if not python or not Path(python).is_file():
        pytest.skip("STILLROOM_PEER_TRL is not the path of a python that has trl 1.16")
    folder = tmp_path_factory.mktemp("trl")
    torch.save(cases, folder / "cases.pt")
    driver = Path(__file__).with_name("trl_driver.py")
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
    done = subprocess.run(
        [python, str(driver), str(folder / "cases.pt"), str(folder / "done.pt")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return torch.load(folder / "done.pt")


def run_ours(case, tensors):
    hidden = tensors["hidden"].clone().requires_grad_()
    weight = tensors["head"].clone().requires_grad_()
    objective = METHODS.build(
        {
            "name": "jsd",
            "beta": case["beta"],
            "temperature": case["temperature"],
            "t2_scale": False,
        }
    )
    shape = case.get("head", {})

    def head(weight, side):
        return LMHead(
            weight,
            None,
            VOCABULARY,
            shape.get(f"{side}_logit_scale", 1.0),
            shape.get(f"{side}_final_logit_softcapping", 0.0),
        )

    valid = tensors["labels"] != -100
    total, _ = compute_position_loss(
        objective,
        hidden[valid],
        head(weight, "student"),
        TeacherStates(tensors["teacher_hidden"][valid], head(tensors["teacher_head"], "teacher")),
        tensors["labels"][valid],
        chunk_rows=16,
    )
    loss = total / valid.sum()
    return [loss, *torch.autograd.grad(loss, [hidden, weight])]


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_are_trls(name, cases, theirs):
    ours = run_ours(*cases[name])
    loss, *gradients = theirs[name]
    assert float(ours[0].detach()) == pytest.approx(float(loss), rel=1e-5, abs=1e-7)
    for mine, other in zip(ours[1:], gradients, strict=True):
        worst = float((mine - other).abs().max())
        assert worst <= 1e-4 * float(other.abs().max()), f"off by {worst}"
