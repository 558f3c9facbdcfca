"""What a user would write today with PyTorch or scipy, each op in its best layout.

Arrays are those of ``jimjax.ops`` with a batch in front. ``same`` forms run our algorithm,
``textbook`` forms the usual one.
"""

import itertools

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional


def rotate_linear(volumes: torch.Tensor, rotations: torch.Tensor) -> torch.Tensor:
    """Trilinear, zeros outside, about voxel n // 2 (here n even)."""
    return move_linear(volumes, rotations, rotations.new_zeros(len(rotations), 3))


def move_linear(
    volumes: torch.Tensor, rotations: torch.Tensor, shifts: torch.Tensor
) -> torch.Tensor:
    """The same, then shifted by ``(batch, 3)`` voxels."""
    batch, size = volumes.shape[0], volumes.shape[-1]
    # align_corners=False: voxel i lies at (2 i + 1) / n - 1, so the centre voxel at 1 / n.
    centre = volumes.new_full((3, 1), 1 / size)
    matrix = rotations.transpose(1, 2)
    offset = centre - matrix @ (centre + shifts[..., None] * (2 / size))
    theta = torch.cat([matrix, offset], dim=-1)
    grid = functional.affine_grid(theta, [batch, 1, size, size, size], align_corners=False)
    return functional.grid_sample(volumes[:, None], grid, align_corners=False)[:, 0]


def rotate_cubic(volumes: np.ndarray, rotations: np.ndarray) -> np.ndarray:
    """scipy's cubic spline; no PyTorch op does it."""
    out = np.empty_like(volumes)
    for index, (volume, rotation) in enumerate(zip(volumes, rotations, strict=True)):
        matrix = rotation.T[::-1, ::-1]
        centre = np.array(volume.shape) // 2
        out[index] = ndimage.affine_transform(
            volume, matrix, centre - matrix @ centre, order=3, mode="grid-constant"
        )
    return out


def constrained_correlation(
    volumes: torch.Tensor, templates: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Same: by Parseval's identity on half spectra."""
    size = volumes.shape[-1]
    weights = mask.new_full(mask.shape, 2.0)
    weights[..., 0] = 1
    if size % 2 == 0:
        weights[..., -1] = 1
    weights = weights * mask**2
    weights[..., 0, 0, 0] = 0
    a, b = (torch.fft.rfftn(v, dim=(1, 2, 3)) for v in (volumes, templates))
    axes = (1, 2, 3)
    cross = (weights * (a.real * b.real + a.imag * b.imag)).sum(axes)
    norm_a = (weights * (a.real**2 + a.imag**2)).sum(axes)
    norm_b = (weights * (b.real**2 + b.imag**2)).sum(axes)
    return cross / torch.sqrt(norm_a * norm_b)


def local_correlation_rows(
    source: torch.Tensor, target: torch.Tensor, *, radius: int
) -> torch.Tensor:
    """Same: one matrix product for each row pair, of which a band is kept."""
    depth, height, width = source.shape[1:4]
    padded = functional.pad(target, (0, 0, radius, radius, radius, radius, radius, radius))
    size = 2 * radius + 1
    out = []
    for oz, oy in itertools.product(range(-radius, radius + 1), repeat=2):
        z, y = radius - oz, radius - oy
        rows = padded[:, z : z + depth, y : y + height]
        products = torch.einsum("bzyxc,bzywc->bzyxw", source, rows)
        flat = functional.pad(products.flatten(-2), (0, width))
        band = flat.unflatten(-1, (width, width + 2 * radius + 1))[..., :size]
        out.append(band.flip(-1))
    return torch.cat(out, dim=-1)


def local_correlation(source: torch.Tensor, target: torch.Tensor, *, radius: int) -> torch.Tensor:
    """Textbook: one product and sum for each offset."""
    depth, height, width = source.shape[1:4]
    padded = functional.pad(target, (0, 0, radius, radius, radius, radius, radius, radius))
    out = []
    for oz, oy, ox in itertools.product(range(-radius, radius + 1), repeat=3):
        z, y, x = radius - oz, radius - oy, radius - ox
        shifted = padded[:, z : z + depth, y : y + height, x : x + width]
        out.append((source * shifted).sum(-1))
    return torch.stack(out, dim=-1)


def global_correlation(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Same: one matrix product."""
    return target.flatten(1, 3) @ source.flatten(1, 3).transpose(1, 2)


def bilateral(volumes: torch.Tensor, *, sigma_space: float, sigma_range: float) -> torch.Tensor:
    """Same: 3^3 window, shifted slices, neighbours inside the box alone."""
    return _window_mean(volumes, volumes[:, None], sigma_space, sigma_range)


def gradient_bilateral(
    volumes: torch.Tensor, *, sigma_space: float, sigma_range: float
) -> torch.Tensor:
    """Same: the weights compare gradients of the Laplacian."""
    edge = functional.pad(volumes[:, None], (1,) * 6, mode="replicate")[:, 0]
    inner = slice(1, -1)
    laplacian = -6 * volumes
    for axis in (1, 2, 3):
        for side in (slice(None, -2), slice(2, None)):
            laplacian = laplacian + edge[_window_at(axis, side, inner)]
    edge = functional.pad(laplacian[:, None], (1,) * 6, mode="replicate")[:, 0]
    gradient = [
        edge[_window_at(axis, slice(2, None), inner)]
        - edge[_window_at(axis, slice(None, -2), inner)]
        for axis in (1, 2, 3)
    ]
    return _window_mean(volumes, torch.stack(gradient, dim=1), sigma_space, sigma_range)


def _window_at(axis: int, side: slice, inner: slice) -> tuple[slice, ...]:
    return (slice(None), *(side if a == axis else inner for a in (1, 2, 3)))


def _window_mean(
    volumes: torch.Tensor, guide: torch.Tensor, sigma_space: float, sigma_range: float
) -> torch.Tensor:
    depth, height, width = volumes.shape[1:]
    near, near_guide = functional.pad(volumes, (1,) * 6), functional.pad(guide, (1,) * 6)
    inside = functional.pad(torch.ones_like(volumes), (1,) * 6)
    total, norm = torch.zeros_like(volumes), torch.zeros_like(volumes)
    for oz, oy, ox in itertools.product(range(3), repeat=3):
        at = (..., slice(oz, oz + depth), slice(oy, oy + height), slice(ox, ox + width))
        distance = (oz - 1) ** 2 + (oy - 1) ** 2 + (ox - 1) ** 2
        unlike = ((guide - near_guide[at]) ** 2).sum(1) / sigma_range**2
        weight = inside[at] * torch.exp(-0.5 * (unlike + distance / sigma_space**2))
        total = total + weight * near[at]
        norm = norm + weight
    return total / norm


def spectral_pool(volumes: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Same: one matrix for each axis; ``(batch, z, y, x, channel)``."""
    volumes = torch.einsum("ax,bzyxc->bzyac", matrix, volumes)
    volumes = torch.einsum("ay,bzyxc->bzaxc", matrix, volumes)
    return torch.einsum("az,bzyxc->bayxc", matrix, volumes)


def spectral_pool_fft(volumes: torch.Tensor, *, out: int) -> torch.Tensor:
    """Textbook: crops the centred FFT (another basis than the cosines: time alone compares)."""
    spectrum = torch.fft.fftshift(torch.fft.fftn(volumes, dim=(1, 2, 3)), dim=(1, 2, 3))
    first = (volumes.shape[1] - out) // 2
    kept = slice(first, first + out)
    spectrum = torch.fft.ifftshift(spectrum[:, kept, kept, kept], dim=(1, 2, 3))
    return torch.fft.ifftn(spectrum, dim=(1, 2, 3)).real


def conv3d(x: torch.Tensor, kernel: torch.Tensor, *, dilation: int) -> torch.Tensor:
    """Same, on ``(batch, channel, z, y, x)`` in channels-last memory, PyTorch's fastest."""
    return functional.conv3d(x, kernel, padding=dilation, dilation=dilation)
