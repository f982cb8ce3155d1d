"""Declaration of commands, the options that they share, and their parameter types.

Click's own number types accept NaN in any range, since every comparison with it is false.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click
from click.core import ParameterSource
from click.types import FloatParamType

if TYPE_CHECKING:
    from stillroom.provenance import Artifact
    from stillroom.rag.index.view import AccessContext
    from stillroom.recipes import EngineChoice, Recipe

__all__ = [
    "FiniteFloat",
    "FiniteFloatRange",
    "Utf8Command",
    "access_options",
    "build_access",
    "command",
    "count_option",
    "debug_option",
    "device_option",
    "engine_option",
    "existing_path",
    "file_path",
    "flag_option",
    "job_options",
    "json_option",
    "list_examples",
    "mark_option",
    "max_tokens_option",
    "model_is_option",
    "official_option",
    "out_folder_option",
    "output_options",
    "overwrite_option",
    "path_option",
    "paths_option",
    "qrels_options",
    "quiet_option",
    "read_engine",
    "read_job_options",
    "recipe_arguments",
    "refuse_existing_output",
    "refuse_idle_options",
    "replace_option",
    "resolve_qrels",
    "run_job_recipe",
    "run_options",
    "seed_option",
    "settings_option",
    "trust_option",
    "view_options",
]

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


def list_examples(*examples: str) -> str:
    """Return the end of a help text: a command line of the shell on each line, not wrapped."""
    return "\n".join(["\b", "Examples:", *(f"  {example}" for example in examples)])


def command(name: str, *examples: str) -> Callable[[Callable[..., Any]], click.Command]:
    """Return the decorator of a command whose help ends with examples."""
    return click.command(name, cls=Utf8Command, epilog=list_examples(*examples))


class Utf8Command(click.Command):
    """A command whose texts are UTF-8, since records, recipes and artifacts state them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments; what is no UTF-8 must be the name of a file that is there."""
        given = list(args)
        try:
            rest = super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            name = error.option_name
            message = error.message + self._advise_on_dash(given, name)
            raise click.NoSuchOption(name, message, error.possibilities, error.ctx) from error
        for param in self.params:
            value = ctx.params.get(param.name or "")
            for text in value if isinstance(value, tuple) else (value,):
                if isinstance(text, str) and not _is_utf8(text) and not Path(text).exists():
                    raise click.BadParameter(f"{text!a} is not valid UTF-8", ctx, param)
        return rest

    def _advise_on_dash(self, args: Sequence[str], option: str) -> str:
        """Return how text is given that was taken for an option, if it seems to be text."""
        required = [
            param for param in self.params if isinstance(param, click.Argument) and param.required
        ]
        named = [param.name or "" for param in required if param.type is click.STRING]
        dashed = [arg for arg in args if arg.startswith("-")]
        is_lacking = len(args) - len(dashed) == len(required) - 1
        text = next((arg for arg in dashed if arg.startswith(option)), "")
        if not named or not (text and (is_lacking or " " in text.partition("=")[0])):
            return ""
        name, example = named[-1].upper(), shlex.quote(text)
        return f" A {name} that begins with '-' goes after '--', as in: -- {example}"


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class _PathType(click.Path):
    """A path that is not empty; an output's ``.`` and ``..`` become the folder that they name."""

    def __init__(self, *, names_output: bool = False, dir_okay: bool = True) -> None:
        super().__init__(path_type=Path, dir_okay=dir_okay)
        self._names_output = names_output

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if not str(value):
            self.fail("the path is empty", param, ctx)
        path = cast("Path", super().convert(value, param, ctx))
        if not self._names_output:
            return path
        if not _is_utf8(whole := str(path.absolute())):  # jobs state it in JSON and YAML
            self.fail(f"{whole!a} is not valid UTF-8", param, ctx)
        # Work is written beside an output, to a name made from its own.
        path = path.resolve() if path.name in ("", "..") else path
        if not path.name:
            self.fail(f"{path} has no name; name a file or folder in it", param, ctx)
        return path


existing_path = _PathType()
file_path = _PathType(dir_okay=False)
_output_path = _PathType(names_output=True)


def flag_option(*names: str, help: str, **settings: Any) -> Callable[[CommandT], CommandT]:
    """Return the decorator of an option without a value."""
    return click.option(*names, is_flag=True, help=help, **settings)


def path_option(*names: str, help: str, **settings: Any) -> Callable[[CommandT], CommandT]:
    """Return the decorator of an option whose value is a path."""
    path_type = _output_path if "--out" in names else existing_path
    return click.option(*names, type=path_type, help=help, **settings)


def paths_option(*names: str, help: str, **settings: Any) -> Callable[[CommandT], CommandT]:
    """Return the decorator of an option that may be repeated, each time with a path."""
    return click.option(*names, type=existing_path, multiple=True, help=help, **settings)


def settings_option(*names: str, help: str) -> Callable[[CommandT], CommandT]:
    """Return the decorator of an option that may be repeated, each time with KEY=VALUE."""
    return click.option(*names, multiple=True, metavar="KEY=VALUE", help=help)


def refuse_idle_options(names: Collection[str], reason: str) -> None:
    """Refuse options of the running command that were given and would have no effect.

    ``names`` are those of parameters; ``reason`` completes "--option ...".

    Raises:
        UsageError: If one of them was given.
    """
    context = click.get_current_context()
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        if option.name in names and source is not ParameterSource.DEFAULT:
            raise click.UsageError(f"{option.opts[0]} {reason}")


def refuse_existing_output(path: Path | None, option: str = "--out") -> None:
    """Refuse an existing output file, unless --overwrite was given; and that without a file.

    Raises:
        DataError: If the file exists and is not replaced.
        UsageError: If there is no file to replace.
    """
    from stillroom.jobs.files import refuse_existing_file

    if path is None:
        refuse_idle_options({"overwrite"}, f"needs {option}")
    given = click.get_current_context().get_parameter_source("overwrite")
    refuse_existing_file(path, option, overwrite=given is not ParameterSource.DEFAULT)


_MOST = 2**63 - 1  # of a count or seed that numpy, SQLite and iterators take


class _Count(click.IntRange):
    """Whole number in a range, of which help shows no upper bound that 64 bits alone set."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse the number.

        Raises:
            click.BadParameter: If it is not a whole number in range.
        """
        if self.max == _MOST < click.INT.convert(value, param, ctx):
            self.fail(f"{value} is larger than {_MOST}", param, ctx)
        return super().convert(value, param, ctx)

    def _describe_range(self) -> str:
        return f"x>={self.min}" if self.max == _MOST else super()._describe_range()


def count_option(
    *names: str, help: str, least: int = 1, most: int = _MOST, **settings: Any
) -> Callable[[CommandT], CommandT]:
    """Return the decorator of an option whose value is a whole number from ``least`` on."""
    return click.option(*names, type=_Count(least, most), help=help, **settings)


json_option = flag_option("--json", "as_json", help="Print one JSON value.")
out_folder_option = path_option("--out", required=True, help="Output folder.")
overwrite_option = flag_option("--overwrite", help="Replace an existing --out.")
replace_option = flag_option("--overwrite", help="Replace an existing file.", expose_value=False)

mark_option = click.option(
    "--no-mark",
    "is_marked",
    flag_value=False,
    default=True,
    help="Write plain text, without the content credential (C2PA) that states its generator.",
)

quiet_option = flag_option("--quiet", help="Hide the progress bar.")
seed_option = count_option("--seed", default=0, least=0, help="Random seed.")
device_option = click.option("--device", default="auto", help="Device: auto, cpu, cuda, mps.")

max_tokens_option = count_option(
    "--max-tokens", default=512, help="Maximum number of tokens of a record."
)

model_is_option = settings_option(
    "--model-is", help="Model property that its config does not record."
)

trust_option = paths_option("--trust", help="Certificate authorities that you trust, as PEM.")
official_option = paths_option("--official", help="Official C2PA trust list, as PEM.")
debug_option = flag_option("--debug", expose_value=False, help="Show the traceback of an error.")


def recipe_arguments(function: CommandT) -> CommandT:
    """Add RECIPE and [KEY=VALUE]..."""
    function = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")(function)
    return click.argument("recipe", type=existing_path)(function)


def output_options(function: CommandT) -> CommandT:
    """Add --json and --debug."""
    return json_option(debug_option(function))


def run_options(function: CommandT) -> CommandT:
    """Add --json and the options of jobs."""
    return json_option(job_options(function))


def job_options(function: CommandT) -> CommandT:
    """Add --overwrite, --resume, --quiet and --debug."""
    for option in (
        debug_option,
        quiet_option,
        overwrite_option,
        flag_option("--resume", help="Continue an interrupted run."),
    ):
        function = option(function)
    return function


def engine_option(function: CommandT) -> CommandT:
    """Add --engine, the place of execution."""
    return click.option(
        "--engine",
        default="local",
        show_default=True,
        help="Where the job runs: local, ray, or ray:ADDRESS.",
    )(function)


def read_engine(written: str) -> EngineChoice:
    """Return the engine that ``--engine`` names.

    Raises:
        UsageError: If the engine is unknown.
    """
    from stillroom.recipes import EngineChoice

    name, _, address = written.partition(":")
    if written != "local" and (name != "ray" or written == "ray:"):
        raise click.UsageError(f"--engine '{written}' is not local, ray, or ray:ADDRESS")
    return EngineChoice.model_validate({"ray": {"address": address}} if address else written)


def access_options(function: CommandT) -> CommandT:
    """Add --tenant and --principal."""
    for option in (
        click.option(
            "--principal",
            "principals",
            multiple=True,
            help="With --tenant: user or group to read as, named in documents' labels; may be "
            "repeated.",
        ),
        click.option("--tenant", default="", help="Tenant to read as, for an index with tenants."),
    ):
        function = option(function)
    return function


def view_options(function: CommandT) -> CommandT:
    """Add --where, --snapshot, --tenant and --principal: the visible part of an index."""
    function = access_options(function)
    for option in (
        click.option("--snapshot", help="Older state of the index, by number or digest."),
        click.option("--where", default="", help="Filter of documents, such as year >= 2020."),
    ):
        function = option(function)
    return function


class FiniteFloat(FloatParamType):
    """Finite number."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Parse the number.

        Raises:
            click.BadParameter: If it is not a finite number in range.
        """
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"'{value}' is not a finite number.", param, ctx)
        return number


class FiniteFloatRange(FiniteFloat, click.FloatRange):
    """Finite number in a range."""


def qrels_options(function: CommandT) -> CommandT:
    """Add --collection, --split, --queries and --qrels."""
    for option in (
        path_option("--qrels", help="Judgments in TREC's or BEIR's columns, or JSON lines."),
        path_option("--queries", help="JSON lines, or lines of id, tab, text."),
        click.option(
            "--split",
            default="test",
            show_default=True,
            help="Split of the collection's judgments.",
        ),
        path_option("--collection", help="Folder in BEIR's layout."),
    ):
        function = option(function)
    return function


def resolve_qrels(
    collection: Path | None, split: str, queries: Path | None, qrels: Path | None
) -> tuple[Path, Path]:
    """Return the files of queries and judgments; single files override the collection's.

    Raises:
        click.UsageError: If one of them is missing.
    """
    from stillroom.evaluate.qa.collections import find_collection

    if collection is not None:
        files = find_collection(collection, split)
        queries, qrels = queries or files.queries, qrels or files.qrels
    if queries is None or qrels is None:
        raise click.UsageError("give --collection, or --queries and --qrels")
    return queries, qrels


def run_job_recipe(recipe: Recipe, out: Path, options: Mapping[str, Any]) -> Artifact:
    """Run a recipe with the options of ``job_options``."""
    from stillroom.flow import run_recipe

    return run_recipe(recipe, out, **read_job_options(options))


def read_job_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``job_options`` set, by the names of arguments of functions that run jobs."""
    from stillroom.jobs import choose_reporter

    reporter = choose_reporter(quiet=options["quiet"])
    return {
        "resume": options["resume"],
        "overwrite": options["overwrite"],
        "reporter": reporter,
    }


def build_access(tenant: str, principals: Sequence[str]) -> AccessContext | None:
    """Return the access of a tenant, or None without a tenant."""
    from stillroom.rag.index.view import AccessContext

    return AccessContext(tenant, principals) if tenant or principals else None
