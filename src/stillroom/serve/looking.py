"""Looking at media that clients send: what is known of their origin, as ``forensics check`` says.

Files are written to a folder of their own, part by part, and looked at in a fenced process with
bounded memory and time; both are gone when the answer is. Knows nothing of HTTP.
"""

from __future__ import annotations

import re
import secrets
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.serve.children import ask_child
from stillroom.serve.fence import can_fence
from stillroom.serve.refusals import Refusal

__all__ = ["Looker", "Sent"]

_ENDING = re.compile(r"\.[A-Za-z0-9]{1,8}\Z")
_MEMORY_BYTES = 6 << 30
_LOOK_S = 180.0


@dataclass(frozen=True, slots=True)
class Sent:
    """A file that a client sent: where it lies, and what the client calls it."""

    path: Path
    name: str


class Looker:
    """Looks at files of a request; how many requests at once is its callers' to bound."""

    def __init__(
        self,
        *,
        detectors: Sequence[Path] = (),
        official: Sequence[Path] = (),
        trust: Sequence[Path] = (),
    ) -> None:
        """Look with these.

        Args:
            detectors: Trained detectors that look at each face.
            official: The C2PA's own trust lists, as PEM.
            trust: Authorities that the operator trusts, as PEM.
        """
        self.detectors = [path.absolute() for path in detectors]
        self.official = [path.absolute() for path in official]
        self.trust = [path.absolute() for path in trust]
        self._has_fence = can_fence()

    @asynccontextmanager
    async def folder(self) -> AsyncIterator[Path]:
        """Make a folder for one request's files; it is gone when the body ends."""
        with tempfile.TemporaryDirectory(prefix="stillroom-sent-") as folder:
            yield Path(folder)

    def place(self, folder: Path, number: int, name: str) -> Sent:
        """Return where a file of a request is written; of its name only the ending is used.

        Its own name is random, so that it can be found in what is told and the client's put there.
        """
        ending = _ENDING.search(name)
        shown = Path(name.replace("\\", "/")).name[:200] or f"file-{number}"
        own = f"{secrets.token_hex(12)}{ending[0].lower() if ending else ''}"
        return Sent(folder / own, shown)

    async def look(
        self, folder: Path, files: Sequence[Sent], *, prevalence: float, pulse: bool
    ) -> dict[str, Any]:
        """Return what is known of files.

        Raises:
            Refusal: If it takes too long, or the process ends over a file.
        """
        order = {
            "do": "look",
            "files": [[str(sent.path), sent.name] for sent in files],
            "detectors": [str(path) for path in self.detectors],
            "official": [str(path) for path in self.official],
            "trust": [str(path) for path in self.trust],
            "prevalence": prevalence,
            "pulse": pulse,
            "memory_bytes": _MEMORY_BYTES,
            "root": str(folder),
            "place": "",
            "readable": [str(path) for path in (*self.detectors, *self.official, *self.trust)],
            "ports": [],
            "hub": False,
            "fence": self._has_fence,
        }
        found = await ask_child(order, folder, folder, timeout_s=_LOOK_S)
        if found["state"] != "looked":
            raise Refusal(
                422, "the files could not be looked at; their decoding failed", code="unreadable"
            )
        return {"files": found["files"], "limits": found["limits"]}
