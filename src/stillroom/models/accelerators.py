"""Which accelerators torch can use here, and which it cannot though they are there."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["Accelerator", "describe_accelerators", "find_unused"]

_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One device: its name for ``--device``, what it is, its memory and whether it has bfloat16."""

    device: str
    name: str
    memory_bytes: int
    has_bf16: bool

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def describe_accelerators() -> list[Accelerator]:
    """Return the devices that torch can use; empty on a machine with processors alone."""
    import torch

    found = []
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(number)
            found.append(
                Accelerator(
                    f"cuda:{number}",
                    str(about.name),
                    int(about.total_memory),
                    about.major >= 8,  # Ampere was the first
                )
            )
    elif torch.backends.mps.is_available():
        found.append(Accelerator("mps", "Apple GPU", 0, has_bf16=True))
    return found


def find_unused() -> str:
    """Return why an NVIDIA driver that is there is of no use to torch; empty where all is well."""
    import torch

    has_driver = _DRIVER.is_file() or shutil.which("nvidia-smi") is not None
    if not has_driver or torch.cuda.is_available():
        return ""
    if torch.version.cuda is None:
        return "an NVIDIA driver is there, but this torch was built for processors alone"
    return f"an NVIDIA driver is there, but this torch (CUDA {torch.version.cuda}) cannot use it"
