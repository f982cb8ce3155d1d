"""F3-Net: frequency-aware decomposition into bands of the cosine transform.

Source: Qian et al. 2020, "Thinking in Frequency: Face Forgery Detection by Mining Frequency-aware
Clues", arXiv:2007.09355, section 3.1 (FAD). Differs: the second branch (LFS) and the attention
between branches are omitted, as is common.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.forensics.interfaces import BackboneDetector

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stillroom.forensics.networks.interfaces import DetectorNetwork

__all__ = ["F3net"]


class F3net(BackboneDetector):
    """DCT bands, each as an image."""

    paper: ClassVar[str] = "arXiv:2007.09355"
    preserve_pixels: ClassVar[bool] = True
    limitations: ClassVar[tuple[str, ...]] = (
        "It reads frequencies: strong compression, blur and resizing take away what it reads.",
    )

    @override
    def build(self, input_size: int) -> DetectorNetwork:
        from stillroom.forensics.networks.interfaces import Backbone, TwoStreamNetwork

        body = Backbone(self.backbone, self.weights, channels=12, widen="repeat")
        return TwoStreamNetwork(body, front_end=_make_frequency_bands(input_size))


def _make_frequency_bands(pixels: int) -> nn.Module:
    """Return a front end: low, middle, high and full band of the DCT, each as an image.

    Each band's filter is fixed plus a learned part within (-1, 1); the output is (B, 12, H, W).
    """
    import torch
    from torch import nn

    from stillroom.forensics.networks.interfaces import Normalize, make_dct_matrix

    class FrequencyBands(nn.Module):
        cosine: Tensor
        bands: Tensor

        def __init__(self, pixels: int) -> None:
            super().__init__()
            self.register_buffer("cosine", make_dct_matrix(pixels), persistent=False)
            index = torch.arange(pixels)
            total = index[:, None] + index[None]
            edges = ((0.0, pixels / 2.82), (pixels / 2.82, pixels / 2), (pixels / 2, 2.0 * pixels))
            fixed = [((total >= low) & (total < high)).float() for low, high in edges]
            self.register_buffer("bands", torch.stack([*fixed, torch.ones_like(fixed[0])]), False)
            self.learned = nn.Parameter(torch.randn(4, pixels, pixels) * 0.1)
            self.normalize = Normalize()

        def forward(self, images: Tensor) -> Tensor:
            coefficients = self.cosine @ self.normalize(images) @ self.cosine.T  # (B, 3, H, W)
            filters = self.bands + torch.tanh(self.learned / 2)  # 2 sigmoid(w) - 1
            split = coefficients[:, None] * filters[None, :, None]  # (B, 4, 3, H, W)
            back = self.cosine.T @ split @ self.cosine
            return torch.flatten(back, 1, 2)  # (B, 12, H, W)

    return FrequencyBands(pixels)
