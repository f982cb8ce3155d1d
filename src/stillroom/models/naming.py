"""Which backend reads a checkpoint, where its config.json names one. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["named_backend"]


def named_backend(folder: Path) -> str:
    """Return the backend that a checkpoint names, as a plug-in's do; empty where it names none."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return str(config.get("stillroom_backend") or "") if isinstance(config, dict) else ""
