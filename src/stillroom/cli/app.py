"""The root command, lazy loading of the others, and how errors end the process."""

from __future__ import annotations

import gc
import importlib
import os
import select
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from stillroom import __version__
from stillroom.cli.options import has_printed_json, print_json
from stillroom.errors import (
    MissingExtraError,
    Problem,
    RecipeError,
    ResourceError,
    StillroomError,
)

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem
    from pydantic import ValidationError

__all__ = ["LazyGroup", "is_reader_gone", "main", "stillroom"]

_SCREEN_LINES = 24
_READER_GONE = 141  # what shells say of a process that a closed pipe ended
# Loading modules makes objects that stay; looking for garbage among them every 700 (Python's own
# threshold) took a tenth of a small command's time.
_OBJECTS_BETWEEN_COLLECTIONS = 50_000
_CARDS = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/nvmap", "/dev/kfd", "/dev/dxg")
"""What a driver of NVIDIA (also on Jetson and WSL) or AMD makes where it has found a card."""
_EXAMPLES = """
\b
Examples:
  stillroom make ./documents --out run
  stillroom ask run "What does the with statement do?"
"""
_COMMANDS = {
    "ask": ("stillroom.cli.ask", "Answer a question from a run's documents, with citations."),
    "check": ("stillroom.cli.check", "Validate a recipe and estimate memory, disk and time."),
    "checkpoint": ("stillroom.cli.checkpoint", "Checkpoints' own verbs."),
    "completion": ("stillroom.cli.completion", "Print what makes a shell complete commands."),
    "console": ("stillroom.cli.console", "Show a folder's runs, records and models in a browser."),
    "diffusion": ("stillroom.cli.diffusion", "Diffusion's own verbs."),
    "distill": ("stillroom.cli.distill", "Distillation's own verbs."),
    "doctor": ("stillroom.cli.doctor", "Say what this machine has and what is missing."),
    "forensics": ("stillroom.cli.forensics", "Forensics' own verbs."),
    "list": ("stillroom.cli.list", "List methods, kinds, backends or jobs."),
    "make": ("stillroom.cli.make", "Turn a folder of documents into a model you own."),
    "merge": ("stillroom.cli.merge", "Merging's own verbs."),
    "new": ("stillroom.cli.new", "Print a commented recipe."),
    "rag": ("stillroom.cli.rag", "Retrieval's own verbs."),
    "run": ("stillroom.cli.run", "Run a recipe of any kind."),
    "serve": (
        "stillroom.cli.serve",
        "Serve a run behind an OpenAI-compatible API, jobs of clients, or both.",
    ),
    "show": (
        "stillroom.cli.show",
        "Show a run, an artifact, an answer, a teacher cache or a method; --lineage walks back.",
    ),
    "synth": ("stillroom.cli.synth", "Synthetic data's own verbs."),
    "fetch": ("stillroom.cli.fetch", "Bring a published job's folder here."),
    "publish": ("stillroom.cli.publish", "Send a finished job to an object store."),
    "verify": ("stillroom.cli.verify", "Recompute digests and name what changed."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called.

    ``commands`` maps a name to the module that holds a ``command`` and to the line that the list
    shows; a contract test keeps that line equal to the command's own.
    """

    def __init__(self, *args: Any, lazy: Mapping[str, tuple[str, str]], **kwargs: Any) -> None:
        """Keep the names; import nothing."""
        super().__init__(*args, **kwargs)
        self.lazy = dict(lazy)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, sorted."""
        return sorted(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in self.lazy:
            return None
        command = importlib.import_module(self.lazy[cmd_name][0]).command
        if not isinstance(command, click.Command):
            raise TypeError(f"{cmd_name} is not a command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command, or suggest the nearest."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from stillroom.registry.listing import suggest

            hint = suggest(args[0], self.lazy) if args else ""
            said = f"{error.message.rstrip('.')}; {hint}" if hint else error.message
            raise click.UsageError(said, ctx) from error

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete names and lines without importing the commands."""
        from click.shell_completion import CompletionItem

        found = [
            CompletionItem(name, help=line)
            for name, (_, line) in sorted(self.lazy.items())
            if name.startswith(incomplete)
        ]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List names and lines without importing the commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in sorted(self.lazy.items())])


@click.group(cls=LazyGroup, lazy=_COMMANDS, epilog=_EXAMPLES)
@click.version_option(__version__, prog_name="stillroom")
def stillroom() -> None:
    """Turn your documents into a small model you own, and prove what made it."""


def main() -> None:
    """Run the command line and exit with the code that docs/reference/errors.md gives."""
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    code = _run()
    if is_reader_gone():
        code = _READER_GONE
    gc.freeze()  # the process ends: nothing is left to look through
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from stillroom.train.ranks import leave

        leave(code)
    sys.exit(code)


def _say_fault(error: Exception) -> int:
    if isinstance(error, ModuleNotFoundError):
        from stillroom.jobs.extras import extra_of

        if extra := extra_of(error.name or ""):
            missing = MissingExtraError.of(str(error.name), extra, "this command")
            _tell(missing.problems, str(missing))
            return missing.exit_code
    if isinstance(error, UnicodeDecodeError) or (
        isinstance(error, OSError) and error.filename is not None
    ):
        return _tell_file(error)
    if "pydantic" in sys.modules:
        from pydantic import ValidationError

        if isinstance(error, ValidationError):
            return _tell_settings(error)
    told = Problem(
        f"{type(error).__name__}: {error}",
        "internal",
        expected="no such error: it is a fault of Stillroom's",
        next="run again with --debug and report the traceback",
    )
    _tell([told], str(told))
    return 1


def _tell_settings(error: ValidationError) -> int:
    """Report settings of a command that their method refuses."""
    problems: list[Problem] = []
    for one in error.errors(include_url=False):
        inner = one.get("ctx", {}).get("error")
        if isinstance(inner, StillroomError):
            problems += inner.problems
            continue
        place = ".".join(map(str, one["loc"])) or "the settings"
        problems.append(
            Problem(f"{place}: {one['msg']}", "recipe.value", next=_say_where_listed(error.title))
        )
    refused = RecipeError(problems)
    _tell(refused.problems, str(refused))
    return refused.exit_code


def _say_where_listed(title: str) -> str:
    """Return where the settings of a class are listed: by its method's name, if it is a method."""
    from stillroom.registry.listing import find_seams, names_in

    names = [name for folder in find_seams().values() for name in names_in(folder)]
    found = next((name for name in names if name.replace("_", "") == title.lower()), "")
    return f"stillroom show {found} lists its settings" if found else "see --help of the command"


def _tell_file(error: OSError | UnicodeDecodeError) -> int:
    """Report a file that the system refuses (by name, permissions, type), or that is no text."""
    if isinstance(error, UnicodeDecodeError):
        what = f"a file is not UTF-8 text: {error.reason} at byte {error.start}"
        expected, next_step = "a text file in UTF-8", "check the files given; --debug shows which"
    else:
        name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
        what = f"{error.strerror or type(error).__name__}: {name!s:.200}"
        expected = "a path that the system lets this user read or write"
        next_step = "check the path, its permissions and what lies there"
    refused = ResourceError(what, code="resource.file", expected=expected, next=next_step)
    _tell(refused.problems, str(refused))
    return refused.exit_code


def _tell(problems: Sequence[Problem], text: str = "") -> None:
    """Say what is wrong on standard error, and with --json on standard output, if it has nothing.

    So what a program reads there is one JSON value, however the command ends.
    """
    if text:
        click.echo(text, err=True)
    if "--json" in sys.argv and not has_printed_json():
        print_json({"problems": [asdict(one) for one in problems]})


def is_reader_gone() -> bool:
    """Return whether who read our output has closed it, as ``head`` does; what is left is dropped.

    The signal that would end the process instead (SIGPIPE) stays ignored, as Python has it: it
    would end a server, too, whenever a client breaks off at the wrong moment.
    """
    gone = False
    for stream in (sys.stdout, sys.stderr):
        try:
            place = stream.fileno()
            asking = select.poll()
            asking.register(place, 0)
            if not any(found & select.POLLERR for _, found in asking.poll(0)):
                continue
        except (OSError, ValueError, AttributeError):
            continue  # no file, or a system without poll
        gone = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, place)  # the interpreter flushes once more as it ends
        os.close(nowhere)
    return gone


def _quieten() -> None:
    """Keep libraries from drawing bars and warnings: ours are the ones the user reads."""
    for name, value in (
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("HF_HUB_DISABLE_TELEMETRY", "1"),
        ("TOKENIZERS_PARALLELISM", "false"),
    ):
        os.environ.setdefault(name, value)


def _wait_passively() -> None:
    """Let idle threads of OpenMP sleep at a barrier, where they would spin.

    Spinning threads take the cores from the one that they wait for: beside other work a step of
    training took five times as long. Torch reads this once, as it is imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _spare_triton() -> None:
    """Let torch do without triton where no card is there that it could compile for.

    Importing it takes time, and as a process ends it fills the screen with leaks of its bindings
    (3.9, as torch 2.15 brings it). Torch's builds for processors come without it.
    """
    if not any(os.path.exists(device) for device in _CARDS):  # noqa: PTH110
        sys.modules.setdefault("triton", None)  # type: ignore[arg-type]  # what import reads as no


def _run() -> int:
    _quieten()
    _wait_passively()
    _spare_triton()
    debug = "--debug" in sys.argv
    out, err = sys.stdout, sys.stderr
    try:
        # None lets click decide by the terminal, which alone is not what NO_COLOR asks.
        color = False if os.environ.get("NO_COLOR") else None
        code = stillroom.main(standalone_mode=False, color=color)
        # A command that ends with a code has it returned here, not raised; others return nothing.
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        error.show()
        _tell([Problem(error.format_message(), "usage", next="see --help of the command")])
        return 2
    except (click.Abort, KeyboardInterrupt):
        told = Problem("interrupted" + _say_how_to_go_on(), "job.cancelled")
        _tell([told], told.what)
        return 130
    except StillroomError as error:
        if debug:
            raise
        _tell(error.problems, _fit_screen(error))
        return error.exit_code
    except SystemExit:
        if sys.stdout is out:
            raise
        # click wraps both streams and ends so on any broken pipe: our output's, or a socket's.
        sys.stdout, sys.stderr = out, err
        return _READER_GONE if is_reader_gone() else _say_fault(BrokenPipeError("a peer went"))
    except Exception as error:
        if debug:
            raise
        return _say_fault(error)


def _say_how_to_go_on() -> str:
    """Return the hint for commands that leave something to go on with."""
    words = sys.argv[1:3]
    is_resumable = words[:1] in (["make"], ["run"]) or words == ["rag", "index"]
    return "; run the same command again with --resume" if is_resumable else ""


def _fit_screen(error: StillroomError) -> str:
    """Return an error's problems, as many as one screen holds, and the count of the others."""
    texts = [str(problem) for problem in error.problems]
    heights = [text.count("\n") + 1 for text in texts]
    if len(texts) == 1 or sum(heights) <= _SCREEN_LINES:
        return "\n".join(texts)
    shown, height = 1, heights[0]
    while height + heights[shown] < _SCREEN_LINES:
        height += heights[shown]
        shown += 1
    return "\n".join([*texts[:shown], f"and {len(texts) - shown} more; --debug shows them all"])
