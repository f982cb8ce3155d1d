"""A fuzzer of the command line: every command's options and every recipe's settings.

Each call runs in a fork of this process, in a fresh copy of a small world of files. A call fails
where it ends in an internal error, a traceback or a signal; any other error is an answer. A job
that ends well fails where it wrote NaN, or counts that do not add up.

    python -m tests.fuzz.commands 10000 --seed 0

At the end it says which commands and kinds of recipe got through (exit 0), and how often.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import importlib
import json
import os
import pkgutil
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import click
from ruamel.yaml import YAML

from tests.fuzz.world import FITTING, make_world, place_recipe

SECONDS = 20
_BAD = re.compile(r"\[internal\]|Traceback \(most recent call last\)")
_TEXTS = (
    "", "a", "é ß 漢", "\udc80", "../x", "a b", "-", "--", "=", "k=v", "k=", "[1,", "{}", "null",
    "nan", "1e999", "x" * 300, "\x1b[31m", "hub:nobody/nothing", "http://127.0.0.1:9/v1#m", "http://",
    "file:", "scripted:script.json", "builtin:static", "postgresql://127.0.0.1:9/x", "s3://", "ray",
    "ray:x", "%s", "2020-01-01", "year >= 2020", "1,2", "0.1:0.9", "0-5", "1MB", "cpu", "cuda",
)  # fmt: skip
_NUMBERS = (
    "0",
    "1",
    "-1",
    "2",
    "7",
    "0.5",
    "1.5",
    "-0.1",
    "1e308",
    "nan",
    "inf",
    "99999999999999999999",
    "x",
    "",
)
_VALUES = (
    None, True, False, 0, 1, -1, 2, 3, 0.5, 1.5, -0.25, 1e308, 10**12, "", "a", "é", "model",
    "missing", "records.jsonl", "documents", [], [1], ["a"], {}, {"a": 1}, "x" * 300,
    "hub:nobody/nothing",
)  # fmt: skip


def call(argv: list[str], folder: Path, *, seconds: float = SECONDS) -> tuple[int, str]:
    """Run the command line in a fork within ``folder``; return its exit code and what it printed.

    A call that outlasts ``seconds`` is ended; its code is then 124.
    """
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if not child:
            _run(argv, folder, output.fileno())
        deadline = time.monotonic() + seconds
        code = None
        while code is None and time.monotonic() < deadline:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                code = os.waitstatus_to_exitcode(status)
            else:
                time.sleep(0.005)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        if code is None:
            os.waitpid(child, 0)
            code = 124
        output.seek(0)
        return code, output.read(200_000).decode("utf-8", "replace")


def _run(argv: list[str], folder: Path, output: int) -> None:
    """Be the command; never returns."""
    code = 70
    try:
        os.setsid()
        os.chdir(folder)
        os.environ["STILLROOM_LAB"] = str(folder / "lab")
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", closefd=False, errors="backslashreplace")
        sys.argv = ["stillroom", *argv]
        from stillroom.cli import main

        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # noqa: BLE001  # reported as the traceback that it is
        import traceback

        os.write(2, traceback.format_exc().encode("utf-8", "replace"))
    finally:
        os._exit(code)


_TOTALS = (("kept", "fell"), ("kept", "contaminated", "unchecked"))
"""Counts of an artifact's details that together are the records read."""


def find_silent_faults(folder: Path) -> list[str]:
    """Return what a job that ended well wrote and cannot be: NaN in JSON, counts that differ."""
    faults: list[str] = []
    for path in sorted(folder.rglob("*.json*")):
        text = path.read_text(encoding="utf-8", errors="replace")
        rows = text.splitlines() if path.suffix == ".jsonl" else [text]
        constants: list[str] = []
        try:
            values = [json.loads(row, parse_constant=constants.append) for row in rows if row]
        except ValueError:  # a journal, whose lines start with a digest
            continue
        faults += [f"{path.name} holds {constant}" for constant in dict.fromkeys(constants)]
        details = values[0].get("details") if path.name == "artifact.json" else None
        for names in _TOTALS:
            if isinstance(details, dict) and {"read", *names} <= details.keys():
                total = sum(details[name] for name in names)
                if total != details["read"]:
                    faults.append(f"{details['read']} read, {' + '.join(names)} is {total}")
    return faults


def list_commands(
    group: click.Group, path: tuple[str, ...] = ()
) -> list[tuple[tuple[str, ...], click.Command]]:
    """Return every command that is no group, with the words that call it."""
    context = click.Context(group)
    found = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            found += list_commands(command, (*path, name))
        elif command is not None:
            found.append(((*path, name), command))
    return found


def draw_call(
    rng: random.Random, path: tuple[str, ...], command: click.Command, places: list[str]
) -> list[str]:
    """Return a call of a command: each argument, and some options, with values of any kind."""
    argv = list(path)
    # Half of the calls name plausible things only, and few options, to get further.
    eager = rng.random() < 0.5
    share = 0.12 if eager else 0.3
    for parameter in command.params:
        is_option = isinstance(parameter, click.Option)
        wanted = parameter.required or (not is_option) or rng.random() < share
        if not wanted or not parameter.expose_value or parameter.name == "resume":
            continue
        count = (
            rng.choice([1, 1, 2])
            if getattr(parameter, "multiple", False) or parameter.nargs == -1
            else 1
        )
        for _ in range(count):
            if is_option:
                argv.append(rng.choice(parameter.opts))
                if parameter.is_flag or parameter.count:
                    continue
            argv += [
                draw_value(rng, parameter, places, eager) for _ in range(max(parameter.nargs, 1))
            ]
    return argv


def draw_value(
    rng: random.Random, parameter: click.Parameter, places: list[str], eager: bool
) -> str:
    """Return a value for a parameter, of its own kind more often than not."""
    kind, name = parameter.type, (parameter.name or "").lower()
    if eager and name in FITTING:
        return rng.choice(FITTING[name])
    if not eager and rng.random() < 0.3:
        return rng.choice((*_TEXTS, *_NUMBERS, *places))
    if isinstance(kind, click.Choice):
        return str(rng.choice(list(kind.choices)))
    if isinstance(kind, click.types.IntParamType | click.types.FloatParamType):
        return rng.choice(("1", "2", "0", "3")) if eager else rng.choice(_NUMBERS)
    if name in ("out", "to", "destination", "file") and rng.random() < 0.7:
        return "out/new"
    if isinstance(kind, click.Path) or name in FITTING:
        return rng.choice(places)
    return rng.choice((*_TEXTS, *places))


def draw_recipe(rng: random.Random, recipes: list[tuple[str, str]], folder: Path) -> list[str]:
    """Write a recipe with one to three changed settings; return the call that checks or runs it."""
    name, text = rng.choice(recipes)
    yaml = YAML(typ="safe", pure=True)
    data = place_recipe(yaml.load(text), name)
    if rng.random() < 0.4:
        _swap_method(rng, data)
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        _change(rng, data)
    with (folder / "fuzzed.yaml").open("w", encoding="utf-8") as file:
        json.dump(data, file)  # JSON is YAML
    if rng.random() < 0.6:
        return ["check", "fuzzed.yaml"]
    return ["run", "fuzzed.yaml", "--out", "out/new", "--quiet"]


def list_recipes() -> list[tuple[str, str]]:
    """Return a commented recipe of every kind, example and method, with its name.

    A method comes once, with the kind of the shortest recipe that can choose it.
    """
    from stillroom.recipes.schema import find_recipe_class
    from stillroom.recipes.template import _list_registries, render_template
    from stillroom.registry.catalog import list_examples, list_kind_names

    found: dict[str, str] = {}  # name by text
    seen = set()
    for kind in sorted(list_kind_names(), key=lambda kind: len(render_template(kind))):
        names = [None, *list_examples(kind)]
        for registry in _list_registries(find_recipe_class(kind)):
            for method in registry.names():
                if (registry.group, method) not in seen:
                    seen.add((registry.group, method))
                    names.append(method)
        for name in dict.fromkeys(names):
            found.setdefault(render_template(kind, name), f"{kind}/{name}")
    return [(name, text) for text, name in found.items()]


def _swap_method(rng: random.Random, tree) -> None:
    """Put another method of the same registry, with its own settings, in the place of one."""
    from stillroom.registry.catalog import find_registries, list_names

    registries = [list_names(folder) for folder in find_registries().values()]
    places = [
        (holder, key, names)
        for holder, key in _leaves(tree)
        for value in [holder[key]]
        if isinstance(value, dict) and isinstance(value.get("name"), str)
        for names in registries
        if value["name"] in names
    ]
    if places:
        holder, key, names = rng.choice(places)
        holder[key] = {"name": rng.choice(sorted(names))}


def _change(rng: random.Random, tree) -> None:
    """Change one setting of a tree: another value, an unknown key, or one that is missing."""
    leaves = list(_leaves(tree))
    holder, key = rng.choice(leaves)
    turn = rng.random()
    if turn < 0.08 and isinstance(holder, dict):
        holder["unknown"] = copy.deepcopy(rng.choice(_VALUES))
    elif turn < 0.16:
        del holder[key]
    elif turn < 0.5 and isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
        holder[key] = rng.choice(
            [holder[key] * 2, holder[key] + 1, -holder[key], 0, 1, 1e-9, 10**9]
        )
    else:
        holder[key] = copy.deepcopy(rng.choice(_VALUES))


def _leaves(tree):
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield tree, key
        if isinstance(value, dict | list):
            yield from _leaves(value)


def _read_kind(folder: Path) -> str:
    value = json.loads((folder / "fuzzed.yaml").read_text(encoding="utf-8"))
    return str(value.get("kind"))[:40]


def fuzz(count: int, seed: int, *, report=print) -> Counter:
    """Make calls; return how many ended how. Each new kind of failure is reported once."""
    import transformers  # noqa: F401  # once, in the parent of every fork

    import stillroom as package
    from stillroom.cli.app import stillroom

    for module in pkgutil.walk_packages(package.__path__, "stillroom."):
        if module.name == "stillroom.__main__":
            continue
        with contextlib.suppress(ImportError):  # an extra that is not installed
            importlib.import_module(module.name)
    gc.freeze()
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"
    ended: Counter = Counter()
    reached: Counter = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        world = Path(scratch) / "world"
        make_world(world, call)
        places = [
            *sorted(path.name for path in world.iterdir()),
            *("missing", "out/new", "documents/0.md", "media/0.png"),
            *("index/artifact.json", "run/artifact.json", "run/steps/index", "made/claims.jsonl"),
        ]
        commands = [
            one for one in list_commands(stillroom) if one[0] not in (("console",), ("serve",))
        ]
        recipes = list_recipes()
        for number in range(count):
            if number and number % 100 == 0:
                report(f"{number} calls, {ended['failed']} failed")
            rng = random.Random(f"{seed}/{number}")
            folder = Path(scratch) / "call"
            shutil.copytree(world, folder, symlinks=True)
            (folder / "out").mkdir()
            if rng.random() < 0.5:
                argv = draw_recipe(rng, recipes, folder)
            else:
                path, command = rng.choice(commands)
                argv = draw_call(rng, path, command, places)
            code, text = call(argv, folder)
            kind = "failed" if _BAD.search(text) or code < 0 or code == 70 else f"exit {code}"
            silent = [] if code else find_silent_faults(folder / "out")
            if silent:
                kind, text = "failed", f"[internal] exit 0, and {'; '.join(silent)}"
            ended[kind] += 1
            name = f"{argv[0]} {_read_kind(folder)}" if "fuzzed.yaml" in argv else " ".join(path)
            reached[name] += code == 0
            if kind == "failed":
                line = next(
                    (one for one in text.splitlines() if "[internal]" in one), text.strip()[-300:]
                )
                key = re.sub(r"[\d.]+|/\S+|'[^']*'", "#", line)[:100]
                ended[f"  {key}"] += 1
                if ended[f"  {key}"] == 1:
                    recipe = (folder / "fuzzed.yaml").read_text() if "fuzzed.yaml" in argv else ""
                    report(f"call {number}: {argv}\n  exit {code}: {line}\n  {recipe[:3000]}")
            shutil.rmtree(folder, ignore_errors=True)
    done = [f"{name} {count}" for name, count in sorted(reached.items()) if count]
    report(f"exit 0: {', '.join(done)}")
    report(f"never exit 0: {', '.join(sorted(set(reached) - set(+reached)))}")
    return ended


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    totals = fuzz(options.count, options.seed, report=lambda line: print(line, flush=True))
    for name, number in totals.most_common():
        print(f"{number:6} {name}")
    sys.exit(totals["failed"] > 0)
