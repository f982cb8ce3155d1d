"""Knowledge distillation of language models, from logits, text, features or rollouts.

The idea: at every position the teacher says how likely each token is; the student is trained to say
the same. The teacher is run once and what it says is kept in a cache; the student starts from some
of the teacher's own layers; the loss never forms the (tokens, vocabulary) matrix of logits.

Papers: Hinton et al. 2015, arXiv:1503.02531; sampled targets, Anshumann et al. 2025,
arXiv:2503.16870; layer dropping, Men et al. 2024, arXiv:2403.03853. Each objective names its own.

In: a checkpoint (the teacher) and records. Out: a checkpoint, ``candidates/<step>/`` along the run
for merging, and ``fidelity.html`` and ``.json``: how near the student is to the teacher before and
after, beside a control that had none. The job itself is ``stillroom.distill.run.run``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillroom.distill.evaluation.metrics import Fidelity, measure_fidelity
    from stillroom.distill.interfaces import METHODS, DistillationObjective
    from stillroom.distill.logit_cache.cache import LogitCache
    from stillroom.distill.pruning.student import initialize_student
    from stillroom.distill.recipe import DistillRecipe

__all__ = [
    "METHODS",
    "DistillRecipe",
    "DistillationObjective",
    "Fidelity",
    "LogitCache",
    "initialize_student",
    "measure_fidelity",
]

_HOMES = {
    "METHODS": "interfaces",
    "DistillRecipe": "recipe",
    "Fidelity": "evaluation.metrics",
    "DistillationObjective": "interfaces",
    "LogitCache": "logit_cache.cache",
    "initialize_student": "pruning.student",
    "measure_fidelity": "evaluation.metrics",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use; most of them need torch."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"stillroom.distill.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
