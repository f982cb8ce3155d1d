"""AASIST: a raw-waveform detector with spectro-temporal graph attention.

Source: Jung et al. 2021, "AASIST: Audio Anti-Spoofing using Integrated Spectro-Temporal Graph
Attention Networks", arXiv:2110.01200, section 3; the encoder is RawNet2's (Tak et al. 2021,
arXiv:2011.01108). Published weights can be imported; the released code omits one activation, and
so does ``as_released``. Here a higher score means forged; in the original it means bona fide
speech.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from pydantic import Field
from typing_extensions import override

from stillroom.forensics.interfaces import AudioDetector

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stillroom.forensics.networks.interfaces import DetectorNetwork

__all__ = ["Aasist"]

_BANDS, _KERNEL = 70, 129
_ROWS = 23  # bands after pooling by three


class _Config(NamedTuple):
    """Encoder channels, node widths, pooling shares, softmax temperatures."""

    channels: tuple[int, ...]
    nodes: tuple[int, int]
    kept: tuple[float, float, float]
    heat: tuple[float, float, float]


_CONFIGS = {
    "full": _Config((32, 32, 64, 64, 64, 64), (64, 32), (0.5, 0.7, 0.5), (2.0, 2.0, 100.0)),
    "light": _Config((32, 32, 24, 24, 24, 24), (24, 32), (0.4, 0.5, 0.7), (2.0, 2.0, 100.0)),
    "tiny": _Config((8, 8, 12), (12, 8), (0.5, 0.5, 0.5), (2.0, 2.0, 100.0)),
}


class Aasist(AudioDetector):
    """Graph attention over frequency and time on the raw waveform."""

    paper: ClassVar[str] = "arXiv:2110.01200"
    limitations: ClassVar[tuple[str, ...]] = (
        "It detects the generators that it was trained on; the published weights those of 2019, "
        "on studio recordings.",
    )
    size: Literal["full", "light", "tiny"] = Field(
        default="light", description="AASIST, AASIST-L, or a smaller network for trials"
    )
    as_released: bool = Field(
        default=False, description="omit the activation that the released code omits"
    )

    @override
    def build(self, input_size: int) -> DetectorNetwork:
        return _make_network(_CONFIGS[self.size], as_released=self.as_released)


def _make_network(sizes: _Config, *, as_released: bool) -> DetectorNetwork:
    """Return the network with one logit: spoofed against bona fide.

    Args:
        sizes: Its sizes.
        as_released: Feed each block's first convolution its raw input, as in the released code,
            rather than the activated input, as in the paper's figure.
    """
    import torch
    from torch import nn
    from torch.nn import functional

    from stillroom.forensics.networks.interfaces import DetectorNetwork, DetectorOutput

    class AasistNetwork(DetectorNetwork):
        filters: Tensor

        def __init__(self) -> None:
            super().__init__()
            wide, small = sizes.nodes
            self.register_buffer("filters", _make_band_filters(), persistent=False)
            self.first_norm = nn.BatchNorm2d(1)
            self.encoder = _make_encoder(sizes.channels, as_released=as_released)
            last = sizes.channels[-1]
            self.places = nn.Parameter(torch.randn(1, _ROWS, last))
            self.masters = nn.ParameterList([torch.randn(1, 1, wide) for _ in range(2)])
            self.over_bands = _make_graph_attention(last, wide, sizes.heat[0])
            self.over_time = _make_graph_attention(last, wide, sizes.heat[1])
            self.pool_bands = _make_graph_pool(sizes.kept[0], wide)
            self.pool_time = _make_graph_pool(sizes.kept[1], wide)
            self.branches = nn.ModuleList(
                [
                    _make_heterogeneous_branch(wide, small, sizes.heat[2], sizes.kept[2])
                    for _ in range(2)
                ]
            )
            self.drop_way, self.dropout = nn.Dropout(0.2), nn.Dropout(0.5)
            self.head = nn.Linear(5 * small, 1)

        def forward_features(self, waveforms: Tensor) -> DetectorOutput:
            filtered = functional.conv1d(waveforms[:, None], self.filters)  # (B, bands, N)
            pooled = functional.max_pool2d(filtered.abs()[:, None], (3, 3))
            grid = self.encoder(functional.selu(self.first_norm(pooled)))  # (B, C, 23, T)
            size = grid.abs()
            bands = self.pool_bands(self.over_bands(size.amax(3).transpose(1, 2) + self.places))
            time = self.pool_time(self.over_time(size.amax(2).transpose(1, 2)))
            branch_outputs = [
                [self.drop_way(part) for part in branch(time, bands, master)]
                for branch, master in zip(self.branches, self.masters, strict=True)
            ]
            time, bands, master = (
                torch.maximum(first, second) for first, second in zip(*branch_outputs, strict=True)
            )
            parts = (time.abs().amax(1), time.mean(1), bands.abs().amax(1), bands.mean(1))
            features = torch.cat([*parts, master[:, 0]], 1)
            return DetectorOutput(self.head(self.dropout(features))[:, 0], features)

    return AasistNetwork()


def _make_encoder(channels: tuple[int, ...], *, as_released: bool) -> nn.Module:
    """Return RawNet2's residual encoder, (B, 1, 23, N) to (B, C, 23, T)."""
    from torch import nn

    pairs = enumerate(pairwise((1, *channels)))
    return nn.Sequential(
        *(
            _make_residual_block(before, after, is_first=index == 0, as_released=as_released)
            for index, (before, after) in pairs
        )
    )


def _make_residual_block(
    in_channels: int, out_channels: int, *, is_first: bool, as_released: bool
) -> nn.Module:
    """Return two convolutions with a shortcut, then pooling by three in time."""
    from torch import nn
    from torch.nn import functional

    class ResidualBlock(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter = None if is_first else nn.BatchNorm2d(in_channels)
            self.first = nn.Conv2d(in_channels, out_channels, (2, 3), padding=(1, 1))
            self.norm = nn.BatchNorm2d(out_channels)
            self.second = nn.Conv2d(out_channels, out_channels, (2, 3), padding=(0, 1))
            self.shortcut = (
                nn.Conv2d(in_channels, out_channels, (1, 3), padding=(0, 1))
                if in_channels != out_channels
                else None
            )

        def forward(self, inputs: Tensor) -> Tensor:
            entered = inputs
            if self.enter is not None and not as_released:
                entered = functional.selu(self.enter(inputs))
            residual = self.second(functional.selu(self.norm(self.first(entered))))
            shortcut = inputs if self.shortcut is None else self.shortcut(inputs)
            return functional.max_pool2d(residual + shortcut, (1, 3))

    return ResidualBlock()


def _make_graph_attention(in_features: int, out_features: int, heat: float) -> nn.Module:
    """Return attention within one graph, (B, N, before) to (B, N, after)."""
    import torch
    from torch import nn
    from torch.nn import functional

    class GraphAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.compare = nn.Linear(in_features, out_features)
            self.weight = nn.Parameter(nn.init.xavier_normal_(torch.empty(out_features, 1)))
            self.attended = nn.Linear(in_features, out_features)
            self.plain = nn.Linear(in_features, out_features)
            self.norm = nn.BatchNorm1d(out_features)
            self.dropout = nn.Dropout(0.2)

        def forward(self, nodes: Tensor) -> Tensor:
            nodes = self.dropout(nodes)
            pairs = torch.tanh(self.compare(nodes[:, :, None] * nodes[:, None]))  # (B, N, N, D)
            share = torch.softmax((pairs @ self.weight)[..., 0] / heat, dim=-2)
            projected = self.attended(share @ nodes) + self.plain(nodes)
            return functional.selu(_normalize(self.norm, projected))

    return GraphAttention()


def _make_heterogeneous_attention(in_features: int, out_features: int, heat: float) -> nn.Module:
    """Return attention across two graphs of different types and a master node."""
    import torch
    from torch import nn
    from torch.nn import functional

    class HeterogeneousAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter = nn.ModuleList([nn.Linear(in_features, in_features) for _ in range(2)])
            self.compare = nn.Linear(in_features, out_features)
            self.compare_master = nn.Linear(in_features, out_features)
            self.weights = nn.ParameterList(
                [nn.init.xavier_normal_(torch.empty(out_features, 1)) for _ in range(4)]
            )  # within the first, within the second, between them, with the master
            self.attended = nn.Linear(in_features, out_features)
            self.plain = nn.Linear(in_features, out_features)
            self.master_attended = nn.Linear(in_features, out_features)
            self.master_plain = nn.Linear(in_features, out_features)
            self.norm = nn.BatchNorm1d(out_features)
            self.dropout = nn.Dropout(0.2)

        def forward(self, first: Tensor, second: Tensor, master: Tensor) -> tuple[Tensor, ...]:
            count = first.shape[1]
            nodes = torch.cat([self.enter[0](first), self.enter[1](second)], dim=1)
            nodes = self.dropout(nodes)
            pairs = torch.tanh(self.compare(nodes[:, :, None] * nodes[:, None]))
            within_first, within_second, between, with_master = self.weights
            scores = (pairs @ between)[..., 0]
            rows = torch.arange(nodes.shape[1], device=nodes.device) < count
            both, neither = rows[:, None] & rows[None], ~rows[:, None] & ~rows[None]
            scores = torch.where(both, (pairs @ within_first)[..., 0], scores)
            scores = torch.where(neither, (pairs @ within_second)[..., 0], scores)
            share = torch.softmax(scores / heat, dim=-2)
            master_scores = (
                torch.tanh(self.compare_master(nodes * master)) @ with_master
            )  # (B, N, 1)
            master_weights = torch.softmax(master_scores / heat, dim=-2)
            master = self.master_attended(
                master_weights.transpose(1, 2) @ nodes
            ) + self.master_plain(master)
            projected = self.attended(share @ nodes) + self.plain(nodes)
            projected = functional.selu(_normalize(self.norm, projected))
            return projected[:, :count], projected[:, count:], master

    return HeterogeneousAttention()


def _make_heterogeneous_branch(
    in_features: int, out_features: int, heat: float, ratio: float
) -> nn.Module:
    """Return two heterogeneous attentions, the second with a residual around it."""
    from torch import nn

    class HeterogeneousBranch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = _make_heterogeneous_attention(in_features, out_features, heat)
            self.two = _make_heterogeneous_attention(out_features, out_features, heat)
            self.pool_time = _make_graph_pool(ratio, out_features)
            self.pool_bands = _make_graph_pool(ratio, out_features)

        def forward(self, time: Tensor, bands: Tensor, master: Tensor) -> tuple[Tensor, ...]:
            time, bands, master = self.one(time, bands, master.expand(len(time), -1, -1))
            time, bands = self.pool_time(time), self.pool_bands(bands)
            more = self.two(time, bands, master)
            return time + more[0], bands + more[1], master + more[2]

    return HeterogeneousBranch()


def _make_graph_pool(ratio: float, wide: int) -> nn.Module:
    """Return pooling that keeps the highest scoring nodes, scaled by their scores."""
    import torch
    from torch import nn

    class GraphPool(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.score = nn.Linear(wide, 1)
            self.dropout = nn.Dropout(0.3)

        def forward(self, nodes: Tensor) -> Tensor:
            scores = torch.sigmoid(self.score(self.dropout(nodes)))  # (B, N, 1)
            count = max(int(nodes.shape[1] * ratio), 1)
            top = scores.topk(count, dim=1).indices
            return torch.gather(nodes * scores, 1, top.expand(-1, -1, nodes.shape[2]))

    return GraphPool()


def _normalize(norm: nn.BatchNorm1d, nodes: Tensor) -> Tensor:
    normalized: Tensor = norm(nodes.flatten(0, 1)).view(nodes.shape)
    return normalized


def _make_band_filters() -> Tensor:
    """Return fixed band-pass filters, evenly on the mel scale, (bands, 1, kernel).

    Source: Ravanelli and Bengio 2018, arXiv:1808.00158 (differences of sinc functions).
    """
    import torch

    from stillroom.forensics.media.audio import SAMPLE_RATE

    mel = torch.linspace(0, 2595 * torch.log10(torch.tensor(1 + SAMPLE_RATE / 2 / 700)), _BANDS + 1)
    edges = 700 * (10 ** (mel.double() / 2595) - 1)
    time = torch.arange(_KERNEL, dtype=torch.float64) - (_KERNEL - 1) / 2
    cut = 2 * edges[:, None] / SAMPLE_RATE
    low_pass = cut * torch.sinc(cut * time)
    window = torch.hamming_window(_KERNEL, periodic=False, dtype=torch.float64)
    return ((low_pass[1:] - low_pass[:-1]) * window).float()[:, None]
