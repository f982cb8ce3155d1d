"""Keeping: what takes long to open stays open, so many at most; the one used longest ago goes.

What is in use is never closed, and what two ask for at once is opened once. Knows nothing of what
it keeps.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from stillroom.errors import ResourceError

__all__ = ["Keeper"]

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


@dataclass
class _Held(Generic[T]):
    """One that is open, or about to be: then it counts already."""

    closing: ExitStack = field(default_factory=ExitStack)
    value: T | None = None
    is_open: bool = False
    users: int = 0


class Keeper(Generic[K, T]):
    """Opens by key what is asked for, at most ``most`` at once; for several threads."""

    def __init__(self, most: int, what: str, *, patience_s: float = 0.0) -> None:
        """Begin with nothing open.

        Args:
            most: How many are open at once.
            what: What they are called, many of them, for errors.
            patience_s: How long to wait for one that is idle where all are in use.
        """
        self.most, self.what, self.patience_s = most, what, patience_s
        self._held: OrderedDict[K, _Held[T]] = OrderedDict()
        self._changed = threading.Condition()

    @contextmanager
    def use(self, key: K, open_: Callable[[], AbstractContextManager[T]]) -> Iterator[T]:
        """Hold what a key stands for open until the body ends; blocks while it is opened.

        Raises:
            ResourceError: If as many as may be open are all in use.
        """
        held = self._take(key, open_)
        try:
            yield held.value  # type: ignore[misc]  # it is open
        finally:
            self._give_back(key, held)

    def close(self) -> None:
        """Close what is open, and what is in use when it is used no more."""
        with self._changed:
            idle = [one for one in self._held.values() if one.is_open and not one.users]
            self._held.clear()
        for one in idle:
            one.closing.close()

    def _take(self, key: K, open_: Callable[[], AbstractContextManager[T]]) -> _Held[T]:
        end = time.monotonic() + self.patience_s
        with self._changed:
            while True:
                held = self._held.get(key)
                if held is not None and held.is_open:
                    self._held.move_to_end(key)
                    held.users += 1
                    return held
                if held is not None:
                    self._changed.wait()  # another opens it
                    continue
                idle = self._pop_idle()
                if idle is not None or len(self._held) < self.most:
                    break
                self._wait(end)
            held = self._held[key] = _Held(users=1)
        try:
            if idle is not None:
                idle.closing.close()  # first: there may be no room for both
            held.value = held.closing.enter_context(open_())
        except BaseException:
            held.closing.close()
            with self._changed:
                if self._held.get(key) is held:
                    del self._held[key]
                self._changed.notify_all()
            raise
        with self._changed:
            held.is_open = True
            self._changed.notify_all()
        return held

    def _pop_idle(self) -> _Held[T] | None:
        """Take out the one used longest ago, if one must go and one is idle."""
        if len(self._held) >= self.most:
            for key, one in self._held.items():
                if one.is_open and not one.users:
                    return self._held.pop(key)
        return None

    def _wait(self, end: float) -> None:
        """Wait until something changes, as long as there is patience."""
        left = end - time.monotonic()
        if left <= 0:
            raise ResourceError(
                f"{self.most} {self.what} are open, and all of them are in use",
                code="resource.busy",
                expected="one that is idle, to be closed",
                next="wait until one is done, or stop one",
            )
        self._changed.wait(left)

    def _give_back(self, key: K, held: _Held[T]) -> None:
        with self._changed:
            held.users -= 1
            is_kept = self._held.get(key) is held
            self._changed.notify_all()
        if not is_kept and not held.users:
            held.closing.close()
