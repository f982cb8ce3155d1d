"""The watermark: exact reads after each attack, quality, speed beside invisible-watermark.

Of every mark that is read, whether its content is told as that of the marked picture; and of marks
that were copied to another picture without the key, how many are told as lying elsewhere.

Faces of FACES where they are there, else drawn ones. The peer lies in build/peers, or in PEER.
"""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from benchmarks.peers import peer_folder

from stillroom.forensics.media.face_types import Image
from stillroom.forensics.media.transforms import compress_jpeg
from stillroom.forensics.synthesis.faces import draw_face
from stillroom.forensics.watermark.fingerprint import (
    fingerprint_image,
    match_image,
    pack_fingerprint,
)
from stillroom.forensics.watermark.image import (
    IMAGE_PAYLOAD_BITS,
    ImageWatermark,
    ImageWatermarkResult,
    align_luma,
    measure_psnr,
)

ROOT = Path(__file__).resolve().parents[2]
FACES = Path(os.environ.get("FACES", "../shared/data/media/faces-synthetic"))
SIZE, COUNT, UNMARKED = (
    512,
    int(os.environ.get("COUNT", "40")),
    int(os.environ.get("UNMARKED", "500")),
)


def load(count: int, size: int) -> tuple[list[Image], str]:
    """Return faces of one size, and what they are."""
    paths = sorted(FACES.glob("*.jpg"))[:count]
    if not paths:
        return [draw_face(0, number, size).image for number in range(count)], "drawn"
    read = [
        cv2.resize(cv2.imread(str(path)), (size, size), interpolation=cv2.INTER_CUBIC)
        for path in paths
    ]
    return [np.ascontiguousarray(image[..., ::-1]) for image in read], "synthetic"


def half(image: Image) -> Image:
    return cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


def noisy(image: Image) -> Image:
    rng = np.random.default_rng(int(image.sum()) % 2**32)
    return np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)


def crop(share: float) -> Callable[[Image], Image]:
    def cut(image: Image) -> Image:
        height, width = image.shape[:2]
        top, left = int(height * share * 0.3), int(width * share * 0.6)
        return np.ascontiguousarray(
            image[top : top + round(height * (1 - share)), left : left + round(width * (1 - share))]
        )

    return cut


def caption(image: Image) -> Image:
    covered = image.copy()
    covered[-round(len(image) * 0.1) :] = 255
    return covered


def border(image: Image) -> Image:
    wide = round(len(image) * 0.05)
    inner = image[wide:-wide, wide:-wide]
    return cv2.copyMakeBorder(inner, *[wide] * 4, cv2.BORDER_CONSTANT, value=(0, 0, 0))


ATTACKS = {
    "none": lambda image: image,
    "jpeg75": lambda image: compress_jpeg(image, 75),
    "jpeg50": lambda image: compress_jpeg(image, 50),
    "half": half,
    "half_jpeg50": lambda image: compress_jpeg(half(image), 50),
    "blur1": lambda image: cv2.GaussianBlur(image, (0, 0), 1),
    "noise8": noisy,
    "caption10_jpeg75": lambda image: compress_jpeg(caption(image), 75),
    "border5": border,
}
CROPS = {
    "crop5": crop(0.05),
    "crop10": crop(0.1),
    "crop10_jpeg75": lambda i: compress_jpeg(crop(0.1)(i), 75),
    "crop10_caption10": lambda i: caption(crop(0.1)(i)),
}


def tell(what: str, value: float, **more: object) -> None:
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(json.dumps({"what": what, "value": value, **more, "machine": machine}), flush=True)


def main() -> None:
    cv2.setNumThreads(1)
    images, kind = load(COUNT, SIZE)
    mark, rng = ImageWatermark(b"a key of thirty-two bytes, or so"), np.random.default_rng(1)
    payloads = [int(rng.integers(0, 2**IMAGE_PAYLOAD_BITS)) for _ in images]
    embed_s, read_s, marked = [], [], []
    for image, payload in zip(images, payloads, strict=True):
        start = time.process_time()
        marked.append(mark.embed(image, payload))
        middle = time.process_time()
        mark.read(marked[-1])
        embed_s.append(middle - start)
        read_s.append(time.process_time() - middle)
    quality = [measure_psnr(*pair) for pair in zip(images, marked, strict=True)]
    tell(
        "forensics/watermark/psnr",
        round(statistics.mean(quality), 2),
        least=round(min(quality), 2),
        n=len(images),
        faces=kind,
    )
    for name, attack in {**ATTACKS, **CROPS}.items():
        likeness, kept = [], [sketch(image) for image in marked]
        for image, payload, row in zip(marked, payloads, kept, strict=True):
            attacked = attack(image)
            found = mark.read(attacked, search=name in CROPS)
            if found.payload == payload:
                laid = fingerprint_image(align_luma(attacked, found))
                likeness.append(match_image(row, laid))
        tell(
            f"forensics/watermark/exact_share/{name}",
            len(likeness) / len(marked),
            n=len(marked),
            faces=kind,
            same_content=sum(cells is not None for cells, _ in likeness),
            least_likeness=round(min((value for _, value in likeness), default=0.0), 3),
        )
    copy(mark, images, marked, payloads)
    false = 0
    for number in range(UNMARKED):
        base = images[number % len(images)]
        shifted = np.ascontiguousarray(
            np.roll(base, (37 * number % SIZE, 91 * number % SIZE), (0, 1))
        )
        false += mark.read(shifted, search=number < UNMARKED // 5).payload is not None
    tell("forensics/watermark/false_positives", false, n=UNMARKED, searched=UNMARKED // 5)
    read = round(statistics.median(read_s), 4)
    tell("forensics/watermark/embed_cpu_s", statistics.median(embed_s), read_cpu_s=read)
    beside(images, statistics.median(embed_s))


def sketch(image: Image) -> str:
    return pack_fingerprint(fingerprint_image(align_luma(image, ImageWatermarkResult(0, 0.0))))


def copy(
    mark: ImageWatermark, images: list[Image], marked: list[Image], payloads: list[int]
) -> None:
    """Lay the difference that each mark made on the next picture, as who has no key would."""
    likeness = []
    for at, image in enumerate(images):
        other = images[(at + 1) % len(images)].astype(int)
        copied = np.clip(other + marked[at].astype(int) - image, 0, 255).astype(np.uint8)
        found = mark.read(copied, search=True)
        if found.payload == payloads[at]:
            laid = fingerprint_image(align_luma(copied, found))
            likeness.append(match_image(sketch(marked[at]), laid))
    tell(
        "forensics/watermark/copied_told",
        sum(cells is None for cells, _ in likeness) / max(len(likeness), 1),
        copied=len(images),
        read=len(likeness),
        highest_likeness=round(max((value for _, value in likeness), default=0.0), 3),
    )


def beside(images: list[Image], embed_s: float) -> None:
    """Measure the peer on the same images."""
    folder = os.environ.get("PEER") or peer_folder(
        "invisible-watermark", "0.2.0", module="imwatermark", also=("PyWavelets==1.9.0",)
    )
    sys.path.insert(0, str(folder))
    from imwatermark import WatermarkDecoder, WatermarkEncoder

    payload = b"\x12\x34\x56\x78\x9a\xbc"
    encoder, decoder = WatermarkEncoder(), WatermarkDecoder("bytes", 48)
    encoder.set_watermark("bytes", payload)
    for method in ("dwtDct", "dwtDctSvd"):
        seconds, exact, quality = [], dict.fromkeys(ATTACKS, 0), []
        some = images[:12]
        for image in some:
            plain = np.ascontiguousarray(image[..., ::-1])
            start = time.process_time()
            marked = encoder.encode(plain, method)
            seconds.append(time.process_time() - start)
            quality.append(measure_psnr(plain, marked))
            for name, attack in ATTACKS.items():
                attacked = attack(np.ascontiguousarray(marked[..., ::-1]))[..., ::-1]
                exact[name] += decoder.decode(np.ascontiguousarray(attacked), method) == payload
        tell(
            f"forensics/watermark/vs_invisible_watermark/{method}",
            round(statistics.median(seconds) / embed_s, 2),
            ours_cpu_s=round(embed_s, 4),
            peer_cpu_s=round(statistics.median(seconds), 4),
            peer_psnr=round(statistics.mean(quality), 2),
            peer_exact={name: count / len(some) for name, count in exact.items()},
            n=len(some),
        )


if __name__ == "__main__":
    main()
