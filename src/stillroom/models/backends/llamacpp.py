"""llama.cpp in this process: GGUF checkpoints on any processor, with JSON grammars.

Opens several independent engine instances with one slot each, which is both the fastest and the
only reproducible setup on a CPU. Measured with SmolLM2-135M Q4_1 on 2 cores, 24 prompts (half
greedy, half sampled) of 86 tokens on average, 36 new tokens each:

==================================  ======  =======  ==================================
setup                               reqs/s  token/s  completions unlike one by one
==================================  ======  =======  ==================================
1 instance, 1 thread, 1 slot          0.92       33  0 of 24, in any order
1 instance, 2 threads, 1 slot         1.67       60  0 of 24
2 instances, 1 thread, 1 slot each    2.13       76  0 of 24, in any order (the default)
1 instance, 2 threads, 4 slots        1.96       69  2 of 24; 3 of 24 change with the order
1 instance, 2 threads, prompt cache   1.77       63  8 of 24; 2 of 24 change with the order
==================================  ======  =======  ==================================

The number of threads and the order of requests change no byte; shared batches and the engine's
own prompt cache do, and a resumed job would not produce the same bytes. The latter only since it
continues at any token: the rest of a prompt is then cut into other batches than when all of it is
read. A prompt is therefore read in batches of a fixed size, and continued from the end of the last
whole batch that it shares with the engine's previous prompt; everything behind is dropped first.
Each of 7 prompts continued so gave the log-probabilities of reading it anew, and 2 of 7 continued
as the engine does it. Weights are memory-mapped once for all instances; each has its own KV cache.

A thread inside the engine crashes the process if the interpreter exits or the engine is freed:
Python unwinds such a thread through noexcept C++ ("FATAL: exception not rethrown"), or it reads
freed memory. An engine is therefore freed after its call has returned, and at exit all calls are
stopped and awaited.
"""

from __future__ import annotations

import atexit
import itertools
import json
import math
import os
import queue
import secrets
import threading
import time
import urllib.error
import urllib.request
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.checkpoints.gguf import check_gguf
from stillroom.errors import BackendError, MissingExtraError
from stillroom.models.interfaces import Backend, Score, TextModel
from stillroom.models.local.generation import check_schema, compact_schema
from stillroom.models.local.runtime import choose_port, silence_output
from stillroom.models.requests import broadcast_sampling, make_closed_error, run_in_threads
from stillroom.models.tokenization.chat_template import escape_found_controls
from stillroom.models.tokenization.template_process import make_template_error
from stillroom.provenance import digest_file
from stillroom.provenance.digests import load_json
from stillroom.records import Completion, Message, Prompt, Sampling
from stillroom.text.unicode import replace_surrogates

__all__ = ["Llamacpp", "LlamacppModel"]

_DEFAULT_CONTEXT = 8192
_SEED_MASK = 0x7FFFFFFF  # 0xFFFFFFFF would mean a random seed
_BLOCK, _ACCELERATOR_BLOCK = 64, 512
"""Tokens of a batch of a prompt."""
_PATIENCE_S = 60.0
_ANSWER_S, _READING_S = 60.0, 3600.0
"""Timeouts of requests without and with a forward pass."""
_OPEN: weakref.WeakSet[_Engine] = weakref.WeakSet()


class Llamacpp(Backend):
    """Local llama.cpp."""

    paper: ClassVar[str] = ""

    instances: int | None = Field(
        None,
        ge=1,
        description="number of engines, which share the threads; default: one per thread",
    )
    gpu_layers: int = Field(0, ge=-1, description="layers on an accelerator; -1: all, 0: CPU only")

    @override
    def open(self, reference: str) -> TextModel:
        try:
            import xllamacpp
        except ImportError as error:
            raise MissingExtraError.of("xllamacpp", "llamacpp", "reading GGUF models") from error
        path = Path(reference)
        if path.suffix != ".gguf" or not path.is_file():
            raise BackendError(
                f"{reference} is not a GGUF file",
                code="backend.not-gguf",
                expected="a file whose name ends in .gguf",
                next="use backend 'transformers' for a Hugging Face folder",
            )
        fingerprint = f"gguf:{digest_file(path)}"
        threads = self.num_threads or len(os.sched_getaffinity(0))
        count = min(self.instances or (1 if self.gpu_layers else threads), threads)
        context = self.context_length or _DEFAULT_CONTEXT
        engine = _Engine(xllamacpp, path, context, threads // count, self.gpu_layers)
        trained = engine.trained_context
        if self.context_length is None and 0 < trained < context:
            engine.close()
            context = trained
            engine = _Engine(xllamacpp, path, context, threads // count, self.gpu_layers)
        engines = [engine]
        engines += [
            _Engine(xllamacpp, path, context, threads // count, self.gpu_layers)
            for _ in range(count - 1)
        ]
        # A cache of a sliding window is a ring: what was overwritten and dropped leaves cells that
        # a prompt read anew would not fill, and attention sums its keys in another order.
        if any(key.endswith(".attention.sliding_window") for key in check_gguf(path)):
            for engine in engines:
                engine.can_continue = False
        return LlamacppModel(path, fingerprint, context, engines)


class _Engine:
    """One llama.cpp server in this process; its port requires a secret key."""

    def __init__(self, library: Any, path: Path, context: int, threads: int, layers: int) -> None:
        params = library.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel = context, 1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = max(1, threads)
        params.n_gpu_layers = layers
        self.block = _ACCELERATOR_BLOCK if layers else _BLOCK
        params.n_ubatch = self.block
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

        Raises:
            BackendError: If the engine refuses, or is closed.
        """
        last: dict[str, Any] = {}

        def take(event: dict[str, Any]) -> bool:
            choice = (event.get("choices") or [{}])[0]
            last.update({key: event[key] for key in ("error", "usage") if event.get(key)})
            last["finish_reason"] = choice.get("finish_reason") or last.get("finish_reason")
            if "error" not in event:
                self._held = body["prompt"]
            return self._closing.is_set() or "error" in event or on_piece(choice.get("text") or "")

        with self._calling:
            if self._server is None or self._closing.is_set():
                raise make_closed_error("the model")
            known = self._keep(body["prompt"], self.count_shared(body["prompt"]))
            more = {"cache_prompt": known > 0, "stream": True}
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
            until: Deadline in ``time.monotonic`` seconds. Prompt processing cannot be interrupted.
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
def _stop_all() -> None:
    """Stop all engines before the interpreter exits."""
    until = time.monotonic() + _PATIENCE_S
    engines = list(_OPEN)
    for engine in engines:
        engine._closing.set()
    for engine in engines:
        engine.stop(until)


class LlamacppModel:
    """TextModel over several engines; each request goes to a free one."""

    def __init__(
        self, path: Path, fingerprint: str, context_length: int, engines: list[_Engine]
    ) -> None:
        self.name = path.stem
        self.context_length = context_length
        self.fingerprint = fingerprint
        self._path = path
        self._engines = engines
        self._free = list(engines)  # that has rested longest first
        self._freed = threading.Condition()
        self.lanes = len(engines)
        self._twin: TextModel | None = None
        self._twin_lock = threading.Lock()

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | Sequence[Sampling],
        *,
        on_done: Callable[[int, Completion], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> list[Completion]:
        """Complete all prompts; see ``TextModel.generate``."""
        samplings = broadcast_sampling(prompts, sampling)

        def ask(index: int, is_stopped: Callable[[], bool]) -> Completion:
            body = self._request(prompts[index], samplings[index])
            with self._borrow(body["prompt"]) as engine:
                return self._complete(engine, body, prompts[index], is_stopped)

        return run_in_threads(
            ask, len(prompts), len(self._engines), self.fingerprint, on_done, is_cancelled
        )

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[str, None, Completion]:
        """Yield the text of a completion; see ``TextModel.stream``."""
        pieces: queue.Queue[str | BaseException | dict[str, Any]] = queue.Queue()
        is_closed = threading.Event()
        written: list[str] = []

        def take(piece: str) -> bool:
            pieces.put(piece)
            return is_closed.is_set()

        def work() -> None:
            try:
                body = self._request(prompt, sampling)
                with self._borrow(body["prompt"]) as engine:
                    pieces.put(engine.complete(body, take))
            except BaseException as error:  # noqa: BLE001  # handed to the reader's thread
                pieces.put(error)

        threading.Thread(target=work, daemon=True, name="stillroom-stream").start()
        try:
            while not isinstance(piece := pieces.get(), dict):
                if isinstance(piece, BaseException):
                    raise piece
                if piece:
                    written.append(piece)
                    yield piece
            return self._completion("".join(written), piece, prompt)
        finally:
            is_closed.set()

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Score]:
        """Score with transformers on the dequantized weights.

        llama.cpp's server has no log-probabilities of given texts. The values differ from the
        engine's by the rounding of quantized multiplications.
        """
        with self._twin_lock:
            if self._twin is None:
                from stillroom.models.interfaces import BACKENDS

                settings = {"name": "transformers", "context_length": self.context_length}
                self._twin = BACKENDS.build(settings).open(str(self._path))
        return self._twin.score(prompts, completions)

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of a text."""
        return len(self._engines[0].tokens(text, control=False))

    def count_prompt(self, prompt: Prompt) -> int:
        """Return the number of tokens that a prompt is read as."""
        return len(self.encode_prompt(prompt))

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """Return the token ids that a prompt is read as."""
        with self._borrow() as engine:
            return engine.prompt_tokens(self._render(engine, prompt))

    def render(self, messages: Sequence[Message]) -> str:
        """Return the text of the chat template."""
        with self._borrow() as engine:
            return self._render(engine, Prompt(tuple(messages)))

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a text; control tokens are parsed, no special tokens added."""
        with self._borrow() as engine:
            return engine.tokens(text, control=True)

    def continue_tokens(
        self, tokens: Sequence[int], count: int, k: int
    ) -> list[tuple[int, dict[int, float]]]:
        """Return greedy next tokens, each with the k most probable tokens at its position.

        Args:
            tokens: Token ids of the context.
            count: Number of tokens; fewer at an end token, or at a token that is part of a
                character, for which the engine has no log-probabilities and misnumbers what
                follows.
            k: Number of tokens per position; 0 gives every greedy token, without any.

        Returns:
            Each token with the log-probabilities (nats) of the k most probable, by token.
        """
        body = {
            "prompt": list(tokens),
            "n_predict": count,
            "temperature": 0.0,
            "n_probs": k,
            "cache_prompt": False,
            "return_tokens": True,
        }
        with self._borrow() as engine:
            engine.forget()
            answer = engine.request("/completion", body, _READING_S)
        if k == 0:
            return [(int(token), {}) for token in answer["tokens"]]
        steps = []
        for token, entry in zip(
            answer["tokens"], answer.get("completion_probabilities", ()), strict=False
        ):
            if entry["id"] != token:
                break
            likely = {  # JSON has no NaN: the engine writes null
                int(top["id"]): math.nan if top["logprob"] is None else float(top["logprob"])
                for top in entry["top_logprobs"]
            }
            steps.append((int(token), likely))
        return steps

    def close(self) -> None:
        """Free the engines."""
        for engine in self._engines:
            engine.close()
        if self._twin is not None:
            self._twin.close()

    @contextmanager
    def _borrow(self, prompt: Sequence[int] = ()) -> Iterator[_Engine]:
        """Wait for a free engine; of several take the one that has most of a prompt."""
        with self._freed:
            self._freed.wait_for(lambda: self._free)
            engine = max(self._free, key=lambda one: one.count_shared(prompt))
            self._free.remove(engine)
        try:
            yield engine
        finally:
            with self._freed:
                self._free.append(engine)
                self._freed.notify()

    def _complete(
        self,
        engine: _Engine,
        body: dict[str, Any],
        prompt: Prompt,
        is_stopped: Callable[[], bool],
    ) -> Completion:
        pieces: list[str] = []
        stopped = False

        def take(piece: str) -> bool:
            nonlocal stopped
            pieces.append(piece)
            stopped = is_stopped()
            return stopped

        answer = engine.complete(body, take)
        if stopped:
            return Completion("", "cancelled", model=self.fingerprint)
        return self._completion("".join(pieces), answer, prompt)

    def _completion(self, text: str, answer: Mapping[str, Any], prompt: Prompt) -> Completion:
        """Return a finished text as a completion, with the counts of the engine's last event."""
        reason = answer.get("finish_reason") or "stop"
        if prompt.schema is not None and reason == "stop":
            _check_json(text, prompt.schema)
        usage = answer.get("usage") or {}
        return Completion(
            text,
            "length" if reason == "length" else "stop",
            int(usage.get("prompt_tokens", 0)),
            int(usage.get("completion_tokens", 0)),
            self.fingerprint,
        )

    def _request(self, prompt: Prompt, sampling: Sampling) -> dict[str, Any]:
        engine = self._engines[0]  # its template and tokenizer, which need no free engine
        body: dict[str, Any] = {
            "prompt": engine.prompt_tokens(self._render(engine, prompt)) or "",
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": 0.0,
            "repeat_penalty": sampling.repetition_penalty,
            "repeat_last_n": self.context_length,
            "seed": sampling.seed & _SEED_MASK,
            "stop": list(sampling.stop),
            "stream_options": {"include_usage": True},
        }
        if prompt.schema is not None:
            check_schema(prompt.schema)
            body["grammar"] = "%llguidance {}\nstart: %json " + compact_schema(prompt.schema)
        return body

    def _render(self, engine: _Engine, prompt: Prompt) -> str:
        if not prompt.messages:
            return prompt.text + prompt.prefix
        contents = [*(message.content for message in prompt.messages), prompt.prefix]
        joined = "\n".join(contents)
        if engine.tokens(joined, control=True) != engine.tokens(joined, control=False):
            contents = [escape_found_controls(text, engine.controls) for text in contents]
        turns = [
            {"role": message.role, "content": content}
            for message, content in zip(prompt.messages, contents, strict=False)
        ]
        return str(self._template(engine, turns)) + contents[-1]

    def _template(self, engine: _Engine, turns: list[dict[str, str]]) -> str:
        try:
            return str(engine.request("/apply-template", {"messages": turns})["prompt"])
        except BackendError as error:
            raise make_template_error(error.problems[0].what) from error


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


def _check_json(text: str, schema: Mapping[str, Any]) -> None:
    """Check that a text is JSON: llama.cpp silently drops a grammar it cannot read."""
    try:
        load_json(text)
    except ValueError as error:
        raise BackendError(
            "the engine did not apply the JSON Schema to the completion",
            code="backend.schema",
            where=json.dumps(schema)[:120],
            expected="a valid JSON Schema, of keywords that the grammar supports",
            next="simplify the schema",
        ) from error
