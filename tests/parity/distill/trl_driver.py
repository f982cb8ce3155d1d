"""Runs trl's losses over a file of cases; started with the peer's own interpreter.

Knows nothing of ours: inputs come as tensors, losses and gradients go back.
"""

import sys

import torch
from trl.experimental.gkd import GKDTrainer
from trl.trainer.distillation_trainer import _chunked_divergence_loss


def run_gkd(case, tensors):
    """Loss and gradients through whole logits."""
    hidden, head = tensors["hidden"].requires_grad_(), tensors["head"].requires_grad_()
    student = hidden @ head.t()
    teacher = tensors["teacher_hidden"] @ tensors["teacher_head"].t()
    loss = GKDTrainer.generalized_jsd_loss(
        student[None],
        teacher[None],
        labels=tensors["labels"][None],
        beta=case["beta"],
        temperature=case["temperature"],
    )
    return [loss, *torch.autograd.grad(loss, [hidden, head])]


def run_chunked(case, tensors):
    """Loss and gradients from hidden states."""
    hidden, head = tensors["hidden"].requires_grad_(), tensors["head"].requires_grad_()
    loss = _chunked_divergence_loss(
        hidden[None],
        tensors["teacher_hidden"][None],
        head,
        tensors["teacher_head"],
        (tensors["labels"][None] != -100).int(),
        case["beta"],
        temperature=case["temperature"],
        **case.get("head", {}),
    )[0]
    return [loss, *torch.autograd.grad(loss, [hidden, head])]


if __name__ == "__main__":
    torch.set_num_threads(1)
    cases = torch.load(sys.argv[1])
    done = {}
    for name, (case, tensors) in cases.items():
        run = run_chunked if case["path"] == "chunked" else run_gkd
        fresh = {key: value.clone() for key, value in tensors.items()}
        done[name] = [value.detach() for value in run(case, fresh)]
    torch.save(done, sys.argv[2])
