"""Peers in environments of their own, made once under build/peers."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def peer_command(package: str, version: str, command: str) -> Path:
    """Return the path of a peer's command, installing the peer on first use.

    Args:
        package: Its name on PyPI.
        version: The version that figures are compared with.
        command: The console script. ``STILLROOM_PEER_<PACKAGE>`` may name one that is there.
    """
    named = os.environ.get(f"STILLROOM_PEER_{package.upper()}")
    if named:
        return Path(named)
    folder = ROOT / "build" / "peers" / f"{package}-{version}"
    path = folder / "bin" / command
    if not path.exists():
        print(f"installing {package} {version} into {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin" / "pip"), "install", "--quiet", f"{package}=={version}"]
        subprocess.run(pip, check=True, stdout=sys.stderr)
    return path


def peer_python(package: str, version: str, *, also: Sequence[str] = ()) -> Path:
    """Return the interpreter of a peer's own environment, installing the peer on first use.

    Args:
        package: Its name on PyPI.
        version: The version that figures are compared with.
        also: Further packages that the peer needs for what is compared; another benchmark may have
            made the environment without them.
    """
    folder = ROOT / "build" / "peers" / f"{package}-{version}"
    path, ready = folder / "bin" / "python", folder / "ready"
    wanted = {f"{package}=={version}", *also}
    missing = sorted(wanted - set(ready.read_text().split() if ready.exists() else ()))
    if missing:
        print(f"installing {' '.join(missing)} into {folder}", file=sys.stderr)
        if not path.exists():
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin" / "pip"), "install", "--quiet", *missing]
        subprocess.run(pip, check=True, stdout=sys.stderr)
        known = ready.read_text().split() if ready.exists() else []
        ready.write_text("\n".join(sorted({*known, *wanted})))
    return path


def peer_folder(
    package: str, version: str, *, module: str | None = None, also: Sequence[str] = ()
) -> Path:
    """Return a folder to add to ``sys.path``: the peer alone, for comparisons within one process.

    Args:
        package: Its name on PyPI; what it needs is taken from the environment it is used in.
        version: The version that figures are compared with.
        module: What it is imported as, where that is not its name.
        also: What it needs and the environment lacks.
    """
    folder = ROOT / "build" / "peers" / f"{package}-{version}"
    if not (folder / (module or package)).is_dir():
        print(f"installing {package} {version} into {folder}", file=sys.stderr)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        pip += ["--target", str(folder), f"{package}=={version}", *also]
        subprocess.run(pip, check=True, stdout=sys.stderr)
    return folder
