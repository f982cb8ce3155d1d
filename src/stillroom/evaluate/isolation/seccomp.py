"""Seccomp allowlist of system calls for x86-64 and 64-bit ARM.

Numbers are those of the kernel's ``asm/unistd_64.h`` and ``asm-generic/unistd.h``. libseccomp
would be one more dependency; the filter is forty lines.
"""

from __future__ import annotations

import ctypes
import os
import struct

__all__ = ["filter_calls"]

_ALLOWED_CALLS = {
    "x86_64": (
        "0 1 3 5 8 17 18 19 20 295 296 "  # read, write, close, fstat, lseek, p*, *v
        "2 257 4 6 262 332 21 269 439 89 267 78 217 79 137 138 "  # open, stat, access, list
        "32 33 292 22 293 7 271 23 270 213 291 233 232 281 77 221 "  # dup, pipe, poll, epoll
        "9 11 25 10 28 12 26 "  # memory
        "202 273 334 324 24 309 "  # futex, robust list, rseq, membarrier, yield, getcpu
        "13 14 15 127 128 130 131 219 38 36 37 34 "  # own signals and timers
        "228 229 230 35 96 201 100 98 97 "  # clocks, sleep, usage, getrlimit
        "39 186 110 102 107 104 108 115 118 120 63 99 318 95 "  # process and user ids
        "60 231 "  # exit
    ),
    "aarch64": (
        "63 64 57 80 62 67 68 65 66 69 70 "
        "56 79 291 48 439 78 61 17 43 44 "
        "23 24 59 73 72 20 21 22 46 223 "
        "222 215 216 226 233 214 227 "
        "98 99 293 283 124 168 "
        "134 135 139 136 137 133 132 128 103 102 "
        "113 114 115 101 169 153 165 163 "
        "172 178 173 174 175 176 177 158 148 150 160 179 278 166 "
        "93 94 "
    ),
}
_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# clone, clone3, fcntl, ioctl, prlimit64, sched_getaffinity
_ARGUMENT_CHECKED = {"x86_64": (56, 435, 72, 16, 302, 204), "aarch64": (220, 435, 25, 29, 261, 123)}
_THREAD = 0x10000
_FCNTL = (0, 1, 2, 3, 4, 1030)  # duplicate, flags: no owner, no signal, no lock, no lease
_IOCTL = (0x5401, 0x5450, 0x5451)  # is it a terminal, (do not) close on exec
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_REFUSE, _UNKNOWN = 0x00050001, 0x00050026  # EPERM, ENOSYS
_LOAD, _EQUAL, _SET, _RETURN = 0x20, 0x15, 0x45, 0x06
_Line = tuple[int, int, int, int]


def filter_calls(libc: ctypes.CDLL) -> bool:
    """Refuse every system call of this process and its threads that is not listed."""
    machine = os.uname().machine
    if machine not in _ALLOWED_CALLS:
        return False
    program = _compile(machine)
    words = b"".join(struct.pack("HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(words)
    header = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(buffer))
    return bool(libc.prctl(22, 2, header, 0, 0) == 0)


def _compile(machine: str) -> list[_Line]:
    clone, clone3, fcntl, ioctl, prlimit, affinity = _ARGUMENT_CHECKED[machine]
    program: list[_Line] = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, _ARCHITECTURE[machine])]
    program += [(_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    for number in sorted(map(int, _ALLOWED_CALLS[machine].split())):
        program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    # the C library falls back to clone, whose flags a filter can read
    program += [(_EQUAL, 0, 1, clone3), (_RETURN, 0, 0, _UNKNOWN)]
    program += _for_call(clone, [(_LOAD, 0, 0, 16), (_SET, 0, 1, _THREAD), (_RETURN, 0, 0, _ALLOW)])
    program += _for_call(fcntl, _one_of(24, _FCNTL))
    program += _for_call(ioctl, _one_of(24, _IOCTL))
    program += _for_call(
        prlimit, [*_require_zero(16, 6), *_require_zero(32, 4), *_require_zero(36, 2), _ALLOW_LINE]
    )
    program += _for_call(affinity, [*_require_zero(16, 2), _ALLOW_LINE])
    return [*program, (_RETURN, 0, 0, _REFUSE)]


_ALLOW_LINE: _Line = (_RETURN, 0, 0, _ALLOW)


def _for_call(number: int, lines: list[_Line]) -> list[_Line]:
    """Return the lines for one call only, which refuse it unless they return."""
    lines = [*lines, (_RETURN, 0, 0, _REFUSE)]
    return [(_EQUAL, 0, len(lines), number), *lines]


def _one_of(offset: int, values: tuple[int, ...]) -> list[_Line]:
    lines: list[_Line] = [(_LOAD, 0, 0, offset)]
    for value in values:
        lines += [(_EQUAL, 0, 1, value), _ALLOW_LINE]
    return lines


def _require_zero(offset: int, other: int) -> list[_Line]:
    """Continue where a word of the arguments is zero, else jump to the refusal after ``other``."""
    return [(_LOAD, 0, 0, offset), (_EQUAL, 0, other - 1, 0)]
