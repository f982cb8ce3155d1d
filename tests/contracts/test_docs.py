"""What the documentation shows works: Python runs, recipes parse, commands exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from stillroom.cli.app import stillroom
from stillroom.evaluate.qa.questions import read_question_set
from stillroom.recipes import load_recipe, parse_recipe
from stillroom.registry.catalog import list_kinds
from tests.contracts.sources import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
_FENCE = re.compile(
    r"^(?P<mark><!-- not run: [^\n]+ -->\n)?```(?P<language>\w+)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
LANGUAGES = {"python", "bash", "yaml", "text", "toml", "json", "math", "csv"}


def blocks(language):
    for page in PAGES:
        for match in _FENCE.finditer(page.read_text(encoding="utf-8")):
            if match["language"] == language and not match["mark"]:
                yield pytest.param(match["body"], id=f"{page.relative_to(ROOT)}:{match.start()}")


def test_every_block_names_a_language_that_is_checked():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert text.count("\n```") % 2 == 0, page
        assert {match["language"] for match in _FENCE.finditer(text)} <= LANGUAGES, page


@pytest.mark.parametrize("body", list(blocks("python")))
def test_python_runs(body, tmp_path):
    subprocess.run([sys.executable, "-c", body], check=True, cwd=tmp_path, capture_output=True)


@pytest.mark.parametrize("body", list(blocks("csv")))
def test_csv_is_a_set_of_questions(body, tmp_path):
    (tmp_path / "questions.csv").write_text(body, encoding="utf-8")
    assert read_question_set(tmp_path / "questions.csv")


@pytest.mark.parametrize("body", list(blocks("yaml")))
def test_recipe_parses(body):
    if "version: 1" in body:
        parse_recipe(body, "docs")


@pytest.mark.parametrize("body", list(blocks("bash")))
def test_commands_exist_with_these_options_and_settings(body):
    for line in body.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and "=" in words[0]:
            words = words[1:]
        if words[:1] != ["stillroom"]:
            continue
        command, context, rest = stillroom, click.Context(stillroom), words[1:]
        while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
            name, command, rest = command.resolve_command(context, rest)
            context = click.Context(command, info_name=name, parent=context)
        if "--help" not in rest and "--version" not in rest:
            rest = rest[: rest.index(">")] if ">" in rest else rest
            given = command.make_context(command.name, rest, parent=context.parent).params
            if str(given.get("recipe")) in list_kinds():
                load_recipe(given["recipe"], given["overrides"])


_INLINE = re.compile(r"\$`([^`\n]+)`\$")


def test_formulas_can_be_drawn():
    convert = pytest.importorskip("latex2mathml.converter").convert
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = [match["body"] for match in _FENCE.finditer(text) if match["language"] == "math"]
        for formula in (*blocks, *_INLINE.findall(text)):
            assert "<math" in convert(formula), (page, formula)


def test_generated_pages_are_current():
    script = ROOT / "scripts" / "write_reference.py"
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\nrun scripts/write_reference.py"


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 200


def test_no_file_names_a_path_of_the_machine_it_was_written_on():
    words = re.compile(r"(?<![\w.~])/(?:home|root|Users|work|tmp)/[\w.]")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    hits = []
    for name in listed:
        path = ROOT / name
        if path.suffix not in {".py", ".md", ".toml", ".yaml", ".yml"} or path == Path(__file__):
            continue
        if words.search(path.read_text(encoding="utf-8", errors="replace")):
            hits.append(name)
    assert not hits


@pytest.mark.parametrize(
    "path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name
)
def test_example_recipe_is_valid_and_says_how_it_is_run(path):
    recipe = load_recipe(path)
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith(f"# stillroom run recipes/{path.name} --out ")
    assert recipe.version == 1
