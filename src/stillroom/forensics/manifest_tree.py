"""The tree of a file's content credentials: what was made from what, by whom, as signed."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from stillroom.jobs import plain_line

__all__ = ["draw_manifest_tree", "manifest_lines"]

_DEEPEST = 12


def manifest_lines(store: Mapping[str, Any]) -> list[tuple[int, str]]:
    """Return the tree as lines with their depth, the active manifest first.

    Args:
        store: The manifest store, as c2pa-python reads it out.
    """
    lines: list[tuple[int, str]] = []
    manifests = store.get("manifests", {})
    _walk(manifests, str(store.get("active_manifest", "")), 0, lines, set())
    return lines


def draw_manifest_tree(store: Mapping[str, Any]) -> str:
    """Return the tree as nested HTML lists; every text of the file is escaped."""
    parts, depth = [], -1
    for level, line in manifest_lines(store):
        while depth < level:
            parts.append('<ul class="tree">')
            depth += 1
        while depth > level:
            parts.append("</ul>")
            depth -= 1
        parts.append(f"<li>{escape(plain_line(line))}</li>")
    return "".join(parts) + "</ul>" * (depth + 1)


def _walk(
    manifests: Mapping[str, Any],
    label: str,
    depth: int,
    lines: list[tuple[int, str]],
    seen: set[str],
) -> None:
    manifest = manifests.get(label)
    if not isinstance(manifest, Mapping) or label in seen or depth > _DEEPEST:
        return
    seen.add(label)
    info = manifest.get("signature_info") or {}
    signer = info.get("issuer") or "nobody named"
    time = f", {info['time']}" if info.get("time") else ", no timestamp"
    lines.append((depth, f"{manifest.get('title') or 'untitled'}, signed by {signer}{time}"))
    for assertion in manifest.get("assertions", []):
        lines += [(depth + 1, said) for said in _say(assertion)]
    for part in manifest.get("ingredients", []):
        said = f"{part.get('relationship', 'ingredient')}: {part.get('title') or 'untitled'}"
        inner = str(part.get("active_manifest", ""))
        lines.append((depth + 1, said if inner in manifests else f"{said}, without credentials"))
        _walk(manifests, inner, depth + 2, lines, seen)


def _say(assertion: Mapping[str, Any]) -> list[str]:
    label, data = str(assertion.get("label", "")), assertion.get("data")
    if label.startswith("c2pa.actions") and isinstance(data, Mapping):
        return [_say_action(action) for action in data.get("actions", [])]
    if label == "c2pa.soft-binding":
        return ["bound to a watermark"]
    if label.startswith("c2pa.hash"):
        return []
    if isinstance(data, Mapping):
        said = ", ".join(
            f"{key} {value}"
            for key, value in data.items()
            if isinstance(value, str | int | float) and not str(key).startswith("@")
        )
        return [f"{label}: {said[:300]}" if said else label]
    return [label]


def _say_action(action: Mapping[str, Any]) -> str:
    kind = str(action.get("digitalSourceType", "")).rsplit("/", 1)[-1]
    parts = [str(action.get("action", "action")), kind, str(action.get("description") or "")]
    return ", ".join(part for part in parts if part)
