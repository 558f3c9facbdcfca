"""EDSS3D: an encoder and a decoder that say of each voxel which class of particle it belongs to."""

from dataclasses import dataclass

import jax
from flax import nnx

from jimjax.models.autoencoder import check_size, convolve_rectified, small_size, upsample
from jimjax.models.blocks import Conv, Kernel, in_full, max_pool, pool_to, run_block
from jimjax.models.compute import Compute
from jimjax.ops.correlation import standardize

HIGHEST_CLASS = 127  # of labels in int8


@dataclass(frozen=True)
class Edss3dConfig:
    """Sizes of an EDSS3D.

    Attributes:
        box: side of the particles in voxels.
        size: side that they are spectrally pooled to first, a multiple of 4; voxels are told apart
            at that size. The box leaves them as they are.
        classes: numbers, from 1, of what each channel but the first stands for; the first is
            background.
        width: channels of the convolutions.
        kernel: "full" as published, or "isotropic", radial ones.
    """

    box: int
    size: int
    classes: tuple[int, ...]
    width: int = 32
    kernel: Kernel = "full"

    def __post_init__(self) -> None:
        """Refuses sizes that cannot be built."""
        if not self.classes or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes must be one or more different numbers, got {self.classes}")
        if not 1 <= min(self.classes) <= max(self.classes) <= HIGHEST_CLASS:
            raise ValueError(f"classes must be from 1 to {HIGHEST_CLASS}, got {self.classes}")
        if self.width < 1:
            raise ValueError("width needs at least 1")
        check_size(self.size, self.box)


class Edss3d(nnx.Module):
    """Tells voxels of particles apart, in which protein is positive.

    Reference: Zeng et al. 2018, J. Struct. Biol. 202, and its published code.
    """

    def __init__(self, config: Edss3dConfig, rngs: nnx.Rngs):
        self.config, self.compute = config, Compute()
        widths = (1, *[config.width] * 4)
        self.convs = nnx.List(
            [Conv(num_in, config.width, kernel=config.kernel, rngs=rngs) for num_in in widths]
        )
        self.head = Conv(config.width, 1 + len(config.classes), size=1, rngs=rngs)

    def __call__(self, volumes: jax.Array, *, train: bool) -> jax.Array:
        """Logits ``(batch, size, size, size, 1 + classes)`` of volumes ``(batch, z, y, x)``."""
        return self.segment(self.prepare(volumes, train=train), train=train)

    def prepare(self, volumes: jax.Array, *, train: bool) -> jax.Array:
        """Pools and normalises volumes ``(batch, z, y, x)``; ``train`` has no influence."""
        del train
        pooled = pool_to(volumes[..., None], self.config.size, self.config.size)[..., 0]
        return jax.vmap(standardize)(pooled)

    def segment(self, prepared: jax.Array, *, train: bool) -> jax.Array:
        """Logits of volumes of ``prepare``; ``train`` has no influence."""
        del train
        maps = prepared[..., None]
        change = (max_pool, max_pool, upsample, upsample)
        for conv, resize in zip(self.convs, change, strict=False):
            maps = resize(run_block(self.compute, convolve_rectified, conv, maps))
        return in_full(self.head(nnx.relu(self.convs[-1](maps))))


def paper(box: int, classes: tuple[int, ...]) -> Edss3dConfig:
    """The published sizes: 112 thousand parameters; for an accelerator."""
    return Edss3dConfig(box=box, size=box, classes=classes)


def small(box: int, classes: tuple[int, ...]) -> Edss3dConfig:
    """Trains on a laptop: radial kernels, half the channels, and particles pooled to 16 voxels."""
    return Edss3dConfig(
        box=box, size=small_size(box), classes=classes, width=16, kernel="isotropic"
    )
