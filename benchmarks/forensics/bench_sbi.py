"""Self-blended images beside an albumentations pipeline of the same steps, CPU seconds a pair.

The peer (albumentations 2.0.8, MIT) is looked for in build/peers/albumentations. It is given the
same hull, and does the same color change, loss of detail or sharpening, affine move, elastic warp
of the mask, two blurs and blend.
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

from stillroom.forensics.media.masks import HULL_KINDS, draw_hull
from stillroom.forensics.media.transforms import blend
from stillroom.forensics.synthesis.faces import draw_face
from stillroom.forensics.synthesis.image_forgeries.sbi import Sbi

ROOT = Path(__file__).resolve().parents[2]
PEER = Path(os.environ.get("PEER", ROOT / "build/peers/albumentations"))
SIZE, ROUNDS, EACH = 224, int(os.environ.get("ROUNDS", "7")), int(os.environ.get("EACH", "12"))


def build_peer() -> Callable[[object, np.random.Generator], object]:
    sys.path.insert(0, str(PEER))
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations as alb

    change = alb.Compose(
        [
            alb.RGBShift((-20, 20), (-20, 20), (-20, 20), p=0.3),
            alb.HueSaturationValue(5, 38, 38, p=1),
            alb.RandomBrightnessContrast(0.1, 0.1, p=1),
            alb.OneOf([alb.Downscale((0.25, 0.5)), alb.Sharpen((0.2, 0.5), p=1)], p=1),
        ]
    )
    move = alb.Affine(
        translate_percent={"x": (-0.03, 0.03), "y": (-0.015, 0.015)}, scale=(0.95, 1 / 0.95), p=1
    )
    bend = alb.ElasticTransform(alpha=50, sigma=7, p=1)

    def make(face: object, rng: np.random.Generator) -> object:
        kind = HULL_KINDS[int(rng.integers(4))]
        mask = draw_hull(face.landmarks, face.image.shape[:2], kind)
        source, target = change(image=face.image)["image"], face.image
        if rng.random() < 0.5:
            source, target = target, source
        moved = move(image=source, mask=mask)
        mask = bend(image=moved["image"], mask=moved["mask"])["mask"]
        for _ in range(2):
            size = int(rng.integers(3, 13)) * 2 - 1
            mask = cv2.GaussianBlur(mask, (size, size), float(rng.uniform(5, 45)))
            mask = mask / max(float(mask.max()), 1e-6)
        return blend(moved["image"], target, mask.astype(np.float32))

    return make


def main() -> None:
    cv2.setNumThreads(1)
    faces = [draw_face(1, number, SIZE) for number in range(EACH)]
    sbi = Sbi()
    ways = {"ours": lambda face, rng: sbi.forge([face], rng)}
    if PEER.is_dir():
        ways["peer"] = build_peer()
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(ROUNDS + 1):
        for name, way in ways.items():
            start = time.process_time()
            for number, face in enumerate(faces):
                way(face, np.random.default_rng([turn, number]))
            if turn:  # the first round warms up
                spent[name].append((time.process_time() - start) / len(faces))
    middle = {name: statistics.median(values) for name, values in spent.items()}
    peer = middle.get("peer")
    print(
        json.dumps(
            {
                "what": "forensics/sbi/vs_albumentations",
                "value": round(peer / middle["ours"], 2) if peer else None,
                "ours_cpu_ms": round(middle["ours"] * 1000, 2),
                "peer_cpu_ms": round(peer * 1000, 2) if peer else None,
                "size": SIZE,
                "n": ROUNDS * EACH,
                "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
                f"load {os.getloadavg()[0]:.1f}",
            }
        )
    )


if __name__ == "__main__":
    main()
