"""Output of ``stillroom verify --replay``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from stillroom.flow.replay import ReplayResult

__all__ = ["parse_moved", "print_replay", "raise_replay", "replay"]


def parse_moved(pairs: Sequence[str]) -> dict[str, str]:
    """Return ``OLD=NEW`` pairs as a map.

    Raises:
        RecipeError: If one has no ``=``.
    """
    from stillroom.errors import RecipeError

    for pair in pairs:
        if "=" not in pair:
            raise RecipeError(
                f"'{pair}' names no two places",
                code="replay.input",
                where="--input",
                expected="OLD=NEW, as /srv/notes=./notes",
                next="stillroom verify RUN --replay 59 --input OLD=NEW",
            )
    return dict(pair.split("=", 1) for pair in pairs)


def replay(
    path: Path,
    amount: str,
    *,
    seed: int | None,
    moved: Sequence[str],
    out: Path | None,
    quiet: bool,
) -> ReplayResult:
    """Draw, tell the cost, recompute, and write the verification summary.

    If a key is configured, the summary is signed with it, and also appended to the claims of a run
    that is signed itself.

    Raises:
        StillroomError: If the run, the amount or the configured key cannot be read.
    """
    import secrets

    from stillroom.flow.replay import ReplayAmount, plan_replay
    from stillroom.jobs import atomic_write, choose_reporter
    from stillroom.provenance.signing import (
        CLAIMS_FILE,
        SIGNATURE_FILE,
        append_claim,
        find_configured_key,
        sign_statement,
    )

    reporter = choose_reporter(quiet=quiet)
    draw = secrets.randbelow(1 << 31) if seed is None else seed
    plan = plan_replay(
        path, ReplayAmount.parse(amount), seed=draw, moved=parse_moved(moved), reporter=reporter
    )
    reporter.say(plan.describe())
    signer = find_configured_key()
    result = plan.run()
    summary = result.to_statement()
    if signer is not None:
        summary = sign_statement(summary, signer)
    if out is not None:
        with atomic_write(out) as file:
            json.dump(summary, file, ensure_ascii=False, indent=1)
            file.write("\n")
    if signer is not None and (path / SIGNATURE_FILE).is_file():
        append_claim(path, summary)
        reporter.say(f"the summary is signed with key {signer.key_id[:16]}, in {CLAIMS_FILE}")
    return result


def print_replay(result: ReplayResult) -> None:
    """Print what was replayed, what stays open, and what differs."""
    width = max(len(job.name) for job in result.jobs)
    for job in result.jobs:
        if job.open:
            text = f"open: {job.open}"
        else:
            wrong = len(job.differences)
            near = sum(1 for one in job.outcomes if one.within)
            found = f"{wrong} differ" if wrong else "all as committed"
            found += f", {near} of them within bounds only" if near else ""
            text = f"{job.amount} and {len(job.outcomes) - len(job.drawn):,} outputs: {found}"
        click.echo(f"{job.name:{width}}  {text}")
    for line in dict.fromkeys(line for job in result.jobs for line in job.machine):
        of = sum(line in job.machine for job in result.jobs)
        click.echo(f"This machine differs in kind from the one that did {of} of the jobs: {line}")
    spent, made = (sum(getattr(job, key) for job in result.jobs) for key in ("spent", "seconds"))
    is_known = not result.open_jobs and all(job.is_measured for job in result.jobs)
    share = f", {spent / made:.1%} of the making" if made and is_known else ""
    click.echo(f"{result.power} It took {spent:.0f} s of processor time{share}.")
    if result.open_jobs:
        click.echo(f"{len(result.open_jobs)} of {len(result.jobs)} jobs stay open: not proved.")


def raise_replay(result: ReplayResult) -> None:
    """Raise an error that names each segment and output that differs.

    Raises:
        IntegrityError: If there is one.
    """
    from stillroom.errors import IntegrityError, Problem

    problems: list[Any] = [
        Problem(
            f"{job.name}: {outcome.name} {outcome}",
            "replay.differs",
            str(job.folder),
            "what the recipe makes of the committed inputs",
            "a machine of the same kind gives equal bytes: "
            + (
                "; ".join(job.machine) or "this one is, so the job or one of its inputs was changed"
            ),
        )
        for job, outcome in result.differences
    ]
    if problems:
        raise IntegrityError(problems)
    if not result.drawn:
        reasons = "; ".join(f"{job.name}: {job.open}" for job in result.open_jobs)
        raise IntegrityError(
            "no segment could be recomputed",
            code="replay.nothing",
            where=str(result.path),
            expected="a job whose work is committed in segments and can be done again here",
            next=reasons or "no job of it commits segments",
        )
