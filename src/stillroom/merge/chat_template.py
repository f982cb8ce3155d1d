"""The chat template of a merge: what most models have, a known one, or a text of the user's own."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from stillroom.errors import RecipeError
from stillroom.jobs import atomic_write

__all__ = ["read_chat_template", "write_chat_template"]

_FILE = "chat_template.jinja"
_KNOWN = {
    "chatml": "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
}


def read_chat_template(folder: Path) -> str:
    """Return a checkpoint's chat template; empty where it has none."""
    if (folder / _FILE).is_file():
        return (folder / _FILE).read_text(encoding="utf-8")
    try:
        named = json.loads((folder / "tokenizer_config.json").read_bytes()).get("chat_template")
    except (OSError, ValueError, AttributeError):
        return ""
    return named if isinstance(named, str) else ""


def write_chat_template(wanted: str, sources: Sequence[Path], folder: Path) -> None:
    """Write the chat template of the result.

    Args:
        wanted: ``auto``, the name of a known one, or a Jinja text.
        sources: The models' folders, the base first.
        folder: The result's.

    Raises:
        RecipeError: If it is none of these, or no model has one.
    """
    if wanted == "auto":
        found = Counter(text for source in sources if (text := read_chat_template(source)))
        text = found.most_common(1)[0][0] if found else ""
    else:
        text = _KNOWN.get(wanted, wanted if "{" in wanted else "")
    if not text:
        raise RecipeError(
            "no model has a chat template"
            if wanted == "auto"
            else f"there is no chat template '{wanted:.60}'",
            code="merge.chat-template",
            where="chat_template",
            expected=f"auto, {', '.join(_KNOWN)}, or a Jinja text",
            next="give the text of the template itself",
        )
    _drop_from_config(folder / "tokenizer_config.json")
    with atomic_write(folder / _FILE) as file:
        file.write(text)


def _drop_from_config(path: Path) -> None:
    """Take a template out of a tokenizer's config, which would count beside the file."""
    if not path.is_file():
        return
    values = json.loads(path.read_bytes())
    if values.pop("chat_template", None) is not None:
        with atomic_write(path) as file:
            file.write(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
