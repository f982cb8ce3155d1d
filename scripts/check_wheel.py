"""Build the wheel and the sdist, and use the wheel as a stranger would who has nothing else.

The wheel must hold every file of the package that is tracked, and no other; installed without
extras into a fresh environment, the core commands must work, and what needs an extra must name it.

    python scripts/check_wheel.py [--python /path/to/python3.13 ...]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_MERGE = """\
version: 1
kind: merge.weights
method: {name: linear}
models:
  - {model: ./a, weight: 0.6}
  - {model: ./b, weight: 0.4}
"""
_INDEX = """\
version: 1
kind: rag.index
documents: ./documents
embedder: builtin:static
"""
_TINY = """\
from pathlib import Path
from stillroom.testing import tiny_checkpoint
tiny_checkpoint(Path("a"), seed=0)
tiny_checkpoint(Path("b"), seed=1)
"""
_IMPORT_ALL = """\
import importlib, json, pkgutil, sys
from pathlib import Path

name, allowed = sys.argv[1], set(json.loads(sys.argv[2]))
package = importlib.import_module(name)
missing = getattr(importlib.import_module(name + ".errors"), "MissingExtraError")
absent, broken, tried = set(), [], 0

def walk(folders, before):  # pkgutil.walk_packages passes over what lies in one that fails
    global tried
    for module in pkgutil.iter_modules(folders, before + "."):
        if module.name == name + ".__main__":
            continue
        tried += 1
        try:
            importlib.import_module(module.name)
        except missing:
            absent.add(module.name)
        except ModuleNotFoundError as error:
            lacking = (error.name or "?").partition(".")[0]
            if lacking in allowed:
                absent.add(lacking)
            else:
                broken.append(f"{module.name} needs {error.name}")
        if module.ispkg:
            inside = module.name.rpartition(".")[2]
            walk([str(Path(folder) / inside) for folder in folders], module.name)

walk(list(package.__path__), name)
if broken:
    sys.exit("of no extra, and not installed with the package: " + "; ".join(broken))
print(tried, "modules; extras absent:", ", ".join(sorted(absent)))
"""
_NOT_FOR_USERS = {"all", "dev", "docs", "release"}


def main() -> None:
    """Build, compare, install and try."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", action="append", help="an interpreter; may be repeated")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "build" / "dist", help="for what is built"
    )
    given = parser.parse_args()
    wheel = build(given.out)
    for python in given.python or [sys.executable]:
        with tempfile.TemporaryDirectory(prefix="stillroom-wheel-") as folder:
            try_wheel(wheel, python, Path(folder))


def build(out: Path) -> Path:
    """Build both distributions and compare what they hold with what is tracked."""
    run([sys.executable, "-m", "hatchling", "build", "-d", str(out)], ROOT)
    wheel = max(out.glob("stillroom-*.whl"), key=lambda path: path.stat().st_mtime)
    sdist = max(out.glob("stillroom-*.tar.gz"), key=lambda path: path.stat().st_mtime)
    listed = run(["git", "ls-files", "-co", "--exclude-standard", "src/stillroom"], ROOT)
    tracked = {line.removeprefix("src/") for line in listed.splitlines()}
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    if packed != tracked:
        sys.exit(f"the wheel differs from what is tracked: {sorted(packed ^ tracked)[:20]}")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    lacking = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"} - names
    lacking |= {f"src/{name}" for name in tracked} - names
    if lacking:
        sys.exit(f"the sdist lacks {sorted(lacking)[:20]}")
    print(f"{wheel.name}: {len(packed)} files, {wheel.stat().st_size / 1e6:.1f} MB; {sdist.name}")
    return wheel


def try_wheel(wheel: Path, python: str, folder: Path) -> None:
    """Install the wheel alone and use it in an empty folder."""
    run([python, "-m", "venv", str(folder / "venv")], folder)
    bin_ = folder / "venv" / "bin"
    run(
        [str(bin_ / "pip"), "install", "--quiet", "-c", str(ROOT / "constraints.txt"), str(wheel)],
        folder,
    )
    inside, stillroom = str(bin_ / "python"), str(bin_ / "stillroom")
    version = run([inside, "--version"], folder).strip()
    print(f"{version}: {run([stillroom, '--version'], folder).strip()}")
    words = [inside, "-W", "ignore", "-c", _IMPORT_ALL, "stillroom", json.dumps(list_optional())]
    print(run(words, folder).strip())
    told = json.loads(run([stillroom, "doctor", "--json"], folder))
    run([stillroom, "doctor"], folder)
    run([stillroom, "make", "--help"], folder)
    run([stillroom, "list", "methods"], folder)
    (folder / "documents").mkdir()
    (folder / "documents" / "a.txt").write_text("The still is warm.\n", encoding="utf-8")
    (folder / "index.yaml").write_text(_INDEX, encoding="utf-8")
    run([stillroom, "run", "index.yaml", "--out", "index", "--quiet"], folder)
    run([stillroom, "rag", "search", "index", "warm"], folder)
    run([stillroom, "verify", "index"], folder)
    if "torch" in list_installed(inside, folder):
        sys.exit("the core install brings torch, which belongs to the extra 'models'")
    refuse(
        [stillroom, "distill", "align", "hub:a/b", "hub:c/d", "index.yaml"],
        folder,
        "pip install 'stillroom[models]'",
    )
    pip = [str(bin_ / "pip"), "install", "--quiet", "-c", str(ROOT / "constraints.txt")]
    run([*pip, f"{wheel}[models]"], folder)
    run([inside, "-c", _TINY], folder)
    (folder / "merge.yaml").write_text(_MERGE, encoding="utf-8")
    run([stillroom, "check", "merge.yaml"], folder)
    run([stillroom, "run", "merge.yaml", "--out", "merged", "--quiet"], folder)
    run([stillroom, "verify", "merged"], folder)
    for words, extra in (
        (["checkpoint", "export", "merged", "--to", "gguf", "--out", "m.gguf"], "gguf"),
        (["serve", "merged"], "serve"),
        (["forensics", "check", "a"], "forensics"),
    ):
        refuse([stillroom, *words], folder, f"pip install 'stillroom[{extra}]'")
    print(f"{version}: core commands work, and missing extras are named ({told['version']})")


def list_installed(python: str, folder: Path) -> set[str]:
    """Return the names of the packages that an interpreter has."""
    listed = json.loads(run([python, "-m", "pip", "list", "--format", "json"], folder))
    return {_plain(package["name"]) for package in listed}


def list_optional() -> list[str]:
    """Return the modules that extras bring, and what these stand on, as they are installed here."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    core = _stand_on(map(_plain, declared["dependencies"]))
    extras = {
        _plain(line)
        for extra, lines in declared["optional-dependencies"].items()
        if extra not in _NOT_FOR_USERS
        for line in lines
    }
    optional = _stand_on(extras) - core - {"stillroom"}
    named = {
        module
        for module, packages in packages_distributions().items()
        if {_plain(package) for package in packages} & optional
    }
    return sorted(named | {name.replace("-", "_") for name in optional})


def _stand_on(names: Iterable[str]) -> set[str]:
    """Return packages and all that they need without extras; of those not installed, themselves."""
    found: set[str] = set()
    waiting = [*names]
    while waiting:
        name = waiting.pop()
        if name in found or name == "stillroom":
            continue
        found.add(name)
        try:
            needed = requires(name) or []
        except PackageNotFoundError:
            continue
        waiting += [_plain(line) for line in needed if "extra ==" not in line]
    return found


def _plain(requirement: str) -> str:
    """Return a package's name as indexes compare it."""
    name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


def refuse(words: Sequence[str], folder: Path, said: str) -> None:
    """Run a command that must end with exit code 3 and say ``said``."""
    done = subprocess.run(
        words, cwd=folder, capture_output=True, text=True, check=False, env=_bare()
    )
    if done.returncode != 3 or said not in done.stderr:
        sys.exit(
            f"{' '.join(words)}\nended with {done.returncode}, without {said!r}:\n{done.stderr}"
        )


def run(words: Sequence[str], folder: Path) -> str:
    """Run a command that must succeed, and return what it printed."""
    done = subprocess.run(
        words, cwd=folder, capture_output=True, text=True, check=False, env=_bare()
    )
    if done.returncode != 0:
        sys.exit(f"{' '.join(words)}\nended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def _bare() -> dict[str, str]:
    """Return the environment without what would let the checkout be imported."""
    dropped = {"PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME"}
    return {key: value for key, value in os.environ.items() if key not in dropped}


if __name__ == "__main__":
    main()
