"""Media forensics: labeled synthetic forgeries, C2PA provenance, watermarks, and forgery detectors.

A file is judged in a fixed order of evidence that is never mixed: signed credentials first, then
the watermark, and only then the score of a pixel detector.

Source: self-blended images, Shiohara and Yamasaki 2022, arXiv:2204.08376; Face X-ray, Li et al.
2020, arXiv:1912.13458; C2PA technical specification 2.2. Each method names its own paper.

Input: faces that are drawn by program, synthetic, or of people who consented. Output: an artifact
of kind media, whose every image carries a label, a watermark, content credentials and a ledger row.
Functions called from Python return arrays, which carry no mark until ``LabeledImageWriter`` writes
them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stillroom.exports import export_lazily

if TYPE_CHECKING:
    from stillroom.forensics.c2pa.credentials import Credentials, TrustList, verify_file
    from stillroom.forensics.c2pa.signature import init_ca
    from stillroom.forensics.c2pa.signer import Signer, sign_bytes
    from stillroom.forensics.interfaces import (
        BENIGN_EDITS,
        IMAGE_FORGERIES,
        BenignEdit,
        ForgedImage,
        ImageForgery,
    )
    from stillroom.forensics.labeling.dataset_writer import find_unmarked_files
    from stillroom.forensics.labeling.image import GeneratedImage, LabeledImageWriter
    from stillroom.forensics.labeling.lab import Lab, Ledger, open_lab
    from stillroom.forensics.media.face_types import Face
    from stillroom.forensics.synthesis.consent import Consent, write_consent
    from stillroom.forensics.synthesis.faces import draw_face
    from stillroom.forensics.watermark.image import ImageWatermark, ImageWatermarkResult

__all__ = [
    "BENIGN_EDITS",
    "IMAGE_FORGERIES",
    "BenignEdit",
    "Consent",
    "Credentials",
    "Face",
    "ForgedImage",
    "GeneratedImage",
    "ImageForgery",
    "ImageWatermark",
    "ImageWatermarkResult",
    "Lab",
    "LabeledImageWriter",
    "Ledger",
    "Signer",
    "TrustList",
    "draw_face",
    "find_unmarked_files",
    "init_ca",
    "open_lab",
    "sign_bytes",
    "verify_file",
    "write_consent",
]

__getattr__ = export_lazily(__name__)
