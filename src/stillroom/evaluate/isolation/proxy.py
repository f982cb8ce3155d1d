"""Proxy of an object in the other process: every operator is a request."""

from __future__ import annotations

from collections.abc import Callable

TYPE_CHECKING = False  # avoids importing typing, which would cost more than a check
if TYPE_CHECKING:
    from typing import Any

    from stillroom.evaluate.isolation.peer import Peer

__all__ = ["Proxy", "handle_of", "is_scaled", "scale"]


class Proxy:
    """An object of the other process."""

    __slots__ = ("__handle", "__name__", "__peer", "__scaled")

    def __init__(self, peer: Peer, handle: int, name: str = "object") -> None:
        put = object.__setattr__
        put(self, "_Proxy__peer", peer)
        put(self, "_Proxy__handle", handle)
        put(self, "_Proxy__scaled", False)
        put(self, "__name__", name)

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Call the object in its process."""
        return self.__peer.operate("call", self, *args, **named)

    def __getattr__(self, name: str) -> Any:
        return self.__peer.operate("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self.__peer.operate("set", self, name, value)

    def __delattr__(self, name: str) -> None:
        self.__peer.operate("del", self, name)

    def __ne__(self, other: object) -> Any:
        return not (self == other)

    def __pow__(self, other: Any, modulus: Any = None) -> Any:
        args = (other,) if modulus is None else (other, modulus)
        return self.__peer.operate("pow", self, *args)

    def __rpow__(self, other: Any) -> Any:
        return self.__peer.operate("reflected pow", self, other)

    def __divmod__(self, other: Any) -> Any:
        return self.__peer.operate("divmod", self, other)

    def __rdivmod__(self, other: Any) -> Any:
        return self.__peer.operate("rdivmod", self, other)

    def __instancecheck__(self, instance: Any) -> Any:
        return self.__peer.operate("isinstance", self, instance)

    def __subclasscheck__(self, kind: Any) -> Any:
        return self.__peer.operate("issubclass", self, kind)

    def __mro_entries__(self, bases: Any) -> Any:
        return self.__peer.operate("derive", self)

    def __copy__(self) -> Any:
        raise TypeError("an object of another process cannot be copied")

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("an object of another process cannot be copied")


_PLAIN = (
    "len iter next bool str repr hash int float complex bytes round format reversed dir "
    "neg pos invert abs index floor ceil trunc getitem setitem delitem contains "
    "eq lt le gt ge enter exit"
)
_REFLECTED = "add sub mul truediv floordiv mod matmul and or xor lshift rshift"
_IN_PLACE = "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift"


def _forward(name: str) -> Callable[..., Any]:
    def method(self: Proxy, *args: Any) -> Any:
        return _peer_of(self).operate(name, self, *args)

    return method


def _reflect(name: str) -> Callable[..., Any]:
    def method(self: Proxy, other: Any) -> Any:
        return _peer_of(self).operate(f"reflected {name}", self, other)

    return method


for _name in _PLAIN.split():
    setattr(Proxy, f"__{_name}__", _forward(_name))
for _name in _REFLECTED.split():
    _known = f"{_name}_" if _name in {"and", "or"} else _name
    setattr(Proxy, f"__{_name}__", _forward(_known))
    setattr(Proxy, f"__r{_name}__", _reflect(_known))
for _name in _IN_PLACE.split():
    setattr(Proxy, f"__i{_name}__", _forward(f"i{_name}"))


def _peer_of(proxy: Proxy) -> Peer:
    peer: Peer = object.__getattribute__(proxy, "_Proxy__peer")
    return peer


def handle_of(proxy: Proxy) -> int:
    """Return the object's handle in the other process."""
    handle: int = object.__getattribute__(proxy, "_Proxy__handle")
    return handle


def is_scaled(proxy: Proxy) -> bool:
    """Return whether an object results from arithmetic with a number of the tests."""
    return bool(object.__getattribute__(proxy, "_Proxy__scaled"))


def scale(proxy: Proxy) -> None:
    """Mark an object as the result of arithmetic with a number of the tests."""
    object.__setattr__(proxy, "_Proxy__scaled", True)
