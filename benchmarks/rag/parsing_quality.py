"""What readers find in real documents, and what it costs, beside markitdown and docling.

A table of scores a file and in all, with intervals over files; processor seconds and memory. Texts
are ``../shared/data/documents`` (STILLROOM_DOCUMENTS names another folder); docling's readers of
PDF need models from a hub and are left out. ``STILLROOM_BENCH_OCR=1`` lets us read pictures.
"""

import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from parsing_scores import score
from parsing_truth import truth_of
from peers import peer_python

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("STILLROOM_DOCUMENTS", ROOT.parent / "shared/data/documents"))
MEASURES = ("text", "order", "cells", "headings", "titles")
DOCLING = {".docx", ".pptx", ".xlsx", ".html"}
PEERS = {
    "markitdown": ("markitdown", "0.1.9", ["markitdown[all]==0.1.9"]),
    "docling": (
        "docling-slim",
        "2.143.0",
        ["docling-slim[convert-core,format-office,format-web]==2.143.0"],
    ),
}


def run_reader(name: str, paths: list[Path]) -> dict[Path, dict[str, Any]]:
    """Have one reader read all files in a process of its own."""
    python = Path(sys.executable)
    environment = dict(os.environ)
    if name in PEERS:
        package, version, also = PEERS[name]
        python = peer_python(package, version, also=also)
        environment.pop("PYTHONPATH", None)
    worker = Path(__file__).with_name("parsing_worker.py")
    done = subprocess.run(
        [str(python), str(worker), name, *map(str, paths)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
        check=True,
    )
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {Path(one["path"]): one for one in told}


def main() -> None:
    """Print the scores of every file, the means by kind, and the costs."""
    wanted = sorted(path for path in DATA.rglob("*") if path.is_file())
    known = {path: truth_of(path, path.relative_to(DATA).as_posix()) for path in wanted}
    paths = [path for path in wanted if known[path] is not None]
    if not paths:
        raise SystemExit(f"no documents in {DATA}; set STILLROOM_DOCUMENTS")
    results = {name: run_reader(name, paths) for name in ("stillroom", *PEERS)}
    means: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for path in paths:
        found = known[path]
        assert found is not None
        reference, how = found
        print(f"\n{path.relative_to(DATA)}  (truth: {how})")
        for name, told in results.items():
            one = told[path]
            scores = score(reference, one["text"])
            kind = "pdf" if path.suffix == ".pdf" else "other"
            is_left_out = name == "docling" and path.suffix not in DOCLING
            for measure, value in scores.items():
                if not is_left_out:
                    means[kind, measure, name].append(value)
            shown = "  ".join(f"{key} {scores[key]:.3f}" for key in MEASURES if key in scores)
            error = "no reader without models" if is_left_out else one["error"][:60]
            print(f"  {name:11} {shown}  {1000 * one['cpu']:8.1f} ms  {error}")
    print_means(means, list(results))
    for name, told in results.items():
        for kind in ("pdf", "other"):
            cpu = sum(
                one["cpu"]
                for path, one in told.items()
                if (path.suffix == ".pdf") == (kind == "pdf")
            )
            peak = max(one["peak_kb"] for one in told.values()) / 1024
            print(f"{name:11} {kind:6} {cpu:7.2f} CPU s  peak {peak:.0f} MiB")


def print_means(means: dict[tuple[str, str, str], list[float]], names: list[str]) -> None:
    """Print the mean of each measure over files, with the half-width of its 95 % interval."""
    for kind in ("pdf", "other"):
        print(f"\n{kind}: mean over files, and half of its 95 % interval")
        for measure in MEASURES:
            cells = []
            for name in names:
                values = means.get((kind, measure, name), [])
                if not values:
                    cells.append(f"{name} -")
                    continue
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                half = 1.96 * spread / len(values) ** 0.5
                mean = statistics.mean(values)
                cells.append(f"{name} {mean:.3f} ± {half:.3f} (n={len(values)})")
            print(f"  {measure:9}" + "   ".join(cells))


if __name__ == "__main__":
    main()
