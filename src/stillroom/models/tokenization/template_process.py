"""Rendering of chat templates in a subprocess with limits of processor time and memory.

A chat template is a program of the checkpoint's author. Jinja's sandbox confines what it may
reach, not what it may cost: two nested loops over ``range(99999)``, a macro that calls itself
twice, a text that is doubled 40 times. Cost within one operation (``'a' * 10**10``, the comparison
of lists that are nested in themselves) is out of reach of a count of loops and calls, so the kernel
counts. The subprocess renders with transformers' own code, without torch.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from stillroom.errors import BackendError, MissingExtraError
from stillroom.objects.limited_process import (
    OUT_OF_MEMORY,
    LimitedProcess,
    limit_seconds,
    serve_requests,
)

__all__ = ["make_template_error", "render_template", "serve_templates"]

_CPU_S = 10
"""Processor time of one rendering: a plain template takes under .5 s for 2,000 turns."""
_MEMORY_BYTES = 1 << 30
"""Memory of one rendering, above what the process needs at rest."""
_BATCH = 16
"""Texts of one request; those of a long conversation's turns are together quadratic in it."""
_CODE = (
    "from stillroom.models.tokenization.template_process import serve_templates;"
    " serve_templates({}, {})"
)


def render_template(
    template: str,
    turns: Sequence[Mapping[str, str]],
    variables: Mapping[str, Any],
    cuts: Sequence[tuple[int, bool]],
) -> list[str]:
    """Render a chat template as ``apply_chat_template(tokenize=False)`` does, within limits.

    Args:
        template: Jinja source.
        turns: Messages as dictionaries of role and content.
        variables: Further variables of the template: the tokenizer's special tokens, ``tools``.
        cuts: For each text, the number of turns and whether the assistant's turn is opened.

    Raises:
        BackendError: If the template fails on these messages (``backend.template``) or exceeds
            a limit (``backend.template-limit``), or its process does not start.
    """
    texts: list[str] = []
    for first in range(0, len(cuts), _BATCH):
        request = [template, list(turns), dict(variables), list(cuts[first : first + _BATCH])]
        reply = _ask(json.dumps(request, default=str).encode())
        if "problem" in reply:
            raise make_template_error(reply["problem"])
        if "limit" in reply:
            raise BackendError(
                f"the chat template {reply['limit']} for {len(turns)} messages; it was stopped",
                code="backend.template-limit",
                where=f"chat template {template[:60]!r}...",
                expected=f"a text within {_CPU_S} s of processor time "
                f"and {_MEMORY_BYTES >> 20} MiB of memory",
                next="replace chat_template.jinja by that of the base model, "
                "and distrust the checkpoint",
            )
        texts += reply["texts"]
    return texts


def make_template_error(problem: object) -> BackendError:
    """Return the error of a template that fails on some messages."""
    return BackendError(
        f"the chat template refuses these messages: {problem}",
        code="backend.template",
        expected="roles in the order the model was trained on",
        next="drop the system message, or let user and assistant take turns",
    )


def _make_code() -> str:
    if importlib.util.find_spec("transformers") is None:
        raise MissingExtraError.of("transformers", "llamacpp", "a chat template")  # needs no torch
    return _CODE.format(_CPU_S, _MEMORY_BYTES)


def _ask(request: bytes) -> dict[str, Any]:
    reply = _PROCESS.ask(request)
    if isinstance(reply, bytes):
        return dict(json.loads(reply))
    if reply == -signal.SIGXCPU:
        return {"limit": f"needs more than {_CPU_S} s of processor time"}
    if reply == OUT_OF_MEMORY:
        return {"limit": f"needs more than {_MEMORY_BYTES >> 20} MiB of memory"}
    return {"limit": f"ended its process with status {reply}"}


def serve_templates(cpu_s: int, memory_bytes: int) -> None:
    """Render templates from stdin until it closes; the child side of ``render_template``."""

    def prepare() -> Callable[[bytes], bytes]:
        render = _import_renderer()

        def answer(line: bytes) -> bytes:
            texts: list[str] = []
            try:
                template, turns, variables, cuts = json.loads(line)
                for count, opens in cuts:
                    limit_seconds(cpu_s)
                    rendered = render(
                        conversations=[turns[:count]],
                        chat_template=template,
                        add_generation_prompt=opens,
                        **variables,
                    )
                    texts.append(str(rendered[0][0]))
                return json.dumps({"texts": texts}).encode()
            except MemoryError:
                raise
            except Exception as error:  # noqa: BLE001  # templates are foreign code
                return json.dumps({"problem": str(error)[:2000]}).encode()

        return answer

    serve_requests(prepare, memory_bytes)


def _import_renderer() -> Callable[..., Any]:
    """Import transformers' function without the packages around it: a second of processor time.

    Their ``__init__`` list every model and load the hub's client. Empty packages stand in for them,
    unless what is to be imported needs more in another version.
    """
    spec = importlib.util.find_spec("transformers")
    places = list((spec and spec.submodule_search_locations) or ())
    for name, folder in (("transformers", ""), ("transformers.utils", "utils")):
        package = sys.modules[name] = ModuleType(name)
        package.__path__ = [str(Path(place, folder)) for place in places]
    try:
        render = _find_renderer()
        render(conversations=[[]], chat_template="")
    except Exception:  # noqa: BLE001  # whatever it misses
        for name in [name for name in sys.modules if name.split(".")[0] == "transformers"]:
            del sys.modules[name]
        render = _find_renderer()
    return render


def _find_renderer() -> Callable[..., Any]:
    module = importlib.import_module("transformers.utils.chat_template_utils")
    found: Callable[..., Any] = module.render_jinja_template
    return found


def _make_start_error(problem: str) -> BackendError:
    return BackendError(
        f"the process that renders chat templates does not start: {problem}",
        code="backend.template-process",
        where=sys.executable,
        expected=f"memory for transformers and a text, {_MEMORY_BYTES >> 20} MiB or more",
        next="raise the limit of memory (ulimit -v), or install transformers again",
    )


_PROCESS = LimitedProcess(_make_code, _make_start_error)
