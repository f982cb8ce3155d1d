"""One way through the loss head, in a process of its own: hidden states to loss to both gradients.

Run by bench_loss_head.py, ours with our interpreter and the peer's with the peer's; both make the
same numbers from one seed. Prints one JSON line. Memory is the peak above what the process held
after a first pass, with the head's gradient of that pass still there.
"""

import argparse
import gc
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

VOCABULARY, STUDENT, TEACHER = 49152, 384, 576


def make_inputs(positions: int, valid: float) -> dict[str, Tensor]:
    """Return hidden states, heads, mask and labels, the same in every process."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    mask = torch.zeros(positions, dtype=torch.bool)
    mask[: int(positions * valid)] = True
    mask = mask[torch.randperm(positions, generator=generator)]
    labels = torch.randint(0, VOCABULARY, (positions,), generator=generator)
    return {
        "hidden": draw(positions, STUDENT),
        "head": (draw(VOCABULARY, STUDENT) * 0.06).requires_grad_(),
        "teacher_hidden": draw(positions, TEACHER),
        "teacher_head": draw(VOCABULARY, TEACHER) * 0.1,
        "mask": mask,
        "labels": torch.where(mask, labels, -100),
    }


def way_of_ours(beta: float) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    """Return our loss as a function of the inputs and the student's hidden states."""
    from stillroom.distill.interfaces import METHODS
    from stillroom.distill.losses.lm_head import LMHead
    from stillroom.distill.trainers.loss import TeacherStates, compute_position_loss

    names = {0.0: "forward_kl", 1.0: "reverse_kl"}
    objective = METHODS.build(names.get(beta) or {"name": "jsd", "beta": beta})

    def way(inputs: dict[str, Tensor], hidden: Tensor) -> Tensor:
        mask = inputs["mask"]
        teacher = LMHead(inputs["teacher_head"], None, VOCABULARY)
        total, _ = compute_position_loss(
            objective,
            hidden[mask],
            LMHead(inputs["head"], None, VOCABULARY),
            TeacherStates(inputs["teacher_hidden"][mask], teacher),
            inputs["labels"][mask],
        )
        return total / mask.sum()

    return way


def way_of_gkd(beta: float) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    """Return the loss of trl's GKDTrainer, given whole logits as its trainer gives them."""
    from trl.experimental.gkd import GKDTrainer

    def way(inputs: dict[str, Tensor], hidden: Tensor) -> Tensor:
        with torch.no_grad():
            teacher = inputs["teacher_hidden"] @ inputs["teacher_head"].t()
        student = hidden @ inputs["head"].t()
        labels = inputs["labels"][None]
        return GKDTrainer.generalized_jsd_loss(
            student[None], teacher[None], labels=labels, beta=beta
        )

    return way


def way_of_chunked(beta: float) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    """Return the chunked loss of trl's DistillationTrainer, which takes hidden states."""
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    def way(inputs: dict[str, Tensor], hidden: Tensor) -> Tensor:
        mask = inputs["mask"][None].int()
        taught = inputs["teacher_hidden"][None]
        head, teacher = inputs["head"], inputs["teacher_head"]
        return _chunked_divergence_loss(hidden[None], taught, head, teacher, mask, beta)[0]

    return way


WAYS = {"ours": way_of_ours, "trl_gkd": way_of_gkd, "trl_chunked": way_of_chunked}


def status_mb(key: str) -> float:
    """Return one line of this process's status in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1000
    raise RuntimeError(f"/proc/self/status has no {key}")


def main() -> None:
    """Run one way a few times and say what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--beta", type=float, default=0.0)
    parser.add_argument("--valid", type=float, default=1.0)
    parser.add_argument("--positions", type=int, default=1020)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keep", help="file for the loss and both gradients")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    inputs = make_inputs(chosen.positions, chosen.valid)
    way = WAYS[chosen.way](chosen.beta)

    def step() -> tuple[float, Tensor]:
        hidden = inputs["hidden"].clone().requires_grad_()
        inputs["head"].grad = None
        loss = way(inputs, hidden)
        loss.backward()
        assert hidden.grad is not None
        return float(loss.detach()), hidden.grad

    loss, by_hidden = step()
    if chosen.keep:
        torch.save([loss, by_hidden, inputs["head"].grad], chosen.keep)
    gc.collect()
    held = status_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    seconds = []
    for _ in range(chosen.repeats):
        begun = time.process_time()
        loss, by_hidden = step()
        seconds.append(time.process_time() - begun)
    line = {"way": chosen.way, "loss": loss, "cpu": seconds, "mb": status_mb("VmHWM") - held}
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
