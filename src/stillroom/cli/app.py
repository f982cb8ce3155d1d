"""Root command, lazy loading of commands, error messages and exit codes (exit status).

An error class has its number: ``exit_code``.
"""

from __future__ import annotations

import gc
import importlib
import os
import re
import select
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from io import StringIO, TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stillroom import __version__
from stillroom.cli.options import Utf8Command, list_examples
from stillroom.cli.output import has_printed_json, print_json, print_text
from stillroom.errors import (
    Problem,
    RecipeError,
    ResourceError,
    StillroomError,
)

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem
    from pydantic import ValidationError

__all__ = ["CommandGroup", "command_group", "is_output_closed", "main", "stillroom"]

_SCREEN_LINES = 24
_LIKENESS_ELSEWHERE = 0.75  # of a command of another group
_BROKEN_PIPE_CODE = 141  # exit code that shells report for a process ended by a closed pipe
# Importing modules creates long-lived objects; a collection every 700 allocations (Python's
# default) took a tenth of a small command's time.
_GC_THRESHOLD = 50_000
_GPU_DEVICES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/nvmap", "/dev/kfd", "/dev/dxg")
"""Device files of the drivers of NVIDIA (also on Jetson and WSL) and AMD."""
_DECLARED = re.compile(
    r'^@command(?:_group)?\(\s*"(?P<name>[\w-]+)".*?^def .*?:\n    """(?P<help>.*?)(?:"""|\n)',
    re.MULTILINE | re.DOTALL,
)


class CommandGroup(click.Group):
    """Group whose commands are imported when they are called.

    They are the ``NAME_command`` and ``NAME_group`` of the modules of ``package``, found in their
    source text with the first line of their help; without a package, they are added as usual.
    """

    command_class = Utf8Command

    def __init__(self, *args: Any, package: str = "", **kwargs: Any) -> None:
        """Store the package; import nothing."""
        super().__init__(*args, **kwargs)
        self.package = package

    @cached_property
    def found(self) -> dict[str, tuple[str, str]]:
        """Module and help line of each command, by name."""
        rows = {}
        if self.package:
            folder = Path(__file__).parent.parent.joinpath(*self.package.split(".")[1:])
            for path in [*folder.glob("[!_]*.py"), *folder.glob("*/__init__.py")]:
                text = path.read_text(encoding="utf-8")
                module = path.stem if path.parent == folder else path.parent.name
                for match in _DECLARED.finditer(text):
                    rows[match["name"]] = f"{self.package}.{module}", match["help"]
            rows.pop(self.name, None)
        for name, command in self.commands.items():
            rows[name] = "", (command.help or "").partition("\n")[0]
        return dict(sorted(rows.items()))

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, sorted."""
        return list(self.found)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in self.found or cmd_name in self.commands:
            return self.commands.get(cmd_name)
        module = importlib.import_module(self.found[cmd_name][0])
        name = cmd_name.replace("-", "_")
        command = getattr(module, f"{name}_command", None) or getattr(module, f"{name}_group", None)
        if not isinstance(command, click.Command):
            raise TypeError(f"{cmd_name} is not a command")
        return command

    def subcommand(
        self, name: str, *examples: str
    ) -> Callable[[Callable[..., Any]], click.Command]:
        """Return the decorator of a command of this group whose help ends with examples."""
        return self.command(name, epilog=list_examples(*examples))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command, or suggest the nearest one."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            hint = _suggest(_find_group(ctx), args) if args else ""
            message = f"{error.message.rstrip('.')}; {hint}" if hint else error.message
            raise click.UsageError(message, ctx) from error

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete names with their help lines, without importing the commands."""
        from click.shell_completion import CompletionItem

        items = [
            CompletionItem(name, help=line)
            for name, (_, line) in self.found.items()
            if name.startswith(incomplete)
        ]
        return [*items, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List names and help lines without importing the commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in self.found.items()])
        from stillroom.registry.catalog import list_kind_names

        kinds = [kind for kind in list_kind_names() if kind.startswith(f"{self.name}.")]
        if kinds:
            with formatter.section("Jobs (stillroom run KIND)"):
                formatter.write_text(", ".join(kinds))


def _suggest(own: tuple[str, ...], args: Sequence[str]) -> str:
    """Return the commands, or the kinds of jobs, that may be meant in the group ``own``; or ''.

    Commands are named with their groups: those of this name in any group, else the nearest in this
    group, else the nearest in all.
    """
    from stillroom.registry.catalog import find_nearest, list_kind_names

    name, kinds = args[0], list_kind_names()
    room = [kind for kind in kinds if own and kind.startswith(f"{own[0]}.")]
    parts = [kind for kind in room if name in kind.rpartition(".")[2]]
    exact = [kind for kind in parts or kinds if kind.endswith(f".{name}")]
    paths = list(_list_commands(stillroom))
    meant = [path for path in paths if path[-1] == name]
    if exact and (parts or not meant):
        return f"it is a kind of job: stillroom run {' or '.join(exact)}"
    if not meant:
        near = find_nearest(name, [path[-1] for path in paths if path[:-1] == own])
        meant = [(*own, near)] if near else []
    if parts and not meant:
        return f"it is a kind of job: stillroom run {' or '.join(parts)}"
    if not meant:
        near = find_nearest(name, [path[-1] for path in paths], _LIKENESS_ELSEWHERE)
        meant = [path for path in paths if path[-1] == near]
    whole = []
    for path in meant:
        inner = [longer[-1] for longer in paths if longer[:-1] == path]
        near = find_nearest(args[1], inner) if args[1:] else ""
        whole.append(" ".join(("stillroom", *path, near)).rstrip())
    return f"did you mean {' or '.join(map(repr, whole))}?" if whole else ""


def _find_group(ctx: click.Context) -> tuple[str, ...]:
    """Return the names of a group and of those around it, without the root."""
    above = _find_group(ctx.parent) if ctx.parent else ()
    return (*above, ctx.command.name or "") if ctx.parent else ()


def _list_commands(group: CommandGroup, *above: str) -> Iterator[tuple[str, ...]]:
    """Yield the path of every command and group; commands of the root are imported."""
    for name in group.found:
        yield (*above, name)
        command = group.get_command(click.Context(group), name)
        if isinstance(command, CommandGroup):
            yield from _list_commands(command, *above, name)


def command_group(
    name: str, *examples: str, package: str = ""
) -> Callable[[Callable[[], None]], CommandGroup]:
    """Return the decorator of a group of commands whose help ends with examples."""
    return click.group(name, cls=CommandGroup, package=package, epilog=list_examples(*examples))


@command_group(
    "stillroom",
    "stillroom make ./documents --out run",
    'stillroom ask run "What does the with statement do?"',
    package="stillroom.cli",
)
@click.version_option(__version__, prog_name="stillroom")
def stillroom() -> None:
    """Turn your documents into a small model you own, and prove what made it."""


def main() -> None:
    """Run the command line and exit with the code that docs/reference/errors.md gives."""
    gc.set_threshold(_GC_THRESHOLD)
    code = _run()
    if is_output_closed():
        code = _BROKEN_PIPE_CODE
    gc.freeze()  # the process ends: the objects need no collection
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from stillroom.train.distributed import exit_process

        exit_process(code)
    sys.exit(code)


def _report_unexpected_error(error: Exception) -> int:
    if isinstance(error, ModuleNotFoundError):
        from stillroom.jobs.extras import find_missing_extra

        if missing := find_missing_extra(error):
            _report_problems(missing.problems, str(missing))
            return missing.exit_code
    if isinstance(error, UnicodeDecodeError) or (
        isinstance(error, OSError) and error.filename is not None
    ):
        return _report_file_error(error)
    if "pydantic" in sys.modules:
        from pydantic import ValidationError

        if isinstance(error, ValidationError):
            return _report_invalid_settings(error)
    problem = Problem(
        f"{type(error).__name__}: {error}",
        "internal",
        expected="a Stillroom error; this is a bug",
        next="run again with --debug and report the traceback",
    )
    _report_problems([problem], str(problem))
    return 1


def _report_invalid_settings(error: ValidationError) -> int:
    """Report settings that a method's class refuses."""
    problems: list[Problem] = []
    for error_detail in error.errors(include_url=False):
        inner = error_detail.get("ctx", {}).get("error")
        if isinstance(inner, StillroomError):
            problems += inner.problems
            continue
        location = ".".join(map(str, error_detail["loc"])) or "the settings"
        problems.append(
            Problem(
                f"{location}: {error_detail['msg']}",
                "recipe.value",
                next=_find_settings_hint(error.title),
            )
        )
    refused = RecipeError(problems)
    _report_problems(refused.problems, str(refused))
    return refused.exit_code


def _find_settings_hint(title: str) -> str:
    """Return the hint to where the settings of a class are listed: a method's name, or --help."""
    from stillroom.registry.catalog import find_registries, list_names

    names = [name for folder in find_registries().values() for name in list_names(folder)]
    method = next((name for name in names if name.replace("_", "") == title.lower()), "")
    return f"stillroom show {method} lists its settings" if method else "see --help of the command"


def _report_file_error(error: OSError | UnicodeDecodeError) -> int:
    """Report a file that the system refuses (name, permissions, type), or that is not UTF-8."""
    if isinstance(error, UnicodeDecodeError):
        message = f"a file is not UTF-8 text: {error.reason} at byte {error.start}"
        expected, next_step = "a text file in UTF-8", "check the files given; --debug shows which"
    else:
        name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
        message = f"{error.strerror or type(error).__name__}: {name!s:.200}"
        expected = "a path that this user may read or write"
        next_step = "check the path and its permissions"
    refused = ResourceError(message, code="resource.file", expected=expected, next=next_step)
    _report_problems(refused.problems, str(refused))
    return refused.exit_code


def _report_problems(problems: Sequence[Problem], text: str = "") -> None:
    """Print problems on standard error; with --json also on standard output, if it is empty.

    Standard output then holds one JSON value, however the command ends.
    """
    if text:
        print_text(text, err=True)
    if "--json" in sys.argv and not has_printed_json():
        print_json({"problems": [asdict(problem) for problem in problems]})


def is_output_closed() -> bool:
    """Return whether the reader of the output has closed it, as ``head`` does; drop the rest.

    SIGPIPE, which would end the process instead, stays ignored, as Python sets it: it would also
    end a server whenever a client disconnects.
    """
    is_closed = False
    for stream in (sys.stdout, sys.stderr):
        try:
            descriptor = stream.fileno()
            asking = select.poll()
            asking.register(descriptor, 0)
            if not any(events & select.POLLERR for _, events in asking.poll(0)):
                continue
        except (OSError, ValueError, AttributeError):
            continue  # not a file descriptor, or a system without poll
        is_closed = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)  # the interpreter flushes again at exit
        os.close(nowhere)
    return is_closed


def _silence_libraries() -> None:
    """Disable the progress bars and warnings of libraries."""
    for name, value in (
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("HF_HUB_DISABLE_TELEMETRY", "1"),
        ("TOKENIZERS_PARALLELISM", "false"),
    ):
        os.environ.setdefault(name, value)


def _set_passive_wait() -> None:
    """Make idle OpenMP threads sleep at a barrier instead of spinning.

    Spinning threads take the cores from the thread that they wait for: beside other work a training
    step took five times as long. Torch reads this once, when it is imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _disable_triton() -> None:
    """Keep torch from importing triton without a GPU that triton could compile for.

    The import takes time, and at exit it prints leak reports of its bindings (3.9, as shipped with
    torch 2.15). CPU builds of torch come without it.
    """
    if not any(os.path.exists(device) for device in _GPU_DEVICES):  # noqa: PTH110
        sys.modules.setdefault("triton", None)  # type: ignore[arg-type]  # what import reads as no


def _run() -> int:
    _silence_libraries()
    _set_passive_wait()
    _disable_triton()
    debug = "--debug" in sys.argv
    out, err = sys.stdout, sys.stderr
    if isinstance(out, TextIOWrapper):
        out.reconfigure(errors="surrogateescape")  # file names as the bytes that they are
    try:
        # None lets click decide by the terminal alone, which ignores NO_COLOR.
        color = False if os.environ.get("NO_COLOR") else None
        code = stillroom.main(standalone_mode=False, color=color)
        # A command that exits with a code has it returned here, not raised; others return nothing.
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        shown = StringIO()
        error.show(shown)
        print_text(shown.getvalue(), nl=False, err=True)  # it names what was typed
        _report_problems(
            [Problem(error.format_message(), "usage", next="see --help of the command")]
        )
        return 2
    except (click.Abort, KeyboardInterrupt):
        problem = Problem("interrupted" + _find_resume_hint(), "job.cancelled")
        _report_problems([problem], problem.what)
        return 130
    except StillroomError as error:
        if debug:
            raise
        _report_problems(error.problems, _truncate_to_screen(error))
        return error.exit_code
    except SystemExit:
        if sys.stdout is out:
            raise
        # click wraps both streams and exits this way on any broken pipe: of standard output, or of
        # a socket.
        sys.stdout, sys.stderr = out, err
        return (
            _BROKEN_PIPE_CODE
            if is_output_closed()
            else _report_unexpected_error(BrokenPipeError("a peer closed the connection"))
        )
    except Exception as error:
        if debug:
            raise
        return _report_unexpected_error(error)


_RESUMABLE = {("rag", name) for name in ("eval", "graph", "index")}


def _find_resume_hint() -> str:
    """Return the hint for commands that can continue an interrupted job."""
    words = sys.argv[1:3]
    is_resumable = words[:1] in (["make"], ["run"]) or tuple(words) in _RESUMABLE
    return "; run the same command again with --resume" if is_resumable else ""


def _truncate_to_screen(error: StillroomError) -> str:
    """Return the problems of an error that fit on one screen, and the number of the others."""
    texts = [str(problem) for problem in error.problems]
    heights = [text.count("\n") + 1 for text in texts]
    if len(texts) == 1 or sum(heights) <= _SCREEN_LINES:
        return "\n".join(texts)
    shown, height = 1, heights[0]
    while height + heights[shown] < _SCREEN_LINES:
        height += heights[shown]
        shown += 1
    return "\n".join([*texts[:shown], f"and {len(texts) - shown} more; --debug shows them all"])
