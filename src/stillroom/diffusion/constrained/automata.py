"""Deterministic finite automata over bytes for the values of a JSON Schema.

A state is an integer, 0 the initial one; a byte leads to one state or to none. Automata cover the
values of JSON Schema: literals, bounded numbers, strings of bounded length, and lists of them.
Independent of tokenizers and models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "ByteDFA",
    "match_integers",
    "match_list",
    "match_literals",
    "match_numbers",
    "match_quoted",
    "match_strings",
    "match_union",
]

_State = Any  # hashable; the states of one automaton have one type
_DIGITS = range(0x30, 0x3A)
_ASCII_TEXT = [byte for byte in range(0x20, 0x80) if byte not in (0x22, 0x5C, 0x7F)]
# UTF-8 leading bytes: continuation bytes, and range of the first one (narrower for E0, ED, F0, F4)
_UTF8_LEADS = {
    **dict.fromkeys(range(0xC2, 0xE0), (1, 0x80, 0xC0)),
    **dict.fromkeys(range(0xE1, 0xF0), (2, 0x80, 0xC0)),
    **dict.fromkeys(range(0xF1, 0xF4), (3, 0x80, 0xC0)),
    0xE0: (2, 0xA0, 0xC0),
    0xED: (2, 0x80, 0xA0),
    0xF0: (3, 0x90, 0xC0),
    0xF4: (3, 0x80, 0x90),
}


@dataclass(frozen=True, slots=True)
class ByteDFA:
    """Transition table over bytes.

    Args:
        table: Next state by state and byte, -1 for none, (S, 256), int32.
        accepts: Accepting states, (S,), bool.
    """

    table: npt.NDArray[np.int32]
    accepts: npt.NDArray[np.bool_]

    def reads(self, data: bytes) -> bool:
        """Return whether the automaton accepts a byte string."""
        state = 0
        for byte in data:
            state = int(self.table[state, byte])
            if state < 0:
                return False
        return bool(self.accepts[state])


def _number_states(
    first: _State, step: Callable[[_State], dict[int, _State]], is_end: Callable[[_State], bool]
) -> ByteDFA:
    """Build the automaton of all states reachable from the first."""
    numbers_, rows = {first: 0}, []
    queue = [first]
    for state in queue:
        row = np.full(256, -1, dtype=np.int32)
        for byte, following in step(state).items():
            if following not in numbers_:
                numbers_[following] = len(queue)
                queue.append(following)
            row[byte] = numbers_[following]
        rows.append(row)
    return ByteDFA(np.stack(rows), np.array([is_end(state) for state in queue]))


def match_literals(values: Sequence[bytes]) -> ByteDFA:
    """Return the automaton of a set of literals."""
    literals = set(values)

    def step(state: _State) -> dict[int, _State]:
        begun = state if isinstance(state, bytes) else b""
        size = len(begun)
        return {
            value[size]: value[: size + 1]
            for value in literals
            if len(value) > size and value.startswith(begun)
        }

    return _number_states(b"", step, lambda state: state in literals)


def match_strings(least: int = 0, most: int | None = None) -> ByteDFA:
    """Return the automaton of strings without escapes, ``least`` to ``most`` characters."""
    top = least if most is None else most

    def count(now: int) -> int:
        return min(now + 1, top) if most is None else now + 1

    def step(state: _State) -> dict[int, _State]:
        now, pending, low, high = state
        if pending:
            return {byte: (now, pending - 1, 0x80, 0xC0) for byte in range(low, high)}
        if most is not None and now >= most:
            return {}
        more = count(now)
        transitions: dict[int, _State] = {byte: (more, 0, 0, 0) for byte in _ASCII_TEXT}
        transitions |= {lead: (more, *rule) for lead, rule in _UTF8_LEADS.items()}
        return transitions

    def is_end(state: _State) -> bool:
        now, pending, _, _ = state
        return bool(pending == 0 and now >= least)

    return _number_states((0, 0, 0, 0), step, is_end)


def match_quoted(inner: ByteDFA) -> ByteDFA:
    """Return the automaton of a quoted value; ``inner`` accepts no quotation mark."""
    size = len(inner.table)
    table = np.full((size + 2, 256), -1, dtype=np.int32)
    table[0, 0x22] = 1
    table[1 : size + 1] = np.where(inner.table >= 0, inner.table + 1, -1)
    table[1 : size + 1, 0x22] = np.where(inner.accepts, size + 1, -1)
    return ByteDFA(table, np.arange(size + 2) == size + 1)


def match_integers(low: int | None = None, high: int | None = None) -> ByteDFA:
    """Return the automaton of the integers in [``low``, ``high``]; at most 18 digits."""
    limit = 10**18 - 1
    low, high = (
        max(-limit, -limit if low is None else low),
        min(limit, limit if high is None else high),
    )
    plus = (max(low, 0), high) if high >= 0 else None
    minus = (max(1, -high), -low) if low < 0 else None
    return _number_states(
        ("start",),
        lambda state: _digit_transitions(state, plus, minus),
        lambda state: _is_within(state, plus, minus),
    )


_Range = tuple[int, int] | None


def _digit_transitions(state: _State, plus: _Range, minus: _Range) -> dict[int, _State]:
    """Return transitions by digit; a state is a sign and the comparison with both bounds."""
    kind, *progress = state
    transitions: dict[int, _State] = {}
    if kind == "start":
        if minus is not None:
            transitions[0x2D] = ("-",)
        if plus is not None:
            transitions |= _start_number("+", plus)
        return transitions
    bounds = plus if kind == "+" else minus
    if bounds is None:
        return {}
    if not progress:
        return _start_number(kind, bounds)
    count, below, above = progress
    if (count, below, above) == (1, None, None):  # no digit follows a leading zero
        return {}
    return {
        byte: following
        for byte in _DIGITS
        if (following := _append_digit(kind, bounds, count, below, above, byte - 0x30)) is not None
    }


def _start_number(kind: str, bounds: tuple[int, int]) -> dict[int, _State]:
    transitions: dict[int, _State] = {}
    if bounds[0] <= 0:
        transitions[0x30] = (kind, 1, None, None)
    for digit in range(1, 10):
        following = _append_digit(kind, bounds, 0, 0, 0, digit)
        if following is not None:
            transitions[0x30 + digit] = following
    return transitions


def _append_digit(
    kind: str, bounds: tuple[int, int], count: int, below: int, above: int, digit: int
) -> _State | None:
    """Return the state after one more digit, or None where no number within bounds has the prefix.

    ``below`` and ``above`` compare the digits so far with the prefix of each bound: -1, 0 or 1.
    """
    least, most = str(bounds[0]), str(bounds[1])
    if count >= len(most):
        return None
    pairs = []
    for text, known in ((least, below), (most, above)):
        same = known or (
            (digit > int(text[count])) - (digit < int(text[count])) if count < len(text) else 1
        )
        pairs.append(same)
    after = (kind, count + 1, *pairs)
    is_hopeless = count + 1 == len(most) and pairs[1] > 0
    is_hopeless |= len(least) == len(most) == count + 1 and pairs[0] < 0
    is_hopeless |= len(least) == len(most) and (pairs[0] < 0 or pairs[1] > 0)
    return None if is_hopeless else after


def _is_within(state: _State, plus: _Range, minus: _Range) -> bool:
    kind, *progress = state
    bounds = plus if kind == "+" else minus
    if len(progress) != 3 or bounds is None:
        return False
    count, below, above = progress
    if below is None:
        return bounds[0] <= 0
    least, most = len(str(bounds[0])), len(str(bounds[1]))
    return bool(
        (count > least or (count == least and below >= 0))
        and (count < most or (count == most and above <= 0))
    )


def match_numbers() -> ByteDFA:
    """Return the automaton of JSON numbers without an exponent."""

    def step(state: _State) -> dict[int, _State]:
        transitions: dict[_State, dict[int, _State]] = {
            "start": {0x2D: "sign", 0x30: "zero", **dict.fromkeys(_DIGITS[1:], "whole")},
            "sign": {0x30: "zero", **dict.fromkeys(_DIGITS[1:], "whole")},
            "zero": {0x2E: "point"},
            "whole": {0x2E: "point", **dict.fromkeys(_DIGITS, "whole")},
            "point": dict.fromkeys(_DIGITS, "part"),
            "part": dict.fromkeys(_DIGITS, "part"),
        }
        return transitions[state]

    return _number_states("start", step, lambda state: state in ("zero", "whole", "part"))


def match_union(parts: Sequence[ByteDFA]) -> ByteDFA | None:
    """Return the union of automata, or None where two accept the same first byte."""
    tables, accepts, first, is_end = [], [], np.full(256, -1, dtype=np.int32), False
    offset = 1
    for part in parts:
        begins = part.table[0] >= 0
        if (begins & (first >= 0)).any() or (part.accepts[0] and is_end):
            return None
        first[begins] = part.table[0][begins] + offset
        is_end = is_end or bool(part.accepts[0])
        tables.append(np.where(part.table >= 0, part.table + offset, -1))
        accepts.append(part.accepts)
        offset += len(part.table)
    table = np.concatenate([first[None], *tables]).astype(np.int32)
    return ByteDFA(table, np.concatenate([[is_end], *accepts]))


def match_list(element: ByteDFA, least: int, most: int) -> ByteDFA:
    """Return the automaton of ``least`` to ``most`` elements joined by ", ".

    Elements must not contain commas outside quotation marks: a comma in an accepting state of an
    element starts the next one.
    """
    size = len(element.table)
    per = size + 2  # states of the element, after the comma, after the space
    table = np.full((per * most + 1, 256), -1, dtype=np.int32)
    accepts = np.zeros(per * most + 1, dtype=np.bool_)
    for number in range(most):
        base = 1 + number * per
        element_table = np.where(element.table >= 0, element.table + base, -1)
        table[base : base + size] = element_table
        accepts[base : base + size] = element.accepts & (number + 1 >= least)
        if number + 1 < most:
            table[base : base + size, 0x2C] = np.where(
                element.accepts, base + size, table[base : base + size, 0x2C]
            )
            table[base + size, 0x20] = base + per
    # the initial state is that of the first element; accepting where the list may be empty
    table[0] = table[1]
    accepts[0] = least == 0
    return ByteDFA(table, accepts)
