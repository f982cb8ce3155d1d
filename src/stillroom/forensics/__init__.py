"""Room 6: a forgery lab that marks all it writes, provenance that can be checked, and detectors.

The idea: seeing is no longer believing, so whoever makes forgeries for tests must mark them, and
whoever judges a file must say what is known of it in an order that never mixes: what it is signed
to be, whether it carries a mark, and only then what a detector makes of its pixels.

Papers: self-blended images, Shiohara and Yamasaki 2022, arXiv:2204.08376; Face X-ray, Li et al.
2020, arXiv:1912.13458; C2PA technical specification 2.2. Each method names its own.

In: faces that are drawn, synthetic, or of people who consented. Out: an artifact of kind media,
whose every image carries a label, a watermark, content credentials and a row in a ledger. What is
called from Python returns arrays, which carry no mark until ``Marker`` writes them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillroom.forensics.certificates import init_ca
    from stillroom.forensics.consent import Consent, write_consent
    from stillroom.forensics.credentials import (
        Credentials,
        Signer,
        TrustList,
        sign_bytes,
        verify_file,
    )
    from stillroom.forensics.drawing import draw_face
    from stillroom.forensics.face import Face
    from stillroom.forensics.lab import Lab, open_lab
    from stillroom.forensics.ledger import Ledger
    from stillroom.forensics.marking import Made, Marker, unmarked_files
    from stillroom.forensics.method import EDITS, FORGERIES, Edit, Forged, Forgery
    from stillroom.forensics.recipe import ForensicsRecipe
    from stillroom.forensics.run import estimate, run
    from stillroom.forensics.watermark import Reading, Watermark

__all__ = [
    "EDITS",
    "FORGERIES",
    "Consent",
    "Credentials",
    "Edit",
    "Face",
    "ForensicsRecipe",
    "Forged",
    "Forgery",
    "Lab",
    "Ledger",
    "Made",
    "Marker",
    "Reading",
    "Signer",
    "TrustList",
    "Watermark",
    "draw_face",
    "estimate",
    "init_ca",
    "open_lab",
    "run",
    "sign_bytes",
    "unmarked_files",
    "verify_file",
    "write_consent",
]

_HOMES = {
    "EDITS": "method",
    "FORGERIES": "method",
    "Consent": "consent",
    "Credentials": "credentials",
    "Edit": "method",
    "Face": "face",
    "ForensicsRecipe": "recipe",
    "Forged": "method",
    "Forgery": "method",
    "Lab": "lab",
    "Ledger": "ledger",
    "Made": "marking",
    "Marker": "marking",
    "Reading": "watermark",
    "Signer": "credentials",
    "TrustList": "credentials",
    "Watermark": "watermark",
    "draw_face": "drawing",
    "estimate": "run",
    "init_ca": "certificates",
    "open_lab": "lab",
    "run": "run",
    "sign_bytes": "credentials",
    "unmarked_files": "marking",
    "verify_file": "credentials",
    "write_consent": "consent",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use; most of them need OpenCV."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"stillroom.forensics.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
