"""Wire format: values as JSON, by value, by name or by handle.

Input from the other process is data only: exact built-in types and a few of the standard library
are built from it. Subclasses are not sent as their base class, since they may override comparison;
named tuples that compare like tuples are.
"""

from __future__ import annotations

import collections
import sys
from collections.abc import Callable, Iterable

TYPE_CHECKING = False  # avoids importing typing, which would cost more than a check
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "PURE_MODULES",
    "Decoder",
    "Encoder",
    "WireError",
    "find_name",
    "is_plain",
    "resolve_name",
]

_PURE = (
    "abc bisect calendar cmath collections collections.abc copy dataclasses datetime decimal enum "
    "fractions functools heapq itertools json math numbers operator random re statistics string "
    "textwrap time typing"
)
PURE_MODULES = frozenset(_PURE.split())
"""Modules of pure functions: each process uses its own copy by name."""

_LISTS: dict[type, str] = {
    list: "list",
    set: "set",
    frozenset: "frozenset",
    tuple: "tuple",
    collections.deque: "deque",
}
_DICTS: dict[type, str] = {
    dict: "dict",
    collections.OrderedDict: "odict",
    collections.Counter: "counter",
    collections.defaultdict: "defaultdict",
}
_TYPES = {name: kind for kind, name in (_LISTS | _DICTS).items()}
_IMMUTABLE = {"frozenset", "tuple"}
_VIEWS = {type({}.keys()): "keys", type({}.values()): "values", type({}.items()): "items"}
_ATOMS = (type(None), bool, int, float, str, bytes, complex, range)
_DATES = {
    "date": ("year", "month", "day"),
    "time": ("hour", "minute", "second", "microsecond"),
    "datetime": ("year", "month", "day", "hour", "minute", "second", "microsecond"),
    "timedelta": ("days", "seconds", "microseconds"),
}
_BUILT_IN = (
    "abs all any ascii bin callable chr divmod format hash hex id isinstance issubclass iter len "
    "max min next oct ord pow repr round sorted sum print"
)
_PLAIN = {*_ATOMS, *_LISTS, *_DICTS, bytearray}
_SAFE_INT = 1 << 53


class WireError(Exception):
    """A message is malformed."""


def is_plain(value: object) -> bool:
    """Return whether a value is sent by value: it has built-in comparison."""
    kind = type(value)
    return kind in _PLAIN or bool(_library_kind(value))


def _library_kind(value: object) -> str:
    """Return the class of datetime, decimal or fractions that a value is an exact instance of."""
    kind = type(value)
    module, name = kind.__module__, kind.__name__
    if module not in {"datetime", "decimal", "fractions"}:
        return ""
    if getattr(sys.modules.get(module), name, None) is not kind:
        return ""
    if module == "datetime":
        known = name in _DATES and getattr(value, "tzinfo", None) is None
    else:
        known = name in {"Decimal", "Fraction"}
    return name if known else ""


class Encoder:
    """Encodes the values of one message.

    Args:
        known: Numbers of containers that the other side holds already, by id.
        other: Encodes values that are not plain data.
    """

    def __init__(self, known: dict[int, int], other: Callable[[Any, Encoder], Any]) -> None:
        self._known = dict(known)
        self._other = other
        self.containers: dict[int, Any] = {}
        """Containers encoded here, by number."""

    def encode(self, value: Any) -> Any:
        """Return a value as JSON."""
        kind = type(value)
        if kind is int:
            return value if -_SAFE_INT < value < _SAFE_INT else {"k": "int", "v": hex(value)}
        if value is None or kind in (bool, str, float):
            return value
        if kind in _LISTS or kind in _DICTS or kind is bytearray:
            return self._container(value, kind)
        if kind in (bytes, complex, range):
            return self._atom(value, kind)
        if kind in _VIEWS:
            return {"k": _VIEWS[kind], "v": [self.encode(item) for item in value]}
        name = _library_kind(value)
        if name:
            if name == "Decimal":
                return {"k": name, "v": str(value)}
            if name == "Fraction":
                return {"k": name, "v": [hex(value.numerator), hex(value.denominator)]}
            return {"k": name, "v": [getattr(value, part) for part in _DATES[name]]}
        if isinstance(value, tuple) and _is_named_tuple(kind):
            message = {"k": "named", "t": kind.__name__, "f": list(kind._fields)}
            return message | {"v": [self.encode(item) for item in value]}
        return self._other(value, self)

    def _container(self, value: Any, kind: type) -> Any:
        if id(value) in self._known:
            return {"k": "ref", "n": self._known[id(value)]}
        number = len(self._known)
        if kind not in (tuple, frozenset):
            self._known[id(value)] = number
            self.containers[number] = value
        message: dict[str, Any] = {"k": self._name(kind), "v": None}
        if kind not in (tuple, frozenset):
            message["n"] = number
        if kind is collections.deque:
            message["m"] = value.maxlen
        if kind is collections.defaultdict:
            message["f"] = self.encode(value.default_factory)
        message["v"] = self.contents(value)
        return message

    def contents(self, value: Any) -> Any:
        """Return the content of a container."""
        if type(value) is bytearray:
            return value.hex()
        if type(value) in _DICTS:
            return [[self.encode(key), self.encode(item)] for key, item in value.items()]
        return [self.encode(item) for item in value]

    @staticmethod
    def _name(kind: type) -> str:
        return "bytearray" if kind is bytearray else (_LISTS | _DICTS)[kind]

    @staticmethod
    def _atom(value: Any, kind: type) -> Any:
        if kind is bytes:
            return {"k": "bytes", "v": value.hex()}
        if kind is complex:
            return {"k": "complex", "v": [value.real, value.imag]}
        return {
            "k": "range",
            "v": [hex(number) for number in (value.start, value.stop, value.step)],
        }


def _is_named_tuple(kind: Any) -> bool:
    fields = getattr(kind, "_fields", None)
    return (
        kind.__bases__ == (tuple,)
        and isinstance(fields, tuple)
        and all(type(field) is str for field in fields)
        and kind.__eq__ is tuple.__eq__
    )


class Decoder:
    """Decodes the values of one message.

    Args:
        known: Containers that messages may refer to by number.
        other: Decodes values that are not plain data.
    """

    def __init__(
        self, known: dict[int, Any], other: Callable[[dict[str, Any], Decoder], Any]
    ) -> None:
        self.known = dict(known)
        self._other = other

    def decode(self, message: Any) -> Any:
        """Return the value of a JSON description.

        Raises:
            WireError: If it describes none.
        """
        if not isinstance(message, dict):
            if isinstance(message, list):
                raise WireError("a list without a kind")
            return message
        try:
            return self._decode(message)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise WireError(f"no value: {type(error).__name__}") from error

    def _decode(self, message: dict[str, Any]) -> Any:
        kind: str = message["k"]
        value: Any = message.get("v")
        if kind == "ref":
            return self.known[message["n"]]
        if kind == "named":
            container = _named_tuple(message["t"], tuple(message["f"]))
            return container(*(self.decode(item) for item in value))
        if kind in _VIEWS.values():
            return _view(kind, [self.decode(item) for item in value])
        if kind in _IMMUTABLE:
            return _TYPES[kind](self.decode(item) for item in value)
        if kind in _TYPES or kind == "bytearray":
            container = self._empty(message)
            self.known[message["n"]] = container
            self.fill(container, value)
            return container
        reader = _READERS.get(kind)
        return reader(kind, value) if reader else self._other(message, self)

    def _empty(self, message: dict[str, Any]) -> Any:
        kind = message["k"]
        if kind == "bytearray":
            return bytearray()
        if kind == "deque":
            return collections.deque(maxlen=message["m"])
        if kind == "defaultdict":
            return collections.defaultdict(self.decode(message["f"]))
        return _TYPES[kind]()

    def fill(self, container: Any, value: Any) -> None:
        """Replace the content of a container by a JSON description."""
        if isinstance(container, bytearray):
            container[:] = bytes.fromhex(value)
        elif isinstance(container, dict):
            pairs = [(self.decode(key), self.decode(item)) for key, item in value]
            container.clear()
            for key, item in pairs:
                container[key] = item
        else:
            items = [self.decode(item) for item in value]
            container.clear()
            (container.update if isinstance(container, set) else container.extend)(items)


def _view(kind: str, items: list[Any]) -> Any:
    if kind == "keys":
        return dict.fromkeys(items).keys()
    return dict(items).items() if kind == "items" else dict(enumerate(items)).values()


_NAMED: dict[tuple[str, tuple[str, ...]], Any] = {}


def _named_tuple(name: str, fields: tuple[str, ...]) -> Any:
    if (name, fields) not in _NAMED:
        _NAMED[name, fields] = collections.namedtuple(name, fields)
    return _NAMED[name, fields]


def _integers(value: Iterable[str]) -> list[int]:
    return [int(number, 16) for number in value]


def _fraction(kind: str, value: Any) -> Any:
    from fractions import Fraction

    return Fraction(*_integers(value))


def _decimal(kind: str, value: Any) -> Any:
    from decimal import Decimal

    return Decimal(value)


def _date(kind: str, value: Any) -> Any:
    import datetime

    return getattr(datetime, kind)(*value)


_READERS: dict[str, Callable[[str, Any], Any]] = {
    "int": lambda kind, value: int(value, 16),
    "bytes": lambda kind, value: bytes.fromhex(value),
    "complex": lambda kind, value: complex(*value),
    "range": lambda kind, value: range(*_integers(value)),
    "Fraction": _fraction,
    "Decimal": _decimal,
    **dict.fromkeys(_DATES, _date),
}


def find_name(value: Any) -> dict[str, Any] | None:
    """Return the qualified name of a standard-library function or class, if it is one."""
    name, module = getattr(value, "__name__", None), getattr(value, "__module__", None)
    if type(name) is not str or type(module) is not str:
        return None
    # much of the library is implemented in C under such a name, or in a submodule
    module = module.lstrip("_").split(".")[0]
    if module not in PURE_MODULES and module != "builtins":
        return None
    candidate = getattr(sys.modules.get(module), name, None)
    if candidate is not value or not _is_pure_function(value, module, name):
        return None
    return {"k": "name", "m": module, "v": name}


def _is_pure_function(candidate: Any, module: str, name: str) -> bool:
    if name.startswith("_") or not callable(candidate):
        return False
    return isinstance(candidate, type) or module != "builtins" or name in _BUILT_IN.split()


def resolve_name(module: str, name: str) -> Any:
    """Return the standard library's function or class of a name.

    Raises:
        WireError: If there is none, or it has side effects.
    """
    if module not in PURE_MODULES and module != "builtins":
        raise WireError("a module that does more than compute")
    resolved = getattr(__import__(module, fromlist=[name]), name)
    if not _is_pure_function(resolved, module, name):
        raise WireError("a name that does more than compute")
    return resolved
