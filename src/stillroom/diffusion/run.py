"""Job of kind ``diffusion``: trains a masked diffusion model and publishes its checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stillroom.checkpoints import Checkpoint, CheckpointWriter
from stillroom.checkpoints.writer import plan_tensors
from stillroom.diffusion.evaluation.likelihood import Validation
from stillroom.diffusion.interfaces import ObjectiveContext, TokenizedDataset
from stillroom.diffusion.model.initialization import (
    check_initial_checkpoint,
    prepare_initial_checkpoint,
    read_json,
)
from stillroom.diffusion.model.loading import check_attention, load_prepared, load_trained
from stillroom.diffusion.model.metadata import CONFIG_KEY, DiffusionMetadata
from stillroom.diffusion.model.network import DiffusionModel
from stillroom.diffusion.recipe import DiffusionRecipe, ScratchSettings
from stillroom.diffusion.training.data import tokenize_records
from stillroom.diffusion.training.loss import DiffusionLoss
from stillroom.jobs import Estimate, Job
from stillroom.models import resolve_checkpoint
from stillroom.objects import resolve_local
from stillroom.provenance import Artifact, Parent, make_parent
from stillroom.records import Link, Origin, combine_origins
from stillroom.train.data import RecordSplit, split_records
from stillroom.train.distributed import ProcessGroup
from stillroom.train.loop import train
from stillroom.train.lora import add_lora, export_tensors
from stillroom.train.precision import limit_threads

__all__ = ["estimate", "run"]

_FLOPS_PER_CORE = 2.5e10  # training in float32, measured on two cores
_OVERHEAD = 500_000_000
_DEFAULT_PARAMETERS = 135_000_000


def run(recipe: DiffusionRecipe, job: Job) -> Artifact:
    """Train a diffusion model and publish its checkpoint.

    Raises:
        CheckpointError: If the initial checkpoint is missing or cannot be made a diffusion model.
        DataError: If no record has tokens to learn.
        Cancelled: If the user stopped the job; ``--resume`` continues it.
    """
    with ProcessGroup() as ranks, limit_threads(recipe.train.threads):
        split = split_records(resolve_local(recipe.records))
        start = ranks.share_path(job.scratch / "start")
        description = ranks.on_main(partial(_prepare, recipe, split, start, job))
        model = load_prepared(start)
        check_attention(model, str(start))
        recipe = _limit_context(recipe, model, job)
        lessons, counts = _encode(recipe, split, model, job)
        validation = _hold_out(recipe, split, model)
        measure = partial(_measure, recipe, split, validation, job)
        details: dict[str, Any] = {"start": description, "records": counts}
        details["before"] = ranks.on_main(partial(measure, "measure before"))
        details["train"] = _train(recipe, job, model, lessons, validation, ranks)
        is_whole = ranks.count == 1 or recipe.train.sharding == "none"
        tensors = _gather_weights(model, ranks, is_whole=is_whole)

        def write_and_measure() -> Artifact:
            """Write the checkpoint, and measure it; a sharded model is loaded again first."""
            details["fingerprint"] = _write(recipe, job, model, tensors, start, split)
            if not is_whole:
                validation.model = load_trained(job.output, model)
            details["after"] = measure("measure after")
            return _publish(recipe, job, model, split, details)

        return ranks.on_main(write_and_measure)


def _prepare(recipe: DiffusionRecipe, split: RecordSplit, start: Path, job: Job) -> str:
    """Write the initial checkpoint, and return its description."""
    check_initial_checkpoint(recipe)
    with job.phase("start", 1, "networks") as progress:
        description = prepare_initial_checkpoint(recipe, lambda: _count_texts(split), start)
        progress.advance()
    job.say(f"initial checkpoint: {description}")
    return description


def _limit_context(recipe: DiffusionRecipe, model: DiffusionModel, job: Job) -> DiffusionRecipe:
    """Return the recipe with max_tokens limited to the context length."""
    most = model.context_length
    if recipe.max_tokens <= most:
        return recipe
    job.say(f"records are truncated to the context length of {most} tokens")
    return recipe.model_copy(update={"max_tokens": most})


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


def _publish(
    recipe: DiffusionRecipe,
    job: Job,
    model: DiffusionModel,
    split: RecordSplit,
    details: dict[str, Any],
) -> Artifact:
    """Log the results, and publish the checkpoint."""
    _report(details, job)
    return job.finish(
        "checkpoint",
        parents=_parents(recipe, job),
        origin=_origin(recipe, split).to_json(),
        details={
            **details,
            "parameters": Checkpoint.open(job.output).parameters,
            CONFIG_KEY: model.metadata.model_dump(mode="json"),
        },
    )


def estimate(recipe: DiffusionRecipe) -> Estimate:
    """Estimate memory, disk and time of the job; a missing checkpoint counts as 135M."""
    parameters, vocabulary, basis = _count_parameters(recipe)
    records = _count_records(recipe)
    steps = (
        recipe.train.count_steps(records * recipe.objective.steps_per_batch)
        if records
        else recipe.train.steps or 0
    )
    tokens = recipe.train.batch_size * recipe.max_tokens / 2 * steps
    times = 2.0 if recipe.attention == "block_causal" else 1
    times *= 2 if recipe.noising.method_name() == "complementary" else 1
    times *= recipe.objective.reads
    speed = _FLOPS_PER_CORE * (recipe.train.threads or os.cpu_count() or 1)
    width = 4 if recipe.out.dtype == "float32" else 2
    return Estimate(
        memory_bytes=(16 + 4 * recipe.objective.needs_model) * parameters
        + 8 * vocabulary * 1024
        + _OVERHEAD,
        disk_bytes=parameters * (width + 4 + 12),
        seconds=6 * parameters * tokens * times / speed + 10,
        memory_knob="lower train.micro_tokens, or set train.lora",
        disk_knob="use out.dtype: bfloat16",
        basis=f"{basis}; {records} records, {steps} steps of {recipe.train.batch_size} texts of "
        f"about {recipe.max_tokens // 2} tokens",
    )


def _count_parameters(recipe: DiffusionRecipe) -> tuple[int, int, str]:
    """Return parameters, vocabulary size and the basis of the estimate."""
    start = recipe.start
    if isinstance(start, ScratchSettings):
        inner = start.inner or start.width * 8 // 3
        layer = 4 * start.width**2 + 3 * start.width * inner
        vocabulary = 1000 if start.tokenizer.startswith("builtin:") else 50_000
        return start.layers * layer + vocabulary * start.width, vocabulary, "a new network"
    folder = Path(start)
    if not start.startswith("hub:") and folder.exists() and folder.suffix != ".gguf":
        stored = Checkpoint.open(folder)
        return stored.parameters, int(stored.config.get("vocab_size", 50_000)), f"{folder.name}"
    return _DEFAULT_PARAMETERS, 50_000, f"{start}, taken as 135M"


def _count_records(recipe: DiffusionRecipe) -> int:
    path = resolve_local(recipe.records)
    return len(split_records(path).train) if path.exists() else 0


def _count_texts(split: RecordSplit) -> Iterator[str]:
    for record in split.train:
        yield from (message.content for message in record.messages)


def _encode(
    recipe: DiffusionRecipe, split: RecordSplit, model: DiffusionModel, job: Job
) -> tuple[TokenizedDataset, dict[str, Any]]:
    with job.phase("encode", len(split.train), "records") as progress:
        lessons = recipe.objective.encode(recipe, model, split.train, progress.advance)
    details = {**lessons.counts, "passed_over": split.passed_over}
    summary = ", ".join(
        f"{count} {name.replace('_', ' ')}"
        for name, count in lessons.counts.items()
        if count and name.startswith(("records_", "tokens_cut"))
    )
    if summary or split.passed_over:
        job.say(
            f"max_tokens {recipe.max_tokens}: {summary or 'no record truncated'}; skipped: "
            f"{split.passed_over or 'none'}"
        )
    if not lessons.items:
        raise recipe.objective.miss(recipe, len(split.train))
    return lessons, details


def _hold_out(recipe: DiffusionRecipe, split: RecordSplit, model: DiffusionModel) -> Validation:
    held_out, _ = tokenize_records(
        model.tokenizer,
        split.held_out[: recipe.validation.records],
        max_tokens=recipe.max_tokens,
        include_prompt=recipe.include_prompt,
        first=int(model.metadata.logit_shift),
    )
    return Validation(
        model, held_out, recipe.validation, is_causal=recipe.noising.is_causal, seed=recipe.seed
    )


def _measure(
    recipe: DiffusionRecipe, split: RecordSplit, validation: Validation, job: Job, name: str
) -> dict[str, Any]:
    """Return the validation metrics of a phase; a resumed run takes them from the journal."""
    journal = job.journal("measured")
    held_out = split.held_out[: recipe.validation.records]
    if name not in journal and held_out:
        with job.phase(name, len(validation.lessons) or 1, "records") as progress:
            bound = validation.bound(progress.advance) if validation.lessons else {}
            metrics = recipe.objective.measure(recipe, validation.model, held_out)
        journal.put(name, {**bound, **validation.fixed_times(), **metrics})
    return dict(journal.get(name, {}))


def _train(
    recipe: DiffusionRecipe,
    job: Job,
    model: DiffusionModel,
    lessons: TokenizedDataset,
    validation: Validation,
    ranks: ProcessGroup,
) -> dict[str, Any]:
    network = model.network
    if recipe.train.lora is not None:
        network = model.network = add_lora(network, recipe.train.lora, recipe.seed)
    objective = recipe.objective
    steps = recipe.train.count_steps(len(lessons.items) * objective.steps_per_batch)
    has_times = objective.has_times and not recipe.noising.is_causal
    trained = train(
        network,
        objective.begin(ObjectiveContext(recipe, model, lessons.items, steps, job)),
        DiffusionLoss(model, has_times=has_times),
        recipe.train,
        job,
        seed=recipe.seed,
        on_step=_validate(validation, recipe, job, ranks),
        reads_every=recipe.validation.every,
        ranks=ranks,
    )
    return asdict(trained)


def _validate(
    validation: Validation, recipe: DiffusionRecipe, job: Job, ranks: ProcessGroup
) -> Callable[[int, nn.Module], None] | None:
    every, is_sharded = recipe.validation.every, recipe.train.sharding != "none"
    if not every or not validation.lessons:
        return None

    def on_step(step: int, network: nn.Module) -> None:
        # all ranks read a sharded model together; otherwise only the main rank does
        if step % every == 0 and (ranks.is_main or is_sharded):
            for name, value in validation.fixed_times().items():
                if ranks.is_main:
                    job.metric(name, value, step=step)

    return on_step


def _write(
    recipe: DiffusionRecipe,
    job: Job,
    model: DiffusionModel,
    tensors: dict[str, torch.Tensor],
    start: Path,
    split: RecordSplit,
) -> str:
    """Write the checkpoint; an autoregressive one has no diffusion metadata."""
    config = read_json(start / "config.json")
    if recipe.noising.is_causal:
        config = {k: v for k, v in config.items() if k not in {CONFIG_KEY, "stillroom_backend"}}
    origin = _origin(recipe, split)
    with CheckpointWriter(
        job.output,
        config=config,
        shard_size=recipe.out.shard_size,
        dtype=getattr(torch, recipe.out.dtype),
        plan=plan_tensors(tensors),
        in_place=True,
    ) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
        writer.copy_tokenizer(start)
        writer.write_card(
            job.out.name,
            _card(recipe, model.metadata),
            license=origin.license,
            base_models=[] if isinstance(recipe.start, ScratchSettings) else [recipe.start],
            relation="" if isinstance(recipe.start, ScratchSettings) else "finetune",
            tags=["text-generation" if recipe.noising.is_causal else "diffusion"],
        )
    return writer.fingerprint


def _card(recipe: DiffusionRecipe, metadata: DiffusionMetadata) -> str:
    if recipe.noising.is_causal:
        return "An autoregressive language model, trained by Stillroom as a diffusion model's twin."
    return (
        f"A masked diffusion language model: attention {metadata.attention}"
        f"{f' in blocks of {metadata.block_size}' if metadata.block_size else ''}, mask token "
        f"{metadata.mask_token_id}, logits {'shifted' if metadata.logit_shift else 'in place'}. "
        "config.json says so under stillroom_diffusion. Write with it by "
        "`stillroom diffusion sample`."
    )


def _parents(recipe: DiffusionRecipe, job: Job) -> list[Parent]:
    parents = [make_parent("records", resolve_local(recipe.records), job.out)]
    if not isinstance(recipe.start, ScratchSettings):
        stored = Checkpoint.open(resolve_checkpoint(recipe.start))
        parents.append(Parent("start", recipe.start, stored.fingerprint, "checkpoint"))
    return parents


def _origin(recipe: DiffusionRecipe, split: RecordSplit) -> Origin:
    """Return the checkpoint's origin: synthetic, with the licenses of all sources."""
    parts = [record.origin for record in split.train]
    fingerprint = ""
    if not isinstance(recipe.start, ScratchSettings):
        stored = Checkpoint.open(resolve_checkpoint(recipe.start))
        parts.append(Origin("unknown", license=stored.license))
        fingerprint = stored.fingerprint
    method = f"diffusion.training.corruptions.{recipe.noising.method_name()}"
    if recipe.objective.needs_model:
        method = f"diffusion.training.objectives.{recipe.objective.method_name()}"
    return Origin("synthetic", (Link(method, fingerprint),), combine_origins(parts).license)


def _report(details: dict[str, Any], job: Job) -> None:
    before, after = details["before"], details["after"]
    for name, value in after.items():
        is_told = name.startswith(("preference/", "reward/"))
        if is_told and name in before and not name.endswith(("/pairs", "/tasks")):
            job.say(f"held-out {name}: {before[name]:.3f} before, {value:.3f} after")
    if "is_bound" not in after:
        return
    kind = "bound" if after["is_bound"] else "loss"
    job.say(
        f"held-out {kind}: {before['nats_per_token']:.3f} (error {before['error']:.3f}) before, "
        f"{after['nats_per_token']:.3f} (error {after['error']:.3f}) after, nats per token over "
        f"{after['records']} records"
    )
