"""Knowledge distillation of language models, from logits, text, features or rollouts.

The student is trained to match the teacher's next-token distribution at every position. The teacher
is run once and its outputs are cached; the student is initialized from a subset of the teacher's
layers; the loss never materializes the (tokens, vocabulary) matrix of logits.

Kinds of jobs (``jobs``): ``supervised`` learns text; ``logits``, ``endpoint_logits`` and
``multi_teacher`` learn distributions on records; ``features`` internal states; ``on_policy`` and
``endpoint_on_policy`` text of the student; ``cross_tokenizer`` learns from another vocabulary; and
``prune`` only makes a student. Each has a file in ``trainers``, its whole story.

Stages: check the recipe (``preflight``), prepare records (``data``), capture teacher outputs
(``teachers``, ``logit_cache``), initialize the student (``pruning``), train (``trainers`` with
``losses``, ``on_policy`` and ``cross_tokenizer``), evaluate (``evaluation``) and write the output.
Prompts are masked, and labels placed, by ``stillroom.models.tokenization.assistant_mask``, which
training and evaluation share.

Papers: Hinton et al. 2015, arXiv:1503.02531; sampled targets, Anshumann et al. 2025,
arXiv:2503.16870; layer dropping, Men et al. 2024, arXiv:2403.03853. Each objective cites its own.

Input: a checkpoint (the teacher) and records. Output: a checkpoint, ``candidates/<step>/`` along
the run for merging, and ``fidelity.html`` and ``.json``: the distance of student and teacher before
and after training, next to a baseline trained without a teacher.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stillroom.exports import export_lazily

if TYPE_CHECKING:
    from stillroom.distill.evaluation.metrics import Fidelity, measure_fidelity
    from stillroom.distill.interfaces import METHODS, DistillationObjective
    from stillroom.distill.logit_cache.cache import LogitCache
    from stillroom.distill.pruning.student import initialize_student

__all__ = [
    "METHODS",
    "DistillationObjective",
    "Fidelity",
    "LogitCache",
    "initialize_student",
    "measure_fidelity",
]

__getattr__ = export_lazily(__name__)
