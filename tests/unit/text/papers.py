"""PDF files written by hand: text at places, lines, pictures, fields, notes."""

import zlib


class Paper:
    """A PDF in the making; places are points from the lower left corner."""

    FONTS = ("Helvetica", "Helvetica-Bold", "Courier")

    def __init__(self) -> None:
        self.pages: list[dict] = []

    def page(self, width=612, height=792, rotate=0) -> "Paper":
        self.pages.append({"ops": [], "box": (width, height), "rotate": rotate, "annotations": []})
        self.pages[-1]["images"] = []
        return self

    def text(self, x, y, text, size=10, font=0, matrix=None) -> "Paper":
        a, b, c, d = matrix or (1, 0, 0, 1)
        escaped = text.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")
        encoded = escaped.encode("cp1252").decode("latin-1")
        self.pages[-1]["ops"].append(
            f"BT /F{font} {size} Tf {a} {b} {c} {d} {x} {y} Tm ({encoded}) Tj ET"
        )
        return self

    def lines(self, x, y, texts, size=10, font=0, pitch=12) -> "Paper":
        for number, text in enumerate(texts):
            self.text(x, y - number * pitch, text, size, font)
        return self

    def rule(self, x0, y0, x1, y1) -> "Paper":
        self.pages[-1]["ops"].append(f"{x0} {y0} m {x1} {y1} l S")
        return self

    def grid(self, xs, ys) -> "Paper":
        for x in xs:
            self.rule(x, min(ys), x, max(ys))
        for y in ys:
            self.rule(min(xs), y, max(xs), y)
        return self

    def image(self, pixels, x, y, width, height) -> "Paper":
        """Put grey pixels, (Y, X) uint8, on the page."""
        images = self.pages[-1]["images"]
        self.pages[-1]["ops"].append(f"q {width} 0 0 {height} {x} {y} cm /I{len(images)} Do Q")
        images.append(pixels)
        return self

    def annotation(self, body) -> "Paper":
        self.pages[-1]["annotations"].append(body)
        return self

    def save(self, fields: bool = False) -> bytes:
        objects: list[bytes] = [b"", b""]

        def add(body: str | bytes) -> int:
            objects.append(body.encode("latin-1") if isinstance(body, str) else body)
            return len(objects)

        fonts = [
            add(f"<< /Type /Font /Subtype /Type1 /BaseFont /{name} /Encoding /WinAnsiEncoding >>")
            for name in self.FONTS
        ]
        font_list = " ".join(f"/F{at} {number} 0 R" for at, number in enumerate(fonts))
        widgets: list[str] = []
        kids = [self._page(page, font_list, add, widgets) for page in self.pages]
        form = f"/AcroForm << /Fields [{' '.join(widgets)}] >>" if fields else ""
        objects[0] = f"<< /Type /Catalog /Pages 2 0 R {form} >>".encode()
        listed = " ".join(f"{kid} 0 R" for kid in kids)
        objects[1] = f"<< /Type /Pages /Kids [{listed}] /Count {len(kids)} >>".encode()
        return write_objects(objects)

    def _page(self, page, font_list, add, widgets) -> int:
        images = []
        for pixels in page["images"]:
            packed = zlib.compress(pixels.tobytes())
            head = (
                f"<< /Type /XObject /Subtype /Image /Width {pixels.shape[1]} /Height "
                f"{pixels.shape[0]} /ColorSpace /DeviceGray /BitsPerComponent 8 /Filter "
                f"/FlateDecode /Length {len(packed)} >>\nstream\n"
            )
            images.append(add(head.encode() + packed + b"\nendstream"))
        stream = "\n".join(page["ops"]).encode("latin-1")
        content = add(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream))
        notes = [f"{add(body)} 0 R" for body in page["annotations"]]
        widgets += notes
        listed = " ".join(f"/I{at} {number} 0 R" for at, number in enumerate(images))
        width, height = page["box"]
        return add(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {width} {height}] /Rotate "
            f"{page['rotate']} /Contents {content} 0 R /Annots [{' '.join(notes)}] /Resources "
            f"<< /Font << {font_list} >> /XObject << {listed} >> >> >>"
        )


def write_objects(objects: list[bytes], trailer: str = "/Root 1 0 R") -> bytes:
    """Return a file of PDF objects, the first being the catalog."""
    data = bytearray(b"%PDF-1.6\n")
    offsets = []
    for number, body in enumerate(objects, 1):
        offsets.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(data)
    data += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    for offset in offsets:
        data += b"%010d 00000 n \n" % offset
    data += b"trailer << /Size %d %s >>\nstartxref\n%d\n%%%%EOF" % (
        len(objects) + 1,
        trailer.encode(),
        start,
    )
    return bytes(data)
