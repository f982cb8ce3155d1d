"""``stillroom diffusion sample``: requests from options, for ``diffusion.sampling.sampler``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stillroom.cli.options import (
    command,
    count_option,
    device_option,
    flag_option,
    model_is_option,
    output_options,
    path_option,
    refuse_existing_output,
    replace_option,
    settings_option,
)
from stillroom.cli.output import print_json, print_text
from stillroom.errors import count_noun

if TYPE_CHECKING:
    from stillroom.diffusion.model.network import DiffusionModel
    from stillroom.diffusion.sampling.sequence import InfillRequest, SampledSequence
    from stillroom.diffusion.sampling.settings import DecodeSettings

__all__ = ["sample_command"]


@command(
    "sample",
    'stillroom diffusion sample trained "The still" --watch',
    'stillroom diffusion sample trained --holes "A jar of [[6]] stood [[3]] the door."',
    'stillroom diffusion sample trained "Hello" --set commit.name=quota --set commit.steps=8',
    'stillroom diffusion sample trained "Hello" --set temperature=0.7 --html unmasking.html',
    'stillroom diffusion sample trained "A jar:" --schema jar.json --set max_new_tokens=60',
)
@click.argument("checkpoint")
@click.argument("prompts", nargs=-1)
@flag_option("--chat", help="Treat prompts as messages; use the chat template.")
@flag_option("--holes", help="Infill the prompts: [[5]] is a masked span of five tokens.")
@path_option("--settings", help="YAML file of decoding settings.")
@path_option("--preset", help="Preset file, or the job of kind diffusion.tune that wrote it.")
@settings_option(
    "--set",
    "overrides",
    help="Decoding setting, such as order=margin or commit.threshold=0.8; may be repeated.",
)
@model_is_option
@count_option("--count", default=1, help="Number of texts for each prompt.")
@flag_option("--watch", help="Show every step of the first text.")
@path_option("--html", "page", help="Write an HTML page that animates the first text's steps.")
@replace_option
@path_option("--schema", help="JSON Schema of the output: only its values are generated.")
@click.option(
    "--dtype", default="auto", help="Data type of the weights: auto, float32, bfloat16, float16."
)
@device_option
@output_options
def sample_command(
    checkpoint: str,
    settings: Path | None,
    preset: Path | None,
    count: int,
    schema: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Generate texts or infill masked spans, and show the order of unmasking.

    Settings are those of DecodeSettings: max_new_tokens, block_length, order, commit, remasking,
    length, cache, temperature, top_k, top_p, cfg_scale, end.stop_early, seed and rows.
    """
    from stillroom.cli.diffusion.options import open_model, read_schema, read_settings
    from stillroom.diffusion.sampling.sequence import decode_text
    from stillroom.diffusion.sampling.settings import read_preset

    holes, given = options["holes"], {**options, "preset": preset, "settings": settings}
    for one, other in (("preset", "settings"), ("chat", "holes")):
        if given[one] and given[other]:
            raise click.UsageError(f"give either --{one} or --{other}")
    for parameter, option in (("holes", "holes"), ("watch", "watch"), ("page", "html")):
        if schema is not None and given[parameter]:
            raise click.UsageError(f"give either --schema or --{option}")
    refuse_existing_output(options["page"], "--html")
    loaded_preset = read_preset(preset) if preset is not None else None
    decoding = read_settings(settings, options["overrides"], loaded_preset)
    model = open_model(
        checkpoint, options["model_is"], dtype=options["dtype"], device=options["device"]
    )
    if loaded_preset is not None:
        loaded_preset.check_against(model.fingerprint)
    requests = _build_requests(model, decoding, count, options)
    if schema is not None:
        _fill_schema(model, requests, decoding, read_schema(schema), as_json)
        return
    samples = _generate(model, requests, decoding, options)
    tokenizer = model.tokenizer
    texts = [decode_text(tokenizer, item.ids if holes else item.new_ids) for item in samples]
    if any(len(set(texts[first : first + count])) == 1 for first in range(0, len(texts), count)):
        _warn_equal(count, decoding.temperature)
    if not as_json:
        _print_samples(texts, samples, holes)
        return
    rows = [
        _describe_sample(text, sample, holes) for text, sample in zip(texts, samples, strict=True)
    ]
    name = loaded_preset.name if loaded_preset is not None else None
    settings_json = decoding.model_dump(mode="json")
    print_json({"samples": rows, "preset": name, "settings": settings_json})


def _warn_equal(count: int, temperature: float) -> None:
    """Say that all texts of a prompt are equal, if there are several."""
    if count > 1:
        from stillroom.jobs import LineReporter

        cause = " at temperature 0: raise it" if temperature == 0 else ""
        LineReporter().warn(f"the {count} texts of a prompt are equal{cause}")


def _generate(
    model: DiffusionModel,
    requests: list[InfillRequest],
    decoding: DecodeSettings,
    options: Mapping[str, Any],
) -> list[SampledSequence]:
    """Generate all texts; show the steps of the first one as asked."""
    from stillroom.diffusion.sampling.animation import (
        TerminalAnimation,
        record_events,
        write_animation,
    )
    from stillroom.diffusion.sampling.sampler import StepEvent, generate

    events: list[StepEvent] = []
    is_fixed = [token is not None for token in requests[0].ids]
    watch, page = options["watch"], options["page"]
    view = TerminalAnimation(model.tokenizer, first=0 if options["holes"] else len(is_fixed))

    def on_step(event: StepEvent) -> None:
        if event.row == 0:
            record_events(events, *([view.show] if watch else []))(event)

    wants_steps = watch or page is not None
    samples = generate(model, requests, decoding, on_step=on_step if wants_steps else None)
    if page is not None:
        write_animation(page, events, model.tokenizer, title="Unmasking", given_mask=is_fixed)
        print_text(f"steps    {page}", err=True)
    return samples


def _describe_sample(text: str, sample: SampledSequence, holes: bool) -> dict[str, Any]:
    return {
        "text": text,
        "finish_reason": sample.finish_reason,
        "tokens": _count_tokens(sample, holes),
        "steps": sample.steps,
        "nfe": sample.nfe,
        "reopened": sample.reopened,
        "drift": sample.drift,
    }


def _print_samples(texts: list[str], samples: list[SampledSequence], holes: bool) -> None:
    """Print each text with its cost."""
    for text, sample in zip(texts, samples, strict=True):
        print_text(text)
        moved = "" if sample.drift is None else f", drift {sample.drift:.3f}"
        ended = "" if holes else f", {sample.finish_reason}"
        print_text(
            f"{_count_tokens(sample, holes)} tokens, {count_noun(sample.steps, 'step')}, "
            f"{sample.nfe} passes"
            f"{ended}{moved}",
            err=True,
        )


def _fill_schema(
    model: DiffusionModel,
    requests: list[InfillRequest],
    decoding: DecodeSettings,
    schema: dict[str, Any],
    as_json: bool,
) -> None:
    """Generate JSON that follows a schema for each prompt."""
    from stillroom.diffusion.constrained.infilling import JsonInfiller
    from stillroom.diffusion.constrained.json_template import build_template
    from stillroom.models.tokenization.token_bytes import read_token_bytes

    skeleton = build_template(schema)
    filler = JsonInfiller(model, read_token_bytes(model.tokenizer), decoding)
    filled = [
        filler.fill(sample.ids, skeleton, room=sample.max_new_tokens, seed=sample.seed or 0)
        for sample in requests
    ]
    if as_json:
        rows = [
            {"text": sample.text, "tokens": sample.tokens, "nfe": sample.nfe} for sample in filled
        ]
        print_json({"samples": rows, "settings": decoding.model_dump(mode="json")})
        return
    for sample in filled:
        print_text(sample.text)
        print_text(f"{sample.tokens} tokens, {sample.nfe} passes", err=True)


def _count_tokens(sample: SampledSequence, holes: bool) -> int:
    """Return the number of tokens generated: in holes, or between prompt and end."""
    return sum(step >= 0 for step in sample.chosen_at) if holes else len(sample.new_ids)


def _build_requests(
    model: DiffusionModel, decoding: DecodeSettings, count: int, options: Mapping[str, Any]
) -> list[InfillRequest]:
    """Return one request for each text; the texts of a prompt have consecutive seeds."""
    from dataclasses import replace

    from stillroom.diffusion.sampling.sequence import (
        build_chat_request,
        build_infill_request,
        build_text_request,
    )

    requests = []
    for prompt in options["prompts"] or ("",):
        if options["holes"]:
            request = build_infill_request(model.tokenizer, prompt)
        else:
            build = build_chat_request if options["chat"] else build_text_request
            request = build(model.tokenizer, prompt, decoding.max_new_tokens)
        requests += [replace(request, seed=decoding.seed + number) for number in range(count)]
    return requests
