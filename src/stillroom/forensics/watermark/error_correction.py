"""Convolutional code with soft-decision Viterbi decoding.

Rate 1/2, constraint length 7, generators 171 and 133 (octal), terminated to the zero state by six
closing bits. Decoding is exact maximum likelihood by Viterbi's algorithm.

Source: Viterbi 1967, "Error bounds for convolutional codes and an asymptotically optimum decoding
algorithm", IEEE Transactions on Information Theory 13(2); the generators are the standard choice
for their length.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = [
    "CHECK_BITS",
    "PayloadCode",
    "assign_chips",
    "compute_coded_length",
    "decode_soft",
    "encode_bits",
]

CHECK_BITS = 24

_MEMORY = 6
_STATES = 1 << _MEMORY
_GENERATORS = (0o171, 0o133)
Bits = npt.NDArray[np.uint8]


def compute_coded_length(bits: int) -> int:
    """Return the number of coded bits for a message of ``bits`` bits."""
    return 2 * (bits + _MEMORY)


def encode_bits(bits: Bits) -> Bits:
    """Encode a message, (n,) to (2 (n + 6),)."""
    register = 0
    coded = []
    for bit in [*bits.tolist(), *[0] * _MEMORY]:
        register = (bit << _MEMORY) | (register >> 1)
        coded += [(register & generator).bit_count() & 1 for generator in _GENERATORS]
    return np.array(coded, dtype=np.uint8)


def _build_trellis() -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Return each state's two predecessors and the outputs of these transitions.

    A state is the register's six older bits; predecessors of a state share its five lower ones.
    """
    predecessors = np.empty((_STATES, 2), dtype=np.intp)
    signs = np.empty((_STATES, 2, 2))
    for state in range(_STATES):
        bit = state >> (_MEMORY - 1)
        for lost in (0, 1):
            previous = ((state << 1) & (_STATES - 1)) | lost
            register = (bit << _MEMORY) | previous
            predecessors[state, lost] = previous
            for output, generator in enumerate(_GENERATORS):
                signs[state, lost, output] = 1.0 if (register & generator).bit_count() & 1 else -1.0
    return predecessors, signs


_BEFORE, _SIGNS = _build_trellis()


def decode_soft(soft: npt.NDArray[np.floating]) -> Bits:
    """Return the most likely message of noisy coded bits.

    Args:
        soft: One value per coded bit, positive for 1, (2 (n + 6),).

    Returns:
        The message, (n,).
    """
    pairs = np.asarray(soft, dtype=np.float64).reshape(-1, 2)
    scores = np.full(_STATES, -np.inf)
    scores[0] = 0.0
    choices = np.empty((len(pairs), _STATES), dtype=np.uint8)
    branches = np.tensordot(pairs, _SIGNS, axes=(1, 2))  # (steps, states, 2)
    for step, branch in enumerate(branches):
        reached = scores[_BEFORE] + branch
        keeps, changes = reached[:, 0], reached[:, 1]
        np.greater(changes, keeps, out=choices[step], casting="unsafe")
        scores = np.maximum(keeps, changes)
    state, bits = 0, np.empty(len(pairs), dtype=np.uint8)
    for step in range(len(pairs) - 1, -1, -1):
        bits[step] = state >> (_MEMORY - 1)
        state = int(_BEFORE[state, choices[step, state]])
    return bits[:-_MEMORY]


@dataclass(frozen=True)
class PayloadCode:
    """Code of a payload and its keyed check, so that a watermark of another key does not pass.

    ``bits`` is the payload's length, a multiple of 8; ``label`` makes the checks of one medium
    differ from those of another.
    """

    key: bytes
    bits: int
    label: bytes = b""

    def spread(self, payload: int, bit: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
        """Return the sign that each chip carries, +1 or -1; ``bit`` is its coded bit, -1: pilot."""
        message = format(self._append_check(payload), f"0{self.bits + CHECK_BITS}b")
        coded = encode_bits(np.array([int(digit) for digit in message], dtype=np.uint8)) * 2.0 - 1.0
        return np.where(bit < 0, 1.0, coded[np.maximum(bit, 0)])

    def decode(self, values: npt.NDArray[np.floating], bit: npt.NDArray[np.intp]) -> int | None:
        """Return the payload that the chips carry; None if it fails the check."""
        data, length = bit >= 0, compute_coded_length(self.bits + CHECK_BITS)
        soft = np.bincount(bit[data], weights=values[data], minlength=length).astype(np.float64)
        message = int("".join(map(str, decode_soft(soft))), 2)
        payload = message >> CHECK_BITS
        return payload if message == self._append_check(payload) else None

    def _append_check(self, payload: int) -> int:
        data = self.label + payload.to_bytes(self.bits // 8, "big")
        check = hmac.new(self.key, data, hashlib.sha256).digest()[: CHECK_BITS // 8]
        return payload << CHECK_BITS | int.from_bytes(check, "big")


def assign_chips(
    key: bytes, count: int, pilot_share: float, coded: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.intp]]:
    """Return sign and coded bit (-1: pilot) of each chip, (count,).

    Derived from the key by hashing only, so that every numpy gives the same.
    """
    stream = hashlib.shake_256(key).digest(count * 9)
    order = np.argsort(np.frombuffer(stream[: count * 8], dtype=">u8"), kind="stable")
    signs = np.where(np.frombuffer(stream[count * 8 :], dtype=np.uint8) & 1, 1.0, -1.0)
    bit = np.empty(count, dtype=np.intp)
    pilots = int(count * pilot_share)
    bit[order[:pilots]] = -1
    bit[order[pilots:]] = np.arange(count - pilots) % coded
    return signs, bit
