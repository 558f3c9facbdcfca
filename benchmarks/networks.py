"""The networks as a user of PyTorch would write them, to time ours beside.

Modules and parameters have the names of ours, so that ``load`` can give them the same numbers.
Volumes are ``(batch, z, y, x)``.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from jimjax.models.blocks import BATCH_NORM_EPSILON
from jimjax.models.voxresnet import HEADS, VoxResNetConfig
from jimjax.models.yopo import YopoConfig


class VoxResNet(nn.Module):
    """As ``jimjax.models.voxresnet``, but mirrored, as published: stride 2 pads before."""

    is_mirrored = True

    def __init__(self, config: VoxResNetConfig):
        super().__init__()
        widths = config.widths
        self.first = _conv(1, widths[0])
        self.first_norm = batch_norm(widths[0], config.momentum)
        self.second = _conv(widths[0], widths[0])
        self.stages = nn.ModuleList([_Stage(config, num_in) for num_in in widths[:-1]])
        self.heads = nn.ModuleList(
            [
                _Head(num_in, config.num_classes, size, stride)
                for num_in, (size, stride) in zip(widths, HEADS, strict=True)
            ]
        )

    def forward(self, volumes: torch.Tensor) -> torch.Tensor:
        """Logits ``(batch, num_classes, z, y, x)``."""
        maps = self.second(torch.relu(self.first_norm(self.first(volumes[:, None]))))
        logits = self.heads[0](maps)
        for stage, head in zip(self.stages, self.heads[1:], strict=True):
            maps = stage(maps)
            logits = logits + head(maps)
        return logits


class _Stage(nn.Module):
    def __init__(self, config: VoxResNetConfig, num_in: int):
        super().__init__()
        self.norm = batch_norm(num_in, config.momentum)
        self.halve = _conv(num_in, config.width, stride=2)
        self.residuals = nn.ModuleList([_Residual(config) for _ in range(2)])

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        maps = self.halve(torch.relu(self.norm(maps)))
        for residual in self.residuals:
            maps = residual(maps)
        return maps


class _Residual(nn.Module):
    def __init__(self, config: VoxResNetConfig):
        super().__init__()
        width = config.width
        self.norms = nn.ModuleList([batch_norm(width, config.momentum) for _ in range(2)])
        self.convs = nn.ModuleList([_conv(width, width) for _ in range(2)])

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        hidden = maps
        for norm, conv in zip(self.norms, self.convs, strict=True):
            hidden = conv(torch.relu(norm(hidden)))
        return maps + hidden


class _Head(nn.Module):
    def __init__(self, num_in: int, num_classes: int, size: int, stride: int):
        super().__init__()
        padding = (size - stride) // 2
        self.spread = nn.ConvTranspose3d(num_in, num_in, size, stride, padding)
        self.closing = _conv(num_in, num_classes)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return self.closing(torch.relu(self.spread(maps)))


class Yopo(nn.Module):
    """As ``jimjax.models.yopo`` with full kernels and global maxima."""

    is_mirrored = False

    def __init__(self, config: YopoConfig):
        super().__init__()
        widths = config.widths
        self.convs = nn.ModuleList(
            [
                nn.Conv3d(before, after, 3)
                for before, after in zip((1, *widths), widths, strict=False)
            ]
        )
        self.norms = nn.ModuleList([batch_norm(width, config.momentum) for width in widths])
        self.norm = nn.BatchNorm1d(sum(widths), BATCH_NORM_EPSILON, 1 - config.momentum)
        self.dense = nn.Linear(sum(widths), config.dense_width)
        self.head = nn.Linear(config.dense_width, config.num_classes)

    def forward(self, volumes: torch.Tensor) -> torch.Tensor:
        """Logits ``(batch, num_classes)``."""
        hidden, pooled = volumes[:, None], []
        for conv, norm in zip(self.convs, self.norms, strict=True):
            hidden = norm(functional.elu(conv(hidden)))
            pooled.append(hidden.amax(dim=(2, 3, 4)))
        return self.head(self.dense(self.norm(torch.cat(pooled, dim=1))))


def load(module: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Gives a module the numbers of our network's parameters, by name."""
    own = dict(module.named_parameters())
    for name, array in arrays.items():
        stem, kind = name.rsplit(".", 1)
        values = torch.from_numpy(np.array(array))
        if kind == "kernel" and values.ndim == 2:
            values = values.T
        elif kind == "kernel":
            is_transposed = isinstance(module.get_submodule(stem), nn.ConvTranspose3d)
            values = (
                values.permute(3, 4, 0, 1, 2) if is_transposed else values.permute(4, 3, 0, 1, 2)
            )
            if module.is_mirrored:
                values = values.flip(2, 3, 4)
        theirs = f"{stem}.{'bias' if kind == 'bias' else 'weight'}"
        with torch.no_grad():
            own.pop(theirs).copy_(values)
    if own:
        raise KeyError(f"our network has no '{next(iter(own))}'")


def _conv(num_in: int, num_out: int, *, stride: int = 1) -> nn.Conv3d:
    return nn.Conv3d(num_in, num_out, 3, stride, padding=1)


def batch_norm(width: int, momentum: float) -> nn.BatchNorm3d:
    """Batch norm as ours."""
    return nn.BatchNorm3d(width, BATCH_NORM_EPSILON, 1 - momentum)
