"""The inside of the sandbox: closes every door, then runs the code it is given.

Run by path in a bare interpreter; imports the standard library alone. It writes one line of JSON to
the file descriptor named first: ``ready`` once the doors are closed (or which could not be), and
``done`` with the nonce after the code came to its end. Linux on x86-64 and 64-bit ARM only.

The doors: no new network (a network namespace of its own where the kernel allows, and no socket by
seccomp), no file but the interpreter's own to read and none to write (Landlock), no process to
start, to look into or to signal (seccomp), bounds on memory, time, output and open files (rlimit).
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import struct
import sys
from types import CodeType

__all__ = ["main"]

_DENIED = {
    "x86_64": (
        0xC000003E,
        "41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 288 299 307 "  # sockets
        "57 58 59 322 435 "  # fork, vfork, execve, execveat, clone3
        "62 200 234 129 297 424 434 438 "  # signals, pidfd
        "101 310 311 312 298 321 323 425 426 427 "  # ptrace, vm, perf, bpf, userfaultfd, io_uring
        "165 166 155 161 272 308 428 429 430 431 432 433 442 "  # mount, chroot, namespaces
        "246 320 175 176 313 169 167 168 250 248 249 303 304 "  # kexec, modules, reboot, keys
        "83 84 86 87 88 90 91 92 93 94 133 259 260 263 265 266 268 316 "  # changes of files
        "157 317 444 445 446 ",  # prctl, seccomp, landlock: the doors stay as they are
    ),
    "aarch64": (
        0xC00000B7,
        "198 199 200 201 202 203 204 205 206 207 208 209 210 211 212 242 243 269 "
        "221 281 435 129 130 131 138 240 424 434 438 "
        "117 270 271 272 241 280 282 425 426 427 "
        "40 39 41 51 97 268 428 429 430 431 432 433 442 "
        "104 294 105 106 273 142 224 225 217 218 219 264 265 "
        "33 34 35 36 37 38 52 53 54 55 276 "
        "167 277 444 445 446 ",
    ),
}
_CLONE = {"x86_64": 56, "aarch64": 220}
_THREAD = 0x10000
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050001  # the latter is EPERM
_LOAD, _EQUAL, _SET, _RETURN = 0x20, 0x15, 0x45, 0x06
_AT_LEAST = 0x35
_READ, _LIST = 1 << 2, 1 << 3
_NAMESPACES = 0x10000000 | 0x40000000 | 0x08000000  # user, network, interprocess
_EVERY_RIGHT = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}


def main() -> None:
    """Read the order from the standard input, close the doors, run the code."""
    report = int(sys.argv[1])
    order = json.loads(sys.stdin.buffer.read(int(sys.argv[2])))
    _limit(order)
    doors = _close(order["readable"])
    missing = [name for name, closed in doors.items() if not closed and name != "namespaces"]
    os.write(report, json.dumps({"ready": not missing, "doors": doors}).encode() + b"\n")
    if missing:
        return
    done = json.dumps({"done": order["nonce"]}).encode() + b"\n"
    parts: list[CodeType] = [compile(one, "<code>", "exec") for one in order["parts"]]
    sys.argv = ["code"]
    names = {"__name__": "__main__"}
    for part in parts:
        exec(part, names)  # noqa: S102  # this is what the sandbox is for
    sys.stdout.flush()
    os.write(report, done)


def _limit(order: dict[str, int]) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    seconds = order["cpu_s"]
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (order["memory_bytes"],) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (order["output_bytes"],) * 2)
    resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))


def _close(readable: list[str]) -> dict[str, bool]:
    libc = ctypes.CDLL(None, use_errno=True)
    apart = libc.unshare(_NAMESPACES) == 0
    no_news = libc.prctl(38, 1, 0, 0, 0) == 0  # what is run gains no rights
    files = no_news and _close_files(libc, readable)
    return {
        "namespaces": apart,
        "files": files,
        "calls": no_news and _close_calls(libc),
    }


def _close_files(libc: ctypes.CDLL, readable: list[str]) -> bool:
    version = libc.syscall(444, None, 0, 1)
    if version < 1:
        return False
    rights = (1 << _EVERY_RIGHT.get(version, 16)) - 1
    attributes = struct.pack("Q", rights)
    rules = libc.syscall(444, attributes, len(attributes), 0)
    if rules < 0:
        return False
    for path in readable:
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        allowed = _READ | _LIST if os.path.isdir(path) else _READ  # noqa: PTH112  # no pathlib here
        rule = struct.pack("=Qi", allowed, place)
        failed = libc.syscall(445, rules, 1, rule, 0)
        os.close(place)
        if failed:
            return False
    closed = libc.syscall(446, rules, 0) == 0
    os.close(rules)
    return bool(closed)


def _close_calls(libc: ctypes.CDLL) -> bool:
    machine = platform.machine()
    if machine not in _DENIED:
        return False
    architecture, numbers = _DENIED[machine]
    denied = sorted({int(number) for number in numbers.split()})
    program = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _REFUSE)]
    program += [(_LOAD, 0, 0, 0), (_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _REFUSE)]
    for number in denied:
        program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _REFUSE)]
    program += [(_EQUAL, 0, 3, _CLONE[machine]), (_LOAD, 0, 0, 16)]
    program += [(_SET, 1, 0, _THREAD), (_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)]
    words = b"".join(struct.pack("HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(words)
    header = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(buffer))
    return bool(libc.prctl(22, 2, header, 0, 0) == 0)


if __name__ == "__main__":
    main()
