"""Which faces make up a step, and the fakes that are made of them on the fly.

Every pair is a pure function of seed, pass and face: a resumed run forges the same ones, and no
fake is ever written to disk. Real face and fake of one person stand in the same batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from stillroom.forensics.colours import keep_grey
from stillroom.forensics.detector_settings import DetectorSettings
from stillroom.forensics.face import Face
from stillroom.forensics.method import Forged, Forgery
from stillroom.forensics.moving import forge_moving
from stillroom.forensics.views import View, draw_clip_view, draw_view, to_planes
from stillroom.provenance import digest_json

if TYPE_CHECKING:
    from stillroom.train.ranks import Ranks

__all__ = ["PairBatch", "PairSource", "forge_clip", "forge_pair", "make_batch"]

_TRAIN = 0xDE7


@dataclass(frozen=True, eq=False)
class PairBatch:
    """Pictures (B, 3, P, P) in [0, 1], labels (B,), masks (B, P, P); fakes first, then twins.

    Of a detector that looks at clips: (B, T, 3, P, P) and (B, T, P, P).
    """

    images: Tensor
    labels: Tensor
    masks: Tensor
    record_ids: tuple[str, ...]

    @property
    def valid(self) -> int:
        """How many pictures there are."""
        return len(self.labels)

    @property
    def tokens(self) -> int:
        """How many pictures there are; the loop counts its pace in them."""
        return len(self.labels)


class PairSource:
    """Gives the pairs of any step."""

    def __init__(
        self,
        faces: Sequence[Face],
        forgeries: Sequence[Forgery],
        settings: DetectorSettings,
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        """Stand over faces; each pass shuffles them."""
        self.faces, self.forgeries, self.settings = faces, forgeries, settings
        self.seed, self.device = seed, device
        self.keeps_pixels = settings.model.keeps_pixels
        self.identity = digest_json(
            [
                [[face.digest, face.name] for face in faces],
                [forgery.model_dump(mode="json") for forgery in forgeries],
                settings.model_dump(mode="json"),
                seed,
            ]
        )

    def __len__(self) -> int:
        """Return how many faces one pass has."""
        return len(self.faces)

    def begin(self, step: int, model: nn.Module, ranks: Ranks) -> Mapping[str, float]:
        """Do nothing: pairs are made as they are loaded."""
        return {}

    def plan(self, step: int) -> list[list[int]]:
        """Return the step's places in the endless row of passes, as one micro-batch."""
        size = min(self.settings.train.batch_size, len(self.faces))
        return [list(range(step * size, step * size + size))]

    def valid(self, group: Sequence[int]) -> int:
        """Return how many pictures a micro-batch has."""
        return 2 * len(group)

    def load(self, group: Sequence[int]) -> PairBatch:
        """Forge the pairs of a micro-batch."""
        views, names = [], []
        for place in group:
            turn, offset = divmod(place, len(self.faces))
            order = np.random.default_rng([self.seed, turn, _TRAIN]).permutation(len(self.faces))
            number = int(order[offset])
            rng = np.random.default_rng([self.seed, turn, number, _TRAIN])
            views.append(self._draw(number, rng))
            names.append(self.faces[number].name)
        batch = make_batch(views, names, self.device)
        if not self.settings.shuffle_labels:
            return batch
        labels = torch.tensor([self._lot(name, turn) for turn in (1, 0) for name in names])
        return PairBatch(batch.images, labels.to(self.device), batch.masks, batch.record_ids)

    def _draw(self, number: int, rng: np.random.Generator) -> View:
        settings, frames = self.settings, self.settings.model.looks_at
        if frames > 1:
            clip = forge_clip(self.faces, number, self.forgeries, frames, rng)
            return draw_clip_view(
                clip, settings.views, settings.pixels, rng, keeps_pixels=self.keeps_pixels
            )
        forged = forge_pair(self.faces, number, self.forgeries, rng)
        return draw_view(
            forged, settings.views, settings.pixels, rng, keeps_pixels=self.keeps_pixels
        )

    def _lot(self, name: str, label: int) -> float:
        """Return a picture's lot, the same in every pass: else there would be nothing to learn."""
        return float(int(digest_json([self.seed, name, label])[:8], 16) % 2)


def forge_pair(
    faces: Sequence[Face], number: int, forgeries: Sequence[Forgery], rng: np.random.Generator
) -> Forged:
    """Return a face forged by one of some forgeries, drawn by lot.

    Where a second face is needed, it is of another person if there is one.
    """
    method, given = _choose(faces, number, forgeries, rng)
    forged = method.forge(given, rng)
    return keep_grey(forged, given[0].image) if method.is_made else forged


def forge_clip(
    faces: Sequence[Face],
    number: int,
    forgeries: Sequence[Forgery],
    frames: int,
    rng: np.random.Generator,
) -> list[Forged]:
    """Return a face set in motion and forged frame by frame, as ``forge_pair`` forges one."""
    method, given = _choose(faces, number, forgeries, rng)
    return forge_moving(given, method, frames, rng)


def _choose(
    faces: Sequence[Face], number: int, forgeries: Sequence[Forgery], rng: np.random.Generator
) -> tuple[Forgery, list[Face]]:
    method = forgeries[int(rng.integers(len(forgeries)))] if len(forgeries) > 1 else forgeries[0]
    face = faces[number]
    given = [face]
    if method.faces_needed > 1:
        others = [one for one in faces if one.identity != face.identity] or list(faces)
        given.append(others[int(rng.integers(len(others)))])
    return method, given


def make_batch(views: Sequence[View], names: Sequence[str], device: torch.device) -> PairBatch:
    """Return views as one batch: all fakes, then all real twins."""
    planes = to_planes([view.fake for view in views] + [view.real for view in views])
    masks = np.stack([view.mask for view in views])
    count = len(views)
    labels = torch.cat([torch.ones(count), torch.zeros(count)])
    return PairBatch(
        torch.from_numpy(planes).to(device),
        labels.to(device),
        torch.from_numpy(np.concatenate([masks, np.zeros_like(masks)])).to(device),
        tuple(names),
    )
