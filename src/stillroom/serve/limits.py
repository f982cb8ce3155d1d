"""What a client may ask for at most."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on requests; every one that is crossed is refused with its figure, never cut.

    ``running`` generations happen at once (0: as many as the engine takes, which need not be more
    than one), and ``waiting`` more may stand in line for ``wait_s``; past that a client is told to
    come again. Recipes are checked one at a time and media as well, and of each ``checks`` more may
    wait; media have their place before they are read. ``requests_per_minute`` counts for each key
    (0: as many as come); ``followers`` are the streams of jobs' events at once.
    """

    body_bytes: int = 1_000_000
    body_s: float = 30.0
    upload_bytes: int = 200_000_000
    upload_s: float = 600.0
    uploads: int = 8
    messages: int = 200
    max_new_tokens: int = 2048
    default_new_tokens: int = 256
    choices: int = 8
    texts: int = 256
    running: int = 0
    waiting: int = 128
    checks: int = 8
    wait_s: float = 300.0
    timeout_s: float = 300.0
    retry_after_s: int = 2
    drain_s: int = 30
    requests_per_minute: int = 0
    followers: int = 64
