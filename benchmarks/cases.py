"""What ``benchmarks.ops`` times: each op at several sizes, beside a peer."""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np
import torch

from benchmarks import peers
from jimjax import ops

VOLUMES = ((16, 32), (8, 64), (1, 192))  # batch, box
CUTOFF = 0.25  # cycles per voxel, of the constrained correlation: |k| <= 8 in a box of 32
SIGMA_SPACE, SIGMA_RANGE = 120.0, 1.2  # Vox-UDA
LOCAL = ((4, 16, 32, 2), (4, 16, 32, 3))  # batch, box, channels, radius
GLOBAL = ((16, 8, 64), (4, 10, 128))  # batch, box, channels
POOLED = ((4, 32, 32, 16), (4, 16, 64, 8))  # batch, box, channels, out
CONVOLVED = (  # batch, box, in, out, dilation
    (4, 32, 1, 32, 1),
    (4, 16, 32, 64, 1),
    (4, 16, 64, 128, 1),
    (2, 32, 32, 32, 1),
    (4, 16, 32, 32, 2),
)

# What keeps the ratios down, where they are near 1 or below.
BOUNDS = {
    "constrained_correlation": (
        "Two real FFTs are 60 % of the forward pass, and XLA's on CPU takes 1 to 1.3 times as "
        "long as MKL's; the rest is passes over spectra: taking the mean away, which the peer "
        "does not do, and three sums, which XLA does not join. Sums as inner products and a loop "
        "over the batch were tried: no faster. Cropped, the matrix products that crop take two "
        "thirds of the time at 192^3 and run at 70 GFLOP/s."
    ),
    "local_correlation": (
        "Products of rows of 16 by 20 voxels are too small to keep the core busy. A sum for each "
        "offset was tried and is slower; one product of whole planes would waste 15/16 of itself."
    ),
    "conv3d": (
        "oneDNN convolves in blocked layouts at the rate of a matrix product. Ours is one 2-D "
        "convolution with the depth taps as channels, whose stacking is not free, and for the "
        "kernel one matrix product for each slab of 512 voxels. Tried, slower: 27 products, all "
        "taps as columns for the forward pass, Winograd's form, XLA's own 3-D convolution."
    ),
    "global_correlation": "One matrix product on both sides, near the roof on both.",
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One op at one size beside one peer.

    Attributes:
        op: name of the op.
        size: of its input, for the table.
        peer: package and form that it is compared with.
        kind: "same" or "formulation".
        ours: function of batched jax arrays.
        theirs: the peer's function of tensors or, for scipy, of numpy arrays.
        inputs: float32 arrays.
        exact: a peer whose result in float64 ours must have; ``theirs`` if None.
        num_differentiated: how many of the inputs, from the first, the gradient is for; 0 for a
            forward pass alone.
        flops: of the matrix products that the forward pass cannot do without; the backward pass
            needs as many for each input.
        is_torch: whether the peer takes tensors.
    """

    op: str
    size: str
    peer: str
    kind: str
    ours: Callable
    theirs: Callable
    inputs: tuple[np.ndarray, ...]
    exact: Callable | None = None
    num_differentiated: int = 1
    flops: int = 0
    is_torch: bool = True


def every() -> Iterator[Case]:
    """All of them, in the order of the table."""
    yield from volume_cases()
    yield from feature_cases()
    yield from convolution_cases()


def volume_cases() -> Iterator[Case]:
    for batch, box in VOLUMES:
        size = f"{batch} x {box}^3"
        generator = np.random.default_rng(box)
        volumes, others = generator.normal(size=(2, batch, box, box, box)).astype(np.float32)
        turns = np.asarray(
            jax.vmap(ops.random_rotation)(jax.random.split(jax.random.key(0), batch))
        )
        yield Case(
            "rotate_linear",
            size,
            "torch grid_sample",
            "same",
            jax.vmap(ops.rotate),
            peers.rotate_linear,
            (volumes, turns),
        )
        yield Case(
            "rotate_cubic",
            size,
            "scipy affine_transform",
            "same",
            jax.vmap(functools.partial(ops.rotate, order=3)),
            peers.rotate_cubic,
            (volumes, turns),
            num_differentiated=0,
            is_torch=False,
        )
        yield from correlation_cases(size, volumes, others)
        sigmas = {"sigma_space": SIGMA_SPACE, "sigma_range": SIGMA_RANGE}
        for name in ("bilateral", "gradient_bilateral"):
            yield Case(
                name,
                size,
                "torch shifted slices",
                "same",
                jax.vmap(functools.partial(getattr(ops, name), **sigmas)),
                functools.partial(getattr(peers, name), **sigmas),
                (volumes,),
            )


def correlation_cases(size: str, volumes: np.ndarray, others: np.ndarray) -> Iterator[Case]:
    box = volumes.shape[-1]
    mask = ops.bandpass_mask((box,) * 3, high=CUTOFF, norm="max")
    small = 2 * int(CUTOFF * box) + 2  # even, and holds the band without its Nyquist planes
    small_mask = ops.bandpass_mask((small,) * 3, high=CUTOFF * box / small, norm="max")

    def correlate(a: jax.Array, b: jax.Array) -> jax.Array:
        return ops.constrained_correlation(a, b, mask)

    def correlate_cropped(a: jax.Array, b: jax.Array) -> jax.Array:
        a, b = ops.fourier_resize(a, small), ops.fourier_resize(b, small)
        return ops.constrained_correlation(a, b, small_mask)

    def peer(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return peers.constrained_correlation(a, b, torch_mask.to(a))

    torch_mask = torch.from_numpy(np.array(mask))
    for kind, ours in (("same", correlate), ("formulation", correlate_cropped)):
        yield Case(
            "constrained_correlation",
            size,
            "torch Parseval",
            kind,
            jax.vmap(ours),
            peer,
            (volumes, others),
            num_differentiated=2,
        )


def feature_cases() -> Iterator[Case]:
    for batch, box, channels, radius in LOCAL:
        pair = _features(2, batch, box, channels)
        for kind, name, peer in (
            ("same", "torch row products", peers.local_correlation_rows),
            ("formulation", "torch shifted sums", peers.local_correlation),
        ):
            yield Case(
                "local_correlation",
                f"{batch} x {box}^3 x {channels}, radius {radius}",
                name,
                kind,
                jax.vmap(functools.partial(ops.local_correlation, radius=radius)),
                functools.partial(peer, radius=radius),
                tuple(pair),
                exact=functools.partial(peers.local_correlation, radius=radius),
                num_differentiated=2,
                flops=2 * batch * box**3 * (2 * radius + 1) ** 3 * channels,
            )
    for batch, box, channels in GLOBAL:
        pair = _features(2, batch, box, channels)
        yield Case(
            "global_correlation",
            f"{batch} x {box}^3 x {channels}",
            "torch matmul",
            "same",
            lambda source, target: jax.vmap(ops.global_correlation)(source, target).reshape(
                source.shape[0], source[0, ..., 0].size, -1
            ),
            peers.global_correlation,
            tuple(pair),
            num_differentiated=2,
            flops=2 * batch * box**6 * channels,
        )
    for batch, box, channels, out in POOLED:
        (features,) = _features(1, batch, box, channels)
        matrix = torch.from_numpy(ops.spectral_pool_matrix(box, out, out))

        def same(x: torch.Tensor, matrix: torch.Tensor = matrix) -> torch.Tensor:
            return peers.spectral_pool(x, matrix.to(x))

        for kind, name, peer in (
            ("same", "torch matmul", same),
            ("formulation", "torch FFT crop", functools.partial(peers.spectral_pool_fft, out=out)),
        ):
            yield Case(
                "spectral_pool",
                f"{batch} x {box}^3 x {channels} to {out}^3",
                name,
                kind,
                jax.vmap(functools.partial(ops.spectral_pool, keep=out, out=out)),
                peer,
                (features,),
                exact=same,
                flops=2 * batch * channels * box * out * (box**2 + box * out + out**2),
            )


def convolution_cases() -> Iterator[Case]:
    for batch, box, num_in, num_out, dilation in CONVOLVED:
        (features,) = _features(1, batch, box, num_in)
        kernel = np.random.default_rng(1).normal(size=(3, 3, 3, num_in, num_out))
        yield Case(
            "conv3d",
            f"{batch} x {box}^3, {num_in} to {num_out}, dilation {dilation}",
            "torch channels-last",
            "same",
            functools.partial(ops.conv3d, dilation=dilation),
            functools.partial(_channels_last_conv, dilation=dilation),
            (features, kernel.astype(np.float32)),
            num_differentiated=2,
            flops=2 * batch * box**3 * 27 * num_in * num_out,
        )


def _channels_last_conv(x: torch.Tensor, kernel: torch.Tensor, *, dilation: int) -> torch.Tensor:
    # The permuted x is channels-last memory already.
    kernel = kernel.permute(4, 3, 0, 1, 2).contiguous(memory_format=torch.channels_last_3d)
    return peers.conv3d(x.permute(0, 4, 1, 2, 3), kernel, dilation=dilation).permute(0, 2, 3, 4, 1)


def _features(count: int, batch: int, box: int, channels: int) -> np.ndarray:
    shape = (count, batch, box, box, box, channels)
    return np.random.default_rng(box).normal(size=shape).astype(np.float32)
