"""Gum-Net and Jim-Net as a user of PyTorch would write them, to time ours beside.

As in ``networks``, whose ``load`` gives them the numbers of ours.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from benchmarks import peers
from benchmarks.networks import batch_norm
from jimjax.models.blocks import BATCH_NORM_EPSILON, DILATIONS, ExtractorConfig
from jimjax.models.gumnet import GumNetConfig
from jimjax.models.jimnet import JimNetConfig
from jimjax.models.matching import FINE_ANGLE, FINE_SHIFT, TOWER_DEPTH, VALID_LOSS
from jimjax.ops.fourier import spectral_pool_matrix

L2_EPSILON = 1e-6


class Pose(NamedTuple):
    """Rotations ``(batch, 3, 3)`` on (x, y, z) columns and shifts ``(batch, 3)`` in voxels."""

    rotation: torch.Tensor
    shift: torch.Tensor


class GumNet(nn.Module):
    """As ``jimjax.models.gumnet`` of the published design, batch norm shared."""

    is_mirrored = False

    def __init__(self, config: GumNetConfig):
        super().__init__()
        self.config = config
        self.extractor = _GumNetExtractor(config)
        self.towers = nn.ModuleList(
            [_Tower(config.feature_size, config.tower_width, config.momentum) for _ in range(2)]
        )
        flat = 2 * config.tower_width * config.tower_size**3
        width = config.dense_width
        self.dense = nn.ModuleList([nn.Linear(flat, width), nn.Linear(width, width)])
        self.out = nn.Linear(width, 6)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> Pose:
        """Carries the source onto the target."""
        maps = _normalize(self.extractor(torch.cat([source, target])[:, None]))
        hidden = _correlated(self.towers, *maps.chunk(2))
        for dense in self.dense:
            hidden = dense(hidden)
        numbers = torch.sigmoid(self.out(hidden))
        angles = 2 * torch.pi * numbers[:, :3] - torch.pi
        turns = [_about(axis, angles[:, i]) for i, axis in enumerate((2, 1, 2))]
        shift = (2 * numbers[:, 3:] - 1) * (self.config.box / 2)
        return Pose(turns[0] @ turns[1] @ turns[2], shift)


class _GumNetExtractor(nn.Module):
    def __init__(self, config: GumNetConfig):
        super().__init__()
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for before, after in zip((1, *config.widths), config.widths, strict=False):
            self.convs.append(nn.Conv3d(before, after, 3))
            self.norms.append(nn.ModuleList([batch_norm(after, config.momentum)]))
        sides = (config.box, *config.sizes)
        self.pools = nn.ModuleList(
            [
                _SpectralPool(before - VALID_LOSS, keep, after)
                for before, keep, after in zip(sides, config.keeps, config.sizes, strict=False)
            ]
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        blocks = zip(self.convs[:-1], self.norms[:-1], self.pools, strict=True)
        for conv, (norm,), pool in blocks:
            hidden = pool(norm(torch.relu(conv(hidden))))
        return self.norms[-1][0](self.convs[-1](hidden))


class JimNet(nn.Module):
    """As ``jimjax.models.jimnet`` with dense regressors, full kernels and global maxima."""

    is_mirrored = False

    def __init__(self, config: JimNetConfig):
        super().__init__()
        self.config = config
        self.coarse, self.fine = _Extractor(config.coarse), _Extractor(config.fine)
        self.match_globally = _GlobalDense(config)
        self.match_locally = _LocalDense(config)
        self.embed_coarse = _Embedding(config.coarse, config.embedding)
        self.embed_fine = _Embedding(config.fine, config.embedding)
        self.head = nn.Linear(2 * config.embedding, config.num_classes)

    def forward(
        self, source: torch.Tensor, target: torch.Tensor
    ) -> tuple[Pose, Pose, torch.Tensor]:
        """Poses of the coarse stage and of both together, and logits of the source."""
        maps, pooled = self.coarse(torch.cat([source, target])[:, None])
        coarse = self.match_globally(*maps.chunk(2))
        moved = peers.move_linear(source, *(part.detach() for part in coarse))
        fine_maps, fine_pooled = self.fine(torch.cat([moved, target])[:, None])
        residual = self.match_locally(*fine_maps.chunk(2))
        rotation = residual.rotation @ coarse.rotation
        shift = (residual.rotation @ coarse.shift[..., None])[..., 0] + residual.shift
        logits = self._classify(pooled, fine_pooled)[: len(source)]
        return coarse, Pose(rotation, shift), logits

    def describe(self, volumes: torch.Tensor) -> torch.Tensor:
        """Logits of volumes alone."""
        stages = self.coarse(volumes[:, None]), self.fine(volumes[:, None])
        return self._classify(*(pooled for _, pooled in stages))

    def _classify(self, coarse: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.embed_coarse(coarse), self.embed_fine(fine)], dim=1))


class _Extractor(nn.Module):
    def __init__(self, config: ExtractorConfig):
        super().__init__()
        widths, sizes = config.widths, config.sizes
        self.stacks = nn.ModuleList(
            [
                _DilatedStack(before, after, config.momentum)
                for before, after in zip((1, *widths), widths, strict=False)
            ]
        )
        padding = 1 if config.closing_padding == "same" else 0
        self.closing = nn.Conv3d(widths[-1], config.num_features, 3, padding=padding)
        self.pools = nn.ModuleList(
            [
                _SpectralPool(before, keep, after)
                for before, keep, after in zip(
                    (sizes[0], *sizes), config.keeps, sizes, strict=False
                )
            ]
        )

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pooled = []
        for stack, pool in zip(self.stacks, self.pools, strict=False):
            hidden = stack(pool(hidden))
            pooled.append(hidden.amax(dim=(2, 3, 4)))
        maps = self.closing(self.pools[-1](hidden))
        return maps, torch.cat([*pooled, maps.amax(dim=(2, 3, 4))], dim=1)


class _DilatedStack(nn.Module):
    def __init__(self, num_in: int, num_out: int, momentum: float):
        super().__init__()
        widths = (num_in, *[num_out] * len(DILATIONS))
        self.convs = nn.ModuleList(
            [
                nn.Conv3d(before, num_out, 3, padding=dilation, dilation=dilation)
                for before, dilation in zip(widths, DILATIONS, strict=False)
            ]
        )
        self.norms = nn.ModuleList([batch_norm(num_out, momentum) for _ in DILATIONS])
        self.shortcut = nn.Conv3d(num_in, num_out, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = x
        for conv, norm in zip(self.convs, self.norms, strict=True):
            hidden = torch.relu(norm(conv(hidden)))
        return hidden + self.shortcut(x)


class _GlobalDense(nn.Module):
    def __init__(self, config: JimNetConfig):
        super().__init__()
        size, width = config.coarse.out_size, config.regressor_width
        self.box = config.box
        self.towers = nn.ModuleList([_Tower(size, width, config.coarse.momentum) for _ in range(2)])
        flat = 2 * width * (size - TOWER_DEPTH * VALID_LOSS) ** 3
        self.hidden, self.out = nn.Linear(flat, 2 * width), nn.Linear(2 * width, 9)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> Pose:
        hidden = _correlated(self.towers, _normalize(source), _normalize(target))
        out = self.out(torch.relu(self.hidden(hidden)))
        first = functional.normalize(out[:, :3] + out.new_tensor([1.0, 0, 0]), dim=1)
        second = out[:, 3:6] + out.new_tensor([0, 1.0, 0])
        second = second - (second * first).sum(1, keepdim=True) * first
        second = functional.normalize(second, dim=1)
        third = torch.linalg.cross(first, second)
        shift = torch.tanh(out[:, 6:]) * (self.box / 2)
        return Pose(torch.stack([first, second, third], dim=2), shift)


class _LocalDense(nn.Module):
    def __init__(self, config: JimNetConfig):
        super().__init__()
        fine, width = config.fine, config.regressor_width
        self.box, self.radius = config.box, config.local_radius
        self.convs = nn.ModuleList(
            [nn.Conv3d((2 * self.radius + 1) ** 3, width, 3, 2), nn.Conv3d(width, width, 3, 2)]
        )
        self.norms = nn.ModuleList([batch_norm(width, fine.momentum) for _ in range(2)])
        self.hidden = nn.Linear(width * (-(-fine.out_size // 4)) ** 3, 4 * width)
        self.out = nn.Linear(4 * width, 6)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> Pose:
        last = [_normalize(maps).permute(0, 2, 3, 4, 1) for maps in (source, target)]
        hidden = peers.local_correlation_rows(*last, radius=self.radius)
        hidden = hidden.permute(0, 4, 1, 2, 3)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            hidden = torch.relu(norm(conv(functional.pad(hidden, (0, 1) * 3))))
        small = torch.tanh(self.out(torch.relu(self.hidden(_flat(hidden)))))
        vector = small[:, :3] * FINE_ANGLE
        zero = torch.zeros_like(vector[:, 0])
        x, y, z = vector.unbind(1)
        cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=1).unflatten(1, (3, 3))
        return Pose(torch.linalg.matrix_exp(cross), small[:, 3:] * (FINE_SHIFT * self.box / 2))


class _Embedding(nn.Module):
    def __init__(self, stage: ExtractorConfig, width: int):
        super().__init__()
        num_pooled = sum(stage.widths) + stage.num_features
        self.norm = nn.BatchNorm1d(num_pooled, BATCH_NORM_EPSILON, 1 - stage.momentum)
        self.linear = nn.Linear(num_pooled, width)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        return self.linear(self.norm(pooled))


class _Tower(nn.Module):
    def __init__(self, size: int, width: int, momentum: float):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv3d(size**3, width, 3), nn.Conv3d(width, width, 3)])
        self.norms = nn.ModuleList([batch_norm(width, momentum) for _ in self.convs])

    def forward(self, correlation: torch.Tensor) -> torch.Tensor:
        hidden = _normalize(correlation)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            hidden = torch.relu(norm(conv(hidden)))
        return _flat(hidden)


class _SpectralPool(nn.Module):
    def __init__(self, before: int, keep: int, after: int):
        super().__init__()
        self.is_identity = before == keep == after
        matrix = torch.from_numpy(spectral_pool_matrix(before, keep, after)).float()
        self.register_buffer("matrix", matrix, persistent=False)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        if self.is_identity:
            return maps
        for equation in ("az,bczyx->bcayx", "ay,bczyx->bczax", "ax,bczyx->bczya"):
            maps = torch.einsum(equation, self.matrix, maps)
        return maps


def _correlated(towers: nn.ModuleList, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """What towers make of correlations; channels are the source's voxels, then the target's."""
    grid, first, second = source.shape[2:], source.flatten(2), target.flatten(2)
    correlation = torch.einsum("bcn,bcp->bnp", first, second)
    pairs = correlation, correlation.transpose(1, 2)
    flat = [tower(pair.unflatten(2, grid)) for tower, pair in zip(towers, pairs, strict=True)]
    return torch.cat(flat, dim=1)


def _normalize(maps: torch.Tensor) -> torch.Tensor:
    return maps * torch.rsqrt((maps**2).sum(1, keepdim=True) + L2_EPSILON)


def _flat(maps: torch.Tensor) -> torch.Tensor:
    """Channels last, as ours are."""
    return maps.permute(0, 2, 3, 4, 1).flatten(1)


def _about(axis: int, angles: torch.Tensor) -> torch.Tensor:
    cosine, sine = torch.cos(angles), torch.sin(angles)
    first, second = (axis + 1) % 3, (axis + 2) % 3
    matrix = torch.zeros(len(angles), 3, 3, dtype=angles.dtype, device=angles.device)
    matrix[:, axis, axis] = 1
    matrix[:, first, first] = matrix[:, second, second] = cosine
    matrix[:, second, first], matrix[:, first, second] = sine, -sine
    return matrix
