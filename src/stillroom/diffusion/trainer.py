"""Training job of a diffusion model or baseline: objective of ``training``, loop of ``train.loop``.

Every kind of training job runs ``train_checkpoint`` with its own objective.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stillroom.checkpoints import Checkpoint, CheckpointWriter
from stillroom.checkpoints.writer import plan_tensors
from stillroom.diffusion.evaluation.likelihood import Validation
from stillroom.diffusion.model.initialization import prepare_initial_checkpoint, read_json
from stillroom.diffusion.model.loading import (
    check_attention,
    convert_format,
    load_prepared,
    load_trained,
)
from stillroom.diffusion.model.metadata import CONFIG_KEY, DiffusionMetadata
from stillroom.diffusion.model.network import DiffusionModel, split_body_and_head
from stillroom.diffusion.settings import DiffusionRecipe
from stillroom.diffusion.training.data import (
    TokenizedDataset,
    TrainingContext,
    TrainingObjective,
    tokenize_records,
)
from stillroom.diffusion.training.loss import DiffusionLoss
from stillroom.errors import RecipeError
from stillroom.jobs import Job
from stillroom.jobs.preflight import PreflightFinding, PreflightReport
from stillroom.models import resolve_checkpoint
from stillroom.models.hub import find_config, is_local
from stillroom.models.tokenization.chat_template import find_tool_problems
from stillroom.objects import resolve_local
from stillroom.provenance import Artifact, Parent, make_parent
from stillroom.records import Link, Origin, combine_origins
from stillroom.train.data import RecordSplit, split_records
from stillroom.train.distributed import ProcessGroup
from stillroom.train.loop import train
from stillroom.train.lora import (
    add_lora,
    check_lora_config,
    check_lora_targets,
    choose_dtype,
    describe_unchanged,
    export_tensors,
)
from stillroom.train.precision import limit_threads

__all__ = ["preflight_training", "train_checkpoint"]


def preflight_training(
    recipe: DiffusionRecipe, job_folder: Path, *, loads: bool, fetch: bool, machine: bool
) -> PreflightReport | None:
    """Look for the layers to adapt in a model on this disk; None if there is nothing to look for.

    The layers of a published format have other names in transformers: the job checks them.
    """
    lora, model = recipe.train.lora, recipe.model
    if loads or lora is None or not isinstance(model, str) or not is_local(model):
        return None
    report, name = PreflightReport(), "adapted layers"

    def check_adapted() -> list[PreflightFinding]:
        if convert_format(Checkpoint.open(resolve_checkpoint(model))) is not None:
            return []
        warning = check_lora_config(lora, find_config(model, fetch=False))
        return [PreflightFinding("warning", name, warning)] if warning else []

    report.add(name, check_adapted)
    return report


def train_checkpoint(objective: TrainingObjective[Any], job: Job) -> Artifact:
    """Train a model towards an objective and publish its checkpoint.

    Raises:
        CheckpointError: If the initial checkpoint is missing or does not suit the objective.
        DataError: If no record has tokens to learn.
        Cancelled: If the user stopped the job; ``--resume`` continues it.
    """
    with ProcessGroup() as ranks, limit_threads(objective.recipe.train.threads):
        split = split_records(resolve_local(objective.recipe.records))
        return _Training(objective, job, ranks, split).run()


@dataclass
class _Training:
    """One run; ``max_tokens`` of the objective's recipe is limited to the context length."""

    objective: TrainingObjective[Any]
    job: Job
    ranks: ProcessGroup
    split: RecordSplit

    @property
    def recipe(self) -> DiffusionRecipe:
        recipe: DiffusionRecipe = self.objective.recipe
        return recipe

    def run(self) -> Artifact:
        job, ranks = self.job, self.ranks
        self.start = ranks.share_path(job.scratch / "start")
        description = ranks.on_main(self._prepare)
        self.model = model = load_prepared(self.start)
        if warning := check_lora_targets(self.recipe.train.lora, model.network):
            job.warn(warning)
        check_attention(model, str(self.start))
        if self.recipe.max_tokens > model.context_length:
            most = model.context_length
            job.warn(f"records are truncated to the context length of {most} tokens")
            self.objective.recipe = self.recipe.model_copy(update={"max_tokens": most})
        dataset, counts = self._tokenize()
        self.validation = self._hold_out()
        details: dict[str, Any] = {"start": description, "records": counts}
        details["before"] = ranks.on_main(partial(self._measure, "measure before"))
        details["train"] = self._train(dataset)
        is_whole = ranks.count == 1 or self.recipe.train.sharding == "none"
        tensors = _gather_weights(model, ranks, is_whole=is_whole)

        def write_and_measure() -> Artifact:
            """Write the checkpoint, and measure it as it is stored: rounded to its type."""
            details["fingerprint"] = self._write(tensors)
            tensors.clear()
            self.validation.model = load_trained(job.output, model)
            details["after"] = self._measure("measure after")
            _report(details, job)
            parents = [make_parent("records", resolve_local(self.recipe.records), job.out)]
            if isinstance(self.recipe.model, str):
                stored = Checkpoint.open(resolve_checkpoint(self.recipe.model))
                parents.append(Parent("model", self.recipe.model, stored.fingerprint, "checkpoint"))
            return job.finish(
                "checkpoint",
                parents=parents,
                origin=_origin(self.objective, self.split).to_json(),
                details={
                    **details,
                    "parameters": Checkpoint.open(job.output).parameters,
                    CONFIG_KEY: model.metadata.model_dump(mode="json"),
                },
            )

        return ranks.on_main(write_and_measure)

    def _prepare(self) -> str:
        """Write the initial checkpoint, and return its description."""
        recipe = self.recipe
        with self.job.phase("start", 1, "networks") as progress:
            description = prepare_initial_checkpoint(
                recipe.model,
                self.objective.target,
                lambda: _iter_texts(self.split),
                self.start,
                seed=recipe.seed,
            )
            progress.advance()
        self.job.say(f"initial checkpoint: {description}")
        return description

    def _tokenize(self) -> tuple[TokenizedDataset, dict[str, Any]]:
        records, passed_over = self.split.train, self.split.passed_over
        for what, hint in find_tool_problems(self.model.tokenizer, records):
            self.job.warn(f"{what}; {hint}")
        with self.job.phase("encode", len(records), "records") as progress:
            dataset = self.objective.tokenize(self.model, records, progress.advance)
        summary = ", ".join(
            f"{count} {name.replace('_', ' ')}"
            for name, count in dataset.counts.items()
            if count and name.startswith(("records_", "tokens_cut"))
        )
        if summary or passed_over:
            self.job.say(
                f"max_tokens {self.recipe.max_tokens}: {summary or 'no record truncated'}; "
                f"skipped: {self.split.skipped or 'none'}"
            )
        if not dataset.items:
            raise self.objective.no_examples_error(len(records))
        return dataset, {**dataset.counts, "passed_over": passed_over}

    def _hold_out(self) -> Validation:
        recipe, model = self.recipe, self.model
        held_out, _ = tokenize_records(
            model.tokenizer,
            self.split.held_out[: recipe.validation.records],
            max_tokens=recipe.max_tokens,
            include_prompt=self.objective.learns_prompts,
            first=int(model.metadata.logit_shift),
        )
        return Validation(model, held_out, recipe.validation, seed=recipe.seed)

    def _measure(self, name: str) -> dict[str, Any]:
        """Return the validation metrics of a phase; a resumed run takes them from the journal."""
        journal, validation = self.job.journal("measured"), self.validation
        held_out = self.split.held_out[: self.recipe.validation.records]
        if name not in journal and held_out:
            with self.job.phase(name, len(validation.examples) or 1, "records") as progress:
                bound = validation.bound(progress.advance) if validation.examples else {}
                metrics = self.objective.evaluate(validation.model, held_out)
            journal.put(name, {**bound, **validation.fixed_times(), **metrics})
        return dict(journal.get(name, {}))

    def _train(self, dataset: TokenizedDataset) -> dict[str, Any]:
        recipe, objective, model = self.recipe, self.objective, self.model
        if recipe.train.lora is not None:
            model.network = add_lora(model.network, recipe.train.lora, recipe.seed)
            if hasattr(split_body_and_head(model.network)[1], "base_layer"):
                raise RecipeError(
                    "the loss of a diffusion model reads the head without its adapter",
                    code="train.lora-head",
                    where="train.lora.targets",
                    expected="layers below the head",
                    next="leave the head out",
                )
        steps = recipe.train.count_steps(len(dataset.items) * objective.steps_per_batch)
        trained = train(
            model.network,
            objective.open_source(TrainingContext(model, dataset.items, steps, self.job)),
            DiffusionLoss(model, has_times=objective.has_times),
            recipe.train,
            self.job,
            seed=recipe.seed,
            on_step=self._make_validator(),
            reads_every=recipe.validation.every,
            ranks=self.ranks,
        )
        return asdict(trained)

    def _make_validator(self) -> Callable[[int, nn.Module], None] | None:
        every, is_sharded = self.recipe.validation.every, self.recipe.train.sharding != "none"
        if not every or not self.validation.examples:
            return None

        def on_step(step: int, network: nn.Module) -> None:
            # all ranks read a sharded model together; otherwise only the main rank does
            if step % every == 0 and (self.ranks.is_main or is_sharded):
                for name, value in self.validation.fixed_times().items():
                    if self.ranks.is_main:
                        self.job.metric(name, value, step=step)

        return on_step

    def _write(self, tensors: dict[str, torch.Tensor]) -> str:
        """Write the checkpoint; an autoregressive one has no diffusion metadata."""
        recipe, is_causal = self.recipe, self.objective.is_causal
        dtype = choose_dtype(recipe.out.dtype, self.model.network, tensors)
        unchanged = describe_unchanged(tensors, Checkpoint.open(self.start), dtype)
        warning = f"**{unchanged.capitalize()}.** " if unchanged else ""
        if unchanged:
            self.job.warn(unchanged)
        config = read_json(self.start / "config.json")
        if is_causal:
            config = {k: v for k, v in config.items() if k not in {CONFIG_KEY, "stillroom_backend"}}
        base = recipe.model if isinstance(recipe.model, str) else ""
        with CheckpointWriter(
            self.job.output,
            config=config,
            shard_size=recipe.out.shard_size,
            dtype=dtype,
            plan=plan_tensors(tensors),
            in_place=True,
        ) as writer:
            for name, tensor in tensors.items():
                writer.add(name, tensor)
            writer.copy_tokenizer(self.start)
            writer.write_card(
                "An autoregressive model" if is_causal else "A diffusion model",
                warning + _card(self.model.metadata),
                license=_origin(self.objective, self.split).license,
                base_models=[base] if base else [],
                relation="finetune" if base else "",
                tags=["text-generation" if is_causal else "diffusion"],
            )
        return writer.fingerprint


def _iter_texts(split: RecordSplit) -> Iterator[str]:
    """Yield the texts of the vocabulary, with the headings of a chat without a template."""
    for record in split.train:
        yield from (message.content for message in record.messages)
        if [message.role for message in record.messages] != ["assistant"]:
            yield "\n\n".join(f"{message.role.capitalize()}: " for message in record.messages)


def _gather_weights(
    model: DiffusionModel, ranks: ProcessGroup, *, is_whole: bool
) -> dict[str, torch.Tensor]:
    """Return the weights on the main rank; with sharding, all ranks gather them."""
    if ranks.is_main:
        return dict(export_tensors(model.network))
    if not is_whole:
        for _ in export_tensors(model.network):
            pass
    return {}


def _card(metadata: DiffusionMetadata) -> str:
    if metadata.attention == "causal":
        return "An autoregressive language model, trained by Stillroom as a diffusion model's twin."
    return (
        f"A masked diffusion language model: attention {metadata.attention}"
        f"{f' in blocks of {metadata.block_size}' if metadata.block_size else ''}, mask token "
        f"{metadata.mask_token_id}, logits {'shifted' if metadata.logit_shift else 'in place'}. "
        "config.json says so under stillroom_diffusion. Write with it by "
        "`stillroom diffusion sample`."
    )


def _origin(objective: TrainingObjective[Any], split: RecordSplit) -> Origin:
    """Return the checkpoint's origin: synthetic, with the licenses of all sources."""
    parts = [record.origin for record in split.train]
    fingerprint, model = "", objective.recipe.model
    if isinstance(model, str):
        stored = Checkpoint.open(resolve_checkpoint(model))
        parts.append(Origin("unknown", license=stored.license))
        fingerprint = stored.fingerprint
    link = Link(objective.method, fingerprint)
    return Origin("synthetic", (link,), combine_origins(parts).license)


def _report(details: dict[str, Any], job: Job) -> None:
    before, after = details["before"], details["after"]
    for name, value in after.items():
        is_shown = name.startswith(("preference/", "reward/"))
        if is_shown and name in before and not name.endswith(("/pairs", "/tasks")):
            job.say(f"held-out {name}: {before[name]:.3f} before, {value:.3f} after")
    if "is_bound" not in after:
        return
    kind = "bound" if after["is_bound"] else "loss"
    job.say(
        f"held-out {kind}: {before['nats_per_token']:.3f} (error {before['error']:.3f}) before, "
        f"{after['nats_per_token']:.3f} (error {after['error']:.3f}) after, nats per token over "
        f"{after['records']} records"
    )
