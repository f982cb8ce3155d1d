"""Chat template of a prompt (``render_chat``), with control tokens in messages escaped.

A document may contain a control token's text (``<|im_start|>``), by accident or as a prompt
injection. ``escape_control_tokens`` inserts a word joiner (U+2060, zero width), which makes it
ordinary text to every tokenizer and looks the same. Other text is never changed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from stillroom.errors import BackendError
from stillroom.models.tokenization.template_process import make_template_error, render_template
from stillroom.records import Message, Prompt, Record

__all__ = [
    "escape_control_tokens",
    "escape_found_controls",
    "find_tool_problems",
    "list_control_tokens",
    "render_beginnings",
    "render_chat",
    "render_prompt",
]

_JOINER = "\u2060"
_CONTROL_MARKS = frozenset("<>[]{}|｜▁")
_CALL_TOKENS = frozenset({"<tool_call>", "</tool_call>"})


def escape_control_tokens(text: str, tokens: Iterable[str]) -> str:
    """Insert a word joiner after the first character of every control token in a text."""
    present = sorted((token for token in tokens if len(token) > 1 and token in text), key=len)
    if not present:
        return text
    pattern = re.compile("|".join(re.escape(token) for token in reversed(present)))
    broken = pattern.sub(lambda match: match.group()[0] + _JOINER + match.group()[1:], text)
    # The rest of an escaped token may be another one (<<s>> contains <s>): repeat.
    return escape_control_tokens(broken, present) if broken != text else broken


def escape_found_controls(text: str, find: Callable[[str], Iterable[str]]) -> str:
    """Escape every control token that a tokenizer still finds in a text.

    Raises:
        BackendError: If control tokens are left after several rounds.
    """
    for _ in range(8):
        broken = escape_control_tokens(text, find(text))
        if broken == text:
            return text
        text = broken
    raise BackendError(
        "a document's text is parsed as control tokens even after escaping",
        code="backend.control-tokens",
        where=text[:80],
        expected="text without control tokens",
        next="remove the control tokens from the document",
    )


def list_control_tokens(tokenizer: Any) -> list[str]:
    """Return the text of every control token of a tokenizer, longest first."""
    tokens = {str(token) for token in tokenizer.all_special_tokens}
    for token in getattr(tokenizer, "added_tokens_decoder", {}).values():
        if token.special or (_CONTROL_MARKS & set(token.content)):
            tokens.add(token.content)
    return sorted((token for token in tokens if token.strip()), key=lambda t: (-len(t), t))


def render_chat(
    tokenizer: Any,
    messages: Sequence[Message],
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Apply the tokenizer's chat template to messages, and to the definitions of tools.

    With tools, ``<tool_call>`` in an assistant's message is its call, and is not escaped.

    Control tokens within the messages are escaped; those of the template are not. Without a
    template, messages become paragraphs headed by their role, after the begin token if the
    tokenizer adds one, with the end token after every assistant message: a model that is trained on
    them learns to stop, and reads its prompts as it was trained.

    Raises:
        BackendError: If the template refuses the messages (an unknown role, a wrong order), or
            needs more processor time or memory than a template may.
    """
    return render_beginnings(tokenizer, messages, [(len(messages), add_generation_prompt)], tools)[
        0
    ]


def render_beginnings(
    tokenizer: Any,
    messages: Sequence[Message],
    cuts: Sequence[tuple[int, bool]],
    tools: Sequence[Mapping[str, Any]] = (),
) -> list[str]:
    """Apply the chat template to several beginnings of a conversation, as ``render_chat`` does.

    Args:
        tokenizer: A tokenizer of transformers, or one with ``apply_chat_template``.
        messages: The whole conversation.
        cuts: For each text, the number of messages and whether the assistant's turn is opened.
        tools: Definitions of tools, as OpenAI's API has them.

    Raises:
        BackendError: As ``render_chat``.
    """
    tokens = list_control_tokens(tokenizer)
    kept = [token for token in tokens if not (tools and token in _CALL_TOKENS)]
    turns = [
        {
            "role": message.role,
            "content": escape_control_tokens(
                message.content, kept if message.role == "assistant" else tokens
            ),
        }
        for message in messages
    ]
    if not getattr(tokenizer, "chat_template", None):
        begin, end = _find_ends(tokenizer)
        lines = [
            f"{turn['role'].capitalize()}: {turn['content']}{end * (turn['role'] == 'assistant')}"
            for turn in turns
        ]
        return [
            begin + "\n\n".join([*lines[:count], "Assistant:"] if opens else lines[:count])
            for count, opens in cuts
        ]
    extra = {"tools": list(tools)} if tools else {}
    if not turns:  # refused by transformers too
        raise make_template_error("there are none")
    try:
        if not hasattr(tokenizer, "get_chat_template"):  # none of transformers' own
            return [
                str(
                    tokenizer.apply_chat_template(
                        turns[:count], tokenize=False, add_generation_prompt=opens, **extra
                    )
                )
                for count, opens in cuts
            ]
        template = tokenizer.get_chat_template(**extra)
    except Exception as error:  # foreign code may raise anything
        raise make_template_error(error) from error
    return render_template(template, turns, {**tokenizer.special_tokens_map, **extra}, cuts)


def find_tool_problems(tokenizer: Any, records: Sequence[Record]) -> list[tuple[str, str]]:
    """Return what is lost of the tools of records in prompts, each with a way out.

    Definitions that are none, tools that the chat template does not show, and calls in a form that
    it does not use.
    """
    template = str(getattr(tokenizer, "chat_template", None) or "")
    count = sum(bool(record.tools) for record in records)
    unread = sum(bool(record.fields.get("tools")) and not record.tools for record in records)
    problems = []
    if unread:
        problem = "have a field 'tools' that is no list of definitions: it is in no prompt"
        hint = "write it as OpenAI's API has it, or name the field otherwise if it is no tools"
        problems.append((unread, problem, hint))
    if count and "tools" not in template:
        problem = "have tools; the chat template does not show the tools: they are in no prompt"
        hint = "add the tools to the system messages, or choose a model whose template shows them"
        problems.append((count, problem, hint))
    elif count and "<tool_call>" not in template:
        problem = "have tools; their calls are <tool_call>, which the chat template does not use"
        hint = "write the calls in that form, or choose a model whose template has <tool_call>"
        problems.append((count, problem, hint))
    return [(f"{n} of {len(records)} records {problem}", hint) for n, problem, hint in problems]


def _find_ends(tokenizer: Any) -> tuple[str, str]:
    """Return the begin token, if the tokenizer adds it to a text, and the end token."""
    begin = getattr(tokenizer, "bos_token", None)
    # Not of an empty text, which may start with the end token, often the same one.
    if begin and tokenizer("a")["input_ids"][:1] != [tokenizer.bos_token_id]:
        begin = None
    return begin or "", getattr(tokenizer, "eos_token", None) or ""


def render_prompt(tokenizer: Any, prompt: Prompt, tools: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return a prompt as a string: raw text unchanged, messages through the chat template.

    ``tools`` are those of the prompt's record, which ``render_chat`` shows.
    The prompt's ``prefix`` is the beginning of the assistant's turn. Raw text keeps its control
    tokens, as its author also writes the template.
    """
    if not prompt.messages:
        return prompt.text + prompt.prefix
    text = render_chat(tokenizer, prompt.messages, tools=tools)
    is_plain = not getattr(tokenizer, "chat_template", None)
    gap = " " if is_plain and prompt.prefix and not prompt.prefix[0].isspace() else ""
    return text + gap + escape_control_tokens(prompt.prefix, list_control_tokens(tokenizer))
