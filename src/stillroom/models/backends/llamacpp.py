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
"""

from __future__ import annotations

import json
import math
import os
import queue
import re
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field
from pydantic_core import from_json
from typing_extensions import override

from stillroom.checkpoints.gguf import check_gguf
from stillroom.errors import BackendError, CheckpointError, MissingExtraError
from stillroom.models.interfaces import Backend, Score, TextModel
from stillroom.models.local.grammar import check_schema, compact_schema
from stillroom.models.local.llamacpp_engine import READING_S, LlamacppEngine
from stillroom.models.requests import broadcast_sampling, run_in_threads
from stillroom.models.tokenization.chat_template import escape_found_controls
from stillroom.models.tokenization.template_process import make_template_error, render_template
from stillroom.provenance import digest_file
from stillroom.provenance.digests import load_json
from stillroom.records import Completion, Message, Prompt, Sampling

__all__ = ["Llamacpp", "LlamacppModel"]

_DEFAULT_CONTEXT = 8192
_SEED_MASK = 0x7FFFFFFF  # 0xFFFFFFFF would mean a random seed
_PLAIN_TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
"""What the engine gets in place of a file's template, which it would run without any limit."""


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
        metadata = _read_metadata(path)
        template = metadata.get("tokenizer.chat_template", "")
        override = _PLAIN_TEMPLATE if template or not metadata else ""

        def start() -> LlamacppEngine:
            return LlamacppEngine(
                xllamacpp, path, context, threads // count, self.gpu_layers, override
            )

        engine = start()
        trained = engine.trained_context
        if self.context_length is None and 0 < trained < context:
            engine.close()
            context = trained
            engine = start()
        engines = [engine, *(start() for _ in range(count - 1))]
        # A cache of a sliding window is a ring: what was overwritten and dropped leaves cells that
        # a prompt read anew would not fill, and attention sums its keys in another order.
        if any(key.endswith(".attention.sliding_window") for key in metadata):
            for engine in engines:
                engine.can_continue = False
        return LlamacppModel(path, fingerprint, context, engines, template)


def _read_metadata(path: Path) -> dict[str, str]:
    """Return a file's metadata; nothing of a broken file, which the engine may refuse by itself."""
    try:
        return check_gguf(path)
    except CheckpointError:
        return {}


class LlamacppModel:
    """TextModel over several engines; each request goes to a free one."""

    def __init__(
        self,
        path: Path,
        fingerprint: str,
        context_length: int,
        engines: list[LlamacppEngine],
        template: str,
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
        self._chat_template = template
        props = engines[0].request("/props") if template else {}
        self._specials = {name: str(props.get(name) or "") for name in ("bos_token", "eos_token")}

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

    def render_by_engine(self, messages: Sequence[Message]) -> str:
        """Return the text of the file's own chat template as llama.cpp renders it, without limits.

        Only for templates that ``render_chat`` has rendered.
        """
        import xllamacpp

        engine = LlamacppEngine(xllamacpp, self._path, self.context_length, 1, 0, "")
        try:
            return self._render_in_engine(engine, [message.to_json() for message in messages])
        finally:
            engine.close()

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
            answer = engine.request("/completion", body, READING_S)
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
    def _borrow(self, prompt: Sequence[int] = ()) -> Iterator[LlamacppEngine]:
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
        engine: LlamacppEngine,
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
        if prompt.schema is not None:
            _check_json(text, prompt.schema, reason == "length")
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

    def _render(self, engine: LlamacppEngine, prompt: Prompt) -> str:
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
        return self._template(engine, turns) + contents[-1]

    def _template(self, engine: LlamacppEngine, turns: list[dict[str, str]]) -> str:
        if self._chat_template:
            cuts = [(len(turns), True)]
            try:
                [text] = render_template(self._chat_template, turns, self._specials, cuts)
            except BackendError as error:
                if error.code != "backend.template" or not _has_system(turns):
                    raise
                # As llama.cpp does for Gemma's templates, which refuse a system message.
                joined = f"{turns[0]['content']}\n{turns[1]['content']}"
                turns = [{**turns[1], "content": joined}, *turns[2:]]
                cuts = [(len(turns), True)]
                [text] = render_template(self._chat_template, turns, self._specials, cuts)
            # The engine adds its begin token to a prompt, and takes that of a template out.
            begin = self._specials["bos_token"]
            adds = engine.prompt_tokens("a") != engine.tokens("a", control=True)
            return text.removeprefix(begin) if adds else text
        return self._render_in_engine(engine, turns)

    @staticmethod
    def _render_in_engine(engine: LlamacppEngine, turns: list[dict[str, str]]) -> str:
        try:
            return str(engine.request("/apply-template", {"messages": turns})["prompt"])
        except BackendError as error:
            raise make_template_error(error.problems[0].what) from error


def _has_system(turns: Sequence[Mapping[str, str]]) -> bool:
    return [turn["role"] for turn in turns[:2]] == ["system", "user"]


def _check_json(text: str, schema: Mapping[str, Any], is_cut: bool) -> None:
    """Check that a text is JSON, or the beginning of it if it was cut off at its length.

    llama.cpp silently drops a grammar it cannot read.
    """
    try:
        if is_cut:
            _check_beginning(text)
        else:
            load_json(text)
    except ValueError as error:
        raise BackendError(
            "the engine did not apply the JSON Schema to the completion",
            code="backend.schema",
            where=json.dumps(schema)[:120],
            expected="a valid JSON Schema, of keywords that the grammar supports",
            next="simplify the schema",
        ) from error


def _check_beginning(text: str) -> None:
    plain = re.sub(r"\\(?:u[0-9a-fA-F]{4}|.)", "x", text.lstrip())  # a half surrogate is JSON too
    if plain[:1] not in ("{", "["):
        plain = "[" + plain  # only a beginning within a list may be a number or a word cut off
    try:
        from_json(plain, allow_partial=True)
    except ValueError as error:
        if "recursion" not in str(error):  # deeper than this reader goes
            raise
