"""Test process: runs tests against a program in another process.

Passes are reported by this process, where no code of the program ever runs. The program returns
plain data, or a handle of an object that stays in its process. Tests may use such an object, but
it must not judge itself: in a comparison with plain data, a containment test or arithmetic it could
learn the right answer and return True. Such tests are refused with a named reason, as are tests
that run text of the program as code.
"""

from __future__ import annotations

import builtins
import ctypes
import json
import os
import sys
from types import (
    BuiltinFunctionType,
    CodeType,
    CoroutineType,
    FunctionType,
    GeneratorType,
    MethodType,
)

from stillroom.evaluate.isolation.confinement import (
    close_other_files,
    confine_process,
    die_with_parent,
)
from stillroom.evaluate.isolation.peer import (
    BINARY,
    Peer,
    PeerGone,
    exception_name,
    is_changed,
    snapshot,
)
from stillroom.evaluate.isolation.proxy import Proxy, handle_of, is_scaled, scale
from stillroom.evaluate.isolation.wire import PURE_MODULES, Decoder, WireError

TYPE_CHECKING = False  # avoids importing typing, which would cost more than a check
if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import FrameType
    from typing import IO, Any

    from stillroom.evaluate.isolation.confinement import Order

__all__ = ["examine"]

_ORDERING = {"lt", "le", "gt", "ge"}
_ARITHMETIC = {*BINARY.split(), "divmod", "rdivmod"}
_PREDICATES = {"startswith", "endswith", "issubset", "issuperset", "isdisjoint"}
_NUMBER_METHODS = {*dir(float), *dir(int), *dir(complex)}
_READABLE_ATTRIBUTES = {"__name__", "__qualname__", "__doc__", "__dict__", "__module__"}
_DECIDING = {
    *(
        "Counter",
        "OrderedDict",
        "defaultdict",
        "deque",
        "Fraction",
        "Decimal",
        "isclose",
        "deepcopy",
    )
}
_NO_IMPORT = {
    *("pickle", "_pickle", "marshal", "shelve", "dbm", "ctypes", "_ctypes", "code", "codeop"),
    *("runpy", "importlib", "builtins", "imp", "pty", "timeit", "doctest", "pdb", "bdb", "trace"),
}
_SERVED_OPERATIONS = {
    *("call", "next", "iter", "len", "bool", "get", "set", "getitem", "setitem", "contains"),
    *("eq", "str", "repr", "hash", *_ORDERING),
}
_FAILING = ("assert", "fail", "raises", "exit", "_exit")  # names of functions that may fail a test
_MAX_COPIES = 1024
_TESTS, _FILE = "__main__", "<tests>"
OBJECT_JUDGES = "the tests let an object of the program judge itself"
NOT_HANDED = "the tests hand the program what cannot be handed"
RUNS_TEXT = "the tests run text as code"
REDEFINES = "the program redefines a name of Python's that the tests use"
DERIVES = "the tests derive a class from one of the program's"
SUPPRESSES = "the program suppresses an exception that the tests did not raise themselves"
COPIES = "the tests change a copy of what the program keeps"
NOT_ASKED = "the tests ask nothing of the program"
NOT_PYTHON = "the tests are not valid Python"


def examine(
    libc: ctypes.CDLL, order: Order, pipes: tuple[int, int], isolation: dict[str, bool]
) -> None:
    """Confine the process, run the tests, report the result."""
    die_with_parent(libc)
    with os.fdopen(order["tests"], "rb", closefd=False) as file:
        task = json.load(file)
    report = order["report"]
    close_other_files(libc, report, *pipes)
    doors = confine_process(libc, order, apart=isolation["namespaces"])
    if not (doors["files"] and doors["calls"]):
        return
    sys.argv = ["tests"]
    with os.fdopen(pipes[0], "rb") as reader, os.fdopen(pipes[1], "wb") as writer:
        reason = _verdict(task["tests"], _TestRunner(reader, writer))
    verdict = {"verdict": task["nonce"], "reason": reason}
    os.write(report, json.dumps(verdict).encode() + b"\n")


def _verdict(tests: list[str], examiner: _TestRunner) -> str:
    try:
        codes = [compile(source, _FILE, "exec", dont_inherit=True) for source in tests]
    except (SyntaxError, ValueError, RecursionError):
        return NOT_PYTHON
    try:
        names = _Namespace(examiner, examiner.meet(), codes)
        for code in codes:
            exec(code, names)  # noqa: S102  # this is what the sandbox is for
        _run_declared(dict(names), codes)
    except BaseException as error:  # noqa: BLE001  # tests may raise anything
        reason = examiner.lost or exception_name(error)
        return COPIES if reason == "AssertionError" and examiner.has_changed_copy() else reason
    if examiner.has_caught_failure:
        return SUPPRESSES
    is_proof = examiner.was_asked and any(map(_can_fail, codes))
    return examiner.lost or ("" if is_proof else NOT_ASKED)


def _can_fail(code: CodeType) -> bool:
    """Return whether code asserts or raises, itself or by a function that is named for it."""
    from opcode import opmap

    return (
        opmap["RAISE_VARARGS"] in code.co_code[::2]
        or any(name.startswith(_FAILING) for name in code.co_names)
        or any(map(_can_fail, _codes_in(code)))
    )


def _run_declared(names: dict[str, Any], codes: list[CodeType]) -> None:
    """Run tests declared for a test runner, except functions that the tests call."""
    declared = {
        name: member
        for name, member in names.items()
        if isinstance(member, type)
        or (isinstance(member, FunctionType) and name.startswith("test"))
    }
    if not declared:
        return
    by_module, by_functions = _used_names(codes)
    for name, value in declared.items():
        if isinstance(value, type):
            _run_class(name, value)
        elif name not in by_module and not (_needs_arguments(value) and name in by_functions):
            _finish(value())


def _run_class(name: str, kind: type) -> None:
    """Run the tests of a class, with unittest or as plain methods."""
    if "unittest" in sys.modules:
        import unittest

        if issubclass(kind, unittest.TestCase):
            result = unittest.TestResult()
            unittest.defaultTestLoader.loadTestsFromTestCase(kind).run(result)
            if not result.wasSuccessful():
                raise AssertionError
            return
    if name.startswith("Test") and kind.__module__ == _TESTS and "__init__" not in vars(kind):
        for test in (name for name in dir(kind) if name.startswith("test")):
            instance = kind()
            getattr(instance, "setup_method", lambda: None)()
            _finish(getattr(instance, test)())


def _finish(result: Any) -> None:
    """Run a coroutine or a generator returned by a test function to its end."""
    if isinstance(result, CoroutineType | GeneratorType):
        try:
            while True:
                result.send(None)
        except StopIteration:
            return


def _used_names(codes: list[CodeType]) -> tuple[set[str], set[str]]:
    """Return the names used by the tests' modules, and those used by their functions."""
    import dis  # slow to import, and declared tests are rare

    by_module = {
        instruction.argval
        for code in codes
        for instruction in dis.get_instructions(code)
        if instruction.opname in {"LOAD_NAME", "LOAD_GLOBAL"}
    }
    by_functions = set[str]()
    inner = [nested for code in codes for nested in _codes_in(code)]
    while inner:
        code = inner.pop()
        by_functions.update(code.co_names)
        inner += _codes_in(code)
    return by_module, by_functions


def _codes_in(code: CodeType) -> list[CodeType]:
    return [constant for constant in code.co_consts if isinstance(constant, CodeType)]


def _needs_arguments(function: FunctionType) -> bool:
    return function.__code__.co_argcount > len(function.__defaults__ or ())


class _TestRunner(Peer):
    def __init__(self, reader: IO[bytes], writer: IO[bytes]) -> None:
        super().__init__(reader, writer)
        self.was_asked = False
        self.has_caught_failure = False  # read after tests that have passed
        self._copies: list[tuple[Any, list[Any]]] = []
        self._values: dict[int, int | float | str] = {}

    def meet(self) -> set[str]:
        """Return the names that the program defines, once it has run.

        Raises:
            BaseException: The exception of the program.
        """
        message = self._receive()
        if message is None:
            raise self.lose("ended early")
        if "raised" in message:
            self._finish("load", message, {})
        names = message.get("names")
        return {name for name in names if type(name) is str} if isinstance(names, list) else set()

    def fetch(self, name: str) -> Any:
        """Return the program's object of a name."""
        value = self.ask("global", name)
        self.was_asked |= type(value) not in (Proxy, _Module)
        return self._note(value)

    def _note(self, value: Any) -> Any:
        """Remember a copy of the received state of the program's containers."""
        if type(value) in (list, dict, set) and len(self._copies) < _MAX_COPIES:
            self._copies.append((value, snapshot(value)))
        return value

    def has_changed_copy(self) -> bool:
        """Return whether the tests changed a copy, which the program does not see."""
        return any(is_changed(before, value) for value, before in self._copies)

    def operate(self, name: str, proxy: Proxy, *args: Any, **named: Any) -> Any:
        self.was_asked |= name != "bool"  # functions are always true
        plain = [item for item in args if type(item) is not Proxy]
        if name == "contains":
            held: Iterable[Any] = iter(proxy)
            return any(args[0] is item or item == args[0] for item in held)
        if name in {"isinstance", "issubclass"}:
            return self.ask(name, args[0], proxy)
        if name == "exit":
            return self._leave(proxy, args[1])
        if name == "derive":
            raise self.lose(DERIVES)
        if name == "eq":
            return self._equal(proxy, args[0])
        if name in _ORDERING and plain:
            raise self.lose(OBJECT_JUDGES)
        operation = name.removeprefix("reflected ")
        if operation in _ARITHMETIC:
            sides = (args[0], proxy, *args[1:]) if operation != name else (proxy, *args)
            return self._reckon(operation, sides)
        if name == "get":
            self._look_up(proxy, args[0])
        if is_scaled(proxy) and name not in {"get", "lt", "le", "gt", "ge"}:
            raise self.lose(OBJECT_JUDGES)
        result = self.ask(name, proxy, *args, **named)
        return self._note(result) if name in {"get", "getitem"} else result

    def _leave(self, proxy: Proxy, error: BaseException | None) -> Any:
        if isinstance(error, PeerGone):
            return False
        reference = getattr(error, "__dict__", {}).get("__stillroom__")
        if reference is None and error is not None:
            description = self._describe(error)
            reference = [description["base"], description["args"]]
        if self.ask("exit", proxy, reference) is True and error is not None:
            if not _is_raised_by_tests(error):
                raise self.lose(SUPPRESSES)
            return True
        return False

    def _look_up(self, proxy: Proxy, name: str) -> None:
        if name in _PREDICATES or (is_scaled(proxy) and name in _NUMBER_METHODS):
            raise self.lose(OBJECT_JUDGES)
        if name.startswith("__") and name not in _READABLE_ATTRIBUTES:
            raise AttributeError(name)  # annotations, which the library may run as code

    def _equal(self, proxy: Proxy, other: Any) -> bool:
        if other is None:
            return False
        if type(other) is Proxy:
            return self.ask("eq", proxy, other) is True
        value = self._values.get(handle_of(proxy))
        if value is None or is_scaled(proxy):
            raise self.lose(OBJECT_JUDGES)
        return bool(value == other)

    def _reckon(self, operation: str, sides: tuple[Any, ...]) -> Any:
        plain = [side for side in sides if type(side) is not Proxy]
        scaled = bool(plain) or any(is_scaled(side) for side in sides if type(side) is Proxy)
        if any(type(side) not in (int, float) for side in plain):
            raise self.lose(OBJECT_JUDGES)
        result = self.ask(operation, *sides)
        if scaled:
            if type(result) is not Proxy:
                raise self.lose(OBJECT_JUDGES)
            scale(result)
        return result

    # requests of the program about objects of the tests

    def guard(self, name: str, args: tuple[Any, ...]) -> None:
        target = args[0] if args else None
        if name not in _SERVED_OPERATIONS or id(target) not in self._numbers:
            raise WireError("no request of a program's")
        if name in {"get", "set"}:
            if type(args[1]) is not str or args[1].startswith("_") or not _is_of_tests(target):
                raise AttributeError(args[1])
            if name == "set" and (
                isinstance(target, type) or callable(getattr(target, args[1], None))
            ):  # a program must not change its tests
                raise AttributeError(args[1])
        elif name == "call":
            if not callable(target):
                raise TypeError("not callable")
        elif not (_is_of_tests(target) or hasattr(target, "__next__")):
            raise TypeError(name)

    def share(self, value: Any) -> dict[str, Any]:
        handed = isinstance(value, FunctionType | MethodType | BuiltinFunctionType)
        if handed or _is_of_tests(value) or hasattr(value, "__next__") or callable(value):
            return {**super().share(value), "t": str(getattr(value, "__name__", ""))}
        raise self.lose(NOT_HANDED)

    def lend(self, message: dict[str, Any], decoder: Decoder) -> Any:
        if "bases" in message:
            return self._mirror(
                message, [self._read_name(base, decoder) for base in message["bases"]]
            )
        if type(message.get("value")) in (int, float, str):  # sent before any comparison
            self._values[int(message["h"])] = message["value"]
        return Proxy(self, int(message["h"]), str(message.get("t", "")))

    def _read_name(self, message: Any, decoder: Decoder) -> type:
        kind = decoder.decode(message)
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise WireError("no exception")
        return kind

    def _mirror(self, message: dict[str, Any], bases: list[type]) -> type:
        """Return an exception class that tests may catch for one of the program's."""

        def find(error: BaseException, name: str) -> Any:
            original = error.__dict__.get("__stillroom__")
            if original is None or name.startswith("__"):
                raise AttributeError(name)
            return getattr(original, name)

        name = str(message.get("t", ""))[:64]
        return type(name, tuple(bases), {"__stillroom__": None, "__getattr__": find})

    def _read(self, message: dict[str, Any], decoder: Decoder) -> Any:
        if message["k"] == "module":
            return _Module(str(message["v"]))
        value = super()._read(message, decoder)
        if any(value is kind for kind in AssertionError.__mro__[:-1]):
            self._watch_failures()
        return value

    def _watch_failures(self) -> None:
        """Note assertions that fail from now on: tests may catch them by a class of the program."""

        def trace(frame: FrameType, event: str, arg: Any) -> Any:
            if frame.f_code.co_filename != _FILE:
                return None
            frame.f_trace_lines = False
            self.has_caught_failure |= event == "exception" and issubclass(arg[0], AssertionError)
            return trace

        # the name of a handler's class is read when the assertion has failed already
        self.has_caught_failure |= isinstance(sys.exc_info()[1], AssertionError)
        sys.settrace(trace)
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            if frame.f_code.co_filename == _FILE:
                frame.f_trace = trace
            frame = frame.f_back

    def _describe(self, error: BaseException) -> dict[str, Any]:
        if isinstance(error, PeerGone):
            raise error
        if isinstance(error, AssertionError):  # the calling program could catch it and continue
            self.lose("AssertionError")
        return super()._describe(error)


class _Module:
    """A module that a program uses under some name; the tests get the real one."""

    def __init__(self, name: str) -> None:
        self.name = name


def _is_of_tests(value: Any) -> bool:
    kind = value if isinstance(value, type) else type(value)
    return kind.__module__ == _TESTS and kind is not Proxy


def _is_raised_by_tests(error: BaseException) -> bool:
    """Return whether a raise statement of the tests made an exception, not a failure of theirs."""
    from opcode import opmap

    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None or isinstance(error, AssertionError):
        return False
    code = traceback.tb_frame.f_code
    return code.co_filename == _FILE and code.co_code[traceback.tb_lasti] == opmap["RAISE_VARARGS"]


class _Namespace(dict):  # type: ignore[type-arg]  # no typing here
    """Names of the tests: their own first, then the program's, then built-ins."""

    def __init__(self, examiner: _TestRunner, offered: set[str], codes: list[CodeType]) -> None:
        super().__init__(__name__=_TESTS, __builtins__=_guarded_builtins(examiner, codes))
        self._examiner, self._offered = examiner, offered
        self._made = set[str]()

    def __missing__(self, name: str) -> Any:
        if name not in self._offered:
            raise KeyError(name)
        value = self._examiner.fetch(name)
        if type(value) is _Module:
            return self._module(name, value.name)
        self._check_redefinition(name, value)
        if type(value) is Proxy and name in sys.stdlib_module_names:
            return _Impostor(self._examiner, value)
        return value

    def _check_redefinition(self, name: str, value: Any) -> None:
        """Refuse a replacement of a built-in where its result decides for other names."""
        is_pythons = type(value) is not Proxy and getattr(value, "__name__", None) == name
        if is_pythons and getattr(builtins, name, value) is value:
            return
        self._made.add(name)
        is_built_in = any(hasattr(builtins, own_name) for own_name in self._made)
        if (is_built_in and len(self._made) > 1) or (
            self._made & _DECIDING and self._made - _DECIDING
        ):
            raise self._examiner.lose(REDEFINES)

    def _module(self, name: str, real: str) -> Any:
        if real in PURE_MODULES or (real == name and real in sys.stdlib_module_names):
            self[name] = self["__builtins__"]["__import__"](real, self, None, ("x",))
            return self[name]
        raise self._examiner.lose(REDEFINES)


class _Impostor:
    """An object of the program under a module's name: callable, but not usable as the module.

    Tests that use ``math.isclose`` without importing it would otherwise get the program's.
    """

    def __init__(self, examiner: _TestRunner, value: Proxy) -> None:
        self.__examiner, self.__value = examiner, value

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self.__value(*args, **named)

    def __getattr__(self, name: str) -> Any:
        raise self.__examiner.lose(REDEFINES)


def _guarded_builtins(examiner: _TestRunner, codes: list[CodeType]) -> dict[str, Any]:
    """Return the built-ins; those that run text accept the text of the tests only."""
    texts = set[str]()
    for code in codes:
        _collect(code, texts)

    def guard(real: Any) -> Any:
        def run(source: Any, *args: Any, **named: Any) -> Any:
            if not (type(source) is str and source in texts):
                raise examiner.lose(RUNS_TEXT)
            if real is not compile and not args and not named:
                args = (sys._getframe(1).f_globals, sys._getframe(1).f_locals)
            return real(source, *args, **named)

        return run

    def bring(name: str, *args: Any, **named: Any) -> Any:
        if name.split(".")[0] in _NO_IMPORT:
            raise examiner.lose(RUNS_TEXT)
        module = __import__(name, *args, **named)
        if "unittest" in sys.modules:  # its cases run at the end; main would search elsewhere
            vars(sys.modules["unittest"])["main"] = lambda *args, **named: None
        return module

    guarded = dict(vars(builtins))
    guarded |= {name: guard(getattr(builtins, name)) for name in ("eval", "exec", "compile")}
    return guarded | {"__import__": bring}


def _collect(code: CodeType, texts: set[str]) -> None:
    for constant in code.co_consts:
        if isinstance(constant, str):
            texts.add(constant)
        elif isinstance(constant, CodeType):
            _collect(constant, texts)
