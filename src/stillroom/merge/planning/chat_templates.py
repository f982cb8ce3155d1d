"""Chat template of a merge: the sources' most common one, a known one by name, or a Jinja text."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from stillroom.checkpoints.config_file import find_file, open_config
from stillroom.errors import RecipeError
from stillroom.jobs import atomic_write
from stillroom.provenance.digests import load_json

__all__ = ["KNOWN_TEMPLATES", "choose_chat_template", "read_chat_template", "write_chat_template"]

_FILE = "chat_template.jinja"
_TRANSFORMERS_TAG = re.compile(r"\{%[-+]?\s*(?:end)?generation\s*[-+]?%\}")
"""A tag that transformers adds to Jinja: it marks what the model says."""

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
"""Templates by name, written here for the formats that their publishers documented."""


def read_chat_template(folder: Path) -> str:
    """Return a checkpoint's chat template; empty if it has none.

    Raises:
        CheckpointError: If its file is a link that leads out of the checkpoint.
    """
    file = find_file(_FILE, folder)
    if file is not None:
        return file.read_text(encoding="utf-8")
    config = find_file("tokenizer_config.json", folder)
    try:
        named = load_json(config.read_bytes()).get("chat_template") if config else ""
    except (OSError, ValueError, AttributeError):
        return ""
    return named if isinstance(named, str) else ""


def choose_chat_template(template: str, sources: Sequence[Path]) -> str:
    """Return the text of a merge's chat template; empty if ``auto`` finds none.

    Args:
        template: ``auto``, the name of a known template, or a Jinja text.
        sources: The models' folders, the base first.

    Raises:
        RecipeError: If the template is unknown or no Jinja.
    """
    if template == "auto":
        counts = Counter(text for source in sources if (text := read_chat_template(source)))
        return counts.most_common(1)[0][0] if counts else ""
    text = KNOWN_TEMPLATES.get(template, template if "{" in template else "")
    if not text:
        raise RecipeError(
            f"unknown chat template '{template:.60}'",
            code="merge.chat-template",
            where="chat_template",
            expected=f"auto, {', '.join(KNOWN_TEMPLATES)}, or a Jinja text",
            next="pass the text of the template",
        )
    if template not in KNOWN_TEMPLATES:
        _check_syntax(text)
    return text


def _check_syntax(text: str) -> None:
    from jinja2 import Environment, TemplateError

    plain = _TRANSFORMERS_TAG.sub("", text)
    try:
        Environment(extensions=["jinja2.ext.loopcontrols"]).parse(plain)  # noqa: S701  # not run
    except (TemplateError, RecursionError, ValueError) as error:  # nested too deep; long numbers
        reason = str(error).partition("\n")[0]
        raise RecipeError(
            f"the text {text[:60]!r} is no Jinja template: {reason}",
            code="merge.chat-template",
            where="chat_template",
            expected=f"auto, {', '.join(KNOWN_TEMPLATES)}, or a Jinja text",
            next="correct the text of the template",
        ) from error


def write_chat_template(template: str, sources: Sequence[Path], folder: Path) -> None:
    """Write the chat template of the result, if there is one.

    Raises:
        RecipeError: If the template is unknown or no Jinja.
    """
    text = choose_chat_template(template, sources)
    if not text:
        return
    _drop_from_config(folder / "tokenizer_config.json")
    with atomic_write(folder / _FILE) as file:
        file.write(text)


def _drop_from_config(path: Path) -> None:
    """Remove the template from a tokenizer's config, which would conflict with the file."""
    if not path.is_file():
        return
    values = open_config(path)
    if values.pop("chat_template", None) is not None:
        with atomic_write(path) as file:
            file.write(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
