"""Audio detector networks: AASIST graph attention and LFCC with max-feature-maps.

Networks take waveforms (B, N) in [-1, 1] at ``SAMPLE_RATE``.

Source: AASIST by Jung et al. 2021, arXiv:2110.01200, section 3, implemented from the paper; sizes
and the order of operations match the published weights.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from stillroom.forensics.media.audio import SAMPLE_RATE
from stillroom.forensics.networks.interfaces import DetectorNetwork, DetectorOutput

__all__ = [
    "AASIST_CONFIGS",
    "AasistConfig",
    "AasistNetwork",
    "LfccFrontend",
    "LfccNetwork",
]


class AasistConfig(NamedTuple):
    """Encoder channels, node widths, pooling shares, softmax temperatures."""

    channels: tuple[int, ...]
    nodes: tuple[int, int]
    kept: tuple[float, float, float]
    heat: tuple[float, float, float]


AASIST_CONFIGS = {
    "full": AasistConfig((32, 32, 64, 64, 64, 64), (64, 32), (0.5, 0.7, 0.5), (2.0, 2.0, 100.0)),
    "light": AasistConfig((32, 32, 24, 24, 24, 24), (24, 32), (0.4, 0.5, 0.7), (2.0, 2.0, 100.0)),
    "tiny": AasistConfig((8, 8, 12), (12, 8), (0.5, 0.5, 0.5), (2.0, 2.0, 100.0)),
}


_BANDS, _KERNEL = 70, 129


_ROWS = 23  # bands after pooling by three


class AasistNetwork(DetectorNetwork):
    """The AASIST network with one logit: spoofed against bona fide."""

    filters: Tensor

    def __init__(self, size: str, *, as_released: bool = False) -> None:
        """Build one of ``AASIST_CONFIGS``.

        Args:
            size: Its name.
            as_released: Feed each block's first convolution its raw input, as in the released
                code, rather than the activated input, as in the paper's figure.
        """
        super().__init__()
        sizes = AASIST_CONFIGS[size]
        wide, small = sizes.nodes
        self.register_buffer("filters", _make_band_filters(), persistent=False)
        self.first_norm = nn.BatchNorm2d(1)
        inputs = (1, *sizes.channels[:-1])
        self.encoder = nn.Sequential(
            *(
                _ResidualBlock(
                    in_channels, out_channels, is_first=index == 0, as_released=as_released
                )
                for index, (in_channels, out_channels) in enumerate(
                    zip(inputs, sizes.channels, strict=True)
                )
            )
        )
        last = sizes.channels[-1]
        self.places = nn.Parameter(torch.randn(1, _ROWS, last))
        self.masters = nn.ParameterList([torch.randn(1, 1, wide) for _ in range(2)])
        self.over_bands = _GraphAttention(last, wide, sizes.heat[0])
        self.over_time = _GraphAttention(last, wide, sizes.heat[1])
        self.pool_bands = _GraphPool(sizes.kept[0], wide, 0.3)
        self.pool_time = _GraphPool(sizes.kept[1], wide, 0.3)
        self.branches = nn.ModuleList(
            [_HeterogeneousBranch(wide, small, sizes.heat[2], sizes.kept[2]) for _ in range(2)]
        )
        self.drop_way, self.dropout = nn.Dropout(0.2), nn.Dropout(0.5)
        self.head = nn.Linear(5 * small, 1)

    @override
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
        features = torch.cat(
            [time.abs().amax(1), time.mean(1), bands.abs().amax(1), bands.mean(1), master[:, 0]], 1
        )
        return DetectorOutput(self.head(self.dropout(features))[:, 0], features)


class _ResidualBlock(nn.Module):
    """Two convolutions with a shortcut, then pooling by three in time."""

    def __init__(
        self, in_channels: int, out_channels: int, *, is_first: bool, as_released: bool
    ) -> None:
        super().__init__()
        self.enter = None if is_first else nn.BatchNorm2d(in_channels)
        self.as_released = as_released
        self.first = nn.Conv2d(in_channels, out_channels, (2, 3), padding=(1, 1))
        self.norm = nn.BatchNorm2d(out_channels)
        self.second = nn.Conv2d(out_channels, out_channels, (2, 3), padding=(0, 1))
        self.shortcut = (
            nn.Conv2d(in_channels, out_channels, (1, 3), padding=(0, 1))
            if in_channels != out_channels
            else None
        )

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        entered = inputs
        if self.enter is not None and not self.as_released:
            entered = functional.selu(self.enter(inputs))
        residual = self.second(functional.selu(self.norm(self.first(entered))))
        shortcut = inputs if self.shortcut is None else self.shortcut(inputs)
        return functional.max_pool2d(residual + shortcut, (1, 3))


class _GraphAttention(nn.Module):
    """Attention within one graph, (B, N, before) to (B, N, after)."""

    def __init__(self, in_features: int, out_features: int, heat: float) -> None:
        super().__init__()
        self.compare = nn.Linear(in_features, out_features)
        self.weight = nn.Parameter(nn.init.xavier_normal_(torch.empty(out_features, 1)))
        self.attended, self.plain = (
            nn.Linear(in_features, out_features),
            nn.Linear(in_features, out_features),
        )
        self.norm = nn.BatchNorm1d(out_features)
        self.dropout = nn.Dropout(0.2)
        self.heat = heat

    @override
    def forward(self, nodes: Tensor) -> Tensor:
        nodes = self.dropout(nodes)
        pairs = torch.tanh(self.compare(nodes[:, :, None] * nodes[:, None]))  # (B, N, N, D)
        share = torch.softmax((pairs @ self.weight)[..., 0] / self.heat, dim=-2)
        projected = self.attended(share @ nodes) + self.plain(nodes)
        return functional.selu(_normalize(self.norm, projected))


class _HeterogeneousAttention(nn.Module):
    """Attention across two graphs of different types and a master node."""

    def __init__(self, in_features: int, out_features: int, heat: float) -> None:
        super().__init__()
        self.enter = nn.ModuleList([nn.Linear(in_features, in_features) for _ in range(2)])
        self.compare, self.compare_master = (
            nn.Linear(in_features, out_features),
            nn.Linear(in_features, out_features),
        )
        self.weights = nn.ParameterList(
            [nn.init.xavier_normal_(torch.empty(out_features, 1)) for _ in range(4)]
        )  # within the first, within the second, between them, with the master
        self.attended, self.plain = (
            nn.Linear(in_features, out_features),
            nn.Linear(in_features, out_features),
        )
        self.master_attended = nn.Linear(in_features, out_features)
        self.master_plain = nn.Linear(in_features, out_features)
        self.norm = nn.BatchNorm1d(out_features)
        self.dropout = nn.Dropout(0.2)
        self.heat = heat

    @override
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
        share = torch.softmax(scores / self.heat, dim=-2)
        master_scores = torch.tanh(self.compare_master(nodes * master)) @ with_master  # (B, N, 1)
        master_weights = torch.softmax(master_scores / self.heat, dim=-2)
        master = self.master_attended(master_weights.transpose(1, 2) @ nodes) + self.master_plain(
            master
        )
        projected = self.attended(share @ nodes) + self.plain(nodes)
        projected = functional.selu(_normalize(self.norm, projected))
        return projected[:, :count], projected[:, count:], master


class _HeterogeneousBranch(nn.Module):
    """Two heterogeneous attentions, the second with a residual around it."""

    def __init__(self, in_features: int, out_features: int, heat: float, ratio: float) -> None:
        super().__init__()
        self.one, self.two = (
            _HeterogeneousAttention(in_features, out_features, heat),
            _HeterogeneousAttention(out_features, out_features, heat),
        )
        self.pool_time, self.pool_bands = (
            _GraphPool(ratio, out_features, 0.3),
            _GraphPool(ratio, out_features, 0.3),
        )

    @override
    def forward(self, time: Tensor, bands: Tensor, master: Tensor) -> tuple[Tensor, ...]:
        time, bands, master = self.one(time, bands, master.expand(len(time), -1, -1))
        time, bands = self.pool_time(time), self.pool_bands(bands)
        more = self.two(time, bands, master)
        return time + more[0], bands + more[1], master + more[2]


class _GraphPool(nn.Module):
    """Keep the highest scoring nodes, scaled by their scores."""

    def __init__(self, ratio: float, wide: int, dropout: float) -> None:
        super().__init__()
        self.kept = ratio
        self.score = nn.Linear(wide, 1)
        self.dropout = nn.Dropout(dropout)

    @override
    def forward(self, nodes: Tensor) -> Tensor:
        scores = torch.sigmoid(self.score(self.dropout(nodes)))  # (B, N, 1)
        count = max(int(nodes.shape[1] * self.kept), 1)
        top = scores.topk(count, dim=1).indices
        return torch.gather(nodes * scores, 1, top.expand(-1, -1, nodes.shape[2]))


def _normalize(norm: nn.BatchNorm1d, nodes: Tensor) -> Tensor:
    normalized: Tensor = norm(nodes.flatten(0, 1)).view(nodes.shape)
    return normalized


def _make_band_filters() -> Tensor:
    """Return fixed band-pass filters, evenly on the mel scale, (bands, 1, kernel).

    Source: Ravanelli and Bengio 2018, arXiv:1808.00158 (differences of sinc functions).
    """
    mel = torch.linspace(0, 2595 * torch.log10(torch.tensor(1 + SAMPLE_RATE / 2 / 700)), _BANDS + 1)
    edges = 700 * (10 ** (mel.double() / 2595) - 1)
    time = torch.arange(_KERNEL, dtype=torch.float64) - (_KERNEL - 1) / 2
    cut = 2 * edges[:, None] / SAMPLE_RATE
    low_pass = cut * torch.sinc(cut * time)
    window = torch.hamming_window(_KERNEL, periodic=False, dtype=torch.float64)
    return ((low_pass[1:] - low_pass[:-1]) * window).float()[:, None]


_LENGTH, _WINDOW, _HOP = 512, 320, 160


_MIN_POWER = 1e-7


class LfccFrontend(nn.Module):
    """Linear-frequency cepstral coefficients with first and second deltas; (B, 3, filters, T)."""

    bank: Tensor
    cosine: Tensor
    window: Tensor

    def __init__(self, filters: int) -> None:
        """Build ``filters`` triangular filters, evenly from 0 to half the sample rate."""
        super().__init__()
        edges = torch.linspace(0, SAMPLE_RATE / 2, filters + 2)
        frequency = torch.linspace(0, SAMPLE_RATE / 2, _LENGTH // 2 + 1)
        left, middle, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
        bank = torch.minimum(
            (frequency - left) / (middle - left), (right - frequency) / (right - middle)
        )
        self.register_buffer("bank", bank.clamp(min=0), persistent=False)
        index = torch.arange(filters)
        cosine = torch.cos(math.pi / filters * (index[None] + 0.5) * index[:, None])
        cosine = cosine * math.sqrt(2 / filters)
        cosine[0] /= math.sqrt(2)
        self.register_buffer("cosine", cosine, persistent=False)
        self.register_buffer("window", torch.hamming_window(_WINDOW), persistent=False)

    @override
    def forward(self, waves: Tensor) -> Tensor:
        raised = waves - 0.97 * functional.pad(waves, (1, 0))[:, :-1]  # pre-emphasis
        frames = raised.unfold(1, _WINDOW, _HOP) * self.window  # (B, T, window)
        power = torch.fft.rfft(frames, _LENGTH).abs().square()
        energy = (power @ self.bank.T + _MIN_POWER).log()  # (B, T, filters)
        plain = (energy @ self.cosine.T).transpose(1, 2)  # (B, filters, T)
        first = _compute_delta(plain)
        return torch.stack([plain, first, _compute_delta(first)], dim=1)


class LfccNetwork(DetectorNetwork):
    """Four convolution blocks with max-feature-maps, and one logit."""

    def __init__(self, width: int, filters: int) -> None:
        """Build the network on ``filters`` cepstral coefficients."""
        super().__init__()
        self.front = LfccFrontend(filters)
        self.scale = nn.BatchNorm2d(3)
        sizes = (3, width, 2 * width, 2 * width, width)
        blocks: list[nn.Module] = []
        for number, (in_channels, out_channels) in enumerate(pairwise(sizes)):
            blocks += [
                nn.Conv2d(in_channels, 2 * out_channels, 5 if number == 0 else 3, padding="same"),
                _MaxFeatureMap(),
                nn.BatchNorm2d(out_channels),
            ]
            blocks += [nn.MaxPool2d(2)] if number < len(sizes) - 2 else []
        self.blocks = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(2 * width, 1)

    @override
    def forward_features(self, waveforms: Tensor) -> DetectorOutput:
        grid = self.blocks(self.scale(self.front(waveforms)))  # (B, width, filters / 8, T / 8)
        along = grid.mean(2)
        features = torch.cat([along.mean(2), along.std(2, correction=0)], dim=1)
        return DetectorOutput(self.head(self.dropout(features))[:, 0], features)


class _MaxFeatureMap(nn.Module):
    """Max-feature-map: elementwise maximum of the two halves of the channels."""

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        first, second = inputs.chunk(2, dim=1)
        return torch.maximum(first, second)


def _compute_delta(values: Tensor) -> Tensor:
    """Return the slope over five frames, of the same shape."""
    padded = functional.pad(values, (2, 2), mode="replicate")
    near = padded[..., 3:-1] - padded[..., 1:-3]
    far = padded[..., 4:] - padded[..., :-4]
    return (near + 2 * far) / 10
