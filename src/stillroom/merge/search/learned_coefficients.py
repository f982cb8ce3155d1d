"""AdaMerging: learned merge coefficients, per-layer weights of task vectors fitted on records.

Source: AdaMerging (Yang et al. 2023, arXiv:2310.02575), layer-wise, starting at 0.3, by Adam: the
entropy of predictions on unlabeled data, or, for language models, the cross-entropy of the
assistant's tokens. Gradients go through theta = base + sum of coefficient times task vector, so the
gradient of a coefficient is the weights' gradient projected on the task vector.

Differs: records are split in three. Coefficients are learned on the first part, the best step is
chosen on the second, and the cross-entropy on the third is reported, with those of the parents and
of the start, and whether the gain is significant. Entropy alone can fall without any gain:
confident, but wrong.

The result is a recipe for ``task_arithmetic``, so that the merge engine writes the checkpoint.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stillroom.errors import DataError, RecipeError
from stillroom.evaluate import warn_small_sample
from stillroom.jobs import atomic_write
from stillroom.merge.analysis.calibration import unmask_padding
from stillroom.merge.analysis.comparison import InspectedModel, bootstrap_loss, load_model
from stillroom.merge.lora.adapter import is_adapter
from stillroom.merge.tensors.structure import locate_tensor

if TYPE_CHECKING:
    import torch

    from stillroom.checkpoints import Checkpoint
    from stillroom.evaluate.metrics.bootstrap import Metric
    from stillroom.models.tokenization.assistant_mask import EncodedConversation
    from stillroom.records import Record

__all__ = ["CoefficientTraining", "LearnedCoefficients", "learn_coefficients", "write_recipe"]

Objective = Literal["cross_entropy", "entropy"]
Group = Literal["layer", "module", "model"]


@dataclass(frozen=True, slots=True)
class CoefficientTraining:
    """Settings of coefficient learning.

    ``group`` is the unit that shares a coefficient: a layer, a type of module, or the whole model.
    """

    objective: Objective = "cross_entropy"
    group: Group = "layer"
    start: float = 0.3
    steps: int = 100
    learning_rate: float = 0.01
    batch: int = 4
    every: int = 10
    max_tokens: int = 512
    seed: int = 0


@dataclass(frozen=True)
class LearnedCoefficients:
    """Coefficients by group and parent, and their gain on held-out records.

    Attributes:
        parents: Names of the parents.
        groups: Tensor names of each group.
        coefficients: One value per parent for each group.
        losses: Cross-entropy in nats per token on the last part of the records: of each parent, of
            ``start`` and of ``learned``.
        gain: Loss of the best parent minus that of the learned merge, paired by record.
        best_parent: Name of the parent with the lowest loss.
        step: Step of the chosen coefficients.
        history: Step and loss of each evaluation.
    """

    parents: tuple[str, ...]
    groups: dict[str, tuple[str, ...]]
    coefficients: dict[str, tuple[float, ...]]
    losses: dict[str, Metric]
    gain: Metric
    best_parent: str
    step: int
    history: tuple[tuple[int, float], ...] = field(default=())

    @property
    def is_better(self) -> bool:
        """Whether the gain over the best parent is significantly positive."""
        return self.gain.side() > 0

    def to_recipe(self, base: str, models: Sequence[str]) -> dict[str, Any]:
        """Return the recipe of this merge."""
        parameters = [
            {
                "setting": "weight",
                "model": number,
                "tensors": list(self.groups[group]),
                "value": values[number],
            }
            for group, values in self.coefficients.items()
            for number in range(len(models))
        ]
        return {
            "version": 1,
            "kind": "merge.weights",
            "method": {"name": "task_arithmetic"},
            "base_model": base,
            "models": [_build_model_entry(base, model) for model in models],
            "parameters": parameters,
        }

    def __str__(self) -> str:
        """Return the printed report."""
        lines = [f"coefficients of step {self.step}:"]
        lines += [
            f"  {group:<16} " + "  ".join(f"{value:>8.4f}" for value in values)
            for group, values in self.coefficients.items()
        ]
        lines.append("loss on held-out records, nats per token:")
        lines += [
            f"  {name:<24} {metric.value:.4f}  [{metric.low:.4f}, {metric.high:.4f}]"
            for name, metric in self.losses.items()
        ]
        verdict = "better than" if self.is_better else "not shown to be better than"
        lines.append(
            f"{verdict} the best model, {self.best_parent}: gain {self.gain.value:.4f} "
            f"[{self.gain.low:.4f}, {self.gain.high:.4f}] "
            f"on {self.gain.n} records. {warn_small_sample(self.gain.n, 'record')}".rstrip()
        )
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return JSON-serializable values."""
        return {
            "parents": list(self.parents),
            "coefficients": {group: list(values) for group, values in self.coefficients.items()},
            "losses": {name: metric.to_json() for name, metric in self.losses.items()},
            "gain": self.gain.to_json(),
            "best_parent": self.best_parent,
            "is_better": self.is_better,
            "step": self.step,
            "history": [list(point) for point in self.history],
        }


def learn_coefficients(
    base: Checkpoint,
    parents: Sequence[InspectedModel],
    records: Sequence[Record],
    learning: CoefficientTraining | None = None,
    *,
    device: str = "auto",
) -> LearnedCoefficients:
    """Learn the coefficient of each parent's task vector for every group.

    The base and every task vector are held in memory, in float32.

    Args:
        base: Common base, a causal language model.
        parents: Checkpoints, or adapters over the base.
        records: Records of all tasks, in any order; at least twelve.
        learning: Settings; default AdaMerging's layer-wise setting with cross-entropy.
        device: Torch device of the model.

    Raises:
        RecipeError: If a setting is invalid.
        DataError: If there are too few records with an assistant token.
        CheckpointError: If a model cannot be loaded.
    """
    learning = learning or CoefficientTraining()
    _check(learning, parents)
    mixer = _Mixer(base, parents, learning, device)
    train, choose, confirm = _split(mixer.encode(records), learning.seed)
    best, step, history = _search(mixer, train, choose, learning)
    count = len(parents)
    losses: dict[str, list[tuple[float, int]]] = {}
    names = [parent.name for parent in parents]
    for number, name in enumerate(names):
        losses[f"{number}/{name}"] = mixer.losses(mixer.only(number), confirm, "cross_entropy")
    losses["start"] = mixer.losses(mixer.start(), confirm, "cross_entropy")
    losses["learned"] = mixer.losses(best, confirm, "cross_entropy")
    metrics = {name: bootstrap_loss(name, record_losses) for name, record_losses in losses.items()}
    winner = min(list(metrics)[:count], key=lambda name: metrics[name].value)
    return LearnedCoefficients(
        tuple(names),
        mixer.patterns(),
        {
            group: tuple(float(best[number, index]) for number in range(count))
            for index, group in enumerate(mixer.groups)
        },
        metrics,
        _compare(losses[winner], losses["learned"]),
        winner.partition("/")[2],
        step,
        tuple(history),
    )


def write_recipe(recipe: Mapping[str, Any], path: Path) -> None:
    """Write a recipe as YAML.

    Raises:
        ResourceError: If the disk is full.
    """
    from ruamel.yaml import YAML

    with atomic_write(path) as file:
        file.write(f"# stillroom run {path.name} --out merged\n")
        yaml = YAML()  # preserves the order of keys
        yaml.dump(dict(recipe), file)


class _Mixer:
    """A model whose weights are the base's plus coefficients times task vectors."""

    def __init__(
        self,
        base: Checkpoint,
        parents: Sequence[InspectedModel],
        learning: CoefficientTraining,
        device: str,
    ) -> None:
        import torch

        self.model, self.tokenizer = load_model(base, device)
        unmask_padding(self.model)
        self.learning = learning
        self._parameters = dict(self.model.named_parameters())
        self._base = {name: value.detach().clone() for name, value in self._parameters.items()}
        self._vectors = []
        for parent in parents:
            parent_parameters = dict(load_model(parent.weights, device)[0].named_parameters())
            with torch.no_grad():
                self._vectors.append(
                    {
                        name: parent_parameters[name].detach() - start
                        for name, start in self._base.items()
                    }
                )
        group_of = {name: _find_group(name, learning.group) for name in self._base}
        self.groups = list(dict.fromkeys(group_of.values()))
        self._group_index = {name: self.groups.index(group) for name, group in group_of.items()}

    def start(self) -> torch.Tensor:
        """Return the initial coefficients, (parents, groups)."""
        import torch

        return torch.full((len(self._vectors), len(self.groups)), self.learning.start)

    def only(self, parent: int) -> torch.Tensor:
        """Return the coefficients that reproduce one parent."""
        coefficients = self.start() * 0
        coefficients[parent] = 1
        return coefficients

    def patterns(self) -> dict[str, tuple[str, ...]]:
        """Return the names of the tensors of each group."""
        return {
            group: tuple(name for name, index in self._group_index.items() if index == number)
            for number, group in enumerate(self.groups)
        }

    def encode(self, records: Sequence[Record]) -> list[EncodedConversation]:
        """Return the encoded records that have an assistant token."""
        from stillroom.models.tokenization.assistant_mask import encode_conversations

        encoded = encode_conversations(self.tokenizer, records, max_tokens=self.learning.max_tokens)
        return [record for record in encoded if record.targets]

    def losses(
        self,
        coefficients: torch.Tensor,
        records: Sequence[EncodedConversation],
        objective: Objective | None = None,
    ) -> list[tuple[float, int]]:
        """Return (sum of nats, tokens) of each record for an objective, without gradients."""
        import torch

        self._put(coefficients)
        with torch.inference_mode():
            return [
                (float(self._sum(record, objective)), len(record.targets)) for record in records
            ]

    def gradient(
        self, coefficients: torch.Tensor, batch: Sequence[EncodedConversation]
    ) -> torch.Tensor:
        """Return the gradient of the mean objective by coefficient, (parents, groups)."""
        import torch

        self._put(coefficients)
        self.model.zero_grad(set_to_none=True)
        tokens = sum(len(record.targets) for record in batch)
        for record in batch:
            (self._sum(record) / tokens).backward()  # type: ignore[no-untyped-call]  # torch's own
        slopes = torch.zeros_like(coefficients)
        for name, value in self._parameters.items():
            if value.grad is not None:
                for number, vector in enumerate(self._vectors):
                    slopes[number, self._group_index[name]] += (
                        (value.grad * vector[name]).sum().cpu()
                    )
        return slopes

    def _put(self, coefficients: torch.Tensor) -> None:
        import torch

        with torch.no_grad():
            for name, value in self._parameters.items():
                value.copy_(self._base[name])
                for number, vector in enumerate(self._vectors):
                    value.add_(
                        vector[name], alpha=float(coefficients[number, self._group_index[name]])
                    )

    def _sum(self, record: EncodedConversation, objective: Objective | None = None) -> torch.Tensor:
        """Return the sum of cross-entropy or entropy over the record's tokens."""
        import torch

        ids = torch.tensor(record.ids, device=self.model.device)
        targets = torch.tensor(record.targets, device=self.model.device)
        logits = self.model(input_ids=ids[None], use_cache=False).logits[0, targets - 1].float()
        logs = torch.log_softmax(logits, dim=-1)
        if (objective or self.learning.objective) == "entropy":
            return -(logs.exp() * logs).sum()
        return -logs.gather(1, ids[targets][:, None]).sum()


def _search(
    mixer: _Mixer,
    train: Sequence[EncodedConversation],
    choose: Sequence[EncodedConversation],
    learning: CoefficientTraining,
) -> tuple[torch.Tensor, int, list[tuple[int, float]]]:
    """Return the coefficients with the lowest loss on ``choose``, their step, and all losses."""
    import torch

    rng = random.Random(learning.seed)
    coefficients = mixer.start()
    optimizer = torch.optim.Adam([coefficients], lr=learning.learning_rate)
    best, best_step = coefficients.clone(), 0
    history = [(0, _total(mixer.losses(coefficients, choose)))]
    for step in range(1, learning.steps + 1):
        batch = rng.sample(list(train), min(learning.batch, len(train)))
        coefficients.grad = mixer.gradient(coefficients, batch)
        optimizer.step()
        if step % learning.every == 0 or step == learning.steps:
            loss = _total(mixer.losses(coefficients, choose))
            if loss < min(previous_loss for _, previous_loss in history):
                best, best_step = coefficients.detach().clone(), step
            history.append((step, loss))
    return best, best_step, history


def _split(
    encoded: Sequence[EncodedConversation], seed: int
) -> tuple[list[EncodedConversation], list[EncodedConversation], list[EncodedConversation]]:
    """Split records: half to learn from, a quarter to choose by, a quarter to confirm."""
    if len(encoded) < 12:
        raise DataError(
            f"{len(encoded)} records have an assistant token",
            code="merge.no-records",
            expected="at least twelve: for learning, choice and confirmation on different records",
            next="give more records of the models' tasks",
        )
    shuffled = list(encoded)
    random.Random(seed).shuffle(shuffled)
    quarter = len(shuffled) // 4
    return shuffled[2 * quarter :], shuffled[:quarter], shuffled[quarter : 2 * quarter]


def _build_model_entry(base: str, model: str) -> dict[str, str]:
    if is_adapter(Path(model)):
        return {"model": base, "adapter": model}
    return {"model": model}


def _find_group(name: str, group: Group) -> str:
    layer, module = locate_tensor(name)
    return {"layer": layer, "module": module, "model": "model"}[group]


def _total(losses: Sequence[tuple[float, int]]) -> float:
    return math.fsum(nats for nats, _ in losses) / max(sum(tokens for _, tokens in losses), 1)


def _compare(parent: Sequence[tuple[float, int]], learned: Sequence[tuple[float, int]]) -> Metric:
    from stillroom.evaluate.metrics.bootstrap import paired_difference

    return paired_difference(
        [nats / tokens for nats, tokens in parent],
        [nats / tokens for nats, tokens in learned],
        name="gain",
        unit="nats/token",
    )


def _check(learning: CoefficientTraining, parents: Sequence[InspectedModel]) -> None:
    sizes: Mapping[str, float] = {
        "steps": learning.steps,
        "batch": learning.batch,
        "every": learning.every,
        "max_tokens": learning.max_tokens,
        "learning_rate": learning.learning_rate,
    }
    wrong = next((f"{name} is {value:g}" for name, value in sizes.items() if value <= 0), "")
    if not parents:
        wrong = "no model is given"
    if wrong:
        raise RecipeError(
            wrong,
            code="merge.learning-settings",
            expected="at least one model, and settings above zero",
            next="correct the call",
        )
