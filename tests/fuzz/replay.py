"""Digests of what commands and recipes leave, to compare two states of the code.

Every call runs twice, each time in a fresh copy of another world of the fuzzer. What differs
between the two runs (times, identifiers of processes) is left out; of the rest one digest a file
is written. Files of events, which log progress by the clock, are not compared.

    python -m tests.fuzz.replay before.json            # before a change
    python -m tests.fuzz.replay after.json --against before.json
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import importlib
import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz.commands import call, list_recipes
from tests.fuzz.world import make_world, place_recipe

SECONDS = 120
_MODULE = re.compile(
    r"stillroom(/[a-z_0-9]+)+\.py"
    r"|\b(stillroom|diffusion|distill|evaluate|forensics|merge|models|rag|synth|text)(\.[a-z_0-9]+)+"
)
_VOLATILE = re.compile(
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[\d.+:Z]*|\b\d+([.,]\d+)? ?"
    r"(s|ms|min|h|MB|GB|MiB|GiB|KiB|B|%|/s)\b|0x[0-9a-f]{6,}|\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]{22}\b"
)
_SCRATCH = re.compile(re.escape(tempfile.gettempdir()) + r"/\w+(/first|/second)")
_TEXT = {".json", ".jsonl", ".md", ".html", ".txt", ".yaml", ".svg", ".csv", ".tsv", ".log", ".err"}

CALLS: tuple[str, ...] = (
    "ask index 'What did the mill of town 3 grind?' --model scripted:script.json",
    "check merge.yaml",
    "attest model --format card --out out/card.md",
    "checkpoint export model --to gguf --out out/new",
    "diffusion convert model --out out/new",
    "diffusion score model --records records.jsonl",
    "distill align model other documents/0.md",
    "run distill.prune teacher=model records=records.jsonl student.layers=1 --out out/new",
    "distill texts documents --tokenizer model --out out/new",
    "check distill.yaml --load",
    "forensics check media/0.png",
    "forensics consent media --who A --basis B --scope sbi --expires 2090-01-01 --out out/new",
    "forensics provenance verify media/0.png",
    "forensics trace media/0.png",
    "list kinds",
    "list methods",
    "list backends",
    "list jobs .",
    "make documents --out out/new",
    "merge adapters model other --out out/new",
    "merge calibrate model other --records records.jsonl --for fisher --out out/new",
    "merge extract other --base model --out out/new",
    "merge inspect model other",
    "merge plan merge.yaml",
    "merge run merge.yaml --out out/new",
    "run merge.transplant donor=model target=other --out out/new",
    "merge verify merged",
    "rag compact index",
    "rag delete index 0.md",
    "run rag.graph index=index --out out/new",
    "rag index documents --out out/new embedder=builtin:static",
    "rag log index",
    "rag migrate index out/new",
    "rag search index 'mill of town 3'",
    "rag search index 'mill of town 3' --json",
    "rag search index mill --pipeline keywords",
    "rag update index",
    "rag verify index",
    "run merge.yaml --out out/new",
    "show index",
    "show index --lineage",
    "show merged --lineage",
    "show merged",
    "run synth.decontaminate records=[records.jsonl] against=[records.jsonl] --out out/new",
    "run synth.dedup records=[records.jsonl] --out out/new",
    "synth export records.jsonl --out out/new",
    "run synth.diversity generations=[records.jsonl,records.jsonl] --out out/new",
    "verify index",
    "verify merged",
    "completion bash",
    "doctor",
)


def read_tree(folder: Path) -> dict[str, bytes]:
    """Return every file under a folder by its path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def normalize(name: str, content: bytes, folder: str) -> list[bytes]:
    """Return a file as the parts that are compared: lines of text, or all of its bytes."""
    if Path(name).suffix not in _TEXT:
        return [content]
    text = _SCRATCH.sub("WORLD", content.decode("utf-8", "replace").replace(folder, "WORLD"))
    if name.endswith(".json"):
        with contextlib.suppress(ValueError):
            text = json.dumps(json.loads(text), indent=0, sort_keys=True, ensure_ascii=False)
    text = _VOLATILE.sub("#", _MODULE.sub("MODULE", text))
    return [line.encode() for line in text.split("\n")]


def digest_call(argv: list[str], worlds: list[Path], recipe: str | None) -> dict[str, str]:
    """Run a call twice; return its exit code and the digest of every file it left or changed."""
    runs: list[dict[str, list[bytes]]] = []
    codes = []
    for world in worlds:
        before = read_tree(world)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "call"
            shutil.copytree(world, folder, symlinks=True)
            (folder / "out").mkdir()
            if recipe is not None:
                (folder / "replayed.yaml").write_text(recipe, encoding="utf-8")
            code, text = call(argv, folder, seconds=SECONDS)
            codes.append(code)
            if code == 124:
                return {"exit": "too slow"}
            (folder / "printed.txt").write_text(text, encoding="utf-8")
            after = read_tree(folder)
            runs.append(
                {
                    name: normalize(name, content, str(folder))
                    for name, content in after.items()
                    if before.get(name) != content and not name.endswith("events.jsonl")
                }
            )
    first, second = runs
    digests = {"exit": str(codes[0])}
    for name in sorted(first.keys() & second.keys()):
        one, two = first[name], second[name]
        if len(one) == len(two):
            same = [a if a == b else b"~" for a, b in zip(one, two, strict=True)]
            if same != [b"~"]:
                digests[name] = hashlib.sha256(b"\n".join(same)).hexdigest()[:16]
    return digests


def list_calls() -> dict[str, tuple[list[str], str | None]]:
    """Return every call by its name: the commands, then a run and a check of every recipe."""
    import shlex

    from ruamel.yaml import YAML

    calls: dict[str, tuple[list[str], str | None]] = {
        line: (shlex.split(line), None) for line in CALLS
    }
    yaml = YAML(typ="safe", pure=True)
    for name, text in list_recipes():
        calls[f"new {name}"] = (["new", name.removesuffix("/None")], None)
        tree = place_recipe(yaml.load(text), name)
        placed = json.dumps(tree)
        calls[f"check {name}"] = (["check", "replayed.yaml"], placed)
        calls[f"run {name}"] = (["run", "replayed.yaml", "--out", "out/new", "--quiet"], placed)
    return calls


def replay(out: Path, *, only: str, part: int, parts: int) -> dict[str, dict[str, str]]:
    """Run every ``parts``-th call whose name contains ``only``; write and return their digests."""
    import transformers  # noqa: F401  # once, in the parent of every fork

    import stillroom as package

    for module in pkgutil.walk_packages(package.__path__, "stillroom."):
        if module.name != "stillroom.__main__":
            with contextlib.suppress(ImportError):  # an extra that is not installed
                importlib.import_module(module.name)
    gc.freeze()
    os.environ["HF_HUB_OFFLINE"] = "1"
    digests = {}
    with tempfile.TemporaryDirectory() as scratch:
        worlds = [Path(scratch) / "first", Path(scratch) / "second"]
        for world in worlds:
            make_world(world, call)
        calls = [(name, value) for name, value in list_calls().items() if only in name]
        for number, (name, (argv, recipe)) in enumerate(calls[part::parts]):
            digests[name] = digest_call(argv, worlds, recipe)
            if number % 50 == 0 or digests[name]["exit"] == "too slow":
                print(f"{part}: {number} of {len(calls) // parts}: {name}", flush=True)
    out.write_text(json.dumps(digests, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return digests


def replay_apart(out: Path, *, only: str, parts: int) -> dict[str, dict[str, str]]:
    """Replay in several processes, which do not share threads with the forks of their calls."""
    files = [out.with_suffix(f".{part}") for part in range(parts)]
    children = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.fuzz.replay", str(file), "--only", only),
                *("--part", str(part), "--parts", str(parts)),
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for part, file in enumerate(files)
    ]
    if any([child.wait() for child in children]):
        raise SystemExit("a part of the replay failed")
    digests = {}
    for file in files:
        digests.update(json.loads(file.read_text(encoding="utf-8")))
        file.unlink()
    out.write_text(json.dumps(digests, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return digests


def compare(before: dict[str, dict[str, str]], after: dict[str, dict[str, str]]) -> list[str]:
    """Return a line for every file that is not as it was; calls that took too long are left out."""
    lines = []
    for name in sorted(before.keys() | after.keys()):
        one, two = before.get(name, {}), after.get(name, {})
        if "too slow" in (one.get("exit"), two.get("exit")):
            continue
        lines += [
            f"{name}: {file}: {one.get(file)} -> {two.get(file)}"
            for file in sorted(one.keys() | two.keys())
            if one.get(file) != two.get(file)
        ]
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--part", type=int)
    parser.add_argument("--parts", type=int, default=2)
    options = parser.parse_args()
    if options.part is not None:
        replay(options.out, only=options.only, part=options.part, parts=options.parts)
        sys.exit()
    found = replay_apart(options.out, only=options.only, parts=options.parts)
    print(f"{len(found)} calls, {sum(one['exit'] == '0' for one in found.values())} succeed")
    if options.against:
        differences = compare(json.loads(options.against.read_text()), found)
        print("\n".join(differences) or "equal")
        sys.exit(bool(differences))
