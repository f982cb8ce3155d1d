"""Images of text, such as scans and screenshots, read by OCR.

Each frame of a TIFF is a page. Tables and columns are found as on a PDF page; every passage is
labeled with the OCR confidence. All anchors have the bytes of the whole file.
"""

from __future__ import annotations

import io
import time
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from stillroom.errors import DataError, MissingExtraError
from stillroom.records import Document
from stillroom.text.documents.builder import DocumentBuilder, render_table
from stillroom.text.documents.office import unreadable_as_error
from stillroom.text.interfaces import Parser, SourceFile
from stillroom.text.pdf.layout import arrange_blocks
from stillroom.text.pdf.ocr import has_ocr, recognize_text, require_ocr_language

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image as PILImage

__all__ = ["Image"]

_MAX_PIXELS = 100_000_000
_MAX_SIDE = 2000


class Image(Parser):
    """PNG, JPEG, TIFF, WebP and BMP images, with the extra ``ocr``."""

    suffixes: ClassVar[tuple[str, ...]] = (
        ".png",
        ".jpg",
        ".jpeg",
        ".tif",
        ".tiff",
        ".webp",
        ".bmp",
    )
    media_type: ClassVar[str] = "image/png"
    is_risky: ClassVar[bool] = True

    @override
    def parse(self, data: bytes, source: SourceFile) -> Document:
        if source.limits.ocr == "never":
            raise DataError(
                "the file is a picture, and the limit ocr is 'never'",
                code="document.no-text",
                where=source.path,
                expected="ocr: auto",
                next="set the limit ocr to 'auto', or leave the file out",
            )
        if not has_ocr():
            raise MissingExtraError.of("rapidocr", "ocr", "reading pictures of text")
        require_ocr_language(source.limits.ocr_language, source.path)
        with unreadable_as_error(source.path):
            return _read(data, source)


def _open_picture(data: bytes, source: SourceFile) -> PILImage:
    from PIL import Image as Pictures
    from PIL import UnidentifiedImageError

    try:
        return Pictures.open(io.BytesIO(data))
    except UnidentifiedImageError:  # its text names an object in memory
        raise DataError(
            "the file is no whole picture of a known format",
            code="document.unreadable",
            where=source.path,
            expected="a whole file of its format",
            next="open and save it in its program, or leave it out",
        ) from None


def _read(data: bytes, source: SourceFile) -> Document:
    picture = _open_picture(data, source)
    frames = int(getattr(picture, "n_frames", 1))
    if picture.width * picture.height > _MAX_PIXELS or frames > source.limits.pages:
        raise DataError(
            f"the picture has {picture.width} by {picture.height} pixels and {frames} frames",
            code="document.too-large",
            where=source.path,
            expected=f"at most {_MAX_PIXELS} pixels and {source.limits.pages} frames",
            next="make it smaller, or split it",
        )
    assembly = DocumentBuilder(source)
    sure: list[float] = []
    unread: list[int] = []
    turned: list[int] = []
    begun = time.process_time()
    for number in range(1, frames + 1):
        if time.process_time() - begun > source.limits.ocr_timeout_s:
            unread.append(number)
            continue
        picture.seek(number - 1)
        source.more_time()
        result = recognize_text(_pixels(picture))
        place: dict[str, Any] = {"span": (0, len(data)), "page": number}
        place["label"] = f"OCR, confidence {result.confidence:.2f}"
        for block in arrange_blocks(result.runs):
            text = render_table(block.rows) if block.kind == "table" else block.text
            if text:
                assembly.gap()
                assembly.add(text, **place)
        if result.runs:
            sure.append(result.confidence)
        if result.turn:
            turned.append(number)
    metadata: dict[str, Any] = {
        "pages": frames,
        "ocr_confidence": round(sum(sure) / len(sure), 3) if sure else 0.0,
    }
    if turned:
        metadata["pages_turned"] = turned
    if unread:
        metadata["pages_needing_ocr"] = unread
        metadata["notices"] = [
            f"{len(unread)} of {frames} pages are left out, since OCR took longer than the limit "
            "ocr_timeout_s"
        ]
    return assembly.finish(metadata=metadata, expected="a picture of text (OCR read none)")


def _pixels(picture: Any) -> NDArray[np.uint8]:
    """Return BGR pixels, (Y, X, 3), upright, reduced to the maximum size for OCR."""
    import numpy as np
    from PIL import Image as Pictures
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(picture).convert("RGBA")
    paper = Pictures.new("RGBA", upright.size, "white")
    paper.alpha_composite(upright)
    paper.thumbnail((_MAX_SIDE, _MAX_SIDE))
    return np.ascontiguousarray(np.asarray(paper.convert("RGB"))[:, :, ::-1])
