"""LabeledImageWriter: images of the lab, each with all marks."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from typing_extensions import override

from stillroom.forensics.extras import require_packages
from stillroom.forensics.labeling.lab import Lab
from stillroom.forensics.labeling.marks import (
    IPTC_SOURCE_TYPE_URL,
    Content,
    GeneratedMedia,
    LabeledWriter,
    LabelKind,
)
from stillroom.forensics.media.face_types import Image
from stillroom.forensics.media.images import DECODE_ERRORS
from stillroom.forensics.watermark.fingerprint import ContentMatch, fingerprint_image
from stillroom.forensics.watermark.image import (
    IMAGE_PAYLOAD_BITS,
    ImageWatermark,
    ImageWatermarkResult,
    align_luma,
    measure_psnr,
)

__all__ = [
    "IMAGE_LABELS",
    "GeneratedImage",
    "LabeledImageWriter",
    "decode_image",
    "select_lookup_label",
]

_FORGED_IMAGE_LABEL = (
    "Made by the Stillroom forensics lab to test detectors. Not a photograph of what it shows."
)

IMAGE_LABELS: Mapping[LabelKind, str] = {
    "forged": _FORGED_IMAGE_LABEL,
    "drawn": _FORGED_IMAGE_LABEL,
    "synthetic": "Made by a generator, as the Stillroom forensics lab was told; kept as the twin "
    "of a forgery, to test detectors. Not a photograph of what it shows.",
    "real": "A picture of a person, not forged: kept by the Stillroom forensics lab as the real "
    "twin of a forgery, to test detectors; cut out, edited as people edit, and marked.",
}

_UNKNOWN_IMAGE_LABEL = (
    "Marked by the Stillroom forensics lab, which makes forgeries and keeps their real twins to "
    "test detectors; which of these it is is not known."
)

_COPIED_MARK_LABEL = (
    "Carries a mark that the Stillroom forensics lab wrote into another picture: copied here, or "
    "left of what was changed since."
)

_EXIF_DESCRIPTION = 0x010E

_XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    'Iptc4xmpExt:DigitalSourceType="{source}"/></rdf:RDF></x:xmpmeta>'
)


@dataclass(frozen=True, eq=False)
class GeneratedImage(GeneratedMedia):
    """An image made by the lab, and the statements of its marks.

    ``parent`` holds bytes and type of the source image, unless it was drawn; ``box`` is x, y,
    width, height of the forged region.
    """

    box: tuple[int, int, int, int] = (0, 0, 0, 0)
    parent: tuple[bytes, str] | None = None


class LabeledImageWriter(LabeledWriter):
    """Write JPEG and PNG images of one lab, each with all marks."""

    labels = IMAGE_LABELS
    soft_binding = "io.stillroom.dct48"
    payload_bits = IMAGE_PAYLOAD_BITS
    remedy = "raise output.quality, or lower watermark.psnr, so that the watermark survives"

    def __init__(self, lab: Lab, *, psnr: float = 41.5, quality: int = 95) -> None:
        """Use the lab's key, certificates and ledger.

        Args:
            lab: The lab.
            psnr: PSNR of the watermarked image, in dB.
            quality: JPEG quality.
        """
        require_packages("c2pa", "cryptography", "PIL", "cv2")
        super().__init__(lab)
        self._psnr, self._quality = psnr, quality
        self._watermark = ImageWatermark(lab.key)

    @override
    def _missing(
        self, data: bytes, mime: str, payload: int | None, labels: frozenset[str]
    ) -> list[str]:
        from PIL import Image as Pictures

        try:
            return super()._missing(data, mime, payload, labels)
        except (*DECODE_ERRORS, Pictures.DecompressionBombError):
            return ["watermark", "credentials", "label"]

    @override
    def _describe_region(self, generated: GeneratedImage) -> dict[str, Any]:
        x, y, width, height = generated.box
        shape = {
            "type": "rectangle",
            "unit": "pixel",
            "origin": {"x": x, "y": y},
            "width": width,
            "height": height,
        }
        change = {"description": "forged", "region": [{"type": "spatial", "shape": shape}]}
        return {
            "region": {"x": x, "y": y, "width": width, "height": height},
            "changes": [change] if width and height else [],
        }

    @override
    def _embed(self, content: Image, payload: int) -> Image:
        return self._watermark.embed(content, payload, psnr=self._psnr)

    @override
    def _encode(self, content: Image, mime: str, generated: GeneratedMedia) -> bytes:
        from PIL import Image as Pictures
        from PIL.PngImagePlugin import PngInfo

        picture, out = Pictures.fromarray(content), io.BytesIO()
        xmp = _XMP.format(source=IPTC_SOURCE_TYPE_URL + generated.source_type)
        label = self.labels[generated.kind]
        if mime == "image/jpeg":
            exif = Pictures.Exif()
            exif[_EXIF_DESCRIPTION] = label
            picture.save(
                out, "JPEG", quality=self._quality, exif=exif, xmp=xmp.encode(), subsampling=0
            )
        else:
            texts = PngInfo()
            texts.add_text("Description", label)
            texts.add_itxt("XML:com.adobe.xmp", xmp)
            picture.save(out, "PNG", pnginfo=texts)
        return out.getvalue()

    @override
    def _decode(self, data: bytes) -> Image:
        return decode_image(data)

    @override
    def _read_payload(self, data: bytes) -> int | None:
        return self._watermark.read(decode_image(data)).payload

    @override
    def _read_label(self, data: bytes) -> str:
        from PIL import Image as Pictures

        with Pictures.open(io.BytesIO(data)) as picture:
            picture.load()
            label = picture.getexif().get(_EXIF_DESCRIPTION) or picture.info.get("Description")
        return str(label or "")

    @override
    def _fingerprint(self, content: Image, payload: int) -> Content:
        return fingerprint_image(align_luma(content, ImageWatermarkResult(payload, 0.0)))

    @override
    def _measure_strength(self, content: Image, marked: Image) -> dict[str, float]:
        return {"psnr": round(measure_psnr(content, marked), 2)}


def select_lookup_label(row: Mapping[str, Any] | None, content: ContentMatch) -> str:
    """Return the label for an image that carries the lab's watermark."""
    if content == "differs":
        return _COPIED_MARK_LABEL
    kind = row.get("kind") if row is not None else None
    return IMAGE_LABELS[kind] if kind else _UNKNOWN_IMAGE_LABEL


def decode_image(data: bytes) -> Image:
    """Decode the pixels of a file to RGB, (H, W, 3)."""
    from PIL import Image as Pictures

    with Pictures.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB"))
