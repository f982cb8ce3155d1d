"""Bidirectional RPC between two processes over pipes.

A message is a line of JSON. Arguments are copied and sent back: changes of a list, dictionary or
set by the other side are applied to the original. Anything but plain data stays in its process; the
other side holds a ``Proxy``, whose operators and attributes are requests.
"""

from __future__ import annotations

import builtins
import json
import math
import operator
import sys
from _thread import RLock
from collections.abc import Callable

from stillroom.evaluate.isolation.proxy import Proxy, handle_of
from stillroom.evaluate.isolation.wire import Decoder, Encoder, WireError, find_name, resolve_name

TYPE_CHECKING = False  # avoids importing typing, which would cost more than a check
if TYPE_CHECKING:
    from typing import IO, Any

__all__ = [
    "BINARY",
    "CUSTOM_EXCEPTION",
    "Peer",
    "PeerGone",
    "exception_name",
    "is_changed",
    "snapshot",
]

CUSTOM_EXCEPTION = "an exception of its own"
_LONGEST = 1 << 25
BINARY = (
    "add sub mul truediv floordiv mod pow matmul and_ or_ xor lshift rshift concat "
    "iadd isub imul itruediv ifloordiv imod ipow imatmul iand ior ixor ilshift irshift"
)
_COMPARING = "eq ne lt le gt ge"
_PLACES = "getitem setitem delitem contains"
_UNARY = "neg pos invert abs index"
_BUILT_IN = (
    "len iter next bool str repr hash int float complex bytes format round divmod reversed "
    "isinstance issubclass dir"
)


def _exit_context(target: Any, error: Any = None) -> Any:
    """End a with statement; the other side's exception is sent as name and arguments."""
    if isinstance(error, list):
        kind = getattr(builtins, error[0])
        instance = kind.__new__(kind, *error[1])
        instance.args = tuple(error[1])
        error = instance
    exc_info = (None, None, None) if error is None else (type(error), error, error.__traceback__)
    return type(target).__exit__(target, *exc_info)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda target, *args, **named: target(*args, **named),
    "get": getattr,
    "set": setattr,
    "del": delattr,
    "enter": lambda target: type(target).__enter__(target),
    "exit": _exit_context,
    "floor": math.floor,
    "ceil": math.ceil,
    "trunc": math.trunc,
    "rdivmod": lambda left, right: divmod(right, left),
    **{name: getattr(operator, name) for name in f"{BINARY} {_COMPARING} {_PLACES}".split()},
    **{name: getattr(operator, name) for name in _UNARY.split()},
    **{name: getattr(builtins, name) for name in _BUILT_IN.split()},
}


class PeerGone(BaseException):
    """The other process has ended, or its messages cannot be read."""


def exception_name(error: BaseException) -> str:
    """Return the name of a built-in exception; a program cannot choose the text reported."""
    kind = type(error)
    return kind.__name__ if _is_built_in(kind) else CUSTOM_EXCEPTION


class Peer:
    """One side of the connection."""

    def __init__(self, reader: IO[bytes], writer: IO[bytes]) -> None:
        self._reader, self._writer = reader, writer
        self._lock = RLock()
        self._mine: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._theirs: dict[int, Any] = {}
        self.lost = ""

    def lose(self, reason: str) -> PeerGone:
        """Record why all further results are void, even if the exception is caught."""
        self.lost = self.lost or reason
        return PeerGone(reason)

    # overridden by each side

    def guard(self, name: str, args: tuple[Any, ...]) -> None:
        """Refuse, by an exception, requests that the other side must not make."""

    def operate(self, name: str, proxy: Proxy, *args: Any, **named: Any) -> Any:
        """Return the result of an operator, an attribute or a call of a proxy."""
        return self.ask(name, proxy, *args, **named)

    def share(self, value: Any) -> dict[str, Any]:
        """Return the message for an object that is not plain data."""
        return {"k": "object", "h": self.handle(value)}

    def lend(self, message: dict[str, Any], decoder: Decoder) -> Any:
        """Return the local stand-in for an object of the other side."""
        return Proxy(self, int(message["h"]))

    def printed(self) -> str:
        """Return the output printed since the last call."""
        return ""

    # messages

    def ask(self, operation: str, *args: Any, **named: Any) -> Any:
        """Return the other side's result of a request, or raise its exception.

        Raises:
            PeerGone: If the other side ends before it answers.
        """
        with self._lock:
            encoder = Encoder({}, self._tell)
            encoded = [encoder.encode(value) for value in args]
            request: dict[str, Any] = {"ask": operation, "args": encoded}
            if named:
                request["named"] = {key: encoder.encode(value) for key, value in named.items()}
            self._send(request)
            while True:
                message = self._receive()
                if message is None:
                    raise self.lose("ended early")
                if "ask" not in message:
                    return self._finish(operation, message, encoder.containers)
                self._answer(message)

    def serve(self) -> None:
        """Answer requests until the other side ends."""
        while (message := self._receive()) is not None:
            self._answer(message)

    def _finish(self, operation: str, message: dict[str, Any], sent: dict[int, Any]) -> Any:
        try:
            sys.stdout.write(str(message.get("printed", "")))
            decoder = Decoder(sent, self._read)
            value = decoder.decode(message.get("value"))
            for number, contents in message.get("changed", ()):
                decoder.fill(sent[number], contents)
            raised = message.get("raised")
            error = None if raised is None else self._error(operation, raised, decoder)
        except (WireError, LookupError, TypeError, ValueError, AttributeError) as malformed:
            raise self.lose("sends an invalid answer") from malformed
        if error is not None:
            raise error
        return value

    def _answer(self, message: dict[str, Any]) -> None:
        reply: dict[str, Any] = {}
        decoder = Decoder({}, self._read)
        held: dict[int, Any] = {}
        encoder = Encoder({}, self._tell)
        try:
            name = message["ask"]
            args = tuple(decoder.decode(value) for value in message["args"])
            named = {key: decoder.decode(value) for key, value in message.get("named", {}).items()}
            held = {number: snapshot(value) for number, value in decoder.known.items()}
            encoder = Encoder({id(value): n for n, value in decoder.known.items()}, self._tell)
            self.guard(name, args)
            reply["value"] = encoder.encode(self.carry_out(name, args, named))
        except PeerGone:
            raise
        except BaseException as error:  # noqa: BLE001  # whatever was asked for may raise anything
            reply = {"raised": self._describe(error)}
        reply["changed"] = [
            [number, encoder.contents(decoder.known[number])]
            for number, before in held.items()
            if is_changed(before, decoder.known[number])
        ]
        if output := self.printed():
            reply["printed"] = output
        self._send(reply)

    def carry_out(self, name: str, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Return the result of a request of the other side."""
        return OPERATIONS[name](*args, **named)

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._writer.write(json.dumps(message).encode() + b"\n")
            self._writer.flush()
        except OSError as error:
            raise self.lose("ended early") from error

    def _receive(self) -> dict[str, Any] | None:
        line = self._reader.readline(_LONGEST)
        if not line.endswith(b"\n"):
            if len(line) >= _LONGEST:
                raise self.lose("returns too much")
            return None
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise self.lose("sends an invalid answer") from error
        if not isinstance(message, dict):
            raise self.lose("sends an invalid answer")
        return message

    # objects

    def handle(self, value: Any) -> int:
        """Return the handle of an object for the other side; the object is kept alive."""
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._mine)
            self._mine.append(value)
        return self._numbers[id(value)]

    def _tell(self, value: Any, encoder: Encoder) -> dict[str, Any]:
        if type(value) is Proxy:
            return {"k": "yours", "h": handle_of(value)}
        return find_name(value) or self.share(value)

    def _read(self, message: dict[str, Any], decoder: Decoder) -> Any:
        kind = message["k"]
        if kind == "yours":
            return self._mine[_natural(message["h"])]
        if kind == "name":
            return resolve_name(message["m"], message["v"])
        if kind != "object":
            raise WireError("a kind that nobody knows")
        number = _natural(message["h"])
        if number not in self._theirs:
            self._theirs[number] = self.lend(message, decoder)
        return self._theirs[number]

    # exceptions

    def _describe(self, error: BaseException) -> dict[str, Any]:
        kind: type = type(error)
        base = next(item for item in kind.__mro__ if _is_built_in(item))
        try:
            args = [item if type(item) in (str, int, float) else str(item) for item in error.args]
        except Exception:  # noqa: BLE001  # arguments of its own may not even be printed
            args = []
        return {"base": base.__name__, "args": args}

    def _error(self, operation: str, message: Any, decoder: Decoder) -> BaseException:
        kind = getattr(builtins, message["base"])
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise WireError("no exception")
        args = tuple(item for item in message["args"] if type(item) in (str, int, float))
        error_class = decoder.decode(message["class"]) if "class" in message else kind
        if not (isinstance(error_class, type) and issubclass(error_class, kind)):
            error_class = kind
        if operation == "next" and error_class is StopIteration:
            return StopIteration()
        if issubclass(error_class, StopIteration | StopAsyncIteration | GeneratorExit):
            # would end a loop of the caller silently
            return RuntimeError(kind.__name__)
        error: BaseException = error_class.__new__(error_class, *args)
        error.args = args
        if (
            "object" in message
            and error_class is not kind
            and hasattr(error_class, "__stillroom__")
        ):
            error.__dict__["__stillroom__"] = decoder.decode(message["object"])
        return error


def snapshot(container: Any) -> Any:
    """Return the current content of a container."""
    return list(container.items()) if isinstance(container, dict) else list(container)


def is_changed(before: list[Any], container: Any) -> bool:
    """Return whether the content of a container has changed."""
    now = snapshot(container)
    if len(now) != len(before):
        return True
    if isinstance(container, dict):
        return any(a[0] is not b[0] or a[1] is not b[1] for a, b in zip(before, now, strict=True))
    return any(a is not b for a, b in zip(before, now, strict=True))


def _natural(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise WireError("no handle")
    return value


def _is_built_in(kind: type) -> bool:
    return issubclass(kind, BaseException) and getattr(builtins, kind.__name__, None) is kind
