"""What learning on one's own text does, and what each direction of KL prefers, in small."""

import torch

from stillroom.distill.interfaces import METHODS
from stillroom.distill.losses.targets import DenseTargets


def fit(name, steps=300):
    """Fit a discretized Gaussian to two separate humps; return the mass near each hump."""
    at = torch.arange(40, dtype=torch.float64)
    humps = [torch.exp(-((at - centre) ** 2) / 4) for centre in (10, 30)]
    teacher = (0.55 * humps[0] + 0.45 * humps[1] + 1e-6).log()[None]
    centre = torch.tensor(15.0, dtype=torch.float64, requires_grad=True)
    width = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([centre, width], lr=0.1)
    method = METHODS.build(name)
    for _ in range(steps):
        logits = (-((at - centre) ** 2) / (2 * width.exp() ** 2))[None]
        _, gradient = method.divergence(logits.detach(), DenseTargets(teacher))
        optimizer.zero_grad()
        logits.backward(gradient)
        optimizer.step()
    q = logits.detach().softmax(-1)[0]
    return float(q[5:16].sum()), float(q[25:36].sum())


def test_forward_kl_covers_both_modes_and_reverse_kl_seeks_one():
    covering, seeking = fit("forward_kl"), fit("reverse_kl")
    assert min(covering) > 0.2
    assert max(seeking) > 0.95
    assert min(seeking) < 0.01
