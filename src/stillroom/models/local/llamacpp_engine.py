"""An instance of llama.cpp's server in this process, driven over loopback.

A thread inside the engine crashes the process if the interpreter exits or the engine is freed:
Python unwinds such a thread through noexcept C++ ("FATAL: exception not rethrown"), or it reads
freed memory. An engine is therefore freed after its call has returned, and at exit all calls are
stopped and awaited.
"""

from __future__ import annotations

import atexit
import itertools
import json
import secrets
import threading
import time
import urllib.error
import urllib.request
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stillroom.errors import BackendError
from stillroom.models.local.runtime import choose_port, silence_output
from stillroom.models.requests import make_closed_error
from stillroom.provenance.digests import load_json
from stillroom.text.unicode import replace_surrogates

__all__ = ["READING_S", "LlamacppEngine", "stop_engines"]

_BLOCK, _ACCELERATOR_BLOCK = 64, 512
"""Tokens of a batch of a prompt."""
_BLOCKS_AT_ONCE = 4
_PATIENCE_S = 60.0
_ANSWER_S, READING_S = 60.0, 3600.0
"""Timeouts of requests without and with a forward pass."""
_OPEN: weakref.WeakSet[LlamacppEngine] = weakref.WeakSet()


class LlamacppEngine:
    """One llama.cpp server in this process; its port requires a secret key."""

    def __init__(
        self, library: Any, path: Path, context: int, threads: int, layers: int, template: str
    ) -> None:
        """Start the engine; a ``template`` replaces that of the file."""
        params = library.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel = context, 1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = max(1, threads)
        params.n_gpu_layers, params.chat_template = layers, template
        self.block = _ACCELERATOR_BLOCK if layers else _BLOCK
        params.n_ubatch = self.block
        params.n_batch = _BLOCKS_AT_ONCE * self.block  # a long prompt is stopped between two
        params.cache_prompt, params.cache_ram_mib, params.fit_params = False, 0, False
        params.n_ctx_checkpoints = 0  # they are taken within a block, and would divide it
        params.warmup, params.verbosity = False, -1
        params.ui, params.endpoint_slots = False, False
        params.n_threads_http, params.hostnames = 2, ["127.0.0.1"]
        params.port = choose_port()
        self._key = secrets.token_hex(16)
        params.api_keys = [self._key]
        try:
            with silence_output():
                self._server = library.Server(params)
        except Exception as error:  # the engine raises plain RuntimeError and more
            raise BackendError(
                f"llama.cpp cannot open {path}: {str(error).strip() or type(error).__name__}",
                code="backend.unloadable",
                expected="a complete GGUF file of an architecture this llama.cpp supports",
                next="check the file's size and digest, or update xllamacpp",
            ) from error
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
        self._calling = threading.Lock()
        """Held by the running completion, and by ``close``."""
        self._held: Sequence[int] = ()
        """The last prompt, while the engine still has it."""
        self.can_continue = True
        """Whether a prompt may be continued from the last whole block that it shares."""
        self._closing = threading.Event()
        _OPEN.add(self)
        self.request("/lora-adapters")  # by its loop: freed before that runs, it never ends

    @property
    def trained_context(self) -> int:
        """Context length of training; 0 if the file has none."""
        meta = self.request("/v1/models")["data"][0].get("meta") or {}
        return int(meta.get("n_ctx_train") or 0)

    def request(
        self, path: str, body: Mapping[str, Any] | None = None, timeout_s: float = _ANSWER_S
    ) -> Any:
        """Call an endpoint of the engine, e.g. /tokenize or /apply-template."""
        server = self._server
        if server is None:
            raise make_closed_error("the model")
        data = None if body is None else json.dumps(replace_surrogates(body)).encode()
        request = urllib.request.Request(  # noqa: S310  # always 127.0.0.1
            server.listening_address + path,
            data,
            {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"},
        )
        try:
            with self._open(request, timeout=timeout_s) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise _refusal(_message(error.read())) from error
        except OSError as error:
            raise _refusal(f"the engine does not answer ({error})") from error

    def count_shared(self, prompt: Sequence[int]) -> int:
        """Return how many tokens of a prompt the engine has, in whole blocks; never all of them."""
        if not self.can_continue:
            return 0
        pairs = zip(prompt[:-1], self._held, strict=False)
        shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        return shared - shared % self.block

    def forget(self) -> None:
        """Read the next prompt anew: the engine is about to be used otherwise."""
        self._held = ()

    def prompt_tokens(self, text: str) -> list[int]:
        """Return the token ids of a rendered prompt, with the special tokens of the model."""
        body = {"content": text, "parse_special": True, "add_special": True}
        return list(self.request("/tokenize", body)["tokens"])

    def tokens(self, text: str, *, control: bool) -> list[int]:
        """Return token ids; ``control`` parses control tokens within the text."""
        body = {"content": text, "parse_special": control, "add_special": False}
        return list(self.request("/tokenize", body)["tokens"])

    def controls(self, text: str) -> list[str]:
        """Return the control tokens that the engine parses in a text."""
        body = {"content": text, "parse_special": True, "with_pieces": True}
        pieces = [token["piece"] for token in self.request("/tokenize", body)["tokens"]]
        marked = sorted({piece for piece in pieces if isinstance(piece, str) and len(piece) > 1})
        plain = set(self.tokens(text, control=False))
        return [
            piece
            for piece in marked
            if (ids := self.tokens(piece, control=True)) != self.tokens(piece, control=False)
            and not plain.issuperset(ids)
        ]

    def complete(self, body: dict[str, Any], on_piece: Callable[[str], bool]) -> dict[str, Any]:
        """Run one completion; ``on_piece`` receives its text and returns True to stop it.

        It receives an empty text whenever a part of the prompt has been read.

        Raises:
            BackendError: If the engine refuses, or is closed.
        """
        last: dict[str, Any] = {}

        def take(event: dict[str, Any]) -> bool:
            choice = (event.get("choices") or [{}])[0]
            last.update({key: event[key] for key in ("error", "usage") if event.get(key)})
            last["finish_reason"] = choice.get("finish_reason") or last.get("finish_reason")
            read = event.get("prompt_progress") or {"processed": 0, "total": 0}
            if "error" not in event and read["processed"] == read["total"]:
                self._held = body["prompt"]
            return self._closing.is_set() or "error" in event or on_piece(choice.get("text") or "")

        with self._calling:
            if self._server is None or self._closing.is_set():
                raise make_closed_error("the model")
            known = self._keep(body["prompt"], self.count_shared(body["prompt"]))
            more = {"cache_prompt": known > 0, "stream": True, "return_progress": True}
            self._server.handle_completions({**replace_surrogates(body), **more}, take)
        if self._closing.is_set():
            raise make_closed_error("the model")
        return _validate_settings(last)

    def _keep(self, prompt: Sequence[int], count: int) -> int:
        """Drop what the engine has behind the first ``count`` tokens of a prompt; return the count.

        The engine continues at the first token that differs from what it has, generated tokens
        included. A request with another token in that place leaves nothing to continue there.
        """
        self.forget()
        if not count:
            return 0
        other = int(prompt[count] == 0)
        timings: dict[str, Any] = {}
        body = {"prompt": [*prompt[:count], other], "max_tokens": 1, "cache_prompt": True}
        self._server.handle_completions(
            {**body, "stream": True}, lambda event: bool(timings.update(event.get("timings") or {}))
        )
        # Recurrent states cannot be cut: such an engine has read all anew.
        self.can_continue = timings.get("prompt_n") == 1
        return count if self.can_continue else 0

    def stop(self, until: float) -> bool:
        """Stop the running completion and refuse others; return whether it has ended.

        Args:
            until: Deadline in ``time.monotonic`` seconds. A part of the prompt is read to its end.
        """
        self._closing.set()
        has_ended = self._calling.acquire(timeout=max(0.0, until - time.monotonic()))
        if has_ended:
            self._calling.release()
        return has_ended

    def close(self) -> None:
        """Stop the engine's threads and release its memory, after its completion has ended."""
        self._closing.set()
        with self._calling, silence_output():
            self._server = None


@atexit.register
def stop_engines() -> None:
    """Stop all engines before the interpreter exits."""
    until = time.monotonic() + _PATIENCE_S
    engines = list(_OPEN)
    for engine in engines:
        engine._closing.set()
    for engine in engines:
        engine.stop(until)


def _validate_settings(answer: dict[str, Any]) -> dict[str, Any]:
    error = answer.get("error")
    if error:
        if error.get("type") == "exceed_context_size_error":
            raise BackendError(
                f"the prompt has {error.get('n_prompt_tokens')} tokens; "
                f"the context is {error.get('n_ctx')}",
                code="backend.context",
                expected=f"at most {int(error.get('n_ctx') or 1) - 1} tokens",
                next="shorten the prompt, or raise context_length where the model allows",
            )
        raise _refusal(str(error.get("message", error)))
    return answer


def _refusal(message: str) -> BackendError:
    return BackendError(
        f"llama.cpp refused: {message}",
        code="backend.refused",
        expected="a request the engine can serve",
        next="read the message; check schema, stop strings and sampling",
    )


def _message(data: bytes) -> str:
    try:
        return str(load_json(data)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return data[:200].decode("utf-8", "replace")
