"""Every particle against every reference by itself: fast rotational matching, and what refines it.

Nothing is learned from one particle for another, so that these are baselines. A particle's class
is the reference that it correlates best with.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jimjax import ops
from jimjax.align.fit import Found, check
from jimjax.align.fit_data import FitData, Options
from jimjax.data.subtomograms import Subtomograms
from jimjax.mesh import data_mesh
from jimjax.ops import Matches
from jimjax.progress import Progress

LIMIT = 16 / 3  # of the band, cycles per particle diameter: a quarter of a cycle per voxel
BLOCK = 8  # particles at a time; their scores on the rotation grid take some 10 MB each

MATCHERS: dict[str, Callable[..., Matches]] = {
    "ht": ops.fast_rotational_matching,
    "fa": ops.fast_accurate_matching,
}


def match_all(
    particles: Subtomograms,
    references: np.ndarray,
    options: Options,
    match: Callable[..., Matches],
    *,
    progress: Progress | None = None,
) -> Found:
    """Finds the pose of every particle against every reference, and keeps the best of them.

    Args:
        particles: their own poses and classes are not read.
        references: ``(num_classes, z, y, x)`` of the particles' box and contrast.
        options: of which the number of classes, the largest shift and the diameter are used.
        match: of a template, a volume, ``volume_wedge``, ``max_shift`` and ``cutoff``.
        progress: told of every block.

    Returns:
        One row per particle. The evidence is the constrained correlation; deviations are not
        known, and not finite. The probabilities are 0 and 1.

    Raises:
        InputError: if an option is out of range, or a reference is constant.
    """
    check(particles, options, references)
    data = FitData(particles, options, references, data_mesh())
    best = jax.jit(
        functools.partial(
            _match_block,
            functools.partial(
                match,
                max_shift=options.max_shift,
                cutoff=min(0.5, data.limit(LIMIT) / data.box),
            ),
        )
    )
    templates, num_blocks = jnp.asarray(data.references), -(-data.num // BLOCK)
    parts = []
    for number in range(num_blocks):
        rows = np.minimum(np.arange(number * BLOCK, (number + 1) * BLOCK), data.num - 1)
        part = best(templates, data.measured.volumes[rows], particles.tilt_ranges[rows])
        parts.append(jax.tree.map(np.asarray, part))
        if progress is not None:
            shown = {"correlation": float(parts[-1].score.mean())}
            progress.update("matching", number + 1, num_blocks, shown)
    found = jax.tree.map(lambda *each: np.concatenate(each)[: data.num], *parts)
    rows, labels = np.arange(data.num), found.score.argmax(axis=1).astype(np.int32)
    scores = found.score[rows, labels]
    unknown = np.full(data.num, np.nan, np.float32)
    return Found(
        labels,
        np.eye(len(references), dtype=np.float32)[labels],
        found.pose.rotation[rows, labels],
        found.pose.shift[rows, labels],
        unknown,
        unknown,
        scores,
        data.references,
        unknown[:0],
    )


def _match_block(
    match: Callable[..., Matches], templates: jax.Array, volumes: jax.Array, tilts: jax.Array
) -> Matches:
    """The best pose of each particle against each reference: fields ``(n, c, ...)``."""

    def against(template: jax.Array) -> Matches:
        def one(volume: jax.Array, tilt_range: jax.Array) -> Matches:
            found = match(template, volume, volume_wedge=tilt_range)
            return jax.tree.map(lambda field: field[0], found)

        return jax.vmap(one)(volumes, tilts)

    found = jax.lax.map(against, templates)
    return jax.tree.map(lambda field: jnp.swapaxes(field, 0, 1), found)
