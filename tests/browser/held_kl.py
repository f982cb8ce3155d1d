"""Forward KL that holds the training while a file named ``gate`` lies beside this module.

A method of a stranger's, as an entry point makes it known: it lets a test look at a training for as
long as it likes, however fast the machine is. Source: as ``forward_kl``.
"""

import itertools
import time
from pathlib import Path

from stillroom.distill.methods.forward_kl import ForwardKl

_GATE = Path(__file__).with_name("gate")
_FREE = 8
_TOLD_S = 0.6
_calls = itertools.count()


class HeldKl(ForwardKl):
    """Forward KL, which slows the first steps so that each is told, and then waits."""

    def terms(self, pair):
        """Return forward KL's terms, when the gate is open."""
        is_free, begun = next(_calls) < _FREE, time.monotonic()
        while _GATE.exists() and not (is_free and time.monotonic() - begun > _TOLD_S):
            time.sleep(0.01)
        return super().terms(pair)


def install(folder):
    """Put the method where a process with ``folder`` on its path finds it; return the gate."""
    folder.mkdir()
    (folder / "held_kl.py").write_text(Path(__file__).read_text(encoding="utf-8"))
    info = folder / "held_kl-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: held_kl\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[stillroom.distill.methods]\nheld_kl = held_kl:HeldKl\n"
    )
    gate = folder / "gate"
    gate.touch()
    return gate
