"""``stillroom diffusion sample``: texts written by a diffusion model, and how they came about."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stillroom.cli.options import debug_option, json_option, print_json

if TYPE_CHECKING:
    from stillroom.diffusion.canvas import Request
    from stillroom.diffusion.decoding import DecodeSettings
    from stillroom.diffusion.model import DiffusionModel
    from stillroom.diffusion.writing import Sample

__all__ = ["command"]


@click.command(
    "sample",
    epilog="""
\b
Examples:
  stillroom diffusion sample trained "The still" --watch
  stillroom diffusion sample trained --holes "A jar of [[6]] stood [[3]] the door."
  stillroom diffusion sample trained "Hello" --set commit.name=quota --set commit.steps=8
  stillroom diffusion sample trained "Hello" --set temperature=0.7 --html unmasking.html
  stillroom diffusion sample trained "A jar:" --schema jar.json --set max_new_tokens=60
""",
)
@click.argument("checkpoint")
@click.argument("prompts", nargs=-1)
@click.option("--chat", is_flag=True, help="Prompts are messages; use the chat template.")
@click.option("--holes", is_flag=True, help="Prompts hold holes, as [[5]], that are filled.")
@click.option(
    "--settings",
    type=click.Path(path_type=Path),
    default=None,
    help="A YAML file of decoding settings.",
)
@click.option(
    "--preset",
    type=click.Path(path_type=Path),
    default=None,
    help="A preset that tune wrote, or the folder it left.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="One decoding setting, as order=margin or commit.threshold=0.8; may be repeated.",
)
@click.option("--model-is", multiple=True, metavar="KEY=VALUE", help="What is known of the model.")
@click.option("--count", type=click.IntRange(min=1), default=1, help="Texts for each prompt.")
@click.option("--watch", is_flag=True, help="Show every step of the first text.")
@click.option(
    "--html",
    "page",
    type=click.Path(path_type=Path),
    default=None,
    help="Write a page that plays the first text's steps.",
)
@click.option(
    "--schema",
    type=click.Path(path_type=Path),
    default=None,
    help="A JSON Schema: what it fixes is given, each value is a hole.",
)
@click.option("--dtype", default="auto", help="Of the weights: auto, float32, bfloat16, float16.")
@click.option("--device", default="auto", help="Where to compute: auto, cpu, cuda, mps.")
@json_option
@debug_option
def command(
    checkpoint: str,
    prompts: tuple[str, ...],
    chat: bool,
    holes: bool,
    settings: Path | None,
    preset: Path | None,
    overrides: tuple[str, ...],
    model_is: tuple[str, ...],
    count: int,
    watch: bool,
    page: Path | None,
    schema: Path | None,
    dtype: str,
    device: str,
    as_json: bool,
) -> None:
    """Write texts or fill holes, and show how the tokens come.

    Settings are those of DecodeSettings: max_new_tokens, block_length, order, commit, remasking,
    length, cache, temperature, top_k, top_p, cfg_scale, end.stop_early, seed and rows.
    """
    from stillroom.cli.diffusion_words import open_model, read_schema, read_settings
    from stillroom.diffusion.presets import read_preset
    from stillroom.diffusion.requests import decode
    from stillroom.diffusion.sampling import generate
    from stillroom.diffusion.watching import TerminalView, collect, write_animation
    from stillroom.diffusion.writing import Event

    _refuse_pairs(
        {"--preset": preset is not None, "--settings": settings is not None},
        {"--chat": chat, "--holes": holes},
        {"--schema": schema is not None, "--holes": holes},
        {"--schema": schema is not None, "--watch": watch},
        {"--schema": schema is not None, "--html": page is not None},
    )
    found = read_preset(preset) if preset is not None else None
    decoding = read_settings(settings, overrides, found)
    model = open_model(checkpoint, model_is, dtype=dtype, device=device)
    if found is not None:
        found.check_against(model.fingerprint)
    requests = _requests(model, prompts, decoding.max_new_tokens, decoding.seed, chat, holes, count)
    if schema is not None:
        _fill_schema(model, requests, decoding, read_schema(schema), as_json)
        return
    events: list[Event] = []
    given = [token is not None for token in requests[0].ids]
    view = TerminalView(model.tokenizer, first=0 if holes else len(given))

    def on_step(event: Event) -> None:
        if event.row == 0:
            collect(events, *([view.show] if watch else []))(event)

    wants_steps = watch or page is not None
    samples = generate(model, requests, decoding, on_step=on_step if wants_steps else None)
    if page is not None:
        write_animation(page, events, model.tokenizer, title="Unmasking", given=given)
        click.echo(f"steps    {page}", err=True)
    texts = [decode(model.tokenizer, sample, whole=holes) for sample in samples]
    if as_json:
        rows = [
            {
                "text": text,
                "finish_reason": sample.finish_reason,
                "tokens": _count(sample, holes),
                "steps": sample.steps,
                "nfe": sample.nfe,
                "reopened": sample.reopened,
                "drift": sample.drift,
            }
            for text, sample in zip(texts, samples, strict=True)
        ]
        name = found.name if found is not None else None
        said = decoding.model_dump(mode="json")
        print_json({"samples": rows, "preset": name, "settings": said})
        return
    _tell(texts, samples, holes)


def _tell(texts: list[str], samples: list[Sample], holes: bool) -> None:
    """Print each text, and beside it what it took."""
    for text, sample in zip(texts, samples, strict=True):
        click.echo(text)
        moved = "" if sample.drift is None else f", drift {sample.drift:.3f}"
        ended = "" if holes else f", {sample.finish_reason}"
        click.echo(
            f"{_count(sample, holes)} tokens, {sample.steps} steps, {sample.nfe} readings"
            f"{ended}{moved}",
            err=True,
        )


def _fill_schema(
    model: DiffusionModel,
    requests: list[Request],
    decoding: DecodeSettings,
    schema: dict[str, Any],
    as_json: bool,
) -> None:
    """Write the JSON that a schema lays out behind each prompt."""
    from stillroom.diffusion.filling import Filler
    from stillroom.diffusion.skeleton import build_skeleton
    from stillroom.models.token_bytes import read_token_bytes

    skeleton = build_skeleton(schema)
    filler = Filler(model, read_token_bytes(model.tokenizer), decoding)
    filled = [
        filler.fill(one.ids, skeleton, room=one.max_new_tokens, seed=one.seed or 0)
        for one in requests
    ]
    if as_json:
        rows = [{"text": one.text, "tokens": one.tokens, "nfe": one.nfe} for one in filled]
        print_json({"samples": rows, "settings": decoding.model_dump(mode="json")})
        return
    for one in filled:
        click.echo(one.text)
        click.echo(f"{one.tokens} tokens, {one.nfe} readings", err=True)


def _count(sample: Sample, holes: bool) -> int:
    """Return how many tokens were written: in holes, or behind the prompt and before the end."""
    return sum(step >= 0 for step in sample.chosen_at) if holes else len(sample.new_ids)


def _refuse_pairs(*pairs: dict[str, bool]) -> None:
    """Refuse options that do not go together."""
    for pair in pairs:
        if all(pair.values()):
            raise click.UsageError(f"give either {' or '.join(pair)}")


def _requests(
    model: DiffusionModel,
    prompts: tuple[str, ...],
    max_new_tokens: int,
    seed: int,
    chat: bool,
    holes: bool,
    count: int,
) -> list[Request]:
    """Return one request a text; the texts of a prompt have seeds one after the other."""
    from dataclasses import replace

    from stillroom.diffusion.requests import chat_request, holes_request, text_request

    found = []
    for prompt in prompts or ("",):
        if holes:
            request = holes_request(model.tokenizer, prompt)
        elif chat:
            request = chat_request(model.tokenizer, prompt, max_new_tokens)
        else:
            request = text_request(model.tokenizer, prompt, max_new_tokens)
        found += [replace(request, seed=seed + number) for number in range(count)]
    return found
