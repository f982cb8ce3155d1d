"""Runtime of local engines: accelerators, reserved ports, silenced output, derived configs.

A sandboxed process may connect only to ports that were named before the sandbox was set up; free
ports are therefore reserved first, and engines use those.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "Accelerator",
    "choose_port",
    "derive_text_config",
    "explain_unused_driver",
    "list_accelerators",
    "reserve_ports",
    "silence_output",
    "silence_transformers",
]


@contextmanager
def silence_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and warnings within the context."""
    from transformers.utils import logging as engine_logging

    logging: Any = engine_logging  # its functions carry no types

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    is_quiet = level == logging.ERROR  # a change of level costs milliseconds: all loggers are asked
    if not is_quiet:
        logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if not is_quiet:
            logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


_LABELS = frozenset({"num_labels", "id2label", "label2id"})


def derive_text_config(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a config with all values that its architecture derives, also properties of layers.

    Of a model of several parts, that of its language model. None if transformers is not installed,
    does not support the architecture, or refuses the config.
    """
    try:
        from transformers import AutoConfig

        with silence_transformers():
            # Without names of labels, which a number of them in a stranger's config would derive
            named = {key: value for key, value in config.items() if key not in _LABELS}
            text: Any = AutoConfig.for_model(**named).get_text_config()
            names = [name for name in dir(type(text)) if name.startswith("layer")]
            derived = {name: getattr(text, name) for name in names}
    except Exception:  # noqa: BLE001  # foreign code may raise anything
        return None
    return {**text.to_dict(), **derived}


@contextmanager
def silence_output() -> Iterator[None]:
    """Discard what native code writes to standard output and error within the context.

    Redirects file descriptors, so it includes C and C++, and other threads.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved[0], 1)
        os.dup2(saved[1], 2)
        for descriptor in (*saved, nowhere):
            os.close(descriptor)


_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A device: name for ``--device``, display name, memory and bfloat16 support."""

    device: str
    name: str
    memory_bytes: int
    has_bf16: bool

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return asdict(self)


def list_accelerators() -> list[Accelerator]:
    """Return the devices that torch can use; empty without torch or an accelerator."""
    try:
        import torch
    except ImportError:
        return []

    accelerators = []
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(number)
            accelerators.append(
                Accelerator(
                    f"cuda:{number}",
                    str(properties.name),
                    int(properties.total_memory),
                    properties.major >= 8,  # Ampere and later
                )
            )
    elif torch.backends.mps.is_available():
        accelerators.append(Accelerator("mps", "Apple GPU", 0, has_bf16=True))
    return accelerators


def explain_unused_driver() -> str:
    """Return why torch cannot use an installed NVIDIA driver; empty if it can or there is none."""
    try:
        import torch
    except ImportError:
        return ""
    has_driver = _NVIDIA_DRIVER.is_file() or shutil.which("nvidia-smi") is not None
    if not has_driver or torch.cuda.is_available():
        return ""
    if torch.version.cuda is None:
        return "an NVIDIA driver is installed, but this torch is a CPU-only build"
    return (
        f"an NVIDIA driver is installed, but this torch (CUDA {torch.version.cuda}) cannot use it"
    )


_PORTS_VARIABLE = "STILLROOM_ENGINE_PORTS"
_LOCALHOST = "127.0.0.1"


def reserve_ports(count: int) -> list[int]:
    """Reserve free ports for the engines of this process and its children; return them."""
    with contextlib.ExitStack() as opened:
        bound = [
            opened.enter_context(contextlib.closing(socket.create_server((_LOCALHOST, 0))))
            for _ in range(count)
        ]
        ports = [server.getsockname()[1] for server in bound]
    os.environ[_PORTS_VARIABLE] = ",".join(map(str, ports))
    return ports


def choose_port() -> int:
    """Return a free reserved port, or 0 (any) without reservations."""
    named = os.environ.get(_PORTS_VARIABLE, "")
    for port in map(int, named.split(",") if named else ()):
        with contextlib.suppress(OSError), socket.create_server((_LOCALHOST, port)):
            return port
    return 0
