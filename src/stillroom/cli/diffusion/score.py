"""``stillroom diffusion score``: log-likelihood of records, or of candidate answers to a prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stillroom.cli.options import (
    FiniteFloatRange,
    command,
    count_option,
    flag_option,
    model_is_option,
    output_options,
    path_option,
    refuse_idle_options,
    settings_option,
)
from stillroom.cli.output import print_json, print_text
from stillroom.errors import count_noun

if TYPE_CHECKING:
    from stillroom.diffusion.evaluation.likelihood import ChoiceResult
    from stillroom.diffusion.interfaces import LikelihoodEstimate, LikelihoodEstimator
    from stillroom.diffusion.model.network import DiffusionModel

__all__ = ["score_command"]


@command(
    "score",
    "stillroom diffusion score trained --records records.jsonl",
    'stillroom diffusion score trained --prompt "Water boils at" --answer " 100" --answer " 50"',
    'stillroom diffusion score trained --prompt "2 + 2 =" --answer " 4" --estimator exhaustive',
)
@click.argument("checkpoint")
@path_option("--records", help="Records whose answers are scored.")
@click.option("--split", default="", help="Use only records of this split; empty uses all.")
@count_option("--most", default=64, help="Maximum number of records.")
@count_option("--max-tokens", default=512, least=2, help="Maximum number of tokens of a record.")
@flag_option("--include-prompt", help="Score all messages, not answers alone.")
@click.option("--prompt", default="", help="Text before the answers.")
@flag_option("--chat", help="Treat the prompt as a message; use the chat template.")
@click.option("--answer", "answers", multiple=True, help="Candidate answer; may be repeated.")
@click.option(
    "--estimator", default="low_variance", help="Method of diffusion.evaluation.estimators."
)
@settings_option("--set", "overrides", help="Setting of the estimator; may be repeated.")
@click.option("--cfg-scale", type=FiniteFloatRange(min=0), default=0.0, help="Guidance scale.")
@count_option("--seed", default=0, least=0, help="Random seed of the masks.")
@click.option(
    "--error",
    type=FiniteFloatRange(min=1e-9),
    help="Estimate the samples needed for this error, in nats per token.",
)
@model_is_option
@output_options
def score_command(
    checkpoint: str,
    records: Path | None,
    answers: tuple[str, ...],
    error: float | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Estimate a lower bound on the log-likelihood of records or answers, with its error.

    The bound is at most the log-likelihood: its nats per token are not comparable with the
    perplexity of an autoregressive model.
    """
    from stillroom.cli.diffusion.options import open_model, read_estimator

    if (records is None) == (not answers):
        raise click.UsageError("give either --records or --answer")
    if records is None:
        refuse_idle_options(
            {"split", "most", "max_tokens", "include_prompt"}, "applies to --records only"
        )
    else:
        refuse_idle_options({"prompt", "chat"}, "applies to --answer; records have prompts")
    estimator = read_estimator(options["estimator"], options["overrides"])
    model = open_model(checkpoint, options["model_is"])
    if records is None:
        _print_answers(_score_answers(model, answers, estimator, options), answers, error, as_json)
        return
    examples, left_out = _read_examples(model, records, options)
    bounds = _score_examples(model, examples, estimator, options)
    _print_scores(bounds, left_out, error, as_json)


def _read_examples(
    model: DiffusionModel, records: Path, options: Mapping[str, Any]
) -> tuple[list[Any], int]:
    from stillroom.diffusion.training.data import tokenize_records
    from stillroom.errors import DataError
    from stillroom.records import read_records

    split = options["split"]
    matching = (
        record
        for record in read_records(records)
        if not split or record.fields.get("split") == split
    )
    selected = list(islice(matching, options["most"]))
    examples, counts = tokenize_records(
        model.tokenizer,
        selected,
        max_tokens=min(options["max_tokens"], model.context_length),
        include_prompt=options["include_prompt"],
        first=int(model.metadata.logit_shift),
    )
    if not examples:
        named = f" of split '{split}'" if split else ""
        raise DataError(
            f"none of {count_noun(len(selected), 'record')}{named} has a token to score",
            code="diffusion.no-places",
            where=str(records),
            expected="assistant messages within --max-tokens",
            next="check --split, or score all messages with --include-prompt",
        )
    return list(examples), counts["records_left_out"]


def _score_examples(
    model: DiffusionModel,
    examples: list[Any],
    estimator: LikelihoodEstimator,
    options: Mapping[str, Any],
) -> list[LikelihoodEstimate]:
    from stillroom.diffusion.evaluation.likelihood import choose_batch_rows, score_text
    from stillroom.jobs import choose_reporter
    from stillroom.jobs.progress import Progress

    bounds = []
    with Progress("score", len(examples), "records", choose_reporter()) as progress:
        for index, example in enumerate(examples):
            positions = example.noised.nonzero()[0].tolist()
            bounds.append(
                score_text(
                    model,
                    example.ids.tolist(),
                    positions,
                    estimator,
                    seed=options["seed"] + index,
                    cfg_scale=options["cfg_scale"],
                    rows=choose_batch_rows(len(example.ids)),
                )
            )
            progress.advance()
    return bounds


def _print_scores(
    bounds: list[LikelihoodEstimate], left_out: int, error: float | None, as_json: bool
) -> None:
    from stillroom.diffusion.interfaces import LikelihoodEstimate

    total = LikelihoodEstimate(
        value=sum(bound.value for bound in bounds),
        error=math.hypot(*(bound.error for bound in bounds)),
        forwards=sum(bound.forwards for bound in bounds),
        samples=max(bound.samples for bound in bounds),
        tokens=sum(bound.tokens for bound in bounds),
        kind=bounds[0].kind,
    )
    nats, own_error = total.per_token, total.error / total.tokens
    needed = total.samples_for(error * total.tokens) if error else None
    if as_json:
        print_json(
            {
                "kind": total.kind,
                "nats_per_token": nats,
                "error": _to_json_number(own_error),
                "records": len(bounds),
                "left_out": left_out,
                "tokens": total.tokens,
                "forwards": total.forwards,
                "samples_for_error": needed,
            }
        )
        return
    label = "bound" if total.kind == "bound" else "log-likelihood of one order"
    print_text(
        f"{label} {nats:.4f} nats per token, {_format_error(own_error)} "
        f"({count_noun(len(bounds), 'record')}, "
        f"{total.tokens} tokens, {total.forwards} passes)"
    )
    if needed is not None:
        print_text(f"an error of {error:g} needs about {needed} samples a record")
    if left_out:
        print_text(f"{left_out} records have nothing to score", err=True)


def _to_json_number(error: float) -> float | None:
    """Return an error, or None if it is infinite (one sample), which JSON cannot represent."""
    return None if math.isinf(error) else error


def _format_error(error: float) -> str:
    return "error unknown (one sample)" if math.isinf(error) else f"error {error:.4f}"


def _score_answers(
    model: DiffusionModel,
    answers: tuple[str, ...],
    estimator: LikelihoodEstimator,
    options: Mapping[str, Any],
) -> ChoiceResult:
    from stillroom.diffusion.evaluation.likelihood import choose_answer
    from stillroom.diffusion.sampling.sequence import build_chat_request, build_text_request

    build = build_chat_request if options["chat"] else build_text_request
    before = [token or 0 for token in build(model.tokenizer, options["prompt"], 0).ids]
    after = [model.tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in answers]
    settings = {name: options[name] for name in ("seed", "cfg_scale")}
    return choose_answer(model, before, after, estimator, **settings)


def _print_answers(
    verdict: ChoiceResult, answers: tuple[str, ...], error: float | None, as_json: bool
) -> None:
    needed = [
        bound.samples_for(error * bound.tokens) if error else None for bound in verdict.bounds
    ]
    if as_json:
        rows = [
            {
                "answer": answer,
                "nats": bound.value,
                "error": _to_json_number(bound.error),
                "tokens": bound.tokens,
                "forwards": bound.forwards,
                "samples_for_error": samples,
            }
            for answer, bound, samples in zip(answers, verdict.bounds, needed, strict=True)
        ]
        best = answers[verdict.best]
        print_json({"best": best, "lead_in_errors": _to_json_number(verdict.lead), "answers": rows})
        return
    for number, (answer, bound, samples) in enumerate(
        zip(answers, verdict.bounds, needed, strict=True)
    ):
        mark = "*" if number == verdict.best else " "
        takes = "" if samples is None else f", {error:g} nats per token take {samples} samples"
        print_text(
            f"{mark} {bound.value:9.4f} nats, {_format_error(bound.error)}{takes}  {answer!r}"
        )
    if len(answers) > 1 and verdict.lead < 2:
        print_text(f"the lead is {verdict.lead:.1f} errors: draw more samples before you trust it")
