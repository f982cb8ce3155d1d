"""Chat templates, with control tokens in messages escaped.

A document may contain a control token's text (``<|im_start|>``), by accident or to take over the
conversation. ``escape_control_tokens`` breaks such text with a word joiner (U+2060, no width): it
reads the same and is ordinary text to every tokenizer. Text without control tokens is never
changed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from stillroom.errors import BackendError
from stillroom.records import Message, Prompt

__all__ = [
    "escape_control_tokens",
    "escape_found_controls",
    "list_control_tokens",
    "render_chat",
    "render_prompt",
]

_JOINER = "\u2060"
_CONTROL_MARKS = frozenset("<>[]{}|｜▁")


def escape_control_tokens(text: str, tokens: Iterable[str]) -> str:
    """Return the text with a word joiner after the first character of every control token in it."""
    present = sorted((token for token in tokens if len(token) > 1 and token in text), key=len)
    if not present:
        return text
    pattern = re.compile("|".join(re.escape(token) for token in reversed(present)))
    broken = pattern.sub(lambda match: match.group()[0] + _JOINER + match.group()[1:], text)
    # The rest of a broken token may itself be one (<<s>> holds <s>): go on until none is left.
    return escape_control_tokens(broken, present) if broken != text else broken


def escape_found_controls(text: str, find: Callable[[str], Iterable[str]]) -> str:
    """Return the text with every control token escaped that ``find`` still reads in it.

    Args:
        text: Foreign text.
        find: Returns the text of the control tokens that a tokenizer reads in a string.

    Raises:
        BackendError: If control tokens are left after several rounds.
    """
    for _ in range(8):
        broken = escape_control_tokens(text, find(text))
        if broken == text:
            return text
        text = broken
    raise BackendError(
        "a document's text is read as control tokens however it is escaped",
        code="backend.control-tokens",
        where=text[:80],
        expected="text that is data to the tokenizer",
        next="remove the control tokens from the document",
    )


def list_control_tokens(tokenizer: Any) -> list[str]:
    """Return the text of every token that a tokenizer reads as control, longest first."""
    found = {str(token) for token in tokenizer.all_special_tokens}
    for token in getattr(tokenizer, "added_tokens_decoder", {}).values():
        if token.special or (_CONTROL_MARKS & set(token.content)):
            found.add(token.content)
    return sorted((token for token in found if token.strip()), key=lambda t: (-len(t), t))


def render_chat(
    tokenizer: Any, messages: Sequence[Message], add_generation_prompt: bool = True
) -> str:
    """Return the messages as the tokenizer's chat template writes them.

    Control tokens within the messages are escaped; those of the template are not. A tokenizer
    without a template gets plain paragraphs, each headed by its role.

    Raises:
        BackendError: If the template refuses the messages (an unknown role, a wrong order).
    """
    tokens = list_control_tokens(tokenizer)
    turns = [
        {"role": message.role, "content": escape_control_tokens(message.content, tokens)}
        for message in messages
    ]
    if not getattr(tokenizer, "chat_template", None):
        lines = [f"{turn['role'].capitalize()}: {turn['content']}" for turn in turns]
        return "\n\n".join([*lines, "Assistant:"] if add_generation_prompt else lines)
    try:
        text = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except Exception as error:  # a template is foreign code: any error is its refusal
        raise BackendError(
            f"the chat template refuses these messages: {error}",
            code="backend.template",
            expected="roles in the order the model was trained on",
            next="drop the system message, or let user and assistant take turns",
        ) from error
    return str(text)


def render_prompt(tokenizer: Any, prompt: Prompt) -> str:
    """Return the string a prompt stands for: raw text as it is, messages through the template.

    The prompt's ``prefix`` follows as the beginning of the assistant's turn. Raw text keeps its
    control tokens: who writes it has written the template too.
    """
    if not prompt.messages:
        return prompt.text + prompt.prefix
    text = render_chat(tokenizer, prompt.messages, add_generation_prompt=True)
    return text + escape_control_tokens(prompt.prefix, list_control_tokens(tokenizer))
