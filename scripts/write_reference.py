"""Write the reference pages that follow from the code: commands, methods and recipes.

With ``--check`` nothing is written; the exit code is 1 if a page is not what it would be.
"""

import argparse
import sys
from pathlib import Path

import click

from stillroom.cli.app import CommandGroup, stillroom
from stillroom.recipes import render_template
from stillroom.registry import list_kinds, list_methods, read_docstring

ROOT = Path(__file__).resolve().parents[1]
HEAD = "<!-- Written by scripts/write_reference.py; edits here are lost. -->\n\n"


def cli_page() -> str:
    """Return the help of every command."""
    lines = ["# Command line", "", "Exit codes: 0 done; 1 the job failed; 2 usage or recipe;"]
    lines += ["3 missing extra or resource; 130 interrupted, and resumable.", ""]

    def add(group: click.Group, path: tuple[str, ...]) -> None:
        context = click.Context(group, info_name=" ".join(path))
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            if command is None:
                continue
            full = (*path, name)
            inner = click.Context(command, info_name=name, parent=context, max_content_width=90)
            lines.extend(
                [f"## {' '.join(full)}", "", "```text", command.get_help(inner), "```", ""]
            )
            if isinstance(command, CommandGroup):
                add(command, full)

    add(stillroom, ("stillroom",))
    return "\n".join(line.rstrip() for line in "\n".join(lines).splitlines()) + "\n"


def methods_page() -> str:
    """Return every method with its docstring and paper, by registry."""
    lines = ["# Methods and papers", ""]
    registry = ""
    for row in list_methods():
        if row.registry != registry:
            registry = row.registry
            lines += [f"## {registry.removeprefix('stillroom.')}", ""]
        lines += [f"### {row.name}", "", read_docstring(row.path), ""]
        if row.paper and row.paper != "none":
            lines += [f"Paper: {row.paper}", ""]
    return "\n".join(lines)


def recipes_page() -> str:
    """Return the commented recipe of every kind."""
    lines = ["# Recipes", "", "What `stillroom new KIND` prints, with every setting explained.", ""]
    for kind, summary in list_kinds().items():
        lines += [
            f"## {kind}",
            "",
            summary,
            "",
            "```yaml",
            render_template(kind).rstrip(),
            "```",
            "",
        ]
    for name, summary in {
        "make": "The main job.",
        "student": "A pruned and distilled student of your own.",
    }.items():
        lines += [f"## flow/{name}", "", summary, "", "```yaml"]
        lines += [render_template("flow", name).rstrip(), "```", ""]
    return "\n".join(lines)


def main() -> None:
    """Write or check every page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    pages = {
        ROOT / "docs/reference/cli.md": HEAD + cli_page(),
        ROOT / "docs/reference/methods.md": HEAD + methods_page(),
        ROOT / "docs/reference/recipes.md": HEAD + recipes_page(),
    }
    stale = []
    for path, text in pages.items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(path)
            if not check:
                path.write_text(text, encoding="utf-8")
    for path in stale:
        print(f"{path.relative_to(ROOT)} {'is stale' if check else 'written'}")
    sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
    main()
