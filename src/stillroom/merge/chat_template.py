"""The chat template of a merge: what most models have, a known one, or a text of the user's own."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from stillroom.errors import RecipeError
from stillroom.jobs import atomic_write

__all__ = [
    "KNOWN_TEMPLATES",
    "choose_chat_template",
    "read_chat_template",
    "write_chat_template",
]

_FILE = "chat_template.jinja"
KNOWN_TEMPLATES = {
    "alpaca": "{% set heads = {'user': '### Instruction:\\n', 'assistant': '### Response:\\n'} %}"
    "{% for message in messages %}{% if not loop.first %}{{ '\\n\\n' }}{% endif %}"
    "{{ heads.get(message['role'], '') + message['content'] | trim }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\n### Response:\\n' }}{% endif %}",
    "chatml": "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "exaone": "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}[|system|][|endofturn|]\n{% endif %}"
    "[|{{ message['role'] }}|]{{ message['content'] }}"
    "{% if message['role'] != 'user' %}[|endofturn|]{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}[|assistant|]{% endif %}",
    "llama3": "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>{{ '\\n\\n' }}"
    "{% endif %}",
    "mistral": "{% set has_system = messages[0]['role'] == 'system' %}"
    "{% set turns = messages[1:] if has_system else messages %}"
    "{{ bos_token }}{% for message in turns %}"
    "{% if message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') %}"
    "{{ raise_exception('user and assistant take turns, after one system message at most') }}"
    "{% endif %}{% if message['role'] == 'user' %} [INST] "
    "{% if loop.first and has_system %}{{ messages[0]['content'] + '\\n\\n' }}{% endif %}"
    "{{ message['content'] }} [/INST]"
    "{% else %} {{ message['content'] + eos_token }}{% endif %}{% endfor %}",
}
"""Templates by name: ours, of the forms that their makers published."""


def read_chat_template(folder: Path) -> str:
    """Return a checkpoint's chat template; empty where it has none."""
    if (folder / _FILE).is_file():
        return (folder / _FILE).read_text(encoding="utf-8")
    try:
        named = json.loads((folder / "tokenizer_config.json").read_bytes()).get("chat_template")
    except (OSError, ValueError, AttributeError):
        return ""
    return named if isinstance(named, str) else ""


def choose_chat_template(wanted: str, sources: Sequence[Path]) -> str:
    """Return the text of a merge's chat template; empty where ``auto`` finds none to take.

    Args:
        wanted: ``auto``, the name of a known one, or a Jinja text.
        sources: The models' folders, the base first.

    Raises:
        RecipeError: If it is none of these.
    """
    if wanted == "auto":
        found = Counter(text for source in sources if (text := read_chat_template(source)))
        return found.most_common(1)[0][0] if found else ""
    text = KNOWN_TEMPLATES.get(wanted, wanted if "{" in wanted else "")
    if not text:
        raise RecipeError(
            f"there is no chat template '{wanted:.60}'",
            code="merge.chat-template",
            where="chat_template",
            expected=f"auto, {', '.join(KNOWN_TEMPLATES)}, or a Jinja text",
            next="give the text of the template itself",
        )
    return text


def write_chat_template(wanted: str, sources: Sequence[Path], folder: Path) -> None:
    """Write the chat template of the result, where there is one.

    Args:
        wanted: As ``choose_chat_template`` takes it.
        sources: The models' folders, the base first.
        folder: The result's.

    Raises:
        RecipeError: If it is no template.
    """
    text = choose_chat_template(wanted, sources)
    if not text:
        return
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
